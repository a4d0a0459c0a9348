"""The scorer `tool_use`: 1 if the tool calls of a response are the right ones, else 0 and what is wrong with them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from sdpo_plugins._options import option
from sdpo_plugins.feedback.rows import bad_truth, decoded, truth_in, was_truncated
from sdpo_plugins.feedback.texts import TRUNCATED, clean, shorten
from sdpo_plugins.feedback.values import same_value
from sdpo_plugins.types import Score

if TYPE_CHECKING:
    from sdpo_plugins.config import SDPOConfig

__all__ = ["Call", "ToolUseOptions", "build_tool_use", "calls_in", "right_calls", "score_tool_use"]

_ACTION = re.compile(r"(?<!\w)Action:[ \t]*+(\S++)")
_INPUT = re.compile(r"(?<!\w)Action Input:\s*+")
_DECODER = json.JSONDecoder()
_VALID = (
    "a list, or its JSON, of at least one mapping with `Action` (a tool's name) and `Action_Input` (a mapping or its "
    "JSON)"
)


@dataclass(frozen=True)
class ToolUseOptions:
    """Options of the scorer `tool_use`."""

    truth_field: str = option("ground_truth", "Field of the row that holds the right calls.")
    compare: str = option(
        "calls",
        "`calls`: each tool with its own input. `merged`, as the authors: the tools, and the inputs of all calls "
        "thrown together, whichever tool they were given to.",
        choices=("calls", "merged"),
    )
    reveal_truth: bool = option(
        False, "Name the right calls in the feedback, as the authors do; it hands the teacher the answer."
    )
    max_chars: int = option(2000, "Characters of the feedback at most.", low=100)


class Call(NamedTuple):
    """One tool call.

    Args:
        tool: Its name.
        arguments: Its input; None if what was written is no JSON object.
    """

    tool: str
    arguments: dict[str, Any] | None


def build_tool_use(config: SDPOConfig, options: ToolUseOptions) -> Callable[[str, Mapping[str, Any]], Score]:
    """Return score(response, sample) → `Score`.

    Args:
        config: Not needed.
        options: Of the scorer.
    """

    def score(response: str, sample: Mapping[str, Any]) -> Score:
        return score_tool_use(response, sample, options)

    return score


def score_tool_use(response: str, sample: Mapping[str, Any], options: ToolUseOptions) -> Score:
    """Score one response.

    Args:
        response: What the model wrote.
        sample: The row, with right calls as for `right_calls`; their order does not matter.
        options: Of the scorer.

    Returns:
        Reward 1 if the calls are the right ones. Details: `acc` (the reward), `incorrect_format` (1 unless every call
        can be read), `truncated` (0 or 1) and `pred` (the calls as text).

    Raises:
        DataError: The row's right calls cannot be used.

    Example:
        >>> row = {"ground_truth": [{"Action": "search", "Action_Input": {"query": "axolotl"}}]}
        >>> score_tool_use('Action: search\\nAction Input: {"query": "newt"}', row, ToolUseOptions()).feedback
        'The tools are right, but not these inputs: search {"query": "newt"}.'
    """
    truth = right_calls(truth_in(sample, options.truth_field, "tool_use"))
    truncated = was_truncated(sample)
    calls = calls_in(response)
    unreadable = not calls or calls[-1].arguments is None
    problem = _problem(calls, truth, options.compare)
    if unreadable and truncated:
        problem = TRUNCATED
    feedback = None
    if problem:
        told = f" Expected: {_text(truth)}." if options.reveal_truth else ""
        # The answer is what the text must not lose.
        feedback = clean(shorten(problem, max(0, options.max_chars - len(told) - 3)) + told)[: options.max_chars]
    details = {
        "acc": float(not problem),
        "incorrect_format": int(unreadable),
        "truncated": int(truncated),
        "pred": clean(shorten(_text(calls), options.max_chars)),
    }
    return Score(float(not problem), feedback, details)


def calls_in(response: str) -> list[Call]:
    """Read the tool calls out of a response: each `Action:` with the `Action Input:` that follows it.

    Args:
        response: What the model wrote.

    Returns:
        The calls in their order, up to the first whose input cannot be read. A call without any input has the input {}.

    Example:
        >>> calls_in('Thought: look it up\\nAction: search\\nAction Input: {"query": {"text": "axolotl"}}')
        [Call(tool='search', arguments={'query': {'text': 'axolotl'}})]
    """
    calls: list[Call] = []
    action = _ACTION.search(response)
    while action:
        following = _ACTION.search(response, action.end())
        mark = _INPUT.search(response, action.end(), following.start() if following else len(response))
        arguments: dict[str, Any] | None = {}
        if mark:
            arguments, end = _object(response, mark.end())
            # What looks like a call inside of the input is none.
            if following and end > following.start():
                following = _ACTION.search(response, end)
        calls.append(Call(action[1], arguments))
        if arguments is None:
            break
        action = following
    return calls


def right_calls(truth: Any) -> list[Call]:
    """Read the right calls.

    Args:
        truth: A list, or its JSON, of mappings with `Action` and `Action_Input`, the latter a mapping or its JSON.

    Raises:
        DataError: It is something else, so nothing could ever be right.

    Example:
        >>> right_calls('[{"Action": "ping", "Action_Input": "{}"}]')
        [Call(tool='ping', arguments={})]
    """
    given = decoded(truth, "tool_use", _VALID)
    if isinstance(given, Mapping) or not isinstance(given, Iterable):
        bad_truth("tool_use", _VALID, truth, "it is no list")
    calls = []
    for place, item in enumerate(given):
        if not isinstance(item, Mapping) or not isinstance(item.get("Action"), str) or "Action_Input" not in item:
            bad_truth("tool_use", _VALID, truth, f"entry {place} is no mapping with a name and an input")
        arguments = decoded(item["Action_Input"], "tool_use", _VALID)
        if not isinstance(arguments, Mapping):
            bad_truth("tool_use", _VALID, truth, f"the input of entry {place} is no mapping")
        calls.append(Call(item["Action"].strip(), dict(arguments)))
    if not calls:
        bad_truth("tool_use", _VALID, truth, "it holds no call")
    return calls


def _object(text: str, start: int) -> tuple[dict[str, Any] | None, int]:
    try:
        value, end = _DECODER.raw_decode(text, start)
    except (ValueError, RecursionError):
        return None, start
    return (value, end) if isinstance(value, dict) else (None, start)


def _problem(calls: Sequence[Call], truth: Sequence[Call], compare: str) -> str:
    if not calls:
        return "No tool was called. Write `Action: ` and a tool's name, then `Action Input: ` and a JSON object."
    if calls[-1].arguments is None:
        return f"The input of {calls[-1].tool} is no JSON object."
    if sorted(call.tool for call in calls) != sorted(call.tool for call in truth):
        return f"These are not the right tools: {', '.join(call.tool for call in calls)}."
    wrong = _wrong(calls, truth) if compare == "calls" else _wrong_merged(calls, truth)
    return f"The tools are right, but not these inputs: {_text(wrong)}." if wrong else ""


def _wrong(calls: Sequence[Call], truth: Sequence[Call]) -> list[Call]:
    left, wrong = list(truth), []
    for call in calls:
        place = next((place for place, other in enumerate(left) if _same(call, other)), None)
        if place is None:
            wrong.append(call)
        else:
            del left[place]
    return wrong


def _wrong_merged(calls: Sequence[Call], truth: Sequence[Call]) -> Sequence[Call]:
    same = _same_arguments(_merged(calls), _merged(truth))
    return [] if same else calls


def _merged(calls: Sequence[Call]) -> dict[str, Any]:
    return {name: value for call in calls for name, value in (call.arguments or {}).items()}


def _same(call: Call, other: Call) -> bool:
    return call.tool == other.tool and _same_arguments(call.arguments, other.arguments)


def _same_arguments(mine: Any, theirs: Any) -> bool:
    try:
        return same_value(mine, theirs, typed=False)
    except RecursionError:
        return False


def _text(calls: Iterable[Call]) -> str:
    return "; ".join(f"{call.tool} {_json(call.arguments)}" for call in calls)


def _json(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False)
    except (ValueError, RecursionError):  # nested more deeply than can be written, though it could be read
        return "(nested too deeply)"
