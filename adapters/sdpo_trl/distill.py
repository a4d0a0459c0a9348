"""The SDPO loss of one micro-batch, from hidden states where the model's head can be found, else from logits."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from sdpo_plugins.causal_lm import HeadNotFound, SplitModel, split_model, split_problem
from sdpo_plugins.errors import ConfigError
from sdpo_plugins.host_term import HostTerm
from sdpo_plugins.inside import Opaque, run_inside
from sdpo_plugins.modes import evaluating
from sdpo_plugins.prefix import prefix_sharing_problem
from sdpo_plugins.records.capture import Watch
from sdpo_trl.forward import Sequences, completion_logits, is_sharded
from sdpo_trl.fused_path import FusedPath, completion_hidden
from sdpo_trl.logits_path import LogitsPath
from sdpo_trl.micro_batch import MicroBatch, PathSettings, micro_batch
from sdpo_trl.window import Window

__all__ = ["Distiller", "accepts_logits_to_keep"]

_TRIED_TOKENS = 8


def accepts_logits_to_keep(model: nn.Module) -> bool:
    """Say whether a causal language model can leave out the logits of the prompt."""
    base: Any = model
    if hasattr(model, "get_base_model"):
        base = cast(Any, model).get_base_model()
    return "logits_to_keep" in inspect.signature(type(base).forward).parameters


@dataclass
class Distiller:
    """Computes SDPO's loss for micro-batches; holds the settings of a run, not the trainer.

    Args:
        settings: Of the run.
        warn: Says something to the user.
    """

    settings: PathSettings
    warn: Callable[[list[str]], None]
    fused: FusedPath | None = field(default=None, init=False)
    _tried: bool = field(default=False, init=False)

    def choose_path(self, module: nn.Module, inputs: Mapping[str, Any], window: Window) -> None:
        """Decide at the first micro-batch, on every rank, how the loss is computed.

        Args:
            module: The bare model.
            inputs: The micro-batch, of which a few tokens are tried.
            window: Of that micro-batch.

        Raises:
            ConfigError: `loss_path` is "fused", and this model allows only "logits".
        """
        if self._tried:
            return
        self._tried = True
        self.settings = replace(self.settings, sharded=is_sharded(module))
        asked = self.settings.config.loss_path
        if asked == "logits":
            return
        tried = _few_tokens(micro_batch(inputs, window, everyone=True))
        found = self._split(module, tried)
        if isinstance(found, SplitModel):
            self.fused = FusedPath(self.settings, found, share_prefix=self._share_prefix(module, found))
        elif asked == "fused":
            raise ConfigError(
                f"`loss_path='fused'` does not work for this model: {found}. Use 'auto' or 'logits'; the loss then "
                "holds the logits of student and teacher."
            )
        else:
            self.warn(
                [
                    f"SDPO's loss is computed from whole logits, because {found}. That takes memory for the logits of "
                    "student and teacher [tokens, vocabulary]; set `loss_path='logits'` to hide this message."
                ]
            )

    def loss(
        self,
        student: nn.Module,
        module: nn.Module,
        inputs: Mapping[str, Any],
        window: Window,
        host: HostTerm | None = None,
        watch: Watch | None = None,
    ) -> tuple[Tensor, Tensor | None, dict[str, Tensor]]:
        """Return this micro-batch's part of the optimizer step's loss, summed over ranks by the caller's averaging.

        Args:
            student: The model as the trainer wraps it, for the pass with gradient.
            module: The bare model, into which the teacher's weights can be put.
            inputs: TRL's micro-batch with our `sdpo_*` entries.
            window: What the whole step is divided by.
            host: The host's own loss as a further term; only on the fused path.
            watch: Takes the token values of rows that are recorded; None: none are.

        Returns:
            The loss, to be multiplied by the number of ranks where gradients are averaged; the load-balancing loss of
            this micro-batch's active rows, to be averaged over micro-batches and ranks; and local sums for metrics.
        """
        settings = self.settings
        everyone = settings.beta != 0.0 or host is not None
        extra = {"output_router_logits": True} if settings.balance_experts else None
        batch = micro_batch(inputs, window, everyone=everyone, student_extra=extra)
        if batch.idle:
            return self._idle(student, module, batch, host), None, {}
        if self.fused is not None:
            loss, sums = self.fused.loss(student, module, batch, host, watch)
            return loss, None, sums
        return self._logits(module).loss(student, module, batch, watch)

    def _logits(self, module: nn.Module) -> LogitsPath:
        return LogitsPath(self.settings, accepts_logits_to_keep(module))

    def _idle(self, student: nn.Module, module: nn.Module, batch: MicroBatch, host: HostTerm | None) -> Tensor:
        """Take part in the collectives of the other ranks, at the price of two tokens."""
        path = self._logits(module)
        with self.settings.autocast():
            if self.settings.sharded:
                path.teacher_logits(module, batch.behind)
            logits, _ = completion_logits(student, batch.source, accepts_logits_to_keep=path.keep)
        if host is not None:
            # Its loss of nothing is 0; what it gathers over ranks is not.
            nothing = torch.zeros(batch.mask.shape, dtype=torch.float32, device=batch.mask.device)
            host.slope(nothing, nothing)
        # Zero times a logit of -inf would be NaN: a masked vocabulary must not poison an idle rank.
        return 0.0 * torch.nan_to_num(logits.float(), neginf=0.0, posinf=0.0).sum()

    @torch.no_grad()
    def _split(self, module: nn.Module, few: Sequences) -> SplitModel | str:
        """Take the model apart and compare the parts with the whole on a few tokens; a text says why that fails."""
        if self.settings.balance_experts:
            return "the load-balancing loss of its experts comes with the logits"
        if hasattr(module, "_orig_mod"):
            return "it is compiled as a whole by torch.compile"
        if any(hasattr(parameter, "ds_tensor") for parameter in module.parameters()):
            # Also where the head happens to be whole: ranks must call the same modules in the same order.
            return "ZeRO-3 gathers a head only for a call of its own module"
        try:
            split = split_model(module)
        except HeadNotFound as reason:
            return str(reason)
        with self.settings.autocast(), evaluating(module):
            logits, _ = completion_logits(module, few, accepts_logits_to_keep=accepts_logits_to_keep(module))

            def forward() -> Opaque:
                hidden = completion_hidden(split.body, few)

                def compare(states: Tensor) -> Opaque:
                    return Opaque(split_problem(split, logits, states))

                return run_inside(split.linear, split.linear, compare, hidden)

            problem: str | None = run_inside(module, module, forward).value
        return split if problem is None else problem

    def _share_prefix(self, module: nn.Module, split: SplitModel) -> bool:
        if not self.settings.config.share_teacher_prefix:
            return False
        if self.settings.sharded:
            problem: str | None = "ranks with shards of the model must all run the same number of passes"
        else:
            with torch.no_grad(), self.settings.autocast(), evaluating(module):
                problem = prefix_sharing_problem(split.body)
        if problem is not None:
            self.warn(
                [
                    f"What teacher prompts have in common is computed for each answer anew, because {problem}. Set "
                    "`share_teacher_prefix=False` to hide this message."
                ]
            )
        return problem is None


def _few_tokens(batch: MicroBatch) -> Sequences:
    source = batch.source
    if batch.whole:
        return source
    return Sequences(
        source.prompt_ids[:1, -_TRIED_TOKENS:],
        source.prompt_mask[:1, -_TRIED_TOKENS:],
        source.completion_ids[:1, :_TRIED_TOKENS],
        source.completion_mask[:1, :_TRIED_TOKENS],
    )
