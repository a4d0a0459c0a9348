"""Tokens laid out as wrapped text, in cells of a monospaced font."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from sdpo_plugins.report.drawing import printable

__all__ = ["Mark", "cells_of", "shortened", "wrapped"]

_SHOWN = {"\n": "⏎", "\t": "⇥", "\r": "␍"}


@dataclass(frozen=True)
class Mark:
    """A piece of a row that belongs to one token.

    Args:
        token: The token's place in the response.
        text: What is shown.
        row: From 0, downwards.
        column: First cell in its row.
        cells: Its width.
    """

    token: int
    text: str
    row: int
    column: int
    cells: int


def wrapped(pieces: Sequence[str], columns: int) -> list[Mark]:
    """Lay out tokens in rows of so many cells. A token that fits into a row is not broken, except at a line's end.

    Args:
        pieces: Texts of the tokens.
        columns: Cells of a row, at least 2.

    Returns:
        In reading order; an empty piece leaves no mark.

    Example:
        >>> [(mark.text, mark.row, mark.column) for mark in wrapped(["ab", " cd", "\\n", "e"], columns=4)]
        [('ab', 0, 0), (' cd', 1, 0), ('⏎', 1, 3), ('e', 2, 0)]
    """
    marks: list[Mark] = []
    row = column = 0
    for token, piece in enumerate(pieces):
        for line in piece.splitlines(keepends=True):
            shown = printable(_visible(line))
            for part in _parts(shown, columns):
                cells = cells_of(part)
                if column + cells > columns:
                    row, column = row + 1, 0
                marks.append(Mark(token, part, row, column, cells))
                column += cells
            if line[-1:] in ("\n", "\r"):
                row, column = row + 1, 0
    return marks


def cells_of(text: str) -> int:
    """Return how many cells a text takes: two for a wide letter, none for a combining one.

    Example:
        >>> cells_of("a数")
        3
    """
    return sum(_cells(letter) for letter in text)


def shortened(text: str, cells: int) -> str:
    """Return a text on one line, with "…" at its end if it takes more cells.

    Example:
        >>> shortened("one\\ntwo three", 8)
        'one⏎two…'
    """
    shown = printable(_visible(text.strip()))
    if cells_of(shown) <= cells:
        return shown
    kept = ""
    for letter in shown:
        if cells_of(kept) + _cells(letter) > cells - 1:
            break
        kept += letter
    return f"{kept}…"


def _visible(text: str) -> str:
    return "".join(_SHOWN.get(letter, letter) for letter in text.replace("\r\n", "\n"))


def _parts(text: str, columns: int) -> list[str]:
    if cells_of(text) <= columns:
        return [text] if text else []
    parts, part = [], ""
    for letter in text:
        if cells_of(part) + _cells(letter) > columns:
            parts.append(part)
            part = ""
        part += letter
    return [*parts, part]


def _cells(letter: str) -> int:
    if unicodedata.combining(letter):
        return 0
    return 2 if unicodedata.east_asian_width(letter) in ("W", "F") else 1
