"""What every check reads: a run's curves by key, and their beginnings and ends."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, Literal

from sdpo_plugins.records import RunRecords
from sdpo_plugins.report.curves import Curve, standard_curves

__all__ = ["PATIENCE", "Check", "Facts", "Finding", "Level", "Trend", "mean_of", "percent"]

Level = Literal["ok", "note", "warning", "bad"]

PATIENCE = 5
"""Values that a curve must have before its course is judged."""

_PART = 0.2
_LARGEST_PART = 20


@dataclass(frozen=True)
class Finding:
    """One thing that a report says of a run.

    Args:
        key: Short name of what was looked at, unique within a run.
        level: "ok" (as it should be), "note" (good to know), "warning" (look at it), "bad" (it cannot learn so).
        title: A sentence without its full stop.
        text: What was measured, with numbers.
        advice: What to do; "" where there is nothing to do.
    """

    key: str
    level: Level
    title: str
    text: str
    advice: str = ""


@dataclass(frozen=True)
class Trend:
    """A curve's mean over its first and over its last fifth (at most 20 values), and the error of the difference."""

    early: float
    late: float
    error: float


class Facts:
    """A run, with what several checks want to know of it.

    Args:
        run: Its records.
        now: Seconds since 1970; None: unknown.
    """

    def __init__(self, run: RunRecords, now: float | None = None) -> None:
        self.run = run
        self.now = now

    @cached_property
    def curves(self) -> dict[str, Curve]:
        """The standard curves by key."""
        return {found.key: found for found in standard_curves(self.run)}

    @property
    def is_sdpo(self) -> bool:
        """Whether there is a teacher."""
        return bool(self.run.headers) and self.run.headers[-1].get("method") == "sdpo"

    @cached_property
    def lines(self) -> list[Any]:
        """The lines of the recorded rollouts."""
        return [rollout.line for rollout in self.run.rollouts]

    def values(self, key: str) -> Sequence[float]:
        """Return a standard curve's values; empty if the run has none."""
        return self.curves[key].values if key in self.curves else ()

    def metric(self, name: str) -> Sequence[float]:
        """Return a metric's values; empty if the run has none."""
        return [value for value in self.run.series(name)[1] if math.isfinite(value)]

    def trend(self, key: str, least: int = PATIENCE) -> Trend | None:
        """Return how a curve went from its beginning to its end.

        Args:
            key: Of a standard curve.
            least: Values it must have; None is returned for fewer.
        """
        values = self.values(key)
        return trend_of(values) if len(values) >= least else None


def trend_of(values: Sequence[float]) -> Trend:
    """Return the means over the first and the last fifth.

    Args:
        values: At least one.

    Example:
        >>> trend_of([1.0, 1.0, 0.0, 3.0, 3.0]).late
        3.0
    """
    size = min(max(round(_PART * len(values)), 1), _LARGEST_PART)
    first, last = values[:size], values[-size:]
    return Trend(sum(first) / size, sum(last) / size, math.sqrt(2 * _variance(values) / size))


def mean_of(values: Sequence[float]) -> tuple[float, float]:
    """Return a curve's mean and the error of it.

    Args:
        values: At least one.

    Example:
        >>> mean_of([1.0, 3.0])
        (2.0, 1.0)
    """
    return sum(values) / len(values), math.sqrt(_variance(values) / len(values))


def _variance(values: Sequence[float]) -> float:
    """Of the noise: from differences of neighbours, so that a slow trend is none of it."""
    return sum((a - b) ** 2 for a, b in pairwise(values)) / max(2 * (len(values) - 1), 1)


def percent(share: float) -> str:
    """Return a share in per cent, small ones with a decimal.

    Example:
        >>> percent(0.5), percent(0.0123), percent(0.0)
        ('50%', '1.2%', '0%')
    """
    return f"{share:.1%}" if 0 < share < 0.0995 else f"{share:.0%}"


Check = Callable[[Facts], Iterator[Finding]]
