"""SDPO's loss of a micro-batch from hidden states: the vocabulary only ever appears a chunk of tokens at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sdpo_plugins.causal_lm import SplitModel
from sdpo_plugins.host_term import HostTerm, linear_term
from sdpo_plugins.inside import Opaque, loss_inside, run_inside
from sdpo_plugins.losses import FusedRows, LMHead, fused_row_losses, row_weights
from sdpo_plugins.losses.fused import LogProbTerm
from sdpo_plugins.modes import evaluating
from sdpo_plugins.prefix import hidden_behind_prefixes, plan_prefixes
from sdpo_plugins.records.capture import Watch, logits_from_hidden, watch_tokens
from sdpo_plugins.step_metrics import token_sums
from sdpo_plugins.teacher import local_tensors
from sdpo_trl.forward import Sequences
from sdpo_trl.micro_batch import MicroBatch, PathSettings

__all__ = ["FusedPath"]


@dataclass(frozen=True)
class TeacherStates:
    """What the teacher's passes gave, one entry each, and the share of tokens that a common prefix saved."""

    hidden: list[Tensor] = field(default_factory=list)
    heads: list[LMHead] = field(default_factory=list)
    shares: list[float] = field(default_factory=list)
    saved: float = 0.0


@dataclass(frozen=True)
class FusedPath:
    """Computes the loss from the hidden states in front of the model's head.

    Args:
        settings: Of the run.
        split: Body and head of the bare model.
        share_prefix: Whether what teacher prompts have in common is computed once.
    """

    settings: PathSettings
    split: SplitModel
    share_prefix: bool

    def loss(
        self,
        student: nn.Module,
        module: nn.Module,
        batch: MicroBatch,
        host: HostTerm | None,
        watch: Watch | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return this micro-batch's loss and its sums for metrics.

        Args:
            student: The model as wrapped for training.
            module: The bare model.
            batch: The micro-batch.
            host: The host's own loss as a further term of the same pass.
            watch: Takes the token values of rows that are recorded.
        """
        settings = self.settings
        with settings.autocast():
            teacher = TeacherStates()
            if batch.has_active or settings.sharded:
                teacher = self.teacher_states(module, batch.behind)

            def forward() -> tuple[Tensor, dict[str, Tensor]]:
                hidden = completion_hidden(self.split.body, batch.source)
                return self._rows(hidden, teacher, batch, host, watch)

            return loss_inside(student, module, forward)

    def _rows(
        self,
        hidden: Tensor,
        teacher: TeacherStates,
        batch: MicroBatch,
        host: HostTerm | None,
        watch: Watch | None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        settings, config = self.settings, self.settings.config
        length = hidden.size(1)
        active = batch.rows_of(batch.active_mask, length) != 0
        everything = batch.rows_of(batch.mask, length) != 0
        beside = everything & ~active if settings.beta != 0.0 or host is not None else torch.zeros_like(active)
        first, rest = (part.reshape(-1).nonzero().squeeze(1) for part in (active, beside))
        tokens = torch.cat([first, rest])
        ids = batch.column("completion_ids", length)[tokens]
        weights = row_weights(
            batch.active_mask,
            config.loss_agg_mode,
            denominator=None if config.loss_normalization == "reference" else batch.window.active,
            scale_factor=settings.scale_factor,
            like=hidden,
        )
        weights = batch.window.share * batch.rows_of(weights, length).reshape(-1)[first]
        common: dict[str, Any] = {"temperature": settings.temperature, "chunk_memory_mb": config.chunk_memory_mb}
        terms: list[LogProbTerm] = []
        sums: dict[str, Tensor] = {}
        if settings.beta != 0.0:
            terms.append(self._reference_kl(batch, tokens, length, like=hidden))
        scored = batch.teacher_rows_of(batch.active_mask, batch.behind.completion_ids.size(1)).reshape(-1).nonzero()
        known = [part.reshape(-1, part.size(-1))[scored.squeeze(1)] for part in teacher.hidden]

        def inside(states: Tensor) -> tuple[Tensor, FusedRows]:
            head = self.split.head()
            correction = torch.zeros((), device=states.device)
            if host is not None:
                places = batch.places(tokens, length)
                linear, correction = linear_term(host, states, head, ids, places, batch.mask.shape, config, **common)
                terms.append(linear)
            found = fused_row_losses(
                states,
                head,
                known if first.numel() else None,
                teacher.heads,
                ids,
                weights,
                config,
                old_log_probs=batch.optional_column("old_per_token_logps", length, first),
                rollout_is_weights=batch.optional_column("importance_sampling_ratio", length, first),
                terms=terms,
                divergence=settings.divergence,
                teacher_shares=teacher.shares,
                entropies=True,
                place=lambda row: batch.place(tokens[row], length),
                **common,
            )
            if watch is not None and found.tokens is not None:
                tau = settings.temperature
                watch_tokens(
                    watch,
                    *batch.places(first, length),
                    found.tokens.divergence,
                    logits_from_hidden([states.detach()], [head], [1.0], tau),
                    logits_from_hidden(known, teacher.heads, teacher.shares, tau),
                )
            return found.loss + correction, found

        states = hidden.reshape(-1, hidden.size(-1)).index_select(0, tokens)
        loss, found = loss_inside(self.split.linear, self.split.linear, inside, states)
        with torch.no_grad():
            if found.tokens is not None and found.entropies is not None:
                success = batch.column("sdpo_success", length)[first]
                sums = token_sums(found.tokens, found.entropies[: first.numel()], success)
                if self.share_prefix:
                    one = torch.ones((), device=hidden.device)
                    sums.update(prefix_saved=teacher.saved * one, prefix_batches=one)
            if settings.beta != 0.0:
                sums.update(self._kl_sums(found, batch, tokens, length))
        return loss, sums

    def teacher_states(self, module: nn.Module, behind: Sequences) -> TeacherStates:
        """Run the teacher's passes.

        Args:
            module: The bare model, into which the teacher's weights are put.
            behind: What the teacher reads, B sequences with completions of length T.

        Returns:
            Hidden states [B, T, H] that predict the completions, and the head, of each pass.
        """
        plan = None
        if self.share_prefix and not behind.extra:
            plan = plan_prefixes(behind.prompt_ids, behind.prompt_mask, behind.completion_mask)

        def forward() -> Any:
            if plan is None:
                hidden = completion_hidden(self.split.body, behind)
            else:
                hidden = hidden_behind_prefixes(
                    self.split.body,
                    behind.prompt_ids,
                    behind.prompt_mask,
                    behind.completion_ids,
                    behind.completion_mask,
                    plan,
                )
            return Opaque(
                (hidden, self.split.copy_of_head(hidden) if self.settings.sharded else self.split.head().detached())
            )

        states = TeacherStates(saved=0.0 if plan is None else plan.saved)
        tensors = local_tensors(module)
        with torch.no_grad(), evaluating(module):
            for item in self.settings.teacher.passes:
                with self.settings.teacher.in_effect(item, tensors):
                    hidden, head = run_inside(module, module, forward).value
                states.hidden.append(hidden)
                states.heads.append(head)
                states.shares.append(item.share)
        return states

    def _reference_kl(self, batch: MicroBatch, tokens: Tensor, length: int, like: Tensor) -> LogProbTerm:
        settings, config = self.settings, self.settings.config
        weights = row_weights(
            batch.mask,
            config.loss_agg_mode,
            denominator=None if config.loss_normalization == "reference" else batch.window.all_tokens,
            scale_factor=settings.scale_factor,
            like=like,
        )
        weights = settings.beta * batch.window.share * batch.rows_of(weights, length).reshape(-1)[tokens]
        reference = batch.column("ref_per_token_logps", length)[tokens]
        old = batch.optional_column("old_per_token_logps", length, tokens)

        def term(log_probs: Tensor, rows: slice) -> Tensor:
            kl = estimate_kl(log_probs, reference[rows])
            if settings.weigh_kl:
                kl = kl * torch.exp(log_probs - (log_probs.detach() if old is None else old[rows]))
            return (kl * weights[rows]).sum()

        return term

    def _kl_sums(self, found: FusedRows, batch: MicroBatch, tokens: Tensor, length: int) -> dict[str, Tensor]:
        kl = estimate_kl(found.log_probs, batch.column("ref_per_token_logps", length)[tokens])
        old = batch.optional_column("old_per_token_logps", length, tokens)
        if self.settings.weigh_kl and old is not None:
            kl = kl * torch.exp(found.log_probs - old)
        return {"kl": kl.sum(), "kl_tokens": torch.tensor(float(tokens.numel()), device=kl.device)}


def completion_hidden(body: Callable[..., Any], inputs: Sequences) -> Tensor:
    """Return the last hidden states `[B, T, H]` that predict each completion token.

    Args:
        body: The transformer without its head.
        inputs: B sequences with completions of length T.
    """
    length = inputs.completion_ids.size(1)
    output = body(
        input_ids=torch.cat([inputs.prompt_ids, inputs.completion_ids], dim=1),
        attention_mask=torch.cat([inputs.prompt_mask, inputs.completion_mask], dim=1),
        use_cache=False,
        **inputs.extra,
    )
    hidden: Tensor = output.last_hidden_state
    # The state at position i predicts token i + 1.
    return hidden[:, -(length + 1) : -1]


def estimate_kl(log_probs: Tensor, reference: Tensor) -> Tensor:
    """Return GRPO's estimate of KL(π‖π_ref) at sampled tokens: r − 1 − log r with r = π_ref/π.

    Args:
        log_probs: log π(y), any shape.
        reference: log π_ref(y), the same shape.
    """
    log_ratio = reference - log_probs
    return torch.exp(log_ratio) - log_ratio - 1.0
