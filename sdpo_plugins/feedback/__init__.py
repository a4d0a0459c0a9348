"""Scorers that reward an answer and say what was wrong with it, and the way from them to each host.

    reward = for_trl("code")                                    # a reward function of TRL's
    compute_score = for_verl("math")                            # of verl's; without code: sdpo_plugins.feedback.verl
    reward_func = for_openrlhf("tool_use", reveal_truth=True)   # of OpenRLHF's
    scores = BatchScorer("code")(responses, rows)               # of none

Nothing here imports torch or a host.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sdpo_plugins.feedback.batch import BatchScorer
    from sdpo_plugins.feedback.openrlhf import for_openrlhf
    from sdpo_plugins.feedback.trl import for_trl
    from sdpo_plugins.feedback.verl import for_verl

__all__ = ["BatchScorer", "for_openrlhf", "for_trl", "for_verl"]

_PLACES = {
    "BatchScorer": "sdpo_plugins.feedback.batch",
    "for_openrlhf": "sdpo_plugins.feedback.openrlhf",
    "for_trl": "sdpo_plugins.feedback.trl",
    "for_verl": "sdpo_plugins.feedback.verl",
}


def __getattr__(name: str) -> Any:
    # The scorers of a worker process need none of this.
    if name in _PLACES:
        return getattr(importlib.import_module(_PLACES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
