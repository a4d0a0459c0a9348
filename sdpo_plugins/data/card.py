"""The card of a prepared data set: `card.json` for programs, and `README.md`, which makes the folder a data set."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from sdpo_plugins._version import __version__
from sdpo_plugins.data.formats import FORMATS, Format
from sdpo_plugins.data.sources import Facts

__all__ = ["command_of", "flag_of", "make_card", "readme_of"]

_FLAGS = {"place": "from"}
_SCORER_USE = {
    "trl": "`sdpo_plugins.feedback.for_trl({scorer!r})`",
    "verl": "`sdpo_plugins.feedback.for_verl({scorer!r})`",
    "openrlhf": "`sdpo_plugins.feedback.for_openrlhf({scorer!r})`",
}


def flag_of(name: str) -> str:
    """Return the command line's word for an option.

    Example:
        >>> flag_of("test_share"), flag_of("place")
        ('--test-share', '--from')
    """
    return f"--{_FLAGS.get(name, name).replace('_', '-')}"


def command_of(source: str, *options: Any) -> str:
    """Return the command that makes a data set.

    Args:
        source: Name of the source.
        *options: Objects of options; those that have their defaults are left out, except for host and folder.

    Example:
        >>> from sdpo_plugins.data.gsm8k import GSM8KOptions
        >>> command_of("gsm8k", GSM8KOptions(calculator=True, seed=1))
        'sdpo data gsm8k --calculator --seed 1'
    """
    words = ["sdpo", "data", source]
    for given in options:
        for item in dataclasses.fields(given):
            value = getattr(given, item.name)
            if item.name == "overwrite" or (value == item.default and item.name != "host"):
                continue
            for each in value if isinstance(value, tuple) else (value,):
                words += [flag_of(item.name)] if each is True else [flag_of(item.name), str(each)]
    return shlex.join(words)


def make_card(
    asked: Mapping[str, Any],
    facts: Facts,
    splits: Mapping[str, Any],
    notes: list[str],
    revision: str | None,
    command: str,
) -> dict[str, Any]:
    """Return what `card.json` holds.

    Args:
        asked: What was asked for, by which a later run knows the folder.
        facts: What the data are.
        splits: For each split `file`, `rows`, `bytes`, `sha256`.
        notes: What else is worth knowing.
        revision: The commit, or else the branch, that was read; None where it is not known.
        command: That made it.
    """
    told = {
        name: getattr(facts, name) for name in ("scorer", "data_source", "origin", "link", "license", "prompt", "split")
    }
    return {
        "asked": dict(asked),
        **told,
        "revision": revision,
        "splits": dict(splits),
        "notes": list(notes),
        "command": command,
        "made_by": f"sdpo-plugins {__version__}",
        "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def readme_of(card: Mapping[str, Any], folder: Path) -> str:
    """Return the card for people. Its head says which file is which split, so `load_dataset(folder)` works.

    Args:
        card: From `make_card`.
        folder: Where it will stand.
    """
    asked, splits = card["asked"], card["splits"]
    head: dict[str, Any] = {
        "configs": [
            {
                "config_name": "default",
                "data_files": [{"split": name, "path": told["file"]} for name, told in splits.items()],
            }
        ]
    }
    if card["license"]:
        head = {"license": card["license"], **head}
    host = FORMATS[asked["host"]]
    rows = [
        ("source", f"[{card['origin']}]({card['link']})" if card["link"] else card["origin"]),
        ("read from", "files of one's own" if asked["from"] else "its home"),
        ("revision", card["revision"] or "not known"),
        ("licence", card["license"] or "not known"),
        ("prompt", card["prompt"]),
        ("split", card["split"]),
        ("scorer", _scorer(card["scorer"], host.host)),
        ("options", ", ".join(f"`{name}={value!r}`" for name, value in asked["options"].items())),
        ("at most", f"{asked['limit']} rows a split" if asked["limit"] else "all rows"),
        ("made by", card["made_by"]),
    ]
    table = "\n".join(f"| {name} | {_cell(value)} |" for name, value in rows)
    counts = "\n".join(
        f"| {name} | `{told['file']}` | {told['rows']} | {told['bytes']} |" for name, told in splits.items()
    )
    notes = "".join(f"- {' '.join(note.split())}\n" for note in card["notes"])
    return (
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n\n# {card['data_source']}, for {asked['host']}\n\n"
        f"| | |\n|---|---|\n{table}\n\n| split | file | rows | bytes |\n|---|---|---:|---:|\n{counts}\n\n"
        f"{_use(host, folder, card['scorer'])}\n\nMade by:\n\n```\n{card['command']}\n```\n"
        + (f"\n## Notes\n\n{notes}" if notes else "")
    )


def _use(host: Format, folder: Path, scorer: str) -> str:
    kept = [line for line in host.use.splitlines() if scorer or "{scorer}" not in line]
    return "\n".join(kept).replace("{scorer}", scorer).replace("{folder}", folder.as_posix())


def _scorer(name: str, host: str) -> str:
    if not name:
        return "none is named: bring a reward function of your own"
    return f"`{name}`: {_SCORER_USE[host].format(scorer=name)}"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
