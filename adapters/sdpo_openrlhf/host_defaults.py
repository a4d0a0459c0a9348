"""Defaults of OpenRLHF that are others while SDPO is on: one table, with the reason for each."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["HOST_DEFAULTS", "HostDefault", "description", "host_defaults"]

_CORRECTION = "algo.advantage.is_correction_"
_WHY_CORRECTION = (
    "vLLM's probabilities differ from the model's own; token losses are weighed by their ratio, cut at 2 (Eq. 12 of "
    "the paper)"
)


@dataclass(frozen=True)
class HostDefault:
    """A default of OpenRLHF that is another while SDPO is on.

    Args:
        flag: The flag, without dashes; passed over by releases that do not have it.
        value: What holds if the flag is not given.
        why: The reason, for documentation and `--help`.
        unless: Flags which, if given, leave the host's default in place.
        rollouts: "one" or "several": holds only for so many rollouts of a prompt; "": always.
    """

    flag: str
    value: Any
    why: str
    unless: tuple[str, ...] = ()
    rollouts: str = ""


HOST_DEFAULTS: tuple[HostDefault, ...] = (
    HostDefault(
        "algo.kl.init_coef",
        0.0,
        "SDPO's teacher takes the place of a reference model, which costs memory and a pass",
        unless=("algo.kl.use_loss", "algo.kl.target"),
    ),
    HostDefault(
        "algo.advantage.estimator",
        "dr_grpo",
        "no critic; A = r − mean(r), the paper's, for the hybrid objective",
        rollouts="several",
    ),
    HostDefault(
        "algo.advantage.estimator",
        "reinforce",
        "no critic; a group of one has no mean to subtract",
        rollouts="one",
    ),
    # From 0.11.2 on.
    HostDefault(_CORRECTION + "level", "token", _WHY_CORRECTION, unless=(_CORRECTION + "gating",)),
    HostDefault(_CORRECTION + "mode", "clip", _WHY_CORRECTION, unless=(_CORRECTION + "level", _CORRECTION + "gating")),
    # Before.
    HostDefault(_CORRECTION + "enable", True, _WHY_CORRECTION),
    HostDefault(
        _CORRECTION + "threshold",
        (0.0, 2.0),
        _WHY_CORRECTION,
        unless=tuple(_CORRECTION + name for name in ("level", "mode", "gating", "type")),
    ),
)
"""What the launcher sets unless the user does, only while SDPO is on."""


def host_defaults(values: Mapping[str, Any], given: Container[str]) -> list[tuple[str, Any]]:
    """Return which of `HOST_DEFAULTS` hold.

    Args:
        values: Every flag of this release without dashes, with its value.
        given: The flags that the user set.

    Returns:
        Flags and values.

    Example:
        >>> values = {"algo.advantage.estimator": "gae", "rollout.n_samples_per_prompt": 8}
        >>> host_defaults(values, given=())
        [('algo.advantage.estimator', 'dr_grpo')]
    """
    rollouts = "several" if values.get("rollout.n_samples_per_prompt", 1) > 1 else "one"
    return [
        (each.flag, each.value)
        for each in HOST_DEFAULTS
        if each.flag in values
        and each.flag not in given
        and each.rollouts in ("", rollouts)
        and not any(other in given for other in each.unless)
    ]


def description() -> str:
    """Return the table in words, for `--help`."""
    lines = "; ".join(f"{each.flag} {_words(each.value)} ({_condition(each)}{each.why})" for each in HOST_DEFAULTS)
    return (
        "Options of Self-Distilled Policy Optimization; docs/configuration.md explains each. While SDPO is on, these "
        f"defaults of OpenRLHF are others: {lines}."
    ).replace("%", "%%")


def _words(value: Any) -> str:
    return " ".join(f"{item:g}" for item in value) if isinstance(value, tuple) else str(value)


def _condition(default: HostDefault) -> str:
    return f"{default.rollouts} rollouts: ".replace("one rollouts", "one rollout") if default.rollouts else ""
