"""Finding fenced code blocks in a response, in one pass over its lines."""

from __future__ import annotations

import re
import textwrap
from typing import NamedTuple

__all__ = ["Blocks", "find_blocks"]

# The last run of backticks of a line, with nothing but a language's name behind it; tildes only open a line. Nothing
# is tried twice (`*+`): a response may be a million backticks.
_OPENING = re.compile(r"(?:(?<!`)(?P<ticks>`{3,}+)|\A[ \t]*+(?P<tildes>~{3,}+))[ \t]*+(?P<name>[\w+#.-]*+)[ \t\r]*+\Z")
_FENCE = re.compile(r"`{3,}")


class Blocks(NamedTuple):
    """What was found.

    Args:
        contents: The blocks that were begun and ended, in their order.
        unfinished: Whether one was begun and not ended.
    """

    contents: tuple[str, ...]
    unfinished: bool


def find_blocks(text: str) -> Blocks:
    r"""Find the code blocks of a Markdown text, as models write it.

    A block begins behind a line that ends in three or more backticks (or is three or more tildes), with or without a
    language's name. It ends at a line that begins with at least as many of the same, indented by less than four blanks
    more, or behind a line that ends in them. Other fences inside of it are code: in a docstring, in the middle of a
    line. Blocks in a list lose their indentation.

    Args:
        text: The response.

    Returns:
        The blocks' contents, each with its last line break.

    Example:
        >>> find_blocks("So:\n```python\nprint(1)\n```").contents
        ('print(1)\n',)
        >>> find_blocks("```python\nprint(1").unfinished
        True
    """
    contents: list[str] = []
    inside: list[str] = []
    opening: re.Match[str] | None = None
    fence, indent = "", 0
    # Line feeds alone: `splitlines` would also cut the strings of a program, at form feeds and the like.
    for line in text.split("\n"):
        if opening is None:
            opening = _opening(line)
            if opening:
                inside, fence = [], opening["ticks"] or opening["tildes"]
                indent = _indent(line)
        elif line.lstrip(" \t").startswith(fence) and _indent(line) < indent + 4:
            contents.append(_content(inside))
            opening = None
        elif opening["ticks"] and line.rstrip().endswith(fence) and line.strip(" \t\r`"):
            contents.append(_content([*inside, line.rstrip().rstrip("`")]))
            opening = None
        else:
            inside.append(line)
    # Three backticks and nothing behind them are rather the end of something else.
    return Blocks(tuple(contents), opening is not None and bool(opening["name"] or "".join(inside).strip()))


def _opening(line: str) -> re.Match[str] | None:
    found = _OPENING.search(line)
    # An even number of fences on a line: ```print(1)``` is a span of the text, and opens nothing.
    return found if found and (found["tildes"] or len(_FENCE.findall(line)) % 2) else None


def _indent(line: str) -> int:
    blanks = line[: len(line) - len(line.lstrip(" \t"))]
    return len(blanks.expandtabs(4))


def _content(lines: list[str]) -> str:
    text = "".join(line + "\n" for line in lines)
    first = next((line for line in lines if line.strip()), "")
    return textwrap.dedent(text) if first[:1] in (" ", "\t") else text
