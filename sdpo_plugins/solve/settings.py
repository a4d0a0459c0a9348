"""The options of `sdpo solve`, declared and checked in one place."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sdpo_plugins._options import option, problems_of
from sdpo_plugins.errors import ConfigError
from sdpo_plugins.presets import PAPER_HOST_SETTINGS

__all__ = ["EMBEDDED", "PRESET", "SolveSettings"]

PRESET = "paper_test_time"
EMBEDDED = "embedded"
_PAPER = PAPER_HOST_SETTINGS[PRESET]
# What a folder may be continued with beside what it was begun with.
_MAY_CHANGE = frozenset({"budget", "keep_going", "baseline", "checkpoint_every"})


@dataclass(frozen=True)
class SolveSettings:
    """What a run of `sdpo solve` does with its question.

    Example:
        >>> SolveSettings(model="embedded", budget=320).steps
        20
    """

    model: str = option(EMBEDDED, "Name or folder of the model; `embedded` is the project's own, after the scorer.")
    samples: int = option(_PAPER.rollouts_per_question, "Answers sampled before each step.", low=2)
    budget: int = option(1600, "Answers in all, a multiple of `samples`.", low=2)
    learning_rate: float = option(_PAPER.learning_rate, "Of AdamW, constant.", low=0.0, exclusive=True)
    temperature: float = option(_PAPER.temperature, "Of the sampling.", low=0.0, exclusive=True)
    max_completion_length: int = option(_PAPER.max_response_length, "Tokens of the longest answer.", low=1)
    micro_batch: int | None = option(None, "Answers in one pass of the model; all of a step by default.", low=1)
    seed: int = option(0, "Of the sampling.", low=0)
    keep_going: bool = option(False, "Spend the whole budget instead of stopping at the first success.")
    baseline: str = option(
        "best-of-k", "`best-of-k`: sample as many answers from the untrained model.", choices=("best-of-k", "none")
    )
    checkpoint_every: int = option(10, "Steps between two checkpoints.", low=1)
    options: Mapping[str, Any] = option({}, "Options of SDPO and of TRL's GRPOConfig on top of the preset.")

    def __post_init__(self) -> None:
        problems = []
        for item in dataclasses.fields(self):
            value, found = problems_of(item, getattr(self, item.name), SolveSettings)
            object.__setattr__(self, item.name, value)
            problems += found
        if not problems:
            problems = _combination_problems(self)
        if problems:
            raise ConfigError(problems)

    @property
    def steps(self) -> int:
        """Batches of answers, each followed by one optimizer step."""
        return self.budget // self.samples

    @property
    def identity(self) -> dict[str, Any]:
        """Those settings that a folder keeps for good, as plain values."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name not in _MAY_CHANGE}


def _combination_problems(settings: SolveSettings) -> list[str]:
    problems = []
    budget, samples, micro = settings.budget, settings.samples, settings.micro_batch
    if budget % samples:
        below = max(samples, budget - budget % samples)
        nearby = " or ".join(dict.fromkeys(map(str, (below, budget - budget % samples + samples))))
        problems.append(
            f"`budget` must be a multiple of `samples`, got {budget} and {samples}: every step takes {samples} "
            f"answers. Take {nearby}."
        )
    if micro is not None and samples % micro:
        problems.append(f"`micro_batch` must divide `samples`, got {micro} and {samples}.")
    return problems
