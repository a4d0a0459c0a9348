"""The contract of a selector."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from sdpo_plugins._catalogues import SELECTORS
from sdpo_plugins.config import SDPOConfig
from sdpo_plugins.testing._common import build_entry, sample_rollouts
from sdpo_plugins.types import Selector

__all__ = ["check_selector"]

# Rollout → who may demonstrate for it in `sample_rollouts`: the successes of its group without itself.
_CANDIDATES = {0: (3, 7), 2: (0, 3, 7), 3: (0, 7), 6: (5,), 7: (0, 3)}


def check_selector(
    entry: Selector, *, config: SDPOConfig | None = None, options: Mapping[str, Any] | None = None
) -> None:
    """Check that select(index, candidates, rollouts) chooses one of the candidates or no one.

    Also: the same choice from a selector built again (another rank, a resumed run), one candidate is enough, tuple
    and list alike, inputs unchanged.

    Args:
        entry: The catalogue entry.
        config: The configuration to build it with; by default `SDPOConfig()`.
        options: The strategy's own options as a plain mapping.

    Raises:
        AssertionError: Says what does not hold.

    Example:
        >>> from sdpo_plugins.plugins import catalogue
        >>> check_selector(catalogue("selector")["first"])
    """
    name = f"the selector {entry.name!r}"
    rollouts = sample_rollouts()
    before = copy.deepcopy(rollouts)
    choices = []
    for _ in range(2):
        select = build_entry(entry, SELECTORS, config, options)
        for form in (tuple, list):
            chosen = {}
            for index, candidates in _CANDIDATES.items():
                given = form(candidates)
                chosen[index] = select(index, given, rollouts)
                assert list(given) == list(candidates), f"{name} changed its candidates in place"
            choices.append(chosen)
    for index, choice in choices[0].items():
        valid = choice is None or (
            isinstance(choice, int) and not isinstance(choice, bool) and choice in _CANDIDATES[index]
        )
        assert valid, f"{name} must return one of the candidates {_CANDIDATES[index]} or None, got {choice!r}"
    assert rollouts == before, f"{name} changed the rollouts"
    assert all(chosen == choices[0] for chosen in choices), (
        f"{name} must choose the same again for the same inputs, or ranks would disagree: got {choices}"
    )
