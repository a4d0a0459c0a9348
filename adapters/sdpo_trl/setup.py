"""How a run's options and base class come together, before the trainer is made."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
import trl
from trl import GRPOConfig

from sdpo_plugins.config import SDPOConfig
from sdpo_plugins.errors import ConfigError
from sdpo_trl.arguments import SDPOTrainingArguments, sdpo_options

__all__ = ["settle_options", "warn_if_patched_since"]


def settle_options(model: Any, args: Any, sdpo_config: SDPOConfig | Mapping[str, Any] | None) -> tuple[Any, SDPOConfig]:
    """Bring the ways of giving options together: two objects, or one.

    Args:
        model: The trainer's model, for the name of the output folder where no arguments are given.
        args: A `GRPOConfig`, `SDPOTrainingArguments`, or None.
        sdpo_config: The SDPO options, if they are not in `args`.

    Returns:
        Training arguments and SDPO options.

    Raises:
        ConfigError: Options given twice, or objects of another type.
    """
    inside = sdpo_options(args)
    if sdpo_config is not None and inside:
        raise ConfigError(
            f"SDPO options were given twice: in `args` ({', '.join(sorted(inside))}) and as `sdpo_config`. Give them "
            "in one place: `args=SDPOTrainingArguments(...)`, or `args=GRPOConfig(...)` with "
            "`sdpo_config=SDPOConfig(...)`."
        )
    if args is None:
        name = model if isinstance(model, str) else getattr(model.config, "_name_or_path", "") or "model"
        # Where there is no accelerator the host's own defaults are refused, and asking for the CPU is all they lack.
        folder = f"{name.rstrip('/').split('/')[-1]}-SDPO"
        args = SDPOTrainingArguments(folder, use_cpu=not torch.accelerator.is_available())
    # Unsloth replaces the configuration's class as well; the one ours was made from is as good.
    if not isinstance(args, (trl.GRPOConfig, GRPOConfig)):
        raise ConfigError(
            f"`args` must be a trl.GRPOConfig or sdpo_trl.SDPOTrainingArguments, got {type(args).__name__}."
        )
    if sdpo_config is None:
        return args, SDPOConfig.from_mapping(inside)
    if isinstance(sdpo_config, SDPOConfig):
        return args, sdpo_config
    if isinstance(sdpo_config, Mapping):
        return args, SDPOConfig.from_mapping(sdpo_config)
    raise ConfigError(
        f"`sdpo_config` must be an SDPOConfig or a mapping of its options, got {type(sdpo_config).__name__}."
    )


def warn_if_patched_since(trainer: type) -> None:
    """Warn where `trl.GRPOTrainer` was replaced after our subclass was made: it trains through the old one.

    Unsloth replaces the class; it has to do so before `sdpo_trl` is imported.

    Args:
        trainer: Our trainer class.
    """
    current = trl.GRPOTrainer
    if not issubclass(trainer, current):
        warnings.warn(
            f"trl.GRPOTrainer was replaced by {current.__module__}.{current.__qualname__} after `sdpo_trl` was "
            "imported, so SDPOTrainer does not go through it. Call PatchFastRL first, then import sdpo_trl: move the "
            "import of sdpo_trl below the patch and start again.",
            stacklevel=4,
        )
