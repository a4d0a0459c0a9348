"""Dead signal is loud: notices, once each, when a run cannot be learning anything."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["COLLAPSED_TO", "EQUAL", "LONG_ENOUGH", "TROUBLES", "HealthMonitor", "Trouble"]

EQUAL = 1e-6
"""Mean divergence in nats below which teacher and student are one: two equal distributions over 50 000 tokens differ by
up to 2e-7 nats in float32."""

COLLAPSED_TO = 0.25
"""Share of their first length below which answers have collapsed."""

LONG_ENOUGH = 8
"""Tokens that answers had at first, for a collapse to be one."""


@dataclass(frozen=True)
class Trouble:
    """A way in which a run cannot be learning.

    Args:
        key: Short name.
        patience: Bad batches in a row before it is told.
        text: What is wrong, with the run's numbers in braces.
        advice: What to do.
    """

    key: str
    patience: int
    text: str
    advice: str = ""

    @property
    def message(self) -> str:
        """Text and advice."""
        return f"{self.text} {self.advice}".rstrip()


_NOTHING_SUCCEEDED = Trouble(
    "nothing_succeeded",
    5,
    "No rollout has succeeded for {n} rollout batches in a row, and no feedback is shown to the teacher: SDPO has "
    "nothing to learn from.",
    "Lower `success_reward_threshold`, raise the rollouts per question, take easier questions, "
    "or return feedback from the reward function (`include_environment_feedback=True`).",
)
_NOTHING_ACTIVE = Trouble(
    "nothing_active",
    5,
    "No rollout has been active for {n} rollout batches in a row: there was neither a demonstration nor feedback for "
    "any of them, and the SDPO loss was zero.",
    "Look at the rewards and at `success_reward_threshold`.",
)
_TEACHER_IS_STUDENT = Trouble(
    "teacher_is_student",
    5,
    "The teacher has scored every answer as the student does for {n} steps in a row (mean divergence below 1e-6): its "
    "context makes no difference, or the loss compares a model with itself.",
    "Look at the teacher prompts.",
)
_COLLAPSE = Trouble(
    "length_collapse",
    5,
    "Answers have been shorter than a quarter of their first length ({first:.0f} tokens) for {n} rollout batches in a "
    "row, now {now:.0f} tokens: answers may be collapsing.",
    "Look at the completions, lower the learning rate, or use a slower teacher.",
)
_TRUNCATED = Trouble(
    "truncated",
    1,
    "{share:.0%} of the teacher prompts of a batch were longer than `max_reprompt_len` and were cut.",
    "Raise it if memory allows.",
)
_FEEDBACK_UNUSED = Trouble(
    "feedback_unused",
    1,
    "The reward function returns feedback, but `include_environment_feedback` is off: the teacher does not see it.",
)
TROUBLES = {
    trouble.key: trouble
    for trouble in (
        _NOTHING_SUCCEEDED,
        _NOTHING_ACTIVE,
        _TEACHER_IS_STUDENT,
        _COLLAPSE,
        _TRUNCATED,
        _FEEDBACK_UNUSED,
    )
}
"""By key; the report of a finished run judges by the same."""


class HealthMonitor:
    """Counts bad batches in a row and says so once for each kind of trouble.

    Example:
        >>> monitor = HealthMonitor()
        >>> batch = {"self_distillation/reprompt_sample_fraction": 0.0}
        >>> [len(monitor.batch(batch)) for _ in range(6)]
        [0, 0, 0, 0, 1, 0]
    """

    def __init__(self) -> None:
        self._streak: dict[str, int] = {}
        self._told: set[str] = set()
        self._first_length: float | None = None

    def batch(self, metrics: Mapping[str, float], mean_length: float | None = None) -> list[str]:
        """Take in a rollout batch and return new warnings.

        Args:
            metrics: Metrics of `build_teacher_contexts` and of tokenising its contexts.
            mean_length: Mean length of the answers in tokens.
        """
        prefix = "self_distillation/"
        active = metrics.get(prefix + "reprompt_sample_fraction", 1.0)
        success = metrics.get(prefix + "success_group_fraction", 1.0)
        feedback = metrics.get(prefix + "feedback_used_fraction", 0.0)
        cut = metrics.get(prefix + "truncated_fraction", 0.0)
        unused = metrics.get(prefix + "feedback_unused_fraction", 0.0)
        warnings = [
            self._check(_NOTHING_SUCCEEDED, success == 0.0 and feedback == 0.0),
            self._check(_NOTHING_ACTIVE, active == 0.0 and success > 0.0),
            self._check(_TRUNCATED, cut > 0.0, share=cut),
            self._check(_FEEDBACK_UNUSED, unused > 0.0),
        ]
        if mean_length is not None and math.isfinite(mean_length):
            if self._first_length is None:
                self._first_length = mean_length
            shrunk = self._first_length >= LONG_ENOUGH and mean_length < COLLAPSED_TO * self._first_length
            warnings.append(self._check(_COLLAPSE, shrunk, first=self._first_length, now=mean_length))
        return [warning for warning in warnings if warning]

    def step(self, divergence: float, active_tokens: float) -> list[str]:
        """Take in a loss and return new warnings.

        Args:
            divergence: Mean divergence of teacher and student over active tokens, in nats.
            active_tokens: Number of active tokens.
        """
        if active_tokens <= 0:
            return []
        warning = self._check(_TEACHER_IS_STUDENT, abs(divergence) < EQUAL)
        return [warning] if warning else []

    def state_dict(self) -> dict[str, Any]:
        """Return what must survive a restart so that nothing is told twice, as plain values."""
        return {"streak": dict(self._streak), "told": sorted(self._told), "first_length": self._first_length}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up the state that `state_dict` returned."""
        self._streak = {str(key): int(value) for key, value in state["streak"].items()}
        self._told = set(state["told"])
        self._first_length = state["first_length"]

    def _check(self, check: Trouble, bad: bool, **values: float) -> str | None:
        self._streak[check.key] = self._streak.get(check.key, 0) + 1 if bad else 0
        if self._streak[check.key] < check.patience or check.key in self._told:
            return None
        self._told.add(check.key)
        return check.message.format(n=self._streak[check.key], **values)
