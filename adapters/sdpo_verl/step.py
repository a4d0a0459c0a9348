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
from verl.utils.metric import AggregationType, Metric

from sdpo_plugins.causal_lm import SplitModel
from sdpo_plugins.config import SDPOConfig
from sdpo_plugins.host_term import HostTerm
from sdpo_plugins.inside import Opaque, loss_inside, run_inside
from sdpo_plugins.losses import FusedRows, LinearTerm, LMHead, TokenLosses, fused_row_losses, row_weights
from sdpo_plugins.losses.fused import LogProbTerm
from sdpo_plugins.teacher import LocalTensors, Teacher
from sdpo_verl.host_loss import HostLoss
from sdpo_verl.jagged import Stream, padded_responses, sequences_of

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
    """

    config: SDPOConfig
    engine: Any
    split: SplitModel
    teacher: Teacher
    tensors: LocalTensors
    divergence: Callable[[Tensor, Tensor], Tensor]
    host_loss: HostLoss | None

    def __call__(
        self, micro_batch: TensorDict, loss_function: Any, forward_only: bool
    ) -> tuple[Tensor, dict[str, Any]]:
        """Return the loss with gradient, and verl's record of the step.

        Args:
            micro_batch: With the fields of `sdpo_verl.fields`.
            loss_function: The host's, unused: its part comes through `host_loss`.
            forward_only: Never true in training.
        """
        micro_batch = micro_batch.to(get_device_id())
        batch = _Batch.of(micro_batch)
        with self._autocast():
            heads, hidden = self._teacher_pass(micro_batch, batch)

            def student() -> Any:
                loss, metrics = self._student_pass(micro_batch, batch, heads, hidden)
                # FSDP2 rounds what a forward returns, and gathers weights again once a gradient reaches it: the loss
                # passes unseen, beside a zero that is in the graph.
                return loss[1][:1, :1].sum() * 0.0, Opaque((loss[0], metrics))

            visible, opaque = run_inside(self.engine.module, self.engine.module, student)
        loss, metrics = opaque.value
        loss = loss + visible.float()
        return loss, {"model_output": {}, "loss": loss.detach().item(), "metrics": metrics}

    def _teacher_pass(self, micro_batch: TensorDict, batch: _Batch) -> tuple[list[LMHead], list[Tensor]]:
        ids = list(micro_batch["teacher_input_ids"].unbind())
        positions = list(micro_batch["teacher_position_ids"].unbind())
        rows = batch.active_rows
        picked = rows.tolist() or [0]  # every rank takes part in every pass
        data, stream = sequences_of(
            micro_batch, [ids[row] for row in picked], [positions[row] for row in picked], batch.responses[picked]
        )
        index = torch.full_like(batch.responses, -1)
        index[rows] = torch.arange(rows.numel(), device=rows.device)
        places = stream.places(index[batch.row], batch.position)

        def forward() -> Opaque:
            hidden = self._hidden(data, stream)
            return Opaque((hidden[places].clone(), self.split.copy_of_head(hidden)))

        heads, hidden = [], []
        training = self.engine.module.training
        self.engine.module.eval()
        try:
            for item in self.teacher.passes:
                with torch.no_grad(), self.teacher.in_effect(item, self.tensors):
                    states, head = run_inside(self.engine.module, self.engine.module, forward).value
                heads.append(head)
                hidden.append(states)
        finally:
            self.engine.module.train(training)
        return heads, hidden

    def _student_pass(
        self, micro_batch: TensorDict, batch: _Batch, heads: list[LMHead], teacher: list[Tensor]
    ) -> tuple[tuple[Tensor, Tensor], dict[str, Any]]:
        config = self.config
        ids, positions = (list(micro_batch[name].unbind()) for name in ("input_ids", "position_ids"))
        everyone = self.host_loss is not None
        rows = torch.arange(len(ids), device=batch.responses.device) if everyone else batch.active_rows
        picked = rows.tolist() or [0]
        data, stream = sequences_of(
            micro_batch, [ids[row] for row in picked], [positions[row] for row in picked], batch.responses[picked]
        )
        flat = self._hidden(data, stream)
        index = torch.full_like(batch.responses, -1)
        index[rows] = torch.arange(rows.numel(), device=rows.device)
        row, position = batch.row, batch.position
        if everyone:
            row, position = torch.cat([row, batch.other_row]), torch.cat([position, batch.other_position])
        states = flat.index_select(0, stream.places(index[row], position))
        token_ids = batch.token_ids[row, position]
        dp_size = int(tu.get_non_tensor_data(micro_batch, "dp_size", 1))
        weights = row_weights(
            batch.active_mask,
            config.loss_agg_mode,
            denominator=float(tu.get_non_tensor_data(micro_batch, "sdpo_denominator", 0.0)) or None,
            scale_factor=config.loss_scale_factor,
            like=states,
        )
        # verl averages gradients over ranks, while the denominator counts all of them.
        share = (1.0 - config.grpo_weight) * dp_size
        common: dict[str, Any] = {
            "temperature": float(tu.get_non_tensor_data(micro_batch, "temperature", 1.0)),
            "chunk_memory_mb": config.chunk_memory_mb,
        }
        metrics: dict[str, Any] = {}

        def inside(given: Tensor) -> tuple[Tensor, FusedRows]:
            head = self.split.head()
            terms: list[LogProbTerm] = []
            correction = torch.zeros((), device=given.device)
            if self.host_loss is not None:
                linear, correction, kept = self._host_part(
                    given, head, token_ids, row, position, batch, micro_batch, common
                )
                terms.append(linear)
                metrics.update(kept)
            found = fused_row_losses(
                given,
                head,
                teacher if batch.row.numel() else None,
                heads,
                token_ids,
                share * weights[batch.row, batch.position],
                config,
                old_log_probs=batch.optional("old_log_probs", micro_batch),
                rollout_is_weights=batch.optional("rollout_is_weights", micro_batch),
                terms=terms,
                divergence=self.divergence,
                teacher_shares=[item.share for item in self.teacher.passes],
                entropies=True,
                place=lambda at: f"row {int(row[at])} of the micro-batch, position {int(position[at])} of the response",
                **common,
            )
            return found.loss + correction, found

        loss, found = loss_inside(self.split.linear, states, inside)
        metrics.update(_sums(found.tokens, found.entropies, batch))
        return (loss, flat), metrics

    def _host_part(
        self,
        states: Tensor,
        head: LMHead,
        token_ids: Tensor,
        row: Tensor,
        position: Tensor,
        batch: _Batch,
        micro_batch: TensorDict,
        common: dict[str, Any],
    ) -> tuple[LinearTerm, Tensor, dict[str, Any]]:
        assert self.host_loss is not None
        host_loss, kept = self.host_loss, {}
        with torch.no_grad():
            known = fused_row_losses(states, head, None, None, token_ids, None, self.config, entropies=True, **common)
        spread = [torch.zeros(batch.token_ids.shape, device=states.device) for _ in range(2)]
        assert known.entropies is not None
        for target, values in zip(spread, (known.log_probs, known.entropies), strict=True):
            target[row, position] = values.to(target.dtype)

        def loss(log_probs: Tensor, entropies: Tensor) -> Tensor:
            value, metrics = host_loss(log_probs, entropies, micro_batch)
            kept.update(metrics)
            return value

        value, slope = HostTerm(1.0, loss).slope(*spread)
        picked = slope[row, position]
        return LinearTerm(picked), value - (picked * known.log_probs).sum(), kept

    def _hidden(self, data: TensorDict, stream: Stream) -> Tensor:
        """Run the body; return its last hidden states, flat."""
        inputs, _ = self.engine.prepare_model_inputs(micro_batch=data)
        hidden: Tensor = self.split.body(**inputs, use_cache=False).last_hidden_state
        return hidden.reshape(-1, hidden.shape[-1])

    def _autocast(self) -> AbstractContextManager[Any]:
        dtype = getattr(self.engine, "_autocast_dtype", torch.bfloat16)
        return nullcontext() if dtype == torch.float32 else torch.autocast(get_device_name(), dtype=dtype)


@dataclass(frozen=True)
class _Batch:
    """A micro-batch's response tokens: which are learnt by SDPO, which only by the host's terms."""

    token_ids: Tensor
    responses: Tensor
    active_mask: Tensor
    success: Tensor
    row: Tensor
    position: Tensor
    other_row: Tensor
    other_position: Tensor

    @property
    def active_rows(self) -> Tensor:
        return (self.active_mask != 0).any(1).nonzero().squeeze(1)

    @staticmethod
    def of(micro_batch: TensorDict) -> _Batch:
        responses = micro_batch["responses"].offsets().diff()
        width = int(responses.max())
        mask = padded_responses(micro_batch["response_mask"], width) != 0
        active = mask & (micro_batch["sdpo_active"].reshape(-1, 1) != 0)
        row, position = active.nonzero(as_tuple=True)
        other_row, other_position = (mask & ~active).nonzero(as_tuple=True)
        return _Batch(
            padded_responses(micro_batch["responses"], width),
            responses,
            active.float(),
            micro_batch["sdpo_success"].reshape(-1),
            row,
            position,
            other_row,
            other_position,
        )

    def optional(self, name: str, micro_batch: TensorDict) -> Tensor | None:
        if name not in micro_batch.keys():  # noqa: SIM118  a TensorDict iterates over its rows
            return None
        return padded_responses(micro_batch[name], self.token_ids.shape[1])[self.row, self.position]


def _sums(tokens: TokenLosses | None, entropies: Tensor | None, batch: _Batch) -> dict[str, Any]:
    """Return sums over the active tokens, which verl adds up over micro-batches and ranks."""
    names = ("active_tokens", "divergence", "log_prob", "entropy", "success_tokens", "gap", "gap_success")
    # Ranks and micro-batches must all give the same names.
    values = {**dict.fromkeys(names, 0.0), "active_tokens": float(batch.row.numel())}
    if tokens is not None and entropies is not None:
        succeeded = batch.success[batch.row] != 0
        values.update(
            divergence=float(tokens.divergence.sum()),
            log_prob=float(tokens.student_log_probs.sum()),
            entropy=float(entropies[: batch.row.numel()].sum()),
            success_tokens=float(succeeded.sum()),
        )
        if tokens.teacher_log_probs is not None:
            gap = tokens.teacher_log_probs - tokens.student_log_probs
            values.update(gap=float(gap.sum()), gap_success=float(gap[succeeded].sum()))
    return {f"sdpo_sum/{name}": Metric(AggregationType.SUM, value) for name, value in values.items()}
