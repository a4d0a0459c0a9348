"""Comparing JSON values and program outputs."""

from __future__ import annotations

import json
import math
import re
from typing import Any

__all__ = ["read_json", "same_lines", "same_value"]

# Python refuses to turn more digits into a number, because that takes quadratic time.
_DIGITS = 4000
_WHOLE = re.compile(r"[-+]?[0-9]+")


def read_json(text: str) -> Any:
    """Read JSON; whole numbers of thousands of digits stay texts of their own type, and compare as such.

    Raises:
        ValueError: The text is no JSON.
        RecursionError: It is nested too deeply.

    Example:
        >>> read_json('[1, "a"]')
        [1, 'a']
    """
    try:
        return json.loads(text)
    except ValueError:
        # A number of so many digits, or no JSON, which then is raised again. It is the slow way to read the others.
        return json.loads(text, parse_int=lambda digits: int(digits) if len(digits) <= _DIGITS else _Huge(digits))


def same_value(left: Any, right: Any, tolerance: float = 0.0, *, typed: bool = True) -> bool:
    """Return whether two JSON values are the same.

    Args:
        left: As from `read_json`.
        right: As from `read_json`.
        tolerance: Above 0, numbers count as the same if they differ by no more, absolutely or relatively; two whole
            numbers never do, since it would be no rounding that makes them differ.
        typed: Whether 1 and 1.0 differ; with a tolerance they never do. True and 1 always differ.

    Example:
        >>> same_value([1, {"a": None}], [1, {"a": None}]), same_value(1, 1.0), same_value(True, 1)
        (True, False, False)
        >>> same_value([0.30000000000000004], [0.3], 1e-9)
        True
    """
    if _is_number(left) and _is_number(right):
        return _same_number(left, right, tolerance, typed)
    if type(left) is not type(right):
        return False
    if isinstance(left, list):
        return len(left) == len(right) and all(
            same_value(*pair, tolerance, typed=typed) for pair in zip(left, right, strict=True)
        )
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(
            same_value(left[key], right[key], tolerance, typed=typed) for key in left
        )
    return bool(left == right)


def same_lines(output: str, expected: str, tolerance: float = 0.0) -> bool:
    r"""Return whether two outputs are the same line by line, up to blanks at the ends of lines and of the output.

    Args:
        output: What a program wrote.
        expected: What it should have written.
        tolerance: Above 0, lines are compared word by word, and words that are numbers as for `same_value`.

    Example:
        >>> same_lines("1 2 \n3\n\n", "1 2\n3"), same_lines("1  2", "1 2"), same_lines("0.333", "0.3333", 1e-3)
        (True, False, True)
    """
    mine, theirs = _lines(output), _lines(expected)
    if mine == theirs:
        return True
    if not tolerance or len(mine) != len(theirs):
        return False
    return all(_same_words(*pair, tolerance) for pair in zip(mine, theirs, strict=True))


class _Huge(str):
    """The digits of a whole number."""

    __slots__ = ()


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.strip().split("\n")]


def _same_words(left: str, right: str, tolerance: float) -> bool:
    mine, theirs = left.split(), right.split()
    if len(mine) != len(theirs):
        return False
    for one, other in zip(mine, theirs, strict=True):
        if one == other:
            continue
        numbers = _number(one), _number(other)
        if numbers[0] is None or numbers[1] is None or not _close(numbers[0], numbers[1], tolerance):
            return False
    return True


def _number(word: str) -> float | None:
    try:
        if _WHOLE.fullmatch(word):
            return int(word) if len(word) <= _DIGITS else None  # an infinite one, as `float` reads it
        return float(word) if "_" not in word else None  # Python reads 1_000, nobody else does
    except ValueError:
        return None


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _same_number(left: float, right: float, tolerance: float, typed: bool) -> bool:
    if tolerance:
        return _close(left, right, tolerance)
    if typed and type(left) is not type(right):
        return False
    return left == right or (left != left and right != right)


def _close(left: float, right: float, tolerance: float) -> bool:
    if isinstance(left, int) and isinstance(right, int):
        return left == right
    if left == right or (left != left and right != right):
        return True
    try:
        return math.isclose(left, right, rel_tol=tolerance, abs_tol=tolerance)
    except OverflowError:  # whole numbers beyond every float
        return False
