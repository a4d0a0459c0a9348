"""What came of a run: numbers for programs, and the sentences that people read."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdpo_plugins.reprompt import reaches
from sdpo_plugins.solve.attempts import BASELINE, SDPO, Attempt, first_success, of_method
from sdpo_plugins.solve.discovery import LEVEL, best_of_k, discovery_at_k, rate_interval

__all__ = ["MethodResult", "Outcome", "outcome_of", "write_atomically", "write_results"]


@dataclass(frozen=True)
class MethodResult:
    """One method's attempts in numbers.

    Args:
        attempts: How many.
        successes: Those whose reward reached the threshold.
        first_success: Place of the first of them, from 1; None: there is none.
        best_reward: Highest reward; None without attempts.
        solution: The first successful answer, or None.
    """

    attempts: int
    successes: int
    first_success: int | None
    best_reward: float | None
    solution: str | None


@dataclass(frozen=True)
class Outcome:
    """A whole run in numbers.

    Args:
        sdpo: Attempts of the model that was trained on the question.
        baseline: Attempts of the untrained model; None: not asked for.
        threshold: Smallest reward that counts as solved.
        curve: At k = each batch's end: k, whether SDPO had a solution by then (0 or 1), and the estimated probability
            that k answers of the untrained model hold one (None without them).
        baseline_rate: 95 % interval of the chance that one answer of the untrained model is right.
        interrupted: Whether the run was stopped before its end.
    """

    sdpo: MethodResult
    baseline: MethodResult | None
    threshold: float
    curve: tuple[tuple[int, float, float | None], ...] = ()
    baseline_rate: tuple[float, float] | None = None
    interrupted: bool = False

    @property
    def solved(self) -> bool:
        """Whether SDPO found a solution."""
        return self.sdpo.first_success is not None

    def as_mapping(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {"solved": self.solved, **dataclasses.asdict(self)}

    def sentences(self) -> list[str]:
        """Say for people what came of it."""
        spent, first = self.sdpo.attempts, self.sdpo.first_success
        if first is not None:
            said = [
                f"Solved: answer {first} of {spent} sampled is the first with a reward of {self.threshold:g} or more."
            ]
        else:
            best = "" if self.sdpo.best_reward is None else f"; best reward {self.sdpo.best_reward:g}"
            said = [f"Not solved within {spent} answers{best}."]
        if self.baseline is not None and self.baseline_rate is not None:
            low, high = self.baseline_rate
            which, right = self.baseline.first_success, self.baseline.successes
            found = "none is right" if which is None else f"{right} right, the first is answer {which}"
            said.append(
                f"Best of {self.baseline.attempts} answers of the untrained model: {found} (chance of one answer, "
                f"{LEVEL:.0%} interval: {low:.2%} … {high:.2%})."
            )
        if self.interrupted:
            said.append("Stopped before its end; the same command goes on from here.")
        return said


def outcome_of(
    attempts: Sequence[Attempt], threshold: float, baseline: bool, samples: int, interrupted: bool = False
) -> Outcome:
    """Count attempts.

    Args:
        attempts: Of both methods.
        threshold: Smallest reward that is a success.
        baseline: Whether the untrained model was asked, too.
        samples: Attempts in a batch: the steps of the curve.
        interrupted: Whether the run was stopped before its end.

    Returns:
        The outcome.

    Example:
        >>> made = [Attempt(1, "sdpo", 0, "a", 0.0), Attempt(2, "sdpo", 0, "b", 1.0)]
        >>> outcome = outcome_of(made, threshold=0.5, baseline=False, samples=1)
        >>> outcome.sdpo.first_success, outcome.sdpo.solution, outcome.curve
        (2, 'b', ((1, 0.0, None), (2, 1.0, None)))
    """
    ours = _result(of_method(attempts, SDPO), threshold)
    base = _result(of_method(attempts, BASELINE), threshold) if baseline else None
    asked, right = (base.attempts, base.successes) if base is not None else (0, 0)
    curve = tuple(
        (k, discovery_at_k([ours.first_success], k), best_of_k(asked, right, k) if k <= asked else None)
        for k in range(samples, max(ours.attempts, asked) + 1, samples)
    )
    rate = rate_interval(asked, right) if asked else None
    return Outcome(ours, base, threshold, curve, rate, interrupted)


def write_atomically(path: Path, text: str) -> None:
    """Replace a file as a whole, so that no crash leaves half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8", errors="replace")
    os.replace(temporary, path)


def write_results(path: Path, outcome: Outcome, **more: Any) -> None:
    """Write an outcome, and what else is to stand beside it, as JSON."""
    write_atomically(path, json.dumps({**outcome.as_mapping(), **more}, indent=2, ensure_ascii=False) + "\n")


def _result(attempts: Sequence[Attempt], threshold: float) -> MethodResult:
    first = first_success(attempts, threshold)
    return MethodResult(
        attempts=len(attempts),
        successes=sum(reaches(each.reward, threshold) for each in attempts),
        first_success=first,
        best_reward=max((each.reward for each in attempts), default=None),
        solution=next((each.response for each in attempts if each.index == first), None),
    )
