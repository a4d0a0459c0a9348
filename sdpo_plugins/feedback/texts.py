"""The texts of feedback: how they begin, how long they get, and what of a failing test they show."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

__all__ = [
    "TRUNCATED",
    "WRONG_CODE_FORMAT",
    "Case",
    "Show",
    "cases_text",
    "clean",
    "shorten",
]

TRUNCATED = (
    "Truncated Attempt: Your previous response was too long and truncated because it reached the maximum response "
    "length. Try again with a shorter response."
)
WRONG_CODE_FORMAT = "Incorrect Format: Put your code inside a ```python ... ``` block."

# No more lines of a test's input are shown.
_INPUT_LINES = 8
# What is found first is what a text is about: a program that ends in an error has no answer to look at.
_HEADS = {
    "error": "Runtime Error",
    "memory": "Memory Limit Exceeded",
    "output": "Output Limit Exceeded",
    "timeout": "Time Limit Exceeded",
    "wrong": "Wrong Answer",
}

# What the sandbox's report has before a place in the program: the line that stands there.
_SOURCE_LINE = re.compile(r"^  .*\n(?=Line \d+ in .*\(\w+\.py\)$)", re.MULTILINE)

Kind = Literal["passed", "wrong", "error", "memory", "output", "timeout", "not run"]


@dataclass(frozen=True)
class Case:
    """What became of one test.

    Args:
        kind: "passed", "wrong", "not run", or what ended the program: "error", "memory", "output", "timeout".
        input: What the program was given; None: not to be shown.
        output: What it answered; None: there is nothing to show.
        expected: The right answer; None: not to be shown.
        report: The report of its error.
        hidden: Whether nothing of the test may be shown.
    """

    kind: Kind
    input: str | None = None
    output: str | None = None
    expected: str | None = None
    report: str = ""
    hidden: bool = False


@dataclass(frozen=True)
class Show:
    """How much is shown.

    Args:
        cases: Wrong answers at most.
        chars: Characters of the whole text at most.
        field_chars: Characters of an input's line, of an output and of a right answer at most.
        source_lines: Whether an error's places are shown with the program's line there.
    """

    cases: int = 2
    chars: int = 2000
    field_chars: int = 250
    source_lines: bool = False


def clean(text: str) -> str:
    r"""Return a text that every tokenizer, log and table takes: lone surrogates and NUL become U+FFFD.

    Example:
        >>> clean("a\x00b\ud800")
        'a�b�'
    """
    return re.sub("[\x00\ud800-\udfff]", "\ufffd", text)


def shorten(text: str, limit: int) -> str:
    """Return the first `limit` characters, with three dots if there are more.

    Example:
        >>> shorten("abcdef", 4)
        'abcd...'
    """
    return text if len(text) <= limit else text[:limit] + "..."


def cases_text(cases: Sequence[Case], show: Show) -> str:
    r"""Say what failed, in the authors' form.

    The first error alone, with its input; else the first test that took too much memory, wrote too much or took too
    long; else the wrong answers with the shortest inputs and outputs. Hidden tests are only counted. If nothing failed
    and not every test was run, that is said.

    Args:
        cases: What became of each test, in order.
        show: How much to show.

    Returns:
        The text; "" if nothing failed.

    Example:
        >>> print(cases_text([Case("wrong", "1 2", "4", "3")], Show()))
        Test Case 1: Wrong Answer
        <BLANKLINE>
        Input
        1 2
        <BLANKLINE>
        Output
        4
        <BLANKLINE>
        Expected
        3
    """
    hidden = _hidden_text(cases)
    room = show.chars - (len(hidden) + 2 if hidden else 0)
    visible = _visible_text(cases, show, room)
    if not (visible or hidden) and any(case.kind == "not run" for case in cases):
        ran = sum(case.kind != "not run" for case in cases)
        visible = f"{_HEADS['timeout']}\n\nOnly {ran} of {len(cases)} tests ran in the time for all of them."
    return clean("\n\n".join(part for part in (visible, hidden) if part))[: show.chars].rstrip()


def _visible_text(cases: Sequence[Case], show: Show, room: int) -> str:
    failed = [index for index, case in enumerate(cases) if case.kind in _HEADS and not case.hidden]
    for kind, head in _HEADS.items():
        first = next((cases[index] for index in failed if cases[index].kind == kind), None)
        if first is not None and kind != "wrong":
            return _ended_text(head, first, show, room)
    failed.sort(key=lambda index: len(cases[index].input or "") + len(cases[index].output or ""))
    parts: list[str] = []
    for index in failed[: show.cases]:
        part = _wrong_text(index + 1, cases[index], show, room)
        if parts and len(part) > room:
            break
        parts.append(part)
        room -= len(part) + 2
    return "\n\n".join(parts)


def _ended_text(head: str, case: Case, show: Show, room: int) -> str:
    tail = "" if case.input is None else "\n\nLast Executed Input\n" + _input_text(case.input, show, room // 2)
    if case.kind == "error":
        # The report gives way to the input, of which less is shown anyway.
        report = case.report.strip() or "The program ended with an error."
        if not show.source_lines:
            report = _SOURCE_LINE.sub("", report)
        head += "\n" + _fitted(report, room - len(head) - 1 - len(tail))
    return head + tail


def _wrong_text(number: int, case: Case, show: Show, room: int) -> str:
    head, tail = f"Test Case {number}: Wrong Answer", ""
    for name, text in (("Output", case.output), ("Expected", case.expected)):
        if text is not None:
            tail += f"\n\n{name}\n{shorten(text, show.field_chars)}"
    if case.input is None:
        return head + tail
    head += "\n\nInput\n"
    return head + _input_text(case.input, show, room - len(head) - len(tail)) + tail


def _hidden_text(cases: Sequence[Case]) -> str:
    hidden = [case.kind for case in cases if case.hidden and case.kind != "not run"]
    counts = Counter[str](kind for kind in hidden if kind in _HEADS)
    if not counts:
        return ""
    listing = ", ".join(f"{counts[kind]} {head}" for kind, head in _HEADS.items() if counts[kind])
    return f"Hidden Tests: {counts.total()} of {len(hidden)} failed ({listing})"


def _input_text(text: str, show: Show, room: int) -> str:
    # Not the lines of `splitlines`, which ends one at every form feed.
    lines = text.removesuffix("\n").split("\n", _INPUT_LINES)
    shown = [shorten(line, show.field_chars) for line in lines[:_INPUT_LINES]]
    if len(lines) > _INPUT_LINES:
        shown.append(f"... ({lines[-1].count(chr(10)) + 1} more lines)")
    return _fitted("\n".join(shown), room)


def _fitted(text: str, room: int) -> str:
    """Return as much of a text as there is room for, three dots included."""
    return text if len(text) <= room else text[: max(0, room - 3)] + "..."
