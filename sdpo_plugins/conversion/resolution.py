"""SDPO's options as they hold in the end, and where each value comes from."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sdpo_plugins.config import SDPOConfig
from sdpo_plugins.conversion.documents import Given
from sdpo_plugins.conversion.sources import Source
from sdpo_plugins.dialects import traced_translation
from sdpo_plugins.errors import ConfigError
from sdpo_plugins.presets import preset_options

__all__ = ["Became", "Origin", "Resolved", "resolve"]

_LOSS = ("loss_agg_mode", "loss_scale_factor")


@dataclass(frozen=True)
class Origin:
    """Where a value comes from.

    Args:
        kind: Which of the places.
        name: Of the preset, the dialect, or the file; else "".
        line: Of the file; None if it is not known.
        written: The name it was given by, where that is another than ours; else "".
    """

    kind: Literal["default", "preset", "dialect", "file", "command line"]
    name: str = ""
    line: int | None = None
    written: str = ""

    def __str__(self) -> str:
        words = {
            "default": "default",
            "preset": f"preset {self.name}",
            "dialect": f"{self.name}'s default",
            "file": f"{self.name}" + (f" line {self.line}" if self.line is not None else ""),
            "command line": "command line",
        }
        return words[self.kind] + (f", as {self.written}" if self.written else "")


@dataclass(frozen=True)
class Became:
    """What one given option became.

    Args:
        written: Its name and value as given.
        value: The same.
        origin: Where it was given.
        options: Our options and values; empty if there is nothing to set.
    """

    written: str
    value: Any
    origin: Origin
    options: Mapping[str, Any]


@dataclass(frozen=True)
class Resolved:
    """A configuration with the origins of its values.

    Args:
        config: It.
        origins: By option.
        preset: Its name, or None.
        dialect: Its name, or None.
        became: Each given option, in the order of the file.
    """

    config: SDPOConfig
    origins: Mapping[str, Origin]
    preset: str | None
    dialect: str | None
    became: tuple[Became, ...]

    def given(self) -> dict[str, Any]:
        """Return `preset` if there is one, and the options that differ from it or from the defaults."""
        found = {} if self.preset is None else {"preset": self.preset}
        plain = self.config.to_mapping()
        passed = ("default", "preset")
        return found | {name: value for name, value in plain.items() if self.origins[name].kind not in passed}


def resolve(source: Source, preset: str | None = None, dialect: str | None = None) -> Resolved:
    """Make the configuration that a source describes.

    Args:
        source: File and command line.
        preset: Beats the source's own.
        dialect: The same.

    Returns:
        The configuration and the origins of its values.

    Raises:
        ConfigError: Lists every unknown name, every value that cannot be translated, every invalid value.
    """
    preset = preset if preset is not None else _name(source.preset, "preset")
    dialect = dialect if dialect is not None else _name(source.dialect, "dialect")
    if preset is not None and dialect is not None:
        raise ConfigError(
            f"The preset {preset!r} and the dialect {dialect!r} both bring defaults of their own; give one of them. "
            "Without a dialect, other projects' option names are translated all the same."
        )
    given, apart = _one_vocabulary(source, dialect)
    translated, problems, came_from = traced_translation({name: one.value for name, one in given.items()}, dialect)
    if apart:
        translated |= {name: one.value for name, one in apart.items()}
        came_from |= {name: name for name in apart}
    base = {} if preset is None else preset_options(preset)
    merged = {**base, **translated}
    try:
        config = SDPOConfig.from_mapping(merged)
    except ConfigError as error:
        problems += error.problems
        raise ConfigError([_placed(problem, came_from, {**given, **apart}, source) for problem in problems]) from error
    if problems:
        raise ConfigError(problems)
    every = {**given, **apart}
    origins = {}
    for item in dataclasses.fields(SDPOConfig):
        name = item.name
        if name in came_from:
            origins[name] = _origin(source, every[came_from[name]], came_from[name], name)
        elif name in translated and dialect is not None:
            origins[name] = Origin("dialect", dialect)
        elif name in base and preset is not None:
            origins[name] = Origin("preset", preset)
        else:
            origins[name] = Origin("default")
    became = tuple(
        Became(
            written,
            one.value,
            _origin(source, one, written, written),
            {ours: getattr(config, ours) for ours, name in came_from.items() if name == written},
        )
        for written, one in every.items()
    )
    return Resolved(config, origins, preset, dialect, became)


def _name(given: Given | None, what: str) -> str | None:
    if given is None or given.value is None:
        return None
    if not isinstance(given.value, str):
        raise ConfigError(f"`{what}` must be a name, got {given.value!r} ({type(given.value).__name__}).")
    return given.value


def _one_vocabulary(source: Source, dialect: str | None) -> tuple[dict[str, Given], dict[str, Given]]:
    """Let a word of the command line beat the file, also where the two use different names for an option."""
    # verl's own loss settings hold in every dialect.
    apart = {name: one for name, one in source.options.items() if source.kind == "verl" and name in _LOSS}
    given = {name: one for name, one in source.options.items() if name not in apart}
    if source.file is None:
        return given, apart
    words = {name: one for name, one in given.items() if one.line is None}
    _, _, by_words = traced_translation({name: one.value for name, one in words.items()}, dialect)
    for name, one in list(given.items()):
        if one.line is not None:
            _, _, alone = traced_translation({name: one.value}, dialect)
            if alone and set(alone) <= set(by_words):
                del given[name]
    return given, apart


def _origin(source: Source, given: Given, written: str, ours: str) -> Origin:
    other = written if written != ours else ""
    if given.line is None:
        return Origin("command line", written=other)
    return Origin("file", Path(source.file or "").name, given.line, other)


def _placed(problem: str, came_from: Mapping[str, str], given: Mapping[str, Given], source: Source) -> str:
    """Say behind a problem in which line its option stands."""
    for ours, written in came_from.items():
        line = given[written].line
        if problem.startswith(f"`{ours}`") and line is not None:
            return f"{problem} ({Path(source.file or '').name} line {line})"
    return problem
