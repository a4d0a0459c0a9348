"""Values of the host's settings: what a host or a preset means by them, and how they are read and shown."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from types import MappingProxyType
from typing import Any

from sdpo_plugins.conversion.settings import Setting
from sdpo_plugins.presets import PAPER_HOST_SETTINGS

__all__ = ["DEFAULTS", "Found", "converted", "paper_settings", "shown"]


@dataclass(frozen=True)
class Found:
    """A setting whose value is known.

    Args:
        value: In the table's unit.
        origin: Where it comes from, in words: "line 3", "command line", "preset paper", "TRL's default".
        written: What it was called there.
    """

    value: Any
    origin: str
    written: str = ""


_DEFAULTS = {
    "trl": {
        "learning_rate": 1e-6,
        "lr_schedule": "linear",
        "weight_decay": 0.0,
        "adam_betas": (0.9, 0.999),
        "max_grad_norm": 1.0,
        "rollouts_per_question": 8,
        "passes": 1,
        "epochs": 3.0,
        "max_response_length": 512,
        "temperature": 1.0,
        "top_p": 1.0,
        "gradient_checkpointing": True,
        "seed": 42,
    },
    "verl": {
        "learning_rate": 1e-6,
        "lr_schedule": "constant",
        "weight_decay": 0.01,
        "adam_betas": (0.9, 0.999),
        "max_grad_norm": 1.0,
        "rollouts_per_question": 1,
        "questions_per_batch": 1024,
        "mini_batch_size": Fraction(256),
        "passes": 1,
        "epochs": 30.0,
        "max_prompt_length": 512,
        "max_response_length": 512,
        "temperature": 1.0,
        "top_p": 1.0,
        "gradient_checkpointing": True,
    },
}

DEFAULTS: Mapping[str, Mapping[str, Any]] = MappingProxyType(_DEFAULTS)
"""What a host does where nothing is said, as far as hosts differ in it: a file that leaves it out means it, too."""


def paper_settings(preset: str) -> dict[str, Found]:
    """Return what the paper's runs with a preset set in the host.

    Args:
        preset: A preset's name; one that is not the paper's has none.

    Returns:
        Settings by name.

    Example:
        >>> paper_settings("paper")["questions_per_batch"].value
        32
    """
    if preset not in PAPER_HOST_SETTINGS:
        return {}
    told = {name: value for name, value in dataclasses.asdict(PAPER_HOST_SETTINGS[preset]).items() if value is not None}
    told |= {"mini_batch_size": Fraction(told["mini_batch_size"]), "lr_schedule": "constant"}
    return {name: Found(value, f"preset {preset}") for name, value in told.items()}


def converted(setting: Setting, value: Any, host: str = "") -> Any:
    """Turn a host's value into the table's.

    Args:
        setting: Which.
        value: As the host writes it.
        host: Whose word it is; "": ours.

    Returns:
        The value in the setting's type.

    Raises:
        ValueError: It is none; the message says what is valid.

    Example:
        >>> from sdpo_plugins.conversion.settings import SETTINGS
        >>> converted(SETTINGS["lr_schedule"], "constant_with_warmup", "trl")
        'constant'
    """
    words = setting.words.get(host, {})
    if isinstance(value, str | int | None) and value in words:
        return words[value]
    if setting.kind is tuple:
        if not isinstance(value, (list, tuple)) or len(value) != 2 or not all(map(_is_number, value)):
            raise ValueError(f"must be two numbers, got {value!r}")
        return tuple(float(one) for one in value)
    if setting.kind in (int, float, Fraction):
        whole = setting.kind is int
        if not _is_number(value) or (whole and value != int(value)):
            raise ValueError(f"must be {'a whole number' if whole else 'a number'}, got {value!r}")
        return Fraction(value).limit_denominator(10**6) if setting.kind is Fraction else setting.kind(value)
    valid = {str: "a text", bool: "true or false", dict: "a mapping"}[setting.kind]
    if not isinstance(value, setting.kind):
        raise ValueError(f"must be {valid}, got {value!r}")
    return value


def shown(value: Any) -> str:
    """Say a setting's value in few characters.

    Example:
        >>> shown(1e-05), shown((0.9, 0.999)), shown(True), shown(Fraction(3, 2))
        ('1e-05', '0.9 0.999', 'true', '3/2')
    """
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return " ".join(map(shown, value))
    return f"{value:g}" if isinstance(value, float) else "null" if value is None else str(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, Fraction)) and not isinstance(value, bool)
