"""SDPO's pass over a micro-batch inside of a DeepSpeed engine: hidden states of teacher and student, the fused loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sdpo_openrlhf.captured import Captured
from sdpo_openrlhf.tokens import ActionTokens, PassInput, pass_input, student_rows, teacher_rows
from sdpo_plugins.causal_lm import SplitModel
from sdpo_plugins.config import SDPOConfig
from sdpo_plugins.host_term import HostTerm
from sdpo_plugins.inside import loss_inside
from sdpo_plugins.losses import FusedRows, row_weights
from sdpo_plugins.step_metrics import RunningSums, token_sums
from sdpo_plugins.teacher import LocalTensors, Teacher
from sdpo_plugins.token_pass import ChosenTokens, TeacherStates, student_loss, teacher_states

__all__ = ["MicroBatch", "SDPOStep", "StepResult"]


@dataclass(frozen=True)
class MicroBatch:
    """What one pass takes.

    Args:
        sequences: Token ids, padded on the right, [B, T].
        attention_mask: [B, T].
        action_mask: [B, T − 1].
        teacher_prompts: Token ids of what the teacher reads before each response.
        active: Nonzero where the teacher knows more than the student, [B].
        success: Nonzero where the rollout succeeded, [B].
        records: Id under which each rollout is recorded, or `NOT_RECORDED`, [B].
        known_log_probs: log π of the action tokens when the experience was made, [B, T − 1].
        on_policy: Whether the policy has not moved since then, so that no importance ratio is needed.
        rollout_is_weights: Of the action tokens, [B, T − 1]; None: 1.
        scale: What SDPO's loss is multiplied by, the host's averages over ranks and micro-batches made up for.
        denominator: What it is divided by; None: this micro-batch's own count.
    """

    sequences: Tensor
    attention_mask: Tensor
    action_mask: Tensor
    teacher_prompts: list[Tensor]
    active: Tensor
    success: Tensor
    records: Tensor
    known_log_probs: Tensor
    on_policy: bool
    rollout_is_weights: Tensor | None
    scale: float
    denominator: float | None


@dataclass(frozen=True)
class StepResult:
    """What one pass gives.

    Args:
        loss: SDPO's and the host's, 0-dim, with gradient.
        log_probs: log π(y) of the action tokens, [B, T − 1], without gradient; `known_log_probs` for those of rows that
            neither SDPO nor the host's terms concern, which are spared the pass.
        entropies: In nats, the same shape; 0 for those.
    """

    loss: Tensor
    log_probs: Tensor
    entropies: Tensor


@dataclass(frozen=True)
class SDPOStep:
    """Computes loss and metrics of a micro-batch in the place of the actor's forward.

    Args:
        config: The SDPO options.
        engine: DeepSpeed's engine around the model.
        split: Body and head of the model.
        teacher: The teacher's weights.
        tensors: The student's, on this rank.
        divergence: Resolved once.
        temperature: τ of the rollouts.
        packed: Whether rows lie end to end (`--ds.packing_samples`).
        pad_token_id: Pads rows otherwise.
        sums: Takes the sums of each micro-batch.
        captured: Takes the token values of rows that are recorded.
    """

    config: SDPOConfig
    engine: Any
    split: SplitModel
    teacher: Teacher
    tensors: LocalTensors
    divergence: Callable[[Tensor, Tensor], Tensor]
    temperature: float
    packed: bool
    pad_token_id: int
    sums: RunningSums
    captured: Captured

    def __call__(self, batch: MicroBatch, host: HostTerm | None) -> StepResult:
        """Run teacher and student, and return the loss with gradient.

        Args:
            batch: The micro-batch.
            host: The host's own part of the objective, or None.
        """
        tokens = ActionTokens.of(batch.sequences, batch.action_mask, batch.active, batch.success)
        rows = student_rows(batch.sequences, batch.attention_mask)
        scored = self._teacher_pass(batch, tokens, rows)
        loss, found = loss_inside(
            self.engine, self.engine.module, lambda: self._student_pass(batch, tokens, rows, scored, host)
        )
        assert found.entropies is not None
        if found.tokens is not None:
            learnt = found.entropies[: tokens.row.numel()]
            self.sums.add(token_sums(found.tokens, learnt, tokens.success[tokens.row]))
        places = tokens.places(everyone=host is not None)
        log_probs = batch.known_log_probs.detach().to(found.log_probs.dtype).index_put(places, found.log_probs)
        return StepResult(loss, log_probs, torch.zeros_like(log_probs).index_put(places, found.entropies))

    def _teacher_pass(self, batch: MicroBatch, tokens: ActionTokens, rows: list[Tensor]) -> TeacherStates:
        read, shift = teacher_rows(rows, batch.action_mask, batch.teacher_prompts)
        source = self._input(read, tokens.active_rows, shift)
        places = source.flat(tokens.row, tokens.position)
        return teacher_states(
            self.engine,
            self.engine.module,
            self.split,
            self.teacher,
            self.tensors,
            lambda: self._hidden(source),
            places,
        )

    def _student_pass(
        self,
        batch: MicroBatch,
        tokens: ActionTokens,
        rows: list[Tensor],
        scored: TeacherStates,
        host: HostTerm | None,
    ) -> tuple[Tensor, FusedRows]:
        config = self.config
        row, position = tokens.places(everyone=host is not None)
        picked = range(len(rows)) if host is not None else tokens.active_rows
        source = self._input(rows, picked, torch.zeros_like(tokens.success, dtype=torch.long))
        states = self._hidden(source).index_select(0, source.flat(row, position))
        weights = row_weights(
            tokens.active_mask,
            config.loss_agg_mode,
            denominator=batch.denominator,
            scale_factor=config.loss_scale_factor,
            like=states,
        )
        chosen = ChosenTokens(
            tokens.ids[row, position],
            row,
            position,
            tokens.ids.shape,
            batch.scale * weights[tokens.row, tokens.position],
            None if batch.on_policy else _picked(batch.known_log_probs, tokens),
            _picked(batch.rollout_is_weights, tokens),
        )
        return student_loss(
            self.split,
            states,
            chosen,
            self.teacher,
            scored,
            config,
            self.divergence,
            host=host,
            temperature=self.temperature,
            place="row {} of the micro-batch, action token {}",
            watch=self.captured.watch(batch.records, tokens.ids),
        )

    def _input(self, rows: list[Tensor], picked: Any, shift: Tensor) -> PassInput:
        return pass_input(rows, picked, shift, packed=self.packed, pad_token_id=self.pad_token_id)

    def _hidden(self, source: PassInput) -> Tensor:
        """Run the body; return its last hidden states, flat."""
        hidden: Tensor = self.split.body(**source.arguments, use_cache=False).last_hidden_state
        return hidden.reshape(-1, hidden.shape[-1])


def _picked(values: Tensor | None, tokens: ActionTokens) -> Tensor | None:
    return None if values is None else values[tokens.row, tokens.position]
