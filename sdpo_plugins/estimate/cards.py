"""Which common GPUs a run fits on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sdpo_plugins.estimate.phases import GIB, Estimate

__all__ = ["CARDS", "Card", "Fit", "fits"]

_TIGHT = 0.9


@dataclass(frozen=True)
class Card:
    """A GPU.

    Args:
        name: As people call it.
        gb: Size on its box.
        gib: Its memory as the driver shows it, a little less than on its box.
    """

    name: str
    gb: int
    gib: float


CARDS = (
    Card("T4", 16, 14.7),
    Card("RTX 4090, L4", 24, 23.5),
    Card("A100", 40, 39.4),
    Card("L40S", 48, 44.5),
    Card("A100, H100", 80, 79.1),
    Card("H200", 141, 139.8),
)
"""Common GPUs, by how much a process can use of them."""


@dataclass(frozen=True)
class Fit:
    """How a run sits on a GPU.

    Args:
        card: The GPU.
        needs: Bytes, allowance and vLLM's share included.
        verdict: "fits", "tight" (above 90 %: fragmentation may end it), or "does not fit".
    """

    card: Card
    needs: int
    verdict: Literal["fits", "tight", "does not fit"]


def fits(found: Estimate) -> tuple[Fit, ...]:
    """Return the verdict on each common GPU.

    Example:
        >>> CARDS[0].name, CARDS[0].gb
        ('T4', 16)
    """
    result = []
    for card in CARDS:
        size = int(card.gib * GIB)
        needs = found.needs(size)
        verdict: Literal["fits", "tight", "does not fit"] = "does not fit"
        if needs <= size:
            verdict = "fits" if needs <= _TIGHT * size else "tight"
        result.append(Fit(card, needs, verdict))
    return tuple(result)
