"""Tokens of made runs: texts cut into pieces, and valid distributions of a student and a teacher."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Sequence
from typing import Any

__all__ = ["position", "span_of", "split"]

_SUPPORT = 8  # tokens that have a probability of their own
_TOP = 5


def position(draw: random.Random, token: int, others: Sequence[int], chosen: float, liking: bool | None) -> list[Any]:
    """Draw what student and teacher think at one position.

    Args:
        draw: Where random numbers come from.
        token: The sampled token.
        others: Tokens that may be alternatives; the sampled one may be among them.
        chosen: The student's probability of the sampled token.
        liking: Whether the teacher approves; None: it is the student.

    Returns:
        log π(y), log q(y), KL(π‖q), the student's entropy, and the likeliest tokens of both.
    """
    support = [token, *(other for other in draw.sample(others, min(_SUPPORT, len(others))) if other != token)]
    student = _spread(draw, chosen, len(support))
    if liking is None:
        teacher = list(student)
    elif liking:
        teacher = _spread(draw, 1 - (1 - student[0]) * draw.uniform(0.4, 0.95), len(support))
    else:
        teacher = _spread(draw, student[0] * draw.uniform(0.02, 0.3), len(support), favourite=True)
    pairs = [*zip(student, teacher, strict=True), (1 - sum(student), 1 - sum(teacher))]
    divergence = sum(p * math.log(p / q) for p, q in pairs)
    entropy = -sum(p * math.log(p) for p, _ in pairs)
    tops = [
        sorted(((other, math.log(p)) for other, p in zip(support, values, strict=True)), key=lambda pair: -pair[1])
        for values in (student, teacher)
    ]
    logs = (math.log(student[0]), math.log(teacher[0]))
    return [*logs, max(divergence, 0.0), entropy, *(top[:_TOP] for top in tops)]


def split(text: str) -> list[str]:
    """Tokens: a word or a number of at most two digits with the space before it, or one other character."""
    return re.findall(r" ?[^\W\d]+| ?\d{1,2}|\s|[^\w\s]|_", text)


def span_of(pieces: Sequence[str], text: str | None) -> set[int]:
    """Places of the pieces that make up a part of the text."""
    if text is None:
        return set()
    start = "".join(pieces).find(text)
    places, at = set(), 0
    for place, piece in enumerate(pieces):
        if start <= at < start + len(text):
            places.add(place)
        at += len(piece)
    return places


def _spread(draw: random.Random, first: float, count: int, favourite: bool = False) -> list[float]:
    """Probabilities: `first` for the first entry, most of the rest over the others, a tail for all further tokens."""
    first = min(first, 0.9995)
    weights = [draw.random() ** 3 + 1e-3 for _ in range(count - 1)]
    if favourite:
        weights[0] += 5.0
    rest = (1 - first) * 0.97
    return [first, *(rest * weight / sum(weights) for weight in weights)]
