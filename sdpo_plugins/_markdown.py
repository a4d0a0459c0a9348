"""Markdown of the generated reference: tables, and values as a reader would write them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

__all__ = ["shown", "table"]


def shown(value: Any) -> str:
    """Write a value as in a YAML file, texts and collections as code.

    Example:
        >>> shown(None), shown(True), shown(0.05), shown("ema")
        ('null', 'true', '0.05', '`ema`')
    """
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return "`" + value.replace("\n", "\\n") + "`"
    if isinstance(value, float):
        return f"{value:g}" if value != int(value) else f"{value:.1f}"
    return f"`{value}`" if isinstance(value, (dict, tuple, list)) else str(value)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Write a table; a bar in a cell is escaped.

    Example:
        >>> print(table(("a", "b"), [("1", "x|y")]))
        | a | b |
        |---|---|
        | 1 | x\\|y |
    """
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join(lines)
