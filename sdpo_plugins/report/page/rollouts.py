"""What the page knows of rollouts: a short row of each in the list, and the whole of it when it is opened."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sdpo_plugins.records import RecordedRollout, RunRecords
from sdpo_plugins.report.page.tokens import mean_gaps, packed_tokens

__all__ = ["COLUMNS", "chosen_rollouts", "detail", "summary_columns", "text_for_search"]

COLUMNS = (
    "run",
    "id",
    "step",
    "row",
    "group",
    "reward",
    "success",
    "active",
    "feedback",
    "demonstration",
    "tokens",
    "gap",
    "disagreement",
    "divergence",
    "why",
    "snippet",
)
"""What the list holds of each rollout; `why` says why there are no token values, "" where there are."""

_SNIPPET = 120


def chosen_rollouts(runs: Sequence[RunRecords], limit: int) -> list[tuple[int, RecordedRollout]]:
    """Choose the rollouts that the page shows: all, or an even choice over runs and their steps.

    Args:
        runs: The runs.
        limit: How many at most, over all runs.

    Returns:
        (number of the run, rollout), in the order of runs and steps.
    """
    every = [(number, rollout) for number, run in enumerate(runs) for rollout in run.rollouts]
    kept = min(limit, len(every))
    return [every[place * len(every) // kept] for place in range(kept)]


def summary_columns(chosen: Sequence[tuple[int, RecordedRollout]], runs: Sequence[RunRecords]) -> dict[str, list[Any]]:
    """Return the list's columns, see `COLUMNS`.

    Args:
        chosen: From `chosen_rollouts`.
        runs: The runs.

    Returns:
        By name, a list with an entry for each rollout.
    """
    rows = [_summary(number, rollout, runs[number]) for number, rollout in chosen]
    return {name: [row[name] for row in rows] for name in COLUMNS}


def _summary(number: int, rollout: RecordedRollout, run: RunRecords) -> dict[str, Any]:
    line = rollout.line
    gap, disagreement, divergence = (None, None, None) if rollout.tokens is None else mean_gaps(rollout.tokens)
    snippet = str(line["response"])[: _SNIPPET + 1]
    return {
        "run": number,
        "id": rollout.id,
        "step": rollout.step,
        "row": line.get("row", 0),
        "group": line.get("group"),
        "reward": _short(line.get("reward")),
        "success": int(bool(line.get("success"))),
        "active": int(bool(line.get("active"))),
        "feedback": int(bool(line.get("feedback"))),
        "demonstration": int(line.get("demonstration_index") is not None),
        "tokens": line.get("response_tokens"),
        "gap": _short(gap),
        "disagreement": _short(disagreement),
        "divergence": _short(divergence),
        "why": "" if rollout.tokens is not None else _why_no_tokens(line, run),
        "snippet": snippet if len(snippet) <= _SNIPPET else snippet[:_SNIPPET] + "…",
    }


def _why_no_tokens(line: Mapping[str, Any], run: RunRecords) -> str:
    if run.headers and run.headers[-1].get("method") == "grpo":
        return "This run trained without a teacher (GRPO), so there is no verdict on single tokens."
    if not line.get("active"):
        return (
            "Nothing to teach here: the teacher had neither a demonstration nor feedback for this rollout, so it "
            "carries no self-distillation loss and has no token values."
        )
    return (
        "Token values of this rollout were not recorded: its training step had not been written yet, or was thinned "
        "out to bound the size of the records."
    )


def detail(rollout: RecordedRollout) -> dict[str, Any]:
    """Return all that the page shows of an opened rollout.

    Args:
        rollout: The rollout.

    Returns:
        Its texts as recorded, `demonstrationId` (the rollout that demonstrates, recorded or not), and its token values.
    """
    line = rollout.line
    index = line.get("demonstration_index")
    prompt = line["prompt"]
    return {
        "id": rollout.id,
        "prompt": [{"role": None, "content": prompt}] if isinstance(prompt, str) else prompt,
        "response": line["response"],
        "rewards": line.get("rewards") or {},
        "feedback": line.get("feedback"),
        "feedbackUsed": bool(line.get("feedback_used")),
        "cutOff": line.get("cut_off"),
        "truncated": line.get("truncated_tokens") or {},
        "demonstrationRow": index,
        # The rows of a batch have consecutive numbers.
        "demonstrationId": None if index is None else rollout.id - int(line.get("row", 0)) + int(index),
        "teacherPrompt": line.get("teacher_prompt"),
        "values": None if rollout.tokens is None else packed_tokens(rollout.tokens),
    }


def text_for_search(rollout: RecordedRollout) -> str:
    """Return the text that the page's search looks into: prompt, answer and feedback.

    Args:
        rollout: The rollout.
    """
    line = rollout.line
    prompt = line["prompt"]
    turns = [prompt] if isinstance(prompt, str) else [str(turn.get("content", "")) for turn in prompt]
    return "\n".join([*turns, str(line["response"]), str(line.get("feedback") or "")])


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.5g}")
