"""Who demonstrates: the built-in choices among the successful rollouts of a question."""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sdpo_plugins.config import SDPOConfig
from sdpo_plugins.types import Rollout

__all__ = ["SELECTORS", "Select", "build_best_reward", "build_first", "build_none", "build_random", "build_shortest"]

Select = Callable[[int, Sequence[int], Sequence[Rollout]], "int | None"]
"""`select(index, candidates, rollouts)`: which of `candidates` demonstrates for rollout `index`, or None."""


def build_first(config: SDPOConfig, options: Any = None) -> Select:
    """Choose the first successful rollout in batch order, as the authors do.

    Args:
        config: The configuration.
        options: None; the strategy has no options.

    Returns:
        The selector.

    Example:
        >>> build_first(SDPOConfig())(0, [2, 5], [])
        2
    """
    return _first


def build_random(config: SDPOConfig, options: Any = None) -> Select:
    """Choose one at random, by a hash of `selector_seed`, the question, the successful answers and the rollout's own.

    The draw depends on texts alone: the same group gives the same demonstrations on any rank, in any process and in
    any order of the batch. Each rollout of a group draws for itself, and new answers to a question draw anew.

    Args:
        config: The configuration; `selector_seed` is read.
        options: None; the strategy has no options.

    Returns:
        The selector.

    Example:
        >>> rollouts = [Rollout(0, "2+2?", answer, 1.0) for answer in ("4", "four", "4.")]
        >>> build_random(SDPOConfig(selector_seed=1))(0, [1, 2], rollouts) in (1, 2)
        True
    """
    seed = config.selector_seed

    def select(index: int, candidates: Sequence[int], rollouts: Sequence[Rollout]) -> int | None:
        ordered = sorted(candidates, key=lambda candidate: (rollouts[candidate].response, candidate))
        content = [seed, rollouts[index].prompt, rollouts[index].response, [rollouts[i].response for i in ordered]]
        digest = hashlib.blake2b(json.dumps(content, sort_keys=True, default=_stable).encode(), digest_size=16)
        return ordered[random.Random(digest.digest()).randrange(len(ordered))]

    return select


def build_shortest(config: SDPOConfig, options: Any = None) -> Select:
    """Choose the successful rollout with the fewest characters, the first of equals.

    Args:
        config: The configuration.
        options: None; the strategy has no options.

    Returns:
        The selector.

    Example:
        >>> rollouts = [Rollout(0, "2+2?", answer, 1.0) for answer in ("It is 4.", "4")]
        >>> build_shortest(SDPOConfig())(0, [0, 1], rollouts)
        1
    """
    return _shortest


def build_best_reward(config: SDPOConfig, options: Any = None) -> Select:
    """Choose the successful rollout with the highest total reward, the first of equals; NaN counts as lowest.

    Args:
        config: The configuration.
        options: None; the strategy has no options.

    Returns:
        The selector.

    Example:
        >>> rollouts = [Rollout(0, "2+2?", "4", reward) for reward in (0.6, 0.9)]
        >>> build_best_reward(SDPOConfig())(0, [0, 1], rollouts)
        1
    """
    return _best_reward


def build_none(config: SDPOConfig, options: Any = None) -> Select:
    """Let no one demonstrate, so that the teacher reads feedback alone (TRL's `use_successful_as_teacher=False`).

    Args:
        config: The configuration.
        options: None; the strategy has no options.

    Returns:
        The selector.

    Example:
        >>> build_none(SDPOConfig())(0, [2, 5], []) is None
        True
    """
    return _none


SELECTORS: Mapping[str, Callable[..., Select]] = {
    "first": build_first,
    "random": build_random,
    "shortest": build_shortest,
    "best_reward": build_best_reward,
    "none": build_none,
}
"""The built-in selectors by name."""


def _first(index: int, candidates: Sequence[int], rollouts: Sequence[Rollout]) -> int | None:
    return candidates[0]


def _none(index: int, candidates: Sequence[int], rollouts: Sequence[Rollout]) -> int | None:
    return None


def _shortest(index: int, candidates: Sequence[int], rollouts: Sequence[Rollout]) -> int | None:
    return min(candidates, key=lambda candidate: len(rollouts[candidate].response))


def _best_reward(index: int, candidates: Sequence[int], rollouts: Sequence[Rollout]) -> int | None:
    def reward(candidate: int) -> float:
        value = float(rollouts[candidate].reward)
        return -math.inf if math.isnan(value) else value

    return max(candidates, key=reward)


def _stable(value: Any) -> Any:
    # Images and other objects in a prompt: their addresses change from process to process, their types do not.
    if isinstance(value, Mapping):
        return dict(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    return type(value).__qualname__
