"""Metrics of a micro-batch, from sums over its tokens on every rank."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from sdpo_plugins.step_metrics import SUMS, means_of_sums

__all__ = ["step_metrics"]

_TRL_SUMS = ("kl", "kl_tokens", "balance", "balance_batches")


def step_metrics(
    sums: Mapping[str, Tensor], device: torch.device, reduce_sum: Callable[[Tensor], Tensor]
) -> dict[str, float]:
    """Return means over all ranks' active tokens. Every rank must call this together.

    Args:
        sums: This rank's sums; what is missing counts as 0.
        device: Where to add them up.
        reduce_sum: Adds a tensor up over the ranks.

    Returns:
        Metrics by name: the core's, and under TRL's names `kl` to the reference and `aux_loss` of experts.

    Example:
        >>> sums = {"active_tokens": torch.tensor(4.0), "divergence": torch.tensor(2.0)}
        >>> step_metrics(sums, torch.device("cpu"), lambda local: local)["self_distillation/divergence"]
        0.5
    """
    names = (*SUMS, *_TRL_SUMS)
    zero = torch.zeros((), device=device)
    local = torch.stack([sums.get(name, zero).detach().float() for name in names])
    total = dict(zip(names, reduce_sum(local).tolist(), strict=True))
    metrics = means_of_sums(total)
    if total["kl_tokens"] > 0:
        metrics["kl"] = total["kl"] / total["kl_tokens"]
    if total["balance_batches"] > 0:
        metrics["aux_loss"] = total["balance"] / total["balance_batches"]
    return metrics
