"""What all three hosts have in common: settings read and written by the names of the table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from sdpo_plugins.conversion.documents import Given
from sdpo_plugins.conversion.settings import SETTINGS, Setting
from sdpo_plugins.conversion.values import Found, converted, shown

__all__ = ["HOST_NAMES", "Read", "Written", "batch_shape", "place_of", "read_by_name", "write_by_name"]

HOST_NAMES = {"trl": "TRL", "verl": "verl", "openrlhf": "OpenRLHF"}

# Why a setting cannot be said in a host, and what to do there.
_WITHOUT = {
    ("warmup_ratio", "trl"): "TRL counts warm-up in optimizer steps: set `warmup_steps`.",
    ("warmup_steps", "openrlhf"): "OpenRLHF counts warm-up as a share of all steps: set `--actor.lr_warmup_ratio`.",
    ("max_prompt_length", "trl"): "TRL cuts no questions: leave longer ones out of the data.",
    ("chat_template_kwargs", "openrlhf"): "OpenRLHF passes nothing to the chat template: write the prompts so.",
    ("lr_schedule", "verl"): "verl knows 'constant' and 'cosine'.",
    ("advantage_clip", "trl"): "no host clips advantages so; `per_token_loss_clip` limits SDPO's loss itself.",
}
_WITHOUT |= {("advantage_clip", host): _WITHOUT["advantage_clip", "trl"] for host in ("verl", "openrlhf")}
# Values that mean "off": without a counterpart, nothing is lost.
_OFF = {"top_k": 0, "warmup_ratio": 0.0, "chat_template_kwargs": {}, "lora_rank": 0}


@dataclass
class Read:
    """What a host's file says beside SDPO's options.

    Args:
        settings: Those of the table.
        rest: What has no row in the table, by the host's name, with the reason or "".
        problems: Values that are invalid.
    """

    settings: dict[str, Found] = field(default_factory=dict)
    rest: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


@dataclass
class Written:
    """Settings in a host's words.

    Args:
        pairs: Its names and values.
        became: By our name, the host's names.
        notes: What could not be said, as sentences.
    """

    pairs: dict[str, Any] = field(default_factory=dict)
    became: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def put(self, name: str, pairs: Mapping[str, Any]) -> None:
        """Write one setting under the host's names."""
        self.pairs.update(pairs)
        self.became[name] = ", ".join(pairs)

    def lacks(self, name: str, found: Found, why: str) -> None:
        """Note that a setting is lost."""
        self.notes.append(f"`{name}` = {shown(found.value)} ({found.origin}) is not carried over: {why}")


def place_of(given: Given) -> str:
    """Say where a value was written."""
    return "command line" if given.line is None else f"line {given.line}"


def read_by_name(given: Mapping[str, Given], host: str) -> Read:
    """Read the settings that the host says in one name, or in two for a pair.

    Args:
        given: By the host's dotted names.
        host: "trl", "verl" or "openrlhf".

    Returns:
        Settings and problems; the rest is what was not read.
    """
    given = _with_mappings(given, host)
    read = Read(rest=dict.fromkeys(given, ""))
    for setting in SETTINGS.values():
        keys = [key for key in setting.key(host).split(",") if key in given]
        if not keys:
            continue
        values = [given[key].value for key in keys]
        paired = "," in setting.key(host)
        # The upper half of a clip range is the lower unless it is given.
        value: Any = (values * 2)[:2] if paired else values[0]
        if value is None and setting.words.get(host, {}).get(None) is None:
            for key in keys:
                read.rest.pop(key)
            continue  # null: the host's own default
        for key in keys:
            read.rest.pop(key)
        try:
            read.settings[setting.name] = Found(
                converted(setting, value, host), place_of(given[keys[0]]), ", ".join(keys)
            )
        except ValueError as problem:
            read.problems.append(f"`{keys[0]}` ({place_of(given[keys[0]])}) {problem}.")
    return read


def _with_mappings(given: Mapping[str, Given], host: str) -> dict[str, Given]:
    """Put the dotted entries of a setting that is a mapping back together."""
    found = dict(given)
    for key in (setting.key(host) for setting in SETTINGS.values() if setting.kind is dict and setting.key(host)):
        inner = {name: found.pop(name) for name in list(found) if name.startswith(key + ".")}
        if inner:
            lines = [one.line for one in inner.values()]
            found[key] = Given({name.removeprefix(key + "."): one.value for name, one in inner.items()}, lines[0])
    return found


def write_by_name(settings: Mapping[str, Found], host: str) -> Written:
    """Write the settings that the host says in one name, or in two for a pair.

    Args:
        settings: By our names.
        host: "trl", "verl" or "openrlhf".

    Returns:
        Names and values, and what has none; derived ones are left to the host's module.
    """
    written = Written()
    for name, found in settings.items():
        setting = SETTINGS[name]
        if host in setting.derived:
            continue
        key = setting.key(host)
        if not key or (name, host) in (("warmup_ratio", "trl"),):
            if found.value != _OFF.get(name, object()):
                written.lacks(name, found, _why(name, host))
            continue
        known, value = _worded(setting, found.value, host)
        if not known:
            written.lacks(name, found, _why(name, host))
        elif "," in key:
            written.put(name, dict(zip(key.split(","), value, strict=True)))
        else:
            written.put(name, {key: value})
    return written


def batch_shape(settings: Mapping[str, Found], rollouts: int) -> tuple[Fraction, Fraction] | None:
    """Return questions of a rollout batch and of an optimizer step; each stands for the other if it is not known.

    Args:
        settings: By our names.
        rollouts: Of each question; for the message of nothing, kept positive by the caller.

    Returns:
        None if neither is known.
    """
    batch, mini = settings.get("questions_per_batch"), settings.get("mini_batch_size")
    if batch is None and mini is None:
        return None
    whole = Fraction((batch or mini).value)  # type: ignore[union-attr]
    part = Fraction((mini or batch).value)  # type: ignore[union-attr]
    return whole, part


def whole_number(name: str, value: Any, unit: str, notes: list[str]) -> int:
    """Round up what a host counts in whole units, and note it if something was lost."""
    rounded = -(-Fraction(value).limit_denominator(10**6) // 1)
    if rounded != value:
        notes.append(f"`{name}` = {shown(value)} became {rounded}: the host counts whole {unit}.")
    return int(rounded)


def without(read: Read, reasons: Mapping[str, str]) -> None:
    """Put the reason behind each name that has no counterpart and for which one is known."""
    for name in read.rest:
        read.rest[name] = read.rest[name] or reasons.get(name, "")


def positive(read: Read, names: Iterable[str]) -> None:
    """Move counts below 1 from the settings to the problems."""
    for name in names:
        found = read.settings.get(name)
        if found is not None and found.value < 1:
            read.problems.append(f"`{found.written}` ({found.origin}) must be at least 1, got {shown(found.value)}.")
            del read.settings[name]


def _worded(setting: Setting, value: Any, host: str) -> tuple[bool, Any]:
    words = setting.words.get(host)
    if words is None:
        return True, value
    theirs = [word for word, ours in words.items() if ours == value and word is not None]
    if theirs:
        return True, theirs[0]
    return setting.kind is int, value


def _why(name: str, host: str) -> str:
    return _WITHOUT.get((name, host), f"{HOST_NAMES[host]} has no such setting.")
