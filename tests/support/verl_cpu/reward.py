"""The embedded tasks' grader as a custom reward function of verl: a score with feedback, as any user would write it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from sdpo_plugins.embedded import Question, Task, load_task

_task = cache(load_task)


def compute_score(
    data_source: str, solution_str: str, ground_truth: str, extra_info: Mapping[str, Any], **_: Any
) -> dict[str, Any]:
    """Score one response.

    Args:
        data_source: Of the row; not needed here.
        solution_str: The decoded response.
        ground_truth: The true answer.
        extra_info: The row's, with `task`, `question` and `subject`.

    Returns:
        `score`, `acc` and `feedback` (None for a right answer).
    """
    task: Task = _task(extra_info["task"])
    question = Question(extra_info["question"], ground_truth, extra_info["subject"])
    score, feedback = task.score(question, solution_str)
    return {"score": score, "acc": score, "feedback": feedback}
