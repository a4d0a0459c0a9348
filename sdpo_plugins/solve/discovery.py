"""discovery@k, the probability that k answers hold a solution, with confidence intervals. scipy for the statistics."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any, Literal

from sdpo_plugins.errors import DataError, HostError

__all__ = [
    "best_of_k",
    "best_of_k_interval",
    "discovery_at_k",
    "discovery_interval",
    "mean_interval",
    "rate_interval",
]

LEVEL = 0.95
_RESAMPLES = 9999


def discovery_at_k(firsts: Sequence[int | None], k: int) -> float:
    """Return the share of runs that had discovered a solution within their first k answers.

    discovery@k = 1/R · Σ_r [f_r ≤ k], where f_r is the place of run r's first success.

    Args:
        firsts: Place of each run's first success, from 1; None: no success within the run's budget, which must be at
            least k.
        k: Number of answers, at least 0.

    Returns:
        A share in [0, 1].

    Raises:
        DataError: There are no runs, or a number is out of range.

    Example:
        >>> discovery_at_k([3, 17, None, 40], k=20)
        0.5

    Source: arXiv 2601.20802, section 5.
    """
    _check(firsts, k)
    return sum(first is not None and first <= k for first in firsts) / len(firsts)


def discovery_interval(
    firsts: Sequence[int | None], k: int, level: float = LEVEL, method: Literal["wilson", "exact"] = "wilson"
) -> tuple[float, float]:
    """Return a confidence interval of discovery@k over independent runs.

    Args:
        firsts: As for `discovery_at_k`.
        k: As for `discovery_at_k`.
        level: Of confidence.
        method: "wilson", or "exact" for Clopper and Pearson's.

    Returns:
        Its two ends.

    Raises:
        DataError: As for `discovery_at_k`.
        HostError: scipy is not installed.

    Example:
        >>> low, high = discovery_interval([3, 17, None, 40], k=20)
        >>> f"{low:.2f} {high:.2f}"
        '0.15 0.85'
    """
    found = round(discovery_at_k(firsts, k) * len(firsts))
    return _proportion(found, len(firsts), level, method)


def best_of_k(answers: int, successes: int, k: int) -> float:
    """Return the unbiased estimate of the probability that k answers of one model hold a solution.

    best-of-k = 1 − C(n−c, k) / C(n, k), for n answers of which c were right.

    Args:
        answers: n, answers sampled from one and the same model; their number must not depend on what they were.
        successes: c, right ones among them.
        k: Number of answers, from 0 to n.

    Returns:
        A probability in [0, 1].

    Raises:
        DataError: A number is out of range.

    Example:
        >>> best_of_k(answers=4, successes=1, k=2)
        0.5

    Source: arXiv 2107.03374, equation 1.
    """
    if not 0 <= successes <= answers or not 0 <= k <= answers:
        raise DataError(
            f"best-of-k needs 0 ≤ successes ≤ answers and 0 ≤ k ≤ answers, got answers={answers}, "
            f"successes={successes}, k={k}."
        )
    return 1.0 - math.comb(answers - successes, k) / math.comb(answers, k)


def best_of_k_interval(answers: int, successes: int, k: int, level: float = LEVEL) -> tuple[float, float]:
    """Return a confidence interval of the probability that k answers of one model hold a solution.

    Clopper and Pearson's interval of one answer's probability p, mapped by 1 − (1 − p)^k.

    Args:
        answers: As for `best_of_k`.
        successes: As for `best_of_k`.
        k: Number of answers, at least 0.
        level: Of confidence.

    Returns:
        Its two ends.

    Raises:
        DataError: A number is out of range.
        HostError: scipy is not installed.

    Example:
        >>> low, high = best_of_k_interval(answers=2000, successes=0, k=320)
        >>> f"{low:.2f} {high:.2f}"
        '0.00 0.45'
    """
    if not 0 <= successes <= answers or answers < 1 or k < 0:
        raise DataError(
            f"An interval needs 0 ≤ successes ≤ answers, answers ≥ 1 and k ≥ 0, got answers={answers}, "
            f"successes={successes}, k={k}."
        )
    low, high = _proportion(successes, answers, level, "exact")
    # Of a small p, (1 − p)^k through its logarithm.
    return -math.expm1(k * math.log1p(-low)), 1.0 if high >= 1.0 else -math.expm1(k * math.log1p(-high))


def rate_interval(answers: int, successes: int, level: float = LEVEL) -> tuple[float, float]:
    """Return Clopper and Pearson's confidence interval of the probability that one answer is right.

    Args:
        answers: As for `best_of_k`.
        successes: As for `best_of_k`.
        level: Of confidence.

    Returns:
        Its two ends.

    Raises:
        DataError: A number is out of range.
        HostError: scipy is not installed.

    Example:
        >>> low, high = rate_interval(answers=100, successes=0)
        >>> f"{low:.3f} {high:.3f}"
        '0.000 0.036'
    """
    return best_of_k_interval(answers, successes, k=1, level=level)


def mean_interval(values: Sequence[float], level: float = LEVEL, seed: int = 0) -> tuple[float, float]:
    """Return a bootstrap interval of a mean over questions: questions are resampled, with all that belongs to each.

    Args:
        values: One number a question, for example its discovery@k over seeds.
        level: Of confidence.
        seed: Of the resampling.

    Returns:
        The ends of the percentile interval; where all values are equal, both are that value.

    Raises:
        DataError: There are no values.
        HostError: scipy is not installed.

    Example:
        >>> low, high = mean_interval([0.0, 0.5, 1.0, 1.0])
        >>> f"{low:.2f} {high:.2f}"
        '0.25 1.00'
    """
    if not values:
        raise DataError("The mean of no values has no interval: give one number a question.")
    if len(set(values)) == 1:
        return values[0], values[0]
    found = _stats().bootstrap(
        (list(values),),
        statistics.fmean,
        n_resamples=_RESAMPLES,
        confidence_level=level,
        method="percentile",
        vectorized=False,
        rng=seed,
    )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def _proportion(successes: int, count: int, level: float, method: str) -> tuple[float, float]:
    interval = _stats().binomtest(successes, count).proportion_ci(confidence_level=level, method=method)
    return float(interval.low), float(interval.high)


def _stats() -> Any:
    try:
        from scipy import stats
    except ImportError as error:
        raise HostError(
            "Confidence intervals need scipy, which is not installed: pip install 'sdpo-plugins[trl]'."
        ) from error
    return stats


def _check(firsts: Sequence[int | None], k: int) -> None:
    if not firsts:
        raise DataError("discovery@k of no runs: give the place of the first success of each run, or None.")
    wrong = [first for first in firsts if first is not None and first < 1]
    if wrong or k < 0:
        raise DataError(f"discovery@k needs k ≥ 0 and places of at least 1 (or None), got k={k} and {list(firsts)!r}.")
