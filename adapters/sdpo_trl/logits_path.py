"""SDPO's loss of a micro-batch from whole logits: for models whose head cannot be taken apart."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sdpo_plugins.losses import aggregate, per_token_losses
from sdpo_plugins.modes import evaluating
from sdpo_plugins.records.capture import Watch, logits_at, watch_tokens
from sdpo_plugins.step_metrics import token_sums
from sdpo_plugins.teacher import local_tensors
from sdpo_trl.forward import Sequences, completion_logits, sampled_log_probs, token_entropies
from sdpo_trl.fused_path import estimate_kl
from sdpo_trl.micro_batch import MicroBatch, PathSettings

__all__ = ["LogitsPath"]


@dataclass(frozen=True)
class LogitsPath:
    """Computes the loss from the logits [B, T, V] of both models.

    Args:
        settings: Of the run.
        keep: Whether the model can leave out the logits of the prompt.
    """

    settings: PathSettings
    keep: bool

    def loss(
        self, student: nn.Module, module: nn.Module, batch: MicroBatch, watch: Watch | None = None
    ) -> tuple[Tensor, Tensor | None, dict[str, Tensor]]:
        """Return this micro-batch's loss, its load-balancing loss, and its sums for metrics.

        Args:
            student: The model as wrapped for training.
            module: The bare model.
            batch: The micro-batch.
            watch: Takes the token values of rows that are recorded.
        """
        settings = self.settings
        with settings.autocast():
            teacher = self.teacher_logits(module, batch.behind) if batch.has_active or settings.sharded else None
            logits, balance = completion_logits(student, batch.source, accepts_logits_to_keep=self.keep)
        length = logits.size(1)
        loss = logits.new_zeros((), dtype=torch.float32)
        sums: dict[str, Tensor] = {}
        if batch.has_active and teacher is not None:
            part, sums = self._distillation(logits, teacher, batch, watch)
            loss = loss + part
        if settings.beta != 0.0:
            part, kl_sums = self._reference_kl(logits, batch, batch.rows_of(batch.mask, length))
            loss = loss + part
            sums.update(kl_sums)
        if not settings.balance_experts:
            balance = None
        if balance is not None:
            sums.update(balance=balance.detach(), balance_batches=torch.ones_like(balance).detach())
        if not loss.requires_grad and torch.is_grad_enabled():
            loss = loss + 0.0 * logits.sum()
        return loss, balance, sums

    def teacher_logits(self, module: nn.Module, inputs: Sequences) -> Tensor:
        """Return the teacher's logits [B, T, V].

        Args:
            module: The bare model, into which the teacher's weights are put.
            inputs: What the teacher reads.
        """

        def forward() -> Tensor:
            return completion_logits(module, inputs, accepts_logits_to_keep=self.keep)[0]

        with torch.no_grad(), evaluating(module):
            logits: Tensor = self.settings.teacher.score(forward, local_tensors(module))
        return logits

    def _distillation(
        self, logits: Tensor, teacher: Tensor, batch: MicroBatch, watch: Watch | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        settings, config, inputs = self.settings, self.settings.config, batch.inputs
        rows = batch.teacher_rows
        student = logits if rows.numel() == batch.rows.numel() else logits[rows]
        # The two passes may have been cut to different completion lengths.
        length = min(student.size(1), teacher.size(1))
        student, teacher = student[:, :length], teacher[:, :length]
        mask = batch.teacher_rows_of(batch.active_mask, length)

        def cut(name: str) -> Tensor | None:
            value = inputs.get(name)
            return None if value is None else value[rows][:, :length].expand(-1, length)

        losses = per_token_losses(
            student,
            teacher,
            inputs["completion_ids"][rows][:, :length],
            config,
            old_log_probs=cut("old_per_token_logps"),
            rollout_is_weights=cut("importance_sampling_ratio"),
            temperature=settings.temperature,
            divergence=settings.divergence,
        )
        if watch is not None:
            row, position = mask.nonzero(as_tuple=True)
            chosen = losses.divergence[row, position]
            own, theirs = (logits_at(part, row, position, settings.temperature) for part in (student, teacher))
            watch_tokens(watch, rows[row], position, chosen, own, theirs)
        loss = batch.window.share * aggregate(
            losses.per_token,
            mask,
            config.loss_agg_mode,
            denominator=None if config.loss_normalization == "reference" else batch.window.active,
            scale_factor=settings.scale_factor,
        )
        success = inputs["sdpo_success"][rows].unsqueeze(1).expand_as(mask)
        return loss, token_sums(losses, token_entropies(student, settings.temperature), success, mask)

    def _reference_kl(self, logits: Tensor, batch: MicroBatch, mask: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        settings, config, inputs = self.settings, self.settings.config, batch.inputs
        rows, length = batch.rows, mask.size(1)
        log_probs = sampled_log_probs(logits, inputs["completion_ids"][rows][:, :length], settings.temperature)
        kl = estimate_kl(log_probs, inputs["ref_per_token_logps"][rows][:, :length])
        if settings.weigh_kl:
            old = inputs.get("old_per_token_logps")
            kl = kl * torch.exp(log_probs - (log_probs.detach() if old is None else old[rows][:, :length]))
        denominator = None if config.loss_normalization == "reference" else batch.window.all_tokens
        loss = aggregate(kl, mask, config.loss_agg_mode, denominator=denominator, scale_factor=settings.scale_factor)
        counted = torch.where(mask != 0, kl.detach(), torch.zeros_like(kl))
        return settings.beta * batch.window.share * loss, {"kl": counted.sum(), "kl_tokens": mask.sum()}
