"""What is said of an error: its type and text, and where in the program it arose."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from types import TracebackType

__all__ = ["LONGEST", "report_of"]

# Characters of a whole report, of its message and of a line of source; frames shown, the last ones.
LONGEST = 2000
_MESSAGE, _LINE, _FRAMES = 1000, 200, 3


def report_of(error: BaseException, source: str, name: str) -> str:
    """Describe an error.

    Args:
        error: What was raised. It may belong to a hostile program, and this is called in that program's process.
        source: The text that was run.
        name: What it was compiled as; frames of other files are left out.

    Returns:
        "ZeroDivisionError: division by zero\\n  return 1 / 0\\nLine 2 in f (Solution.py)"

    Example:
        >>> report_of(ValueError("no"), "", "Solution.py")
        'ValueError: no'
    """
    try:
        message = str(error)[:_MESSAGE]
    except BaseException:
        message = "(its text cannot be had)"
    kind = type(error).__name__
    shown = [f"{kind}: {message}" if message else kind]
    lines = source.splitlines()
    for line, function in deque(_places(error.__traceback__, name), maxlen=_FRAMES):
        if 0 < line <= len(lines) and lines[line - 1].strip():
            shown.append("  " + lines[line - 1].strip()[:_LINE])
        shown.append(f"Line {line} in {function[:_LINE]} ({name})")
    return "\n".join(shown)[:LONGEST]


def _places(trace: TracebackType | None, name: str) -> Iterator[tuple[int, str]]:
    while trace is not None:
        code = trace.tb_frame.f_code
        if code.co_filename == name:
            yield trace.tb_lineno, code.co_name
        trace = trace.tb_next
