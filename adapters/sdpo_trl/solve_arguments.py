"""From the settings of `sdpo solve` to TRL's training arguments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from sdpo_plugins.errors import ConfigError
from sdpo_plugins.presets import PAPER_HOST_SETTINGS
from sdpo_plugins.solve.settings import PRESET, SolveSettings
from sdpo_trl.arguments import SDPOTrainingArguments

__all__ = ["training_arguments"]

# What the loop itself decides, and how to say it instead.
_DECIDED = {
    "output_dir": "--output",
    "max_steps": "--budget",
    "num_generations": "--samples",
    "per_device_train_batch_size": "--micro-batch",
    "gradient_accumulation_steps": "--micro-batch",
    "learning_rate": "--learning-rate",
    "temperature": "--temperature",
    "max_completion_length": "--max-completion-length",
    "seed": "--seed",
    "save_steps": "--checkpoint-every",
    "save_strategy": "--checkpoint-every",
    "save_total_limit": "",
    "resume_from_checkpoint": "",
    "num_iterations": "",
    "steps_per_generation": "",
    "generation_batch_size": "",
    "teacher_accuracy_every": "",
    "enabled": "",
}


def training_arguments(settings: SolveSettings, output: Path, steps: int) -> Any:
    """Return TRL's arguments with SDPO's inside: one question × `samples` answers, then one optimizer step.

    Args:
        settings: What to do.
        output: Folder of checkpoints and records.
        steps: Optimizer steps in all.

    Returns:
        `SDPOTrainingArguments`.

    Raises:
        ConfigError: Options that do not exist, that are invalid, or that the loop decides itself.
    """
    problems = [
        f"`{name}` cannot be set here: `sdpo solve` decides it"
        + (f"; use {_DECIDED[name]}." if _DECIDED[name] else ". Leave it out.")
        for name in settings.options
        if name in _DECIDED
    ]
    if problems:
        raise ConfigError(problems)
    paper = PAPER_HOST_SETTINGS[PRESET]
    micro = settings.micro_batch or settings.samples
    cuda = torch.cuda.is_available()
    chosen: dict[str, Any] = {
        "preset": PRESET,
        "output_dir": str(output),
        "max_steps": steps,
        "num_generations": settings.samples,
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": settings.samples // micro,
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": "constant",
        "weight_decay": paper.weight_decay,
        "max_grad_norm": paper.max_grad_norm,
        "temperature": settings.temperature,
        "max_completion_length": settings.max_completion_length,
        "seed": settings.seed,
        "save_strategy": "steps",
        "save_steps": settings.checkpoint_every,
        "save_total_limit": 1,
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
        "bf16": cuda,
        "gradient_checkpointing": cuda,
        "dataloader_pin_memory": cuda,
        **settings.options,
    }
    try:
        return SDPOTrainingArguments(**chosen)
    except ConfigError:
        raise
    except (ValueError, TypeError) as error:
        raise ConfigError(f"These options cannot be used: {error}") from error
