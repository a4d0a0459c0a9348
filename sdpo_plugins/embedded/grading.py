"""Answers of the embedded models graded by the project's own scorers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

from sdpo_plugins.types import Score

__all__ = ["scored"]


# A tiny model gives the same answers again and again: a program is not run twice for the same tests.
@functools.lru_cache(maxsize=8192)
def scored(scorer: str, truth: str, response: str) -> tuple[float, str | None]:
    """Let a scorer of the project grade one response.

    Args:
        scorer: its name, e.g. ``"code"``.
        truth: what the scorer takes for ``ground_truth``.
        response: the answer's text.

    Returns:
        The reward, and the feedback or None.

    Example:
        >>> scored("multiple_choice", "B", "<answer>B</answer>")
        (1.0, None)
    """
    score = _scorer(scorer)(response, {"ground_truth": truth})
    return score.reward, score.feedback


@functools.cache
def _scorer(name: str) -> Callable[[str, Mapping[str, Any]], Score]:
    from sdpo_plugins.config import SDPOConfig
    from sdpo_plugins.plugins import build_scorer

    return build_scorer(SDPOConfig(), name)
