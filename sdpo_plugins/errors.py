"""Errors of the package: each message says what was wrong, what was given, what is valid and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

__all__ = [
    "ConfigError",
    "DataError",
    "HostError",
    "PluginError",
    "RewardError",
    "SDPOError",
    "TeacherError",
    "nearest",
]


class SDPOError(Exception):
    """Base class of every error this package raises on purpose."""


class ConfigError(SDPOError, ValueError):
    """Invalid options; `problems` holds one sentence for each of them.

    Example:
        >>> raise ConfigError(["`alpha` must lie in [0, 1], got 1.7."])
        Traceback (most recent call last):
        ...
        sdpo_plugins.errors.ConfigError: `alpha` must lie in [0, 1], got 1.7.
    """

    def __init__(self, problems: Sequence[str] | str) -> None:
        self.problems: tuple[str, ...] = (problems,) if isinstance(problems, str) else tuple(problems)
        if len(self.problems) == 1:
            message = self.problems[0]
        else:
            listing = "\n".join(f"  - {problem}" for problem in self.problems)
            message = f"{len(self.problems)} problems in the SDPO configuration:\n{listing}"
        super().__init__(message)


class PluginError(SDPOError):
    """A plug-in is missing, names something twice, or breaks the contract of its hook."""


class TeacherError(SDPOError):
    """Teacher weights do not fit the student, or a teacher checkpoint is corrupt or foreign."""


class RewardError(SDPOError, ValueError):
    """A reward function returned something of the wrong length or type."""


class DataError(SDPOError, ValueError):
    """Prompts, datasets or tokenizers that SDPO cannot use."""


class HostError(SDPOError):
    """The host framework is missing, unsupported, or set to something SDPO cannot work with."""


def nearest(word: str, choices: Iterable[str], cutoff: float = 0.6) -> str:
    """Return a hint " Did you mean 'x'?" for the closest choice, or an empty string.

    Args:
        word: What the user wrote.
        choices: The valid words.
        cutoff: How alike the two must be, from 0 to 1.

    Returns:
        The hint, with a leading space, or "".

    Example:
        >>> nearest("emma", ["ema", "frozen"])
        " Did you mean 'ema'?"
    """
    matches = difflib.get_close_matches(word.lower(), list(choices), n=1, cutoff=cutoff)
    return f" Did you mean {matches[0]!r}?" if matches else ""
