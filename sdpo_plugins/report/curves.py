"""A run's curves, from whatever names its host logs them under."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from sdpo_plugins.errors import DataError, nearest
from sdpo_plugins.metric_names import metric as known_metric
from sdpo_plugins.records import RunRecords
from sdpo_plugins.report.standard import STANDARD, StandardCurve

__all__ = ["Curve", "curve", "find_curve", "metric_curve", "metrics_of", "smooth", "standard_curves"]


@dataclass(frozen=True)
class Curve:
    """Values over steps.

    Args:
        key: Short name, the same for all hosts: "reward", "gap_on_success" …; for any other metric its name.
        title: What stands above it.
        unit: Of the values; "" for plain numbers.
        metric: The name in the records that the values came from; "rollouts" if they were computed from the
            recorded rollouts.
        steps: The host's numbers of steps, ascending; steps without a value are left out.
        values: One for each of `steps`, finite.
        help: One sentence for a reader.
    """

    key: str
    title: str
    unit: str
    metric: str
    steps: tuple[int, ...]
    values: tuple[float, ...]
    help: str


def standard_curves(run: RunRecords) -> list[Curve]:
    """Return the curves of a run that its records have values for.

    Args:
        run: From `read_run`; GRPO runs have some of the curves, too.

    Returns:
        In the order of `STANDARD`.
    """
    return [found for entry in STANDARD if (found := _standard(run, entry)) is not None]


def curve(run: RunRecords, name: str) -> Curve:
    """Return one curve, by its key or by the name of any metric in the records.

    Args:
        run: From `read_run`.
        name: "gap_on_success", or "self_distillation/log_prob".

    Raises:
        DataError: The run has no such curve; the message lists what it has.
    """
    found = find_curve(run, name)
    if found is not None:
        return found
    keys = [found.key for found in standard_curves(run)]
    others = [other for other in metrics_of(run) if other not in keys]
    if name in {entry.key for entry in STANDARD}:
        raise DataError(f"The run {run.name!r} recorded no values for {name!r}. It has: {', '.join(keys) or 'none'}.")
    raise DataError(
        f"The run {run.name!r} has no metric {name!r}.{nearest(name, [*keys, *others])} Curves: "
        f"{', '.join(keys) or 'none'}. Metrics: {', '.join(others) or 'none'}."
    )


def find_curve(run: RunRecords, name: str) -> Curve | None:
    """Return one curve as `curve` does, or None if the run has none of that name."""
    for entry in STANDARD:
        found = _standard(run, entry) if entry.key == name else None
        if found is not None:
            return found
    return metric_curve(run, name) if name in metrics_of(run) else None


def metric_curve(run: RunRecords, name: str) -> Curve:
    """Return the curve of a metric under its own name; without values if the run has none.

    Args:
        run: From `read_run`.
        name: As it was logged.
    """
    steps, values = _finite(*run.series(name))
    known = known_metric(name)
    title = name.removeprefix("self_distillation/").replace("_", " ") if known else name
    said = f"{known.meaning[0].upper()}{known.meaning[1:]}." if known else ""
    return Curve(name, title, known.unit if known else "", name, steps, values, said)


def metrics_of(run: RunRecords) -> list[str]:
    """Return the names of all metrics with at least one value, sorted."""
    return sorted({name for step in run.steps for name, value in step.metrics.items() if value is not None})


def smooth(values: Sequence[float], span: float) -> list[float]:
    """Return an exponential moving mean without the pull to its first value; the last value weighs 2/(span + 1).

    m_t = Σ_s (1 − a)^(t − s) x_s / Σ_s (1 − a)^(t − s), a = 2/(span + 1)

    Args:
        values: Finite, evenly spaced enough.
        span: About how many values a mean covers; 1: `values` themselves.

    Returns:
        As many values.

    Raises:
        ValueError: `span` is below 1.

    Example:
        >>> smooth([0.0, 1.0], span=3)
        [0.0, 0.6666666666666666]
    """
    if not span >= 1:
        raise ValueError(f"`span` must be at least 1, got {span!r}.")
    keep = 1.0 - 2.0 / (span + 1.0)
    total = weight = 0.0
    found = []
    for value in values:
        total, weight = keep * total + value, keep * weight + 1.0
        found.append(total / weight)
    return found


def _standard(run: RunRecords, entry: StandardCurve) -> Curve | None:
    host = str(run.headers[-1].get("host")) if run.headers else None
    for name in entry.names(host):
        steps, values = _finite(*run.series(name))
        if steps:
            return Curve(entry.key, entry.title, entry.unit, name, steps, values, entry.help)
    steps, values = _sampled(run, entry)
    if not steps:
        return None
    said = f"{entry.help} Computed from the recorded rollouts, which are a sample."
    return Curve(entry.key, entry.title, entry.unit, "rollouts", steps, values, said)


def _sampled(run: RunRecords, entry: StandardCurve) -> tuple[tuple[int, ...], tuple[float, ...]]:
    if entry.sampled is None:
        return (), ()
    by_step: dict[int, list[float]] = {}
    for rollout in run.rollouts:
        value = entry.sampled(rollout.line)
        if value is not None and math.isfinite(value):
            by_step.setdefault(rollout.step, []).append(value)
    steps = sorted(by_step)
    return tuple(steps), tuple(sum(by_step[step]) / len(by_step[step]) for step in steps)


def _finite(steps: Sequence[int], values: Sequence[float]) -> tuple[tuple[int, ...], tuple[float, ...]]:
    pairs = [(step, float(value)) for step, value in zip(steps, values, strict=True) if math.isfinite(value)]
    return tuple(step for step, _ in pairs), tuple(value for _, value in pairs)
