"""Tool use as a reward function of verl: 1 if the tool calls of a response are the right ones, else 0."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

__all__ = ["Call", "calls_of", "compute_score", "grade", "truth_of"]

_ACTION = re.compile(r"(?<!\w)Action:[ \t]*(\S+)")
_INPUT = re.compile(r"(?<!\w)Action Input:\s*")


class Call(NamedTuple):
    """One tool call.

    Args:
        tool: Its name.
        arguments: Its input; None if what was written is no JSON object.
    """

    tool: str
    arguments: dict[str, Any] | None


def calls_of(response: str) -> list[Call]:
    """Read the tool calls out of a response: each `Action:` with the `Action Input:` that follows it.

    Args:
        response: What the model wrote.

    Returns:
        The calls in their order. A call without any input has the input {}.

    Example:
        >>> calls_of('Thought: look it up\\nAction: search\\nAction Input: {"query": {"text": "axolotl"}}')
        [Call(tool='search', arguments={'query': {'text': 'axolotl'}})]
    """
    found = list(_ACTION.finditer(response))
    ends = [name.start() for name in found[1:]] + [len(response)]
    return [Call(name[1], _arguments(response[name.end() : end])) for name, end in zip(found, ends, strict=False)]


def truth_of(ground_truth: str) -> list[Call]:
    """Read the right calls.

    Args:
        ground_truth: JSON: a list of objects with `Action` and `Action_Input`, the latter an object or its JSON.

    Raises:
        ValueError: It is something else, so nothing could ever be right.
    """
    try:
        calls = []
        for item in json.loads(ground_truth):
            given = item["Action_Input"]
            calls.append(Call(item["Action"], json.loads(given) if isinstance(given, str) else given))
        if calls and all(isinstance(call.arguments, dict) for call in calls):
            return calls
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"the right calls cannot be read: {ground_truth[:200]!r}: {error!r}") from error
    raise ValueError(
        f"the right calls must be a list of at least one, each with an object as input: {ground_truth[:200]!r}"
    )


def grade(response: str, truth: Sequence[Call], *, reveal: bool = False) -> dict[str, Any]:
    """Grade one response.

    Args:
        response: What the model wrote.
        truth: The right calls; their order does not matter.
        reveal: Whether the feedback names them, as the authors' does. It then hands the teacher the answer.

    Returns:
        `score` and `acc` (0 or 1), `pred` (the calls as text), `incorrect_format` (1 unless every call can be read),
        `feedback` (empty for a right answer).
    """
    calls = calls_of(response)
    problem = _problem(calls, truth)
    if problem and reveal:
        problem += f" Expected: {_text(truth)}."
    return {
        "score": float(not problem),
        "acc": float(not problem),
        "pred": _text(calls),
        "incorrect_format": int(not calls or any(call.arguments is None for call in calls)),
        "feedback": problem,
    }


def compute_score(
    data_source: str, solution_str: str, ground_truth: str, extra_info: Any = None, *, reveal: bool = False, **_: Any
) -> Any:
    """Score one response; what `reward.custom_reward_function` names.

    Args:
        data_source: Of the row; not needed.
        solution_str: The decoded response.
        ground_truth: The right calls, as for `truth_of`.
        extra_info: Of the row; not needed.
        reveal: As for `grade`; set by `reward.custom_reward_function.reward_kwargs`.

    Returns:
        As `grade`.
    """
    return grade(solution_str, truth_of(ground_truth), reveal=reveal)


def _arguments(text: str) -> dict[str, Any] | None:
    mark = _INPUT.search(text)
    if mark is None:
        return {}
    try:
        value, _ = json.JSONDecoder().raw_decode(text, mark.end())
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _problem(calls: Sequence[Call], truth: Sequence[Call]) -> str:
    if not calls:
        return "No tool was called. Write `Action: ` and a tool's name, then `Action Input: ` and a JSON object."
    for call in calls:
        if call.arguments is None:
            return f"The input of {call.tool} is no JSON object."
    if sorted(call.tool for call in calls) != sorted(call.tool for call in truth):
        return f"These are not the right tools: {', '.join(call.tool for call in calls)}."
    left = list(truth)
    wrong = []
    for call in calls:
        if call in left:
            left.remove(call)
        else:
            wrong.append(call)
    return f"The tools are right, but not these inputs: {_text(wrong)}." if wrong else ""


def _text(calls: Iterable[Call]) -> str:
    return "; ".join(f"{call.tool} {json.dumps(call.arguments, ensure_ascii=False)}" for call in calls)
