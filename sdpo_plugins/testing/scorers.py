"""The contract of a scorer."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

from sdpo_plugins._catalogues import SCORERS
from sdpo_plugins.config import SDPOConfig
from sdpo_plugins.testing._common import build_entry
from sdpo_plugins.types import Score, Scorer

__all__ = ["check_scorer"]

# What a policy writes on a bad day.
_GARBAGE = ("", "   \n", "{}", "\\boxed{", "<answer>", "</think>", "```python\n", "0" * 5000, "\x00 \ud83d\ude00 Ω")


def check_scorer(
    entry: Scorer,
    samples: Sequence[Mapping[str, Any]],
    *,
    correct: Sequence[str] = (),
    config: SDPOConfig | None = None,
    options: Mapping[str, Any] | None = None,
) -> None:
    """Check that score(response, sample) rewards every response that a policy could write.

    A `Score` with a finite reward and feedback that is a text or None; no exception for malformed responses; samples
    unchanged; the same score twice; correct responses get more than an empty one.

    Args:
        entry: The catalogue entry.
        samples: Rows of a data set that the scorer is for, at least one.
        correct: A right response for each sample, in order; may be left out.
        config: The configuration to build it with; by default `SDPOConfig()`.
        options: The strategy's own options as a plain mapping.

    Raises:
        AssertionError: Says what does not hold, and for which response.

    Example:
        >>> exact = Scorer("exact", "", lambda config, options: lambda text, row: Score(float(text == row["answer"])))
        >>> check_scorer(exact, [{"answer": "4"}], correct=["4"])
    """
    name = f"the scorer {entry.name!r}"
    assert samples, "check_scorer needs at least one sample"
    assert len(correct) in (0, len(samples)), f"`correct` must have one response for each sample, got {len(correct)}"
    score = build_entry(entry, SCORERS, config, options)
    for row, sample in enumerate(samples):
        before = copy.deepcopy(sample)
        for response in (*_GARBAGE, *correct[row : row + 1]):
            try:
                result = score(response, sample)
            except Exception as error:
                raise AssertionError(f"{name} raised {error!r} for the response {response[:80]!r}") from error
            _check_score(name, response, result)
            assert sample == before, f"{name} changed its sample for the response {response[:80]!r}"
            again = score(response, sample)
            assert (again.reward, again.feedback) == (result.reward, result.feedback), (
                f"{name} scored {response[:80]!r} differently the second time: {result!r}, {again!r}"
            )
        if correct:
            best, empty = score(correct[row], sample).reward, score("", sample).reward
            assert best > empty, (
                f"{name} gives the right response {correct[row][:80]!r} no more ({best}) than an empty one"
            )


def _check_score(name: str, response: str, result: Any) -> None:
    shown = f"for the response {response[:80]!r}"
    assert isinstance(result, Score), f"{name} must return a Score {shown}, got {result!r}"
    number = isinstance(result.reward, (int, float)) and not isinstance(result.reward, bool)
    assert number and math.isfinite(result.reward), f"{name} must give a finite reward {shown}, got {result.reward!r}"
    assert result.feedback is None or isinstance(result.feedback, str), (
        f"{name} must give feedback as a text or None {shown}, got {result.feedback!r}"
    )
