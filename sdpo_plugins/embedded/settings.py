"""Tuned settings of the demo's runs: task by method, as data. No torch.

Both methods of a task get the same number of generations, and each the learning rate that suited it best.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

Method = Literal["grpo", "sdpo"]

# Names and meanings are those of SDPOConfig; no top-K is the whole vocabulary, cheap with at most 1024 tokens.
_FORWARD_KL_FROZEN: Mapping[str, Any] = MappingProxyType(
    {
        "alpha": 0.0,
        "distillation_topk": None,
        "distillation_add_tail": False,
        "teacher": "frozen",
        "include_environment_feedback": True,
        "environment_feedback_only_without_solution": True,
        "dont_reprompt_on_self_success": True,
        "success_reward_threshold": 0.5,
    }
)


@dataclass(frozen=True)
class RunSettings:
    """One run of the demo.

    Args:
        task: name of the task.
        method: ``"grpo"`` or ``"sdpo"``.
        learning_rate: of AdamW without weight decay, gradients clipped to norm 1.
        lr_scheduler_type: ``"constant"`` or ``"linear"`` (to 0 at the end), as transformers names them.
        steps: optimizer steps; one step for each batch of rollouts.
        questions_per_step: questions in a batch.
        rollouts_per_question: answers sampled for each.
        max_completion_length: tokens, end of turn included.
        temperature: of the sampling.
        sdpo: options of SDPOConfig, empty for GRPO.
    """

    task: str
    method: Method
    learning_rate: float
    lr_scheduler_type: str
    steps: int
    questions_per_step: int
    rollouts_per_question: int
    max_completion_length: int = 6
    temperature: float = 1.0
    sdpo: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def generations(self) -> int:
        """Answers sampled in the whole run."""
        return self.steps * self.questions_per_step * self.rollouts_per_question


_SUMS: dict[str, Any] = {
    "task": "sums",
    "steps": 60,
    "questions_per_step": 8,
    "rollouts_per_question": 8,
    "lr_scheduler_type": "constant",
}
_FACTS: dict[str, Any] = {
    "task": "facts",
    "steps": 200,
    "questions_per_step": 16,
    "rollouts_per_question": 4,
    "lr_scheduler_type": "constant",
}
_PROGRAMS: dict[str, Any] = {
    "task": "programs",
    "steps": 40,
    "questions_per_step": 16,
    "rollouts_per_question": 4,
    "max_completion_length": 24,
    "lr_scheduler_type": "constant",
}
_JS_FROZEN: Mapping[str, Any] = MappingProxyType({**_FORWARD_KL_FROZEN, "alpha": 0.5})

SETTINGS: tuple[RunSettings, ...] = (
    RunSettings(**_SUMS, method="grpo", learning_rate=3e-4),
    RunSettings(**_SUMS, method="sdpo", learning_rate=2e-4, sdpo=_JS_FROZEN),
    RunSettings(**_FACTS, method="grpo", learning_rate=1e-4),
    RunSettings(**_FACTS, method="sdpo", learning_rate=1e-3, sdpo=_FORWARD_KL_FROZEN),
    RunSettings(**_PROGRAMS, method="grpo", learning_rate=3e-4),
    RunSettings(**_PROGRAMS, method="sdpo", learning_rate=1e-3, sdpo=_FORWARD_KL_FROZEN),
)


def run_settings(task: str, method: str) -> RunSettings:
    """The tuned settings of one task and method.

    Args:
        task: ``"sums"``, ``"facts"`` or ``"programs"``.
        method: ``"grpo"`` or ``"sdpo"``.

    Returns:
        The settings.

    Raises:
        ValueError: for a pair that is not in `SETTINGS`; the message lists those that are.

    Example:
        >>> run_settings("facts", "sdpo").sdpo["teacher"]
        'frozen'
    """
    for settings in SETTINGS:
        if (settings.task, settings.method) == (task, method):
            return settings
    known = ", ".join(f"{s.task}/{s.method}" for s in SETTINGS)
    raise ValueError(f"no demo settings for {task}/{method}; there are {known}")
