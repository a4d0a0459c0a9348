"""Metrics of an optimizer step: sums over the tokens of each micro-batch, then means from the sums of all of them.

Sums add up over micro-batches and ranks, however the host does that; means do not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from sdpo_plugins.losses import TokenLosses

__all__ = ["SUMS", "RunningSums", "means_of_sums", "token_sums"]

SUMS = (
    "active_tokens",
    "divergence",
    "gap",
    "gap_tokens",
    "gap_success",
    "success_tokens",
    "log_prob",
    "entropy",
    "importance_ratio",
    "prefix_saved",
    "prefix_batches",
)
"""Every sum there is. A host that adds up by name needs all of them from every micro-batch; what is missing is 0."""


@torch.no_grad()
def token_sums(
    losses: TokenLosses, entropies: Tensor, success: Tensor, mask: Tensor | None = None
) -> dict[str, Tensor]:
    """Return a micro-batch's sums over the tokens that carry loss.

    Args:
        losses: Of any shape.
        entropies: The student's, in nats, the same shape.
        success: Nonzero where the rollout succeeded, the same shape.
        mask: Nonzero for the tokens that count; None: all.

    Returns:
        0-dim tensors under names of `SUMS`; those of values that `losses` does not hold are left out.

    Example:
        >>> from sdpo_plugins.losses import TokenLosses
        >>> values = torch.tensor([0.5, 0.25])
        >>> sums = token_sums(TokenLosses(values, values, -values, None), values, torch.tensor([1.0, 0.0]))
        >>> float(sums["divergence"]), int(sums["success_tokens"]), "gap" in sums
        (0.75, 1, False)
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


def means_of_sums(sums: Mapping[str, float]) -> dict[str, float]:
    """Return the step's metrics.

    | metric | meaning | unit |
    |---|---|---|
    | `active_tokens` | tokens that carry loss | count |
    | `divergence` | mean divergence before clip and weights | nats |
    | `log_prob` | mean log π(y) of the sampled tokens | nats |
    | `entropy` | mean entropy of the student | nats |
    | `importance_ratio` | mean π/π_old before the clip; only where one enters the loss | ratio |
    | `gap` | mean log q(y) − log π(y) of sampled tokens, teacher minus student | nats |
    | `gap_on_success`, `gap_on_failure` | the same over answers that succeeded, and that failed | nats |
    | `prefix_saved_fraction` | share of the teacher's tokens that common prefixes saved; else left out | ratio |

    A teacher worth following likes what succeeded and doubts what failed.

    Args:
        sums: Under names of `SUMS`, added up over micro-batches and ranks, or all divided by one number; what is
            missing counts as 0.

    Returns:
        Each name with `self_distillation/` before it. A mean over nothing is left out.

    Example:
        >>> means_of_sums({"active_tokens": 4.0, "divergence": 2.0})["self_distillation/divergence"]
        0.5
    """
    total = {name: float(sums.get(name, 0.0)) for name in SUMS}
    active = total["active_tokens"]
    means = {"active_tokens": active}
    if active > 0:
        for name in ("divergence", "log_prob", "entropy"):
            means[name] = total[name] / active
        if total["importance_ratio"] > 0:  # 0 where no ratio enters the loss (`is_clip` is off)
            means["importance_ratio"] = total["importance_ratio"] / active
    if total["gap_tokens"] > 0:  # a renormalised top-K does without the teacher's log-probs
        means["gap"] = total["gap"] / total["gap_tokens"]
        failed = total["gap_tokens"] - total["success_tokens"]
        if total["success_tokens"] > 0:
            means["gap_on_success"] = total["gap_success"] / total["success_tokens"]
        if failed > 0:
            means["gap_on_failure"] = (total["gap"] - total["gap_success"]) / failed
    if total["prefix_batches"] > 0:
        means["prefix_saved_fraction"] = total["prefix_saved"] / total["prefix_batches"]
    return {f"self_distillation/{name}": value for name, value in means.items()}


class RunningSums:
    """Adds up the sums of micro-batches until their metrics are taken, for hosts that would take means over ranks.

    Example:
        >>> import torch
        >>> sums = RunningSums()
        >>> sums.add({"active_tokens": torch.tensor(4), "divergence": torch.tensor(2.0)})
        >>> sums.take(lambda values: values)["self_distillation/divergence"]
        0.5
        >>> sums.take(lambda values: values)["self_distillation/active_tokens"]
        0.0
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}

    def add(self, sums: Mapping[str, Tensor]) -> None:
        """Add a micro-batch's sums; nothing waits for the device.

        Args:
            sums: As of `token_sums`; what is missing is 0.
        """
        for name, value in sums.items():
            value = value.detach().double()
            self._sums[name] = self._sums[name] + value if name in self._sums else value

    def take(self, reduce: Callable[[list[float]], list[float]]) -> dict[str, float]:
        """Return the metrics of what was added on all ranks, and begin anew. Every rank must call this together.

        Args:
            reduce: Adds numbers up over the ranks.

        Returns:
            As of `means_of_sums`.
        """
        local = [float(self._sums.get(name, 0.0)) for name in SUMS]
        self._sums = {}
        return means_of_sums(dict(zip(SUMS, reduce(local), strict=True)))
