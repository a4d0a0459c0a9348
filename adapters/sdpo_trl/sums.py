"""Local sums over a micro-batch's tokens, from which the step's metrics are made."""

from __future__ import annotations

import torch
from torch import Tensor

from sdpo_plugins.losses import TokenLosses

__all__ = ["loss_sums"]


@torch.no_grad()
def loss_sums(losses: TokenLosses, entropies: Tensor, success: Tensor, mask: Tensor | None = None) -> dict[str, Tensor]:
    """Return the sums that `step_metrics` takes, over tokens that carry loss.

    Args:
        losses: Of any shape.
        entropies: The student's, in nats, the same shape.
        success: Nonzero where the rollout succeeded, the same shape.
        mask: Nonzero for the tokens that count; None: all.
    """
    counted = torch.ones_like(success, dtype=torch.bool) if mask is None else mask != 0

    def total(values: Tensor, only: Tensor = counted) -> Tensor:
        return torch.where(only, values.detach(), torch.zeros_like(values)).sum()

    succeeded = counted & (success != 0)
    sums = {
        "active_tokens": counted.sum(),
        "success_tokens": succeeded.sum(),
        "divergence": total(losses.divergence),
        "log_prob": total(losses.student_log_probs),
        "entropy": total(entropies),
    }
    if losses.teacher_log_probs is not None:
        gap = losses.teacher_log_probs - losses.student_log_probs
        sums.update(gap=total(gap), gap_success=total(gap, succeeded), gap_tokens=counted.sum())
    if losses.importance_ratio is not None:
        sums["importance_ratio"] = total(losses.importance_ratio)
    return sums
