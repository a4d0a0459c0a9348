"""The scorer `multiple_choice`: 1 for the right letter between the last `<answer>` tags, else 0."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sdpo_plugins._options import option
from sdpo_plugins.feedback.rows import bad_truth, truth_in, was_truncated
from sdpo_plugins.feedback.texts import TRUNCATED, clean, shorten
from sdpo_plugins.types import Score

if TYPE_CHECKING:
    from sdpo_plugins.config import SDPOConfig

__all__ = ["MultipleChoiceOptions", "build_multiple_choice", "score_multiple_choice"]

WRONG_FORMAT = "Incorrect Format: End your answer with one letter between tags, as in <answer>A</answer>."

_ANSWER = re.compile(r"<answer>((?:(?!<answer>).)*?)</answer>", re.DOTALL)
_FORMAT = re.compile(r"<answer>\s*+[A-Z]\s*+</answer>\s*+\Z")
# Of what stands between the tags, so much goes into logs and texts.
_SHOWN = 100


@dataclass(frozen=True)
class MultipleChoiceOptions:
    """Options of the scorer `multiple_choice`."""

    truth_field: str = option("ground_truth", "Field of the row that holds the letter.")
    format_feedback: bool = option(
        False, "Say in the feedback that the format is wrong or the answer was cut off; the authors say nothing."
    )
    reveal_truth: bool = option(False, "Name the right letter in the feedback of a wrong answer.")


def build_multiple_choice(
    config: SDPOConfig, options: MultipleChoiceOptions
) -> Callable[[str, Mapping[str, Any]], Score]:
    """Return score(response, sample) → `Score`.

    Args:
        config: Not needed.
        options: Of the scorer.
    """

    def score(response: str, sample: Mapping[str, Any]) -> Score:
        return score_multiple_choice(response, sample, options)

    return score


def score_multiple_choice(response: str, sample: Mapping[str, Any], options: MultipleChoiceOptions) -> Score:
    """Score one response.

    The authors' code has the format check the wrong way round: its `incorrect_format` is 1 where the format is right.
    Here it is 1 unless the response ends with one capital letter between tags. The reward never depends on it.

    Args:
        response: What the model wrote.
        sample: The row; its truth is one capital letter.
        options: Of the scorer.

    Returns:
        Reward 1 for the right letter. Details: `acc` (the reward), `incorrect_format`, `truncated` (0 or 1) and `pred`
        (what stands between the last tags).

    Raises:
        DataError: The row's truth is no capital letter.

    Example:
        >>> row = {"ground_truth": "B"}
        >>> score_multiple_choice("<reasoning>…</reasoning><answer> B </answer>", row, MultipleChoiceOptions()).reward
        1.0
    """
    truth = truth_in(sample, options.truth_field, "multiple_choice")
    if not isinstance(truth, str) or not re.fullmatch(r"[A-Z]", truth):
        bad_truth("multiple_choice", "one capital letter", truth, "no answer could be right")
    found = _ANSWER.findall(response)
    answer = found[-1].strip() if found else ""
    right, wrong_format, truncated = answer == truth, not _FORMAT.search(response), was_truncated(sample)
    said = []
    if not right and options.format_feedback and (wrong_format or truncated):
        said.append(TRUNCATED if truncated else WRONG_FORMAT)
    if not right and options.reveal_truth:
        said.append(f"The right answer is {truth}.")
    details = {
        "acc": float(right),
        "incorrect_format": int(wrong_format),
        "truncated": int(truncated),
        "pred": clean(shorten(answer, _SHOWN)),
    }
    return Score(float(right), " ".join(said) or None, details)
