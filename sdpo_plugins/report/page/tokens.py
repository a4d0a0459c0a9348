"""Token values of a rollout as few and short numbers: most of a page's size is these."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["MILLI", "mean_gaps", "packed_tokens"]

MILLI = 1000
"""Log-probs stand in the page as −1000 × nats, rounded: a probability is right to 0.05 %."""

_DIGITS = 3


def mean_gaps(line: Mapping[str, Any]) -> tuple[float | None, float | None, float | None]:
    """Return a rollout's mean gap, mean disagreement and mean divergence over the tokens that carry loss, in nats.

    The gap of a token is log q(y) − log π(y), the disagreement its absolute value.

    Args:
        line: The rollout's `tokens` line.

    Returns:
        The three means, each None if no token has the value.

    Example:
        >>> line = {"mask": [1, 1, 0], "student": [-1.0, -0.5, None], "teacher": [-0.5, -1.5, None]}
        >>> mean_gaps({**line, "divergence": [0.25, 0.75, None]})
        (-0.25, 0.75, 0.5)
    """
    pairs = zip(line["student"], line["teacher"], strict=True)
    gaps = [teacher - student for student, teacher in pairs if student is not None and teacher is not None]
    divergences = [value for value in line["divergence"] if value is not None]
    return _mean(gaps), _mean([abs(gap) for gap in gaps]), _mean(divergences)


def packed_tokens(line: Mapping[str, Any]) -> dict[str, Any]:
    """Return a `tokens` line as the page's script reads it.

    Args:
        line: The line.

    Returns:
        `length`, `ids` and `pieces` (each different token once), and by token: `at` (its place in `ids`), `mask`,
        `student`, `teacher` (−1000 × nats), `divergence`, `entropy` (nats); null where there is no value. Of the
        alternatives `studentTop` and `teacherTop`, the likeliest first: how many each token has, and for all of them
        in a row their places in `ids` and their log-probs, within a token each after the first as the difference to
        the one before.

    Example:
        >>> line = {"length": 1, "ids": [7], "pieces": {"7": "Hi", "9": "Ho"}, "mask": [1], "student": [-0.5]}
        >>> line |= {"teacher": [-0.25], "divergence": [0.12345], "entropy": [1.0]}
        >>> packed = packed_tokens({**line, "student_top": [[[7, -0.5], [9, -1.0]]], "teacher_top": [None]})
        >>> packed["pieces"], packed["student"], packed["studentTop"]
        (['Hi', 'Ho'], [500], {'counts': [2], 'at': [0, 1], 'logs': [500, 500]})
    """
    tops = [*(line.get("student_top") or []), *(line.get("teacher_top") or [])]
    used = dict.fromkeys([*line["ids"], *(token for top in tops for token, _ in top or ())])
    place = {token: number for number, token in enumerate(used)}

    return {
        "length": line["length"],
        "ids": list(used),
        "pieces": [line["pieces"].get(str(token), "") for token in used],
        "at": [place[token] for token in line["ids"]],
        "mask": list(line["mask"]),
        "student": [_milli(value) for value in line["student"]],
        "teacher": [_milli(value) for value in line["teacher"]],
        "divergence": [_short(value) for value in line["divergence"]],
        "entropy": [_short(value) for value in line["entropy"]],
        "studentTop": _packed_top(line.get("student_top") or [], place),
        "teacherTop": _packed_top(line.get("teacher_top") or [], place),
    }


def _packed_top(rows: Sequence[Any], place: Mapping[int, int]) -> dict[str, list[int]]:
    """Numbers of one kind in a row compress better than pairs, and small ones better than large ones."""
    packed: dict[str, list[int]] = {"counts": [len(row or ()) for row in rows], "at": [], "logs": []}
    for row in rows:
        before = 0
        for token, value in row or ():
            packed["at"].append(place[token])
            packed["logs"].append(round(-MILLI * value) - before)
            before += packed["logs"][-1]
    return packed


def _milli(value: float | None) -> int | None:
    return None if value is None else round(-MILLI * value)


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.{_DIGITS}g}")


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
