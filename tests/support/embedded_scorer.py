"""A plug-in whose scorer is the embedded tasks' grader: a run with it is one with a reward function of one's own."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from sdpo_plugins import Score, Scorer, SDPOConfig, hookimpl
from sdpo_plugins.embedded import Question, load_task

_task = cache(load_task)


def build_embedded(config: SDPOConfig, options: None) -> Callable[[str, Mapping[str, Any]], Score]:
    """Return the scorer."""

    def score(response: str, sample: Mapping[str, Any]) -> Score:
        # OpenRLHF's label is JSON of another form than ours, so it is the ground truth as it stands.
        asked = sample if "task" in sample else json.loads(sample["ground_truth"])
        truth = asked.get("truth", sample["ground_truth"])
        reward, text = _task(asked["task"]).score(Question(asked["question"], truth, asked["subject"]), response)
        return Score(reward, text, {"acc": reward})

    return score


@hookimpl
def sdpo_scorers() -> list[Scorer]:
    return [Scorer("embedded", "What the embedded task says.", build_embedded)]
