"""Named settings: what the paper's runs and TRL's own trainer use, each with its source.

A preset holds options of `SDPOConfig` only. What belongs to the host (learning rate, batch, lengths) stands beside it
in `PAPER_HOST_SETTINGS`, as data to copy into the host's own arguments.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from sdpo_plugins.errors import ConfigError, nearest

__all__ = ["PAPER_HOST_SETTINGS", "PRESETS", "HostSettings", "Preset", "preset_names", "preset_options"]

# The authors' dataclass, which sdpo-rl and TRL took over, ends its templates with newlines; their YAML, which the
# paper's runs read, strips them. Our defaults are the YAML's.
DATACLASS_TEMPLATES: Mapping[str, str] = MappingProxyType(
    {
        "reprompt_template": "{prompt}{solution}{feedback}\n\nCorrectly solve the original question.\n",
        "solution_template": "\nCorrect solution:\n\n{successful_previous_attempt}\n\n",
        "feedback_template": (
            "\nThe following is feedback from your unsuccessful earlier attempt:\n\n{feedback_raw}\n\n"
        ),
    }
)


@dataclass(frozen=True)
class Preset:
    """A named setting.

    Args:
        name: What `SDPOConfig.preset` takes.
        source: Where the values stand.
        options: Options of `SDPOConfig`; the rest keeps its default.
    """

    name: str
    source: str
    options: Mapping[str, Any]


@dataclass(frozen=True)
class HostSettings:
    """What the paper's runs set in the host, not in SDPO.

    Args:
        learning_rate: Peak, constant after the warm-up.
        warmup_steps: Optimizer steps of linear warm-up.
        weight_decay: Of AdamW.
        max_grad_norm: Gradient clip.
        questions_per_batch: Questions in a rollout batch.
        rollouts_per_question: Rollouts of each question.
        mini_batch_size: Questions in one optimizer step.
        max_prompt_length: In tokens.
        max_response_length: In tokens.
        temperature: Of the rollouts, and of the log-probabilities in the loss.
        rollout_is: Level at which the engine's and the trainer's probabilities are corrected.
        rollout_is_threshold: Upper cut of min(π_old/π_rollout, ·).
        advantage_clip: Clip of the per-token advantage; None: no clip.
    """

    learning_rate: float
    warmup_steps: int
    questions_per_batch: int
    rollouts_per_question: int
    mini_batch_size: int
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    max_prompt_length: int = 2048
    max_response_length: int = 8192
    temperature: float = 1.0
    rollout_is: str = "token"
    rollout_is_threshold: float = 2.0
    advantage_clip: float | None = None


_PAPER = {
    "alpha": 0.5,
    "distillation_topk": 100,
    "distillation_add_tail": True,
    "teacher": "ema",
    "teacher_update_rate": 0.05,
    "is_clip": 2.0,
    "include_environment_feedback": False,
    "environment_feedback_only_without_solution": True,
    "dont_reprompt_on_self_success": True,
    "remove_thinking_from_demonstration": True,
    "success_reward_threshold": 0.5,
    "max_reprompt_len": 10240,
    # The two choices in which our defaults differ from the authors' code.
    "thinking_removal": "paired",
    "reprompt_truncation": "right",
}
_PAPER_RICH = {
    **_PAPER,
    "alpha": 1.0,
    "distillation_topk": 20,
    "teacher_update_rate": 0.01,
    "include_environment_feedback": True,
}
_TRL = {
    "full_logit_distillation": False,
    "alpha": 1.0,
    "distillation_topk": None,
    "distillation_add_tail": False,
    "is_clip": 2.0,
    "grpo_weight": 0.0,
    "teacher": "ema",
    "teacher_update_rate": 0.05,
    "teacher_update_unit": "optimizer_step",
    "teacher_update_every": 1,
    "success_reward_threshold": 1.0,
    "dont_reprompt_on_self_success": True,
    "remove_thinking_from_demonstration": False,
    "include_environment_feedback": False,
    "environment_feedback_only_without_solution": False,
    "max_reprompt_len": 10240,
    **DATACLASS_TEMPLATES,
}

PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        preset.name: preset
        for preset in (
            Preset(
                "paper",
                "arXiv 2601.20802, section 3 (no feedback): authors' YAML and scripts",
                MappingProxyType(_PAPER),
            ),
            Preset(
                "paper_rich_feedback",
                "arXiv 2601.20802, section 4 (rich feedback): authors' YAML and scripts",
                MappingProxyType(_PAPER_RICH),
            ),
            Preset(
                "paper_test_time",
                "arXiv 2601.20802, section 5 (one question at test time): authors' YAML and scripts",
                MappingProxyType(_PAPER_RICH),
            ),
            Preset(
                "trl",
                "trl 1.16, defaults of trl.experimental.sdpo.SDPOConfig",
                MappingProxyType(_TRL),
            ),
        )
    }
)

PAPER_HOST_SETTINGS: Mapping[str, HostSettings] = MappingProxyType(
    {
        "paper": HostSettings(
            learning_rate=1e-5,
            warmup_steps=10,
            questions_per_batch=32,
            rollouts_per_question=8,
            mini_batch_size=32,
        ),
        "paper_rich_feedback": HostSettings(
            learning_rate=1e-6,
            warmup_steps=0,
            questions_per_batch=32,
            rollouts_per_question=8,
            mini_batch_size=1,
        ),
        "paper_test_time": HostSettings(
            learning_rate=1e-6,
            warmup_steps=0,
            questions_per_batch=1,
            rollouts_per_question=16,
            mini_batch_size=1,
            advantage_clip=5.0,
        ),
    }
)


def preset_names() -> tuple[str, ...]:
    """Return the names that `SDPOConfig.preset` takes.

    Example:
        >>> preset_names()
        ('paper', 'paper_rich_feedback', 'paper_test_time', 'trl')
    """
    return tuple(PRESETS)


def preset_options(name: str) -> dict[str, Any]:
    """Return the options of a preset, as a fresh dict.

    Args:
        name: One of `preset_names()`.

    Returns:
        Option names and values.

    Raises:
        ConfigError: There is no such preset; the message lists the choices and the nearest.

    Example:
        >>> preset_options("paper")["distillation_topk"]
        100
    """
    if not isinstance(name, str) or name not in PRESETS:
        choices = ", ".join(map(repr, PRESETS))
        raise ConfigError(f"`preset` must be one of {choices}, got {name!r}.{nearest(str(name), PRESETS)}")
    return dict(PRESETS[name].options)
