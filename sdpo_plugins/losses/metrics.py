"""Health of a self-distillation step, from its token losses."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from sdpo_plugins.config import SDPOConfig
    from sdpo_plugins.losses.sdpo import TokenLosses

__all__ = ["loss_metrics"]


@torch.no_grad()
def loss_metrics(tokens: TokenLosses, mask: Tensor, config: SDPOConfig) -> dict[str, Tensor]:
    """Summarise token losses over the active tokens.

    - `active_tokens`: tokens that carry loss (count)
    - `active_sequences`: rows with at least one of them (count)
    - `empty_target_batch`: 1 if there is none, else 0 (flag)
    - `divergence`: mean divergence before clip and weights; 0 means the teacher equals the student (nats)
    - `teacher_student_gap`: mean log q(y) − log π(y) of sampled tokens; > 0: the teacher likes them better (nats)
    - `teacher_student_gap_abs`: mean of its absolute value (nats)
    - `student_log_prob`: mean log π(y) (nats)
    - `student_topk_mass`, `teacher_topk_mass`: probability of the top-K entries together (probability)
    - `importance_ratio`: mean π/π_old before the clip (ratio)
    - `importance_clip_fraction`: share of tokens whose ratio was clipped (fraction)
    - `rollout_is_weight`: mean rollout weight (ratio)
    - `loss_clip_fraction`: share of tokens whose loss was clipped (fraction)

    Args:
        tokens: The token losses `[B, T]`.
        mask: `[B, T]`, nonzero for active tokens.
        config: `is_clip` and `per_token_loss_clip` are read.

    Returns:
        Each name with `self_distillation/` before it → 0-dim tensor on the device of the losses. Means are 0 if
        nothing is active.
    """
    active = mask != 0
    count = active.sum()
    safe_count = count.clamp(min=1)

    def mean(values: Tensor) -> Tensor:
        return torch.where(active, values.detach(), torch.zeros_like(values)).sum() / safe_count

    def share(condition: Tensor) -> Tensor:
        return mean(condition.to(tokens.divergence.dtype))

    found = {
        "active_tokens": count.to(torch.float32),
        "active_sequences": active.any(-1).sum().to(torch.float32),
        "empty_target_batch": (count == 0).to(torch.float32),
        "divergence": mean(tokens.divergence),
        "student_log_prob": mean(tokens.student_log_probs),
    }
    if tokens.teacher_log_probs is not None:
        gap = tokens.teacher_log_probs - tokens.student_log_probs
        found["teacher_student_gap"] = mean(gap)
        found["teacher_student_gap_abs"] = mean(gap.abs())
    if tokens.student_mass is not None:
        found["student_topk_mass"] = mean(tokens.student_mass)
    if tokens.teacher_mass is not None:
        found["teacher_topk_mass"] = mean(tokens.teacher_mass)
    if tokens.importance_ratio is not None and config.is_clip is not None:
        found["importance_ratio"] = mean(tokens.importance_ratio)
        found["importance_clip_fraction"] = share(tokens.importance_ratio > config.is_clip)
    if tokens.rollout_is_weights is not None:
        found["rollout_is_weight"] = mean(tokens.rollout_is_weights)
    if config.per_token_loss_clip is not None:
        found["loss_clip_fraction"] = share(tokens.divergence > config.per_token_loss_clip)
    return {f"self_distillation/{name}": value for name, value in found.items()}
