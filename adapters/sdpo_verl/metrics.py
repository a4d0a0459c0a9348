"""The step's metrics from the sums that verl added up over micro-batches and ranks."""

from __future__ import annotations

from typing import Any

__all__ = ["step_metrics"]

_PREFIXES = ("actor/sdpo_sum/", "sdpo_sum/")


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
    active = sums.get("active_tokens", 0.0)
    found = {"self_distillation/active_tokens": active}
    if active > 0:
        for name in ("divergence", "log_prob", "entropy", "gap"):
            if name in sums:
                found[f"self_distillation/{name}"] = sums[name] / active
        succeeded = sums.get("success_tokens", 0.0)
        if "gap" in sums and succeeded > 0:
            found["self_distillation/gap_on_success"] = sums["gap_success"] / succeeded
        if "gap" in sums and active > succeeded:
            found["self_distillation/gap_on_failure"] = (sums["gap"] - sums["gap_success"]) / (active - succeeded)
    return found
