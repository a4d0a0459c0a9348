"""What the three hosts' reward functions share: one set of workers for each scorer, and what hosts want of a score."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from sdpo_plugins.feedback.batch import TIMEOUT, BatchScorer
from sdpo_plugins.types import Score

__all__ = ["SETTINGS", "numbers_of", "plain", "shared_scorer", "texts_of"]

SETTINGS = ("plugins", "workers", "timeout", "progress")
"""Arguments of `BatchScorer` that stand beside the scorer's own options."""

_scorers: dict[str, BatchScorer] = {}
_lock = threading.Lock()


def shared_scorer(name: str, settings: Mapping[str, Any], workers: int) -> BatchScorer:
    """Return this process's scorer for these settings, made at the first call.

    A host may copy a reward function for every response; the workers must not be started for each.

    Args:
        name: Of the catalogue.
        settings: The scorer's options, and those of `SETTINGS`.
        workers: Number of processes where the settings have none.

    Raises:
        ConfigError: Unknown scorer, invalid options.
    """
    given = plain(settings)
    key = json.dumps([name, given, workers], sort_keys=True, default=repr)
    with _lock:
        if key not in _scorers:
            options = {key: value for key, value in given.items() if key not in SETTINGS}
            wanted = given.get("workers")
            _scorers[key] = BatchScorer(
                name,
                options,
                plugins=given.get("plugins", ()),
                workers=workers if wanted is None else wanted,
                timeout=given.get("timeout", TIMEOUT),
                progress=given.get("progress", False),
            )
        return _scorers[key]


def plain(value: Any) -> Any:
    """Turn a host's mappings and lists (OmegaConf's, for example) into Python's own, recursively."""
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        return [plain(inner) for inner in value]
    return value


def numbers_of(score: Score) -> dict[str, float]:
    """Return the details of a score that are numbers."""
    return {key: float(value) for key, value in score.details.items() if isinstance(value, (bool, int, float))}


def texts_of(score: Score) -> dict[str, str]:
    """Return the details of a score that are texts."""
    return {key: value for key, value in score.details.items() if isinstance(value, str)}
