"""Metrics of a micro-batch, from sums over its tokens on every rank."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

__all__ = ["step_metrics"]

_SUMS = (
    "active_tokens",
    "divergence",
    "gap",
    "gap_tokens",
    "gap_success",
    "success_tokens",
    "log_prob",
    "entropy",
    "importance_ratio",
    "kl",
    "kl_tokens",
    "balance",
    "balance_batches",
    "prefix_saved",
    "prefix_batches",
)


def step_metrics(
    sums: Mapping[str, Tensor], device: torch.device, reduce_sum: Callable[[Tensor], Tensor]
) -> dict[str, float]:
    """Return means over all ranks' active tokens. Every rank must call this together.

    The gap is log q(y) − log π(y) of the sampled tokens, teacher minus student: a teacher worth following likes what
    succeeded and doubts what failed.

    Args:
        sums: This rank's sums; what is missing counts as 0.
        device: Where to add them up.
        reduce_sum: Adds a tensor up over the ranks.

    Returns:
        Metrics by name.

    Example:
        >>> sums = {"active_tokens": torch.tensor(4.0), "divergence": torch.tensor(2.0)}
        >>> step_metrics(sums, torch.device("cpu"), lambda local: local)["self_distillation/divergence"]
        0.5
    """
    zero = torch.zeros((), device=device)
    local = torch.stack([sums.get(name, zero).detach().float() for name in _SUMS])
    total = dict(zip(_SUMS, reduce_sum(local).tolist(), strict=True))
    active = total["active_tokens"]
    metrics = {"self_distillation/active_tokens": active}
    if active > 0:
        for name in ("divergence", "log_prob", "entropy"):
            metrics[f"self_distillation/{name}"] = total[name] / active
        if total["importance_ratio"] > 0:  # 0 where no ratio enters the loss (`is_clip` is off)
            metrics["self_distillation/importance_ratio"] = total["importance_ratio"] / active
    if total["gap_tokens"] > 0:  # a renormalised top-K does without the teacher's log-probs
        metrics["self_distillation/gap"] = total["gap"] / total["gap_tokens"]
        failed = total["gap_tokens"] - total["success_tokens"]
        if total["success_tokens"] > 0:
            metrics["self_distillation/gap_on_success"] = total["gap_success"] / total["success_tokens"]
        if failed > 0:
            metrics["self_distillation/gap_on_failure"] = (total["gap"] - total["gap_success"]) / failed
    if total["kl_tokens"] > 0:
        metrics["kl"] = total["kl"] / total["kl_tokens"]
    if total["prefix_batches"] > 0:
        metrics["self_distillation/prefix_saved_fraction"] = total["prefix_saved"] / total["prefix_batches"]
    if total["balance_batches"] > 0:
        metrics["aux_loss"] = total["balance"] / total["balance_batches"]
    return metrics
