"""SDPO's pass over a micro-batch inside of a verl engine: hidden states of teacher and student, the fused loss."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor
from verl.utils import tensordict_utils as tu
from verl.utils.device import get_device_id, get_device_name

from sdpo_plugins.causal_lm import SplitModel
from sdpo_plugins.config import SDPOConfig
from sdpo_plugins.host_term import HostTerm
from sdpo_plugins.inside import loss_inside
from sdpo_plugins.losses import row_weights
from sdpo_plugins.step_metrics import RunningSums, token_sums
from sdpo_plugins.teacher import LocalTensors, Teacher
from sdpo_plugins.token_pass import ChosenTokens, TeacherStates, student_loss, teacher_states
from sdpo_verl.host_loss import HostLoss
from sdpo_verl.jagged import PassInput, ResponseTokens, pass_input
from sdpo_verl.records import CapturedTokens

__all__ = ["SDPOStep"]


@dataclass(frozen=True)
class SDPOStep:
    """Computes loss and metrics of a micro-batch in the place of an engine's `forward_step`.

    Args:
        config: The SDPO options.
        engine: verl's engine of the actor.
        split: Body and head of its model.
        teacher: The teacher's weights.
        tensors: The student's, on this rank.
        divergence: Resolved once.
        host_loss: What the host adds (policy loss, KL to a reference), or None.
        sums: Takes the sums of each micro-batch.
        captured: Takes the token values of recorded rows.
    """

    config: SDPOConfig
    engine: Any
    split: SplitModel
    teacher: Teacher
    tensors: LocalTensors
    divergence: Callable[[Tensor, Tensor], Tensor]
    host_loss: HostLoss | None
    sums: RunningSums
    captured: CapturedTokens

    def __call__(
        self, micro_batch: TensorDict, loss_function: Any, forward_only: bool
    ) -> tuple[Tensor, dict[str, Any]]:
        """Return the loss with gradient, and verl's record of the step.

        Args:
            micro_batch: With the fields of `sdpo_verl.rollouts.teacher_fields`.
            loss_function: The host's, unused: its part comes through `host_loss`.
            forward_only: Never true in training.
        """
        micro_batch = micro_batch.to(get_device_id())
        tokens = ResponseTokens.of(micro_batch)
        module = self.engine.module
        with self._autocast():
            scored = self._teacher_pass(micro_batch, tokens)

            def student() -> tuple[Tensor, dict[str, Any]]:
                return self._student_pass(micro_batch, tokens, scored)

            loss, metrics = loss_inside(module, module, student)
        return loss, {"model_output": {}, "loss": loss.detach().item(), "metrics": metrics}

    def _teacher_pass(self, micro_batch: TensorDict, tokens: ResponseTokens) -> TeacherStates:
        source = pass_input(micro_batch, tokens.active_rows, tokens.lengths, prefix="teacher_")
        module, places = self.engine.module, source.places(tokens.row, tokens.position)
        return teacher_states(
            module, module, self.split, self.teacher, self.tensors, lambda: self._hidden(source), places
        )

    def _student_pass(
        self, micro_batch: TensorDict, tokens: ResponseTokens, scored: TeacherStates
    ) -> tuple[Tensor, dict[str, Any]]:
        config = self.config
        everyone = self.host_loss is not None
        source = pass_input(micro_batch, tokens.all_rows if everyone else tokens.active_rows, tokens.lengths)
        flat = self._hidden(source)
        row, position = tokens.row, tokens.position
        if everyone:
            row, position = torch.cat([row, tokens.other_row]), torch.cat([position, tokens.other_position])
        states = flat.index_select(0, source.places(row, position))
        share, denominator = self._normalization(micro_batch)
        weights = row_weights(
            tokens.active_mask,
            config.loss_agg_mode,
            denominator=denominator,
            scale_factor=config.loss_scale_factor,
            like=states,
        )
        chosen = ChosenTokens(
            tokens.ids[row, position],
            row,
            position,
            tokens.ids.shape,
            share * weights[tokens.row, tokens.position],
            tokens.optional("old_log_probs", micro_batch),
            tokens.optional("rollout_is_weights", micro_batch),
        )
        metrics: dict[str, Any] = {}
        watch = self.captured.watch(micro_batch, tokens.ids)
        loss, found = student_loss(
            self.split,
            states,
            chosen,
            self.teacher,
            scored,
            config,
            self.divergence,
            host=self._host_term(micro_batch, metrics),
            temperature=float(tu.get_non_tensor_data(micro_batch, "temperature", 1.0)),
            watch=watch,
        )
        self.captured.keep(watch)
        if found.tokens is not None and found.entropies is not None:
            self.sums.add(token_sums(found.tokens, found.entropies[: tokens.row.numel()], tokens.success[tokens.row]))
        return loss, metrics

    def _normalization(self, micro_batch: TensorDict) -> tuple[float, float | None]:
        """Return what the micro-batch's loss is multiplied by, and what it is divided by; None: its own tokens."""
        share = 1.0 - self.config.grpo_weight
        if self.config.loss_normalization == "reference":
            return share * len(micro_batch) / int(
                tu.get_non_tensor_data(micro_batch, "sdpo_rows", len(micro_batch))
            ), None
        # verl averages gradients over ranks, while the denominator counts all of them.
        share *= int(tu.get_non_tensor_data(micro_batch, "dp_size", 1))
        return share, float(tu.get_non_tensor_data(micro_batch, "sdpo_denominator", 0.0)) or None

    def _host_term(self, micro_batch: TensorDict, metrics: dict[str, Any]) -> HostTerm | None:
        """Return the host's part of the objective; when it is computed, its metrics go into `metrics`."""
        host_loss = self.host_loss
        if host_loss is None:
            return None

        def loss(log_probs: Tensor, entropies: Tensor) -> Tensor:
            value, found = host_loss(log_probs, entropies, micro_batch)
            metrics.update(found)
            return value

        return HostTerm(1.0, loss)

    def _hidden(self, source: PassInput) -> Tensor:
        """Run the body; return its last hidden states, flat."""
        inputs, _ = self.engine.prepare_model_inputs(micro_batch=source.data)
        hidden: Tensor = self.split.body(**inputs, use_cache=False).last_hidden_state
        return hidden.reshape(-1, hidden.shape[-1])

    def _autocast(self) -> AbstractContextManager[Any]:
        dtype = getattr(self.engine, "_autocast_dtype", torch.bfloat16)
        return nullcontext() if dtype == torch.float32 else torch.autocast(get_device_name(), dtype=dtype)
