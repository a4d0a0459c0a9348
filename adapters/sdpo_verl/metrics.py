"""A step's sums on their way through verl, which adds metrics up by name over micro-batches and ranks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from verl.utils.metric import AggregationType, Metric

from sdpo_plugins.step_metrics import SUMS, means_of_sums

__all__ = ["step_metrics", "sum_metrics"]

_NAME = "sdpo_sum/"
_PREFIXES = (f"actor/{_NAME}", _NAME)


def sum_metrics(sums: Mapping[str, Tensor]) -> dict[str, Metric]:
    """Return a micro-batch's sums as metrics of verl: every one there is, as ranks must all give the same names.

    Args:
        sums: As of `sdpo_plugins.step_metrics.token_sums`; what is missing is 0.

    Example:
        >>> found = sum_metrics({})
        >>> found["sdpo_sum/active_tokens"].aggregate() == 0.0
        True
    """
    return {_NAME + name: Metric(AggregationType.SUM, float(sums.get(name, 0.0))) for name in SUMS}


def step_metrics(metrics: dict[str, Any]) -> dict[str, float]:
    """Turn sums into means over active tokens; the sums are taken out of `metrics`.

    Args:
        metrics: verl's, of one update.

    Returns:
        `self_distillation/…` as in the other adapters.

    Example:
        >>> found = step_metrics({"actor/sdpo_sum/active_tokens": 4.0, "actor/sdpo_sum/divergence": 2.0})
        >>> found["self_distillation/divergence"]
        0.5
    """
    sums: dict[str, float] = {}
    for prefix in _PREFIXES:
        for key in [name for name in metrics if name.startswith(prefix)]:
            sums[key.removeprefix(prefix)] = float(metrics.pop(key))
    return means_of_sums(sums)
