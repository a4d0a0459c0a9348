"""From one host to another: which settings are known, and what stands in the target's file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from sdpo_plugins.conversion.emission import openrlhf_script, trl_recipe, verl_command, verl_file
from sdpo_plugins.conversion.hosts import HOST_NAMES, Read, Written, place_of
from sdpo_plugins.conversion.openrlhf import write_openrlhf
from sdpo_plugins.conversion.resolution import Resolved
from sdpo_plugins.conversion.settings import SETTINGS
from sdpo_plugins.conversion.sources import Source
from sdpo_plugins.conversion.trl import read_trl, write_trl
from sdpo_plugins.conversion.values import DEFAULTS, Found, converted, paper_settings
from sdpo_plugins.conversion.verl import kept, needed, read_verl, write_verl
from sdpo_plugins.errors import ConfigError, nearest

__all__ = ["FORMATS", "Known", "Target", "emit", "known_settings"]

Target = Literal["trl", "verl", "openrlhf"]

FORMATS: Mapping[str, tuple[str, ...]] = {
    "trl": (".yaml", ".yml"),
    "verl": (".sh", ".yaml", ".yml"),
    "openrlhf": (".sh",),
}
"""Suffixes of what can be written for a host; the first is what is printed."""


@dataclass
class Known:
    """What is known of the host's settings.

    Args:
        host: Whose the file is, "trl" or "verl"; "" for SDPO's options alone.
        settings: Of the table.
        rest: What has no row in it, by the host's name, with the reason or "".
        raw: All that was given, by the host's name.
        beside: Settings that do not come from the file: those of the paper, and those of words and options.
    """

    host: str
    settings: dict[str, Found] = field(default_factory=dict)
    rest: dict[str, str] = field(default_factory=dict)
    raw: dict[str, Any] = field(default_factory=dict)
    beside: tuple[frozenset[str], frozenset[str]] = (frozenset(), frozenset())


def known_settings(source: Source, *, preset: str | None, gpus: int | None, target: str | None) -> Known:
    """Read the host's settings out of a source.

    Args:
        source: File and command line.
        preset: One that was asked for by itself; what the paper's runs with it set in the host then counts, too.
        gpus: Processes of the run; None: what the source says, else 1.
        target: The host they are wanted for; if it is another, what the source's host does by default counts, too.

    Returns:
        The settings, later ones beating earlier: the host's defaults, the paper's, the file's, the command line's.

    Raises:
        ConfigError: Lists every value that is invalid.
    """
    host = {"options": "", "recipe": "trl", "verl": "verl"}[source.kind]
    named = source.host.get("host")
    if host == "trl" and named is not None and named.value not in (None, "trl"):
        # Another host's recipe: nobody here knows its words.
        return Known("", rest=dict.fromkeys(source.host, "") | {"host": f"its settings are those of {named.value!r}."})
    read = {"": Read(), "trl": Read(), "verl": Read()}[host]
    if host == "trl":
        read = read_trl(source.host, gpus or 1)
    elif host == "verl":
        read = read_verl(source.host)
    problems = list(read.problems)
    settings: dict[str, Found] = {}
    # Of the authors' fork, nobody here knows the defaults.
    if host and target not in (None, host) and not (source.dialect is not None and source.dialect.value == "lasgroup"):
        settings |= {name: Found(value, f"{HOST_NAMES[host]}'s default") for name, value in DEFAULTS[host].items()}
    if preset is not None:
        settings |= paper_settings(preset)
    settings |= read.settings
    for name, given in source.settings.items():
        try:
            settings[name] = Found(converted(SETTINGS[name], given.value), place_of(given), name)
        except ValueError as problem:
            problems.append(f"`{name}` ({place_of(given)}) {problem}.")
    if gpus is not None:
        settings["gpus"] = Found(gpus, "--gpus")
    elif host == "trl" and "gpus" in settings:
        settings["gpus"] = Found(1, "default")
    if problems:
        raise ConfigError(problems)
    if "rollout_batches" in settings and settings.get("epochs", Found(0, "")).origin.endswith("default"):
        del settings["epochs"]  # the run ends by its steps
    # A warm-up said in steps leaves no room for one said as a share, wherever that comes from.
    if settings.get("warmup_steps") and settings.get("warmup_ratio"):
        del settings["warmup_ratio"]
    paper = frozenset(settings) - frozenset(read.settings) if preset is not None else frozenset()
    words = frozenset(source.settings) | ({"gpus"} if gpus is not None else set())
    raw = {name: one.value for name, one in source.host.items()}
    return Known(host, settings, read.rest, raw, (paper - words, words))


def emit(target: Target, resolved: Resolved, known: Known, suffix: str) -> tuple[str, Written]:
    """Write what the target host reads.

    Args:
        target: The host.
        resolved: SDPO's options.
        known: The host's settings.
        suffix: Of the file, one of `FORMATS`.

    Returns:
        The text, and what became of each setting.

    Raises:
        ConfigError: The host has no file with such a suffix.
    """
    if suffix not in FORMATS[target]:
        valid = " or ".join(FORMATS[target])
        raise ConfigError(
            f"A file for {HOST_NAMES[target]} ends in {valid}, got {suffix!r}.{nearest(suffix, FORMATS[target])}"
        )
    gpus: int = known.settings["gpus"].value if "gpus" in known.settings else 1
    settings = {name: one for name, one in known.settings.items() if name != "gpus"}
    options = resolved.given()
    write = _WRITERS[target]
    if target == known.host:
        # Nothing has to be translated, and so nothing is lost.
        below, above = (_pairs_of(write(settings, gpus), names) for names in known.beside)
        own = {**needed(), **below, **kept(known.raw)} if target == "verl" else {**below, **known.raw}
        written = Written({**own, **above}, {name: one.written for name, one in settings.items()})
    else:
        written = write(settings, gpus)
    if target != "trl" and settings.get("rollouts_per_question", Found(1, "")).value == 1:
        written.notes.append(
            "One rollout of a question, this host's default, leaves no other to demonstrate: write "
            "rollouts_per_question=8 behind the command."
        )
    if target == "trl":
        return trl_recipe(options, written, gpus), written
    if target == "openrlhf":
        return openrlhf_script(options, written), written
    return (verl_command if suffix == ".sh" else verl_file)(options, written), written


_WRITERS = {"trl": write_trl, "verl": write_verl, "openrlhf": write_openrlhf}


def _pairs_of(written: Written, names: frozenset[str]) -> dict[str, Any]:
    keys = {key for name in names for key in written.became.get(name, "").split(", ")}
    return {key: value for key, value in written.pairs.items() if key in keys}
