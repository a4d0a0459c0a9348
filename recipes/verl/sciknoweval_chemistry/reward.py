"""Multiple choice as a reward function of verl: 1 for the right letter between the last `<answer>` tags, else 0."""

from __future__ import annotations

import re
from typing import Any

__all__ = ["compute_score", "grade"]

_ANSWER = re.compile(r"<answer>((?:(?!<answer>).)*?)</answer>", re.DOTALL)
_FORMAT = re.compile(r"<answer>\s*[A-Z]\s*</answer>\s*\Z")


def grade(response: str, truth: str) -> dict[str, Any]:
    """Grade one answer; there is no feedback beyond success.

    Args:
        response: What the model wrote.
        truth: The letter of the right choice.

    Returns:
        `score` and `acc` (0 or 1), `pred` (what stands in the last pair of tags), `incorrect_format` (1 unless the
        response ends with one letter between tags), `feedback` (always empty).

    Raises:
        ValueError: The truth is no single letter, so nothing could ever be right.

    Example:
        >>> grade("<reasoning>…</reasoning><answer> B </answer>", "B")["score"]
        1.0
    """
    if not re.fullmatch(r"[A-Z]", truth):
        raise ValueError(
            f"the right choice must be one capital letter, got {truth!r}: correct `reward_model` of the row."
        )
    found = _ANSWER.findall(response)
    answer = found[-1].strip() if found else ""
    score = float(answer == truth)
    return {
        "score": score,
        "acc": score,
        "pred": answer,
        "incorrect_format": int(_FORMAT.search(response) is None),
        "feedback": "",
    }


def compute_score(data_source: str, solution_str: str, ground_truth: str, extra_info: Any = None, **_: Any) -> Any:
    """Score one response; what `reward.custom_reward_function` names.

    Args:
        data_source: Of the row; not needed.
        solution_str: The decoded response.
        ground_truth: The letter of the right choice.
        extra_info: Of the row; not needed.

    Returns:
        As `grade`.
    """
    return grade(solution_str, ground_truth)
