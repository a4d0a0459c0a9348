"""A plug-in whose scorer looks at nothing but the answer's length: every tiny model is sometimes right."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from sdpo_plugins import Score, Scorer, SDPOConfig, hookimpl


def build_length(config: SDPOConfig, options: None) -> Callable[[str, Mapping[str, Any]], Score]:
    """Return the scorer."""

    def score(response: str, sample: Mapping[str, Any]) -> Score:
        right = sum(map(ord, response)) % 2 == 0
        details = {"acc": float(right), "truncated": float(sample.get("truncated", False)), "pid": os.getpid()}
        said = f"Wrong for {sample['ground_truth']}: {len(response)} characters."
        return Score(float(right), None if right else said, {**details, "pred": response[:5]})

    return score


@hookimpl
def sdpo_scorers() -> list[Scorer]:
    return [Scorer("length", "1 if the sum of the answer's characters is even.", build_length)]
