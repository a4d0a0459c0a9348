"""Taking a file of options apart: what is SDPO's, what is the host's, and whose words they are."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from sdpo_plugins._dialect_tables import DIALECTS, SHARED_ROWS
from sdpo_plugins.config import SDPOConfig
from sdpo_plugins.conversion.documents import Document, Given, opened, parse_word
from sdpo_plugins.conversion.reading import read_document
from sdpo_plugins.conversion.scripts import OF_SDPO
from sdpo_plugins.conversion.settings import SETTINGS
from sdpo_plugins.conversion.trl import RECIPE_KEYS, TRL_KEYS
from sdpo_plugins.conversion.verl import SECTION
from sdpo_plugins.errors import ConfigError, nearest

__all__ = ["Kind", "Source", "read_source", "words_of"]

Kind = Literal["options", "recipe", "verl"]

_ROOT = "actor_rollout_ref"
_ACTOR = "actor_rollout_ref.actor."
_BESIDE = {_ACTOR + name: name for name in ("loss_agg_mode", "loss_scale_factor")}
_LOSS_MODE = _ACTOR + "policy_loss.loss_mode"
# Of our own files for verl: an option that nobody gave.
_UNSET = "unset"
_OPTIONS = {item.name: item for item in dataclasses.fields(SDPOConfig)}
_SURE = 0.8  # how like an option of ours an unknown name of a recipe must be, to be taken for a misspelt one


@dataclass
class Source:
    """What was given, by file and command line.

    Args:
        kind: "options" of SDPO alone; "recipe": beside them TRL's arguments, flat; "verl": a nested configuration.
        file: Its path, or None.
        options: SDPO's, by the name that was written.
        host: Everything else, by the host's (dotted) name.
        settings: Of the table, by our names, from the command line.
        preset: Named in the file or on the command line.
        dialect: Named in the file, or by the caller.
        unread: Places of a script whose value only running it would tell.
    """

    kind: Kind = "options"
    file: Path | None = None
    options: dict[str, Given] = field(default_factory=dict)
    host: dict[str, Given] = field(default_factory=dict)
    settings: dict[str, Given] = field(default_factory=dict)
    preset: Given | None = None
    dialect: Given | None = None
    unread: tuple[str, ...] = ()


def words_of(dialect: str | None) -> frozenset[str]:
    """Return the option names that a dialect, or without one everybody, understands."""
    if dialect is not None:
        return frozenset(DIALECTS[dialect].own) | frozenset(DIALECTS[dialect].rows)
    every = (name for table in DIALECTS.values() for name in table.rows)
    return frozenset(_OPTIONS) | frozenset(every) | frozenset(SHARED_ROWS)


def read_source(file: Path | None, words: Sequence[str], dialect: str | None = None) -> Source:
    """Read a file and the words `KEY=VALUE` behind it; a word beats the file.

    Args:
        file: YAML, JSON, or a script; None: the words alone.
        words: In the vocabulary of the file. Without one, or with SDPO's options alone, names of the table of host
            settings count too.
        dialect: The project whose file it is; None: ours, with any project's unambiguous names.

    Returns:
        What was given.

    Raises:
        ConfigError: The file cannot be read, a word is no `KEY=VALUE`, or a name is probably misspelt.
    """
    malformed = [word for word in words if not re.fullmatch(r"[^=\s]+=.*", word, re.DOTALL)]
    if malformed:
        raise ConfigError(
            [f"An override must look like KEY=VALUE, got {word!r}; a file stands before them." for word in malformed]
        )
    source = Source() if file is None else _from_document(read_document(file), dialect)
    pairs = [word.split("=", 1) for word in words]
    if source.kind == "options" and any(_is_verl(name.lstrip("+")) for name, _ in pairs):
        source.kind = "verl"
    for name, text in pairs:
        _add_word(source, name.lstrip("+"), text, dialect)
    return source


def _from_document(document: Document, dialect: str | None) -> Source:
    entries = document.entries
    source = Source(file=document.path, unread=document.unread)
    if document.sections or document.path.suffix.lower() == ".py":
        source.kind = "recipe"
        ours = {name for section in OF_SDPO for name in document.sections.get(section, ())}
        for name, given in entries.items():
            # TRL's SDPOConfig holds its own arguments too; other projects have two objects.
            of_sdpo = name in words_of(dialect) or (name in ours and dialect != "trl")
            (source.options if of_sdpo else source.host)[name] = given
        return source
    if any(_is_verl(name) for name in entries) or document.path.suffix.lower() == ".sh":
        source.kind = "verl"
        _take_verl(source, entries, dialect)
        return source
    known = words_of(dialect)
    recipe = any(name in TRL_KEYS or name in RECIPE_KEYS for name in entries if name not in known)
    source.kind = "recipe" if recipe else "options"
    for name, given in entries.items():
        _put_flat(source, name, given, dialect)
    _check_names(source, known)
    return source


def _put_flat(source: Source, name: str, given: Given, dialect: str | None) -> None:
    if name in ("preset", "dialect"):
        setattr(source, name, given)
    elif name in words_of(dialect) or source.kind == "options":
        # As the reader of recipes does: `none` stands for null where null is valid.
        is_none = source.kind == "recipe" and str(given.value).lower() in ("none", "null") and _nullable(name)
        source.options[name] = Given(None, given.line) if is_none else given
    else:
        source.host[name] = given


def _nullable(name: str) -> bool:
    return name in _OPTIONS and "None" in str(_OPTIONS[name].type)


def _check_names(source: Source, known: frozenset[str]) -> None:
    """A recipe's names that are neither TRL's nor ours, and look like ours, are mistakes."""
    problems = [
        f"Unknown option `{name}` (line {given.line}).{hint}"
        for name, given in source.host.items()
        if name not in TRL_KEYS and name not in RECIPE_KEYS and (hint := nearest(name, known, cutoff=_SURE))
    ]
    if problems:
        raise ConfigError(problems)


def _take_verl(source: Source, entries: Mapping[str, Given], dialect: str | None) -> None:
    groups = entries.get("defaults")
    for group in groups.value if groups is not None and isinstance(groups.value, list) else ():
        if isinstance(group, Mapping) and "sdpo" in group:
            _add_group(source, str(group["sdpo"]), groups.line if groups is not None else None)
    values = {".".join(path): given for path, given in opened(entries) if path[0] not in ("defaults", "hydra")}
    for name, given in values.items():
        _put_verl(source, name, _resolved(given, values), dialect)


def _put_verl(source: Source, name: str, given: Given, dialect: str | None) -> None:
    inside = name.removeprefix(SECTION + ".")
    if name == SECTION or (inside == name and name == _ROOT):
        raise ConfigError(f"`{name}` must be a mapping, got {given.value!r} ({type(given.value).__name__}).")
    if inside != name:
        option, _, key = inside.partition(".")
        if given.value == _UNSET and isinstance(given.value, str):
            return
        if option in ("preset", "dialect"):
            setattr(source, option, given)
        elif key:
            held = source.options.get(option)
            mapping = dict(held.value) if held is not None and isinstance(held.value, Mapping) else {}
            source.options[option] = Given({**mapping, **_nested(key, given.value)}, given.line)
        else:
            source.options[option] = given
    elif name in _BESIDE:
        # The section's own value wins, wherever it stands.
        source.options.setdefault(_BESIDE[name], given)
    elif name == _LOSS_MODE and dialect == "lasgroup":
        source.options["loss_mode"] = given
    else:
        source.host[name] = given


def _add_group(source: Source, name: str, line: int | None) -> None:
    if name == "lasgroup":
        source.dialect = Given(name, line)
    elif name != "default":
        source.preset = Given(name, line)


def _add_word(source: Source, name: str, text: str, dialect: str | None) -> None:
    name = name.removeprefix("sdpo.") if source.kind != "verl" else name
    if name in ("preset", "dialect"):
        setattr(source, name, Given(text))
    elif source.kind == "verl":
        if name == "sdpo":
            _add_group(source, text, None)
        elif name in words_of(dialect) and "." not in name:
            source.options[name] = Given(_word(name, text))
        elif name in SETTINGS:
            source.settings[name] = Given(parse_word(text))
        else:
            _put_verl(source, name, Given(_word(name.rpartition(".")[2], text)), dialect)
    elif name in words_of(dialect):
        source.options[name] = Given(_word(name, text))
    elif source.kind == "options" and name in SETTINGS:
        source.settings[name] = Given(parse_word(text))
    else:
        hint = nearest(name, words_of(dialect), cutoff=_SURE)
        if source.kind == "recipe" and not hint:
            source.host[name] = Given(parse_word(text))
        else:
            source.options[name] = Given(parse_word(text))


def _word(name: str, text: str) -> Any:
    """Read a word as the option's type: a template is a text, whatever YAML would make of its braces."""
    item = _OPTIONS.get(name)
    kind = str(item.type) if item is not None else ""
    if kind == "str":
        return text
    if text.lower() in ("none", "null"):
        return None
    return text if kind == "str | None" else parse_word(text)


def _resolved(given: Given, values: Mapping[str, Given]) -> Given:
    """Follow a reference to another entry, as verl's configuration does when it is composed."""
    for _ in range(5):
        found = re.fullmatch(r"\$\{([\w.]+)\}", given.value) if isinstance(given.value, str) else None
        if found is None or found[1] not in values:
            return given
        given = Given(values[found[1]].value, given.line)
    return given


def _nested(path: str, value: Any) -> dict[str, Any]:
    name, _, rest = path.partition(".")
    return {name: _nested(rest, value) if rest else value}


def _is_verl(name: str) -> bool:
    return name == _ROOT or name.startswith(_ROOT + ".")
