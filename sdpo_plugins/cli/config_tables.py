"""The tables of `sdpo config`, and the same as plain values for programs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from sdpo_plugins.config import SDPOConfig
from sdpo_plugins.conversion import HOST_NAMES, SETTINGS, Became, Known, Resolved, Source, shown
from sdpo_plugins.conversion.hosts import Written, place_of

_LONG = 24

__all__ = ["as_mapping", "print_conversion", "print_options"]


def print_options(console: Console, source: Source, resolved: Resolved, known: Known, everything: bool) -> None:
    """Print the options that differ from their defaults, or all, each with where its value comes from.

    Args:
        console: Where to.
        source: File and command line.
        resolved: The options.
        known: The host's settings.
        everything: All options.
    """
    defaults, values = SDPOConfig().to_mapping(), resolved.config.to_mapping()
    names = [name for name in values if everything or values[name] != defaults[name]]
    if names:
        rows = [(name, plain(values[name]), str(resolved.origins[name])) for name in names]
        _table(console, ("option", "value", "from"), rows)
    rest = len(values) - len(names)
    if rest:
        every = "All" if not names else "The other"
        console.print(f"{every} {rest} options have their defaults; --all shows them.")
    if "_target_" in source.options and resolved.dialect is None:
        console.print(
            "[yellow]note:[/] this is a file of the authors' fork; `--from lasgroup` takes their defaults, too."
        )
    if resolved.dialect is None and source.host and not known.raw.keys() <= {"host"}:
        name = HOST_NAMES.get(known.host, "the host")
        console.print(f"\n[bold]Settings of {name}[/], which checks them itself")
        host = [(key, plain(one.value), place_of(one)) for key, one in source.host.items()]
        _table(console, ("setting", "value", "from"), host)
    if resolved.dialect is None:  # else print_conversion has said it
        _print_unread(console, source)


def print_conversion(
    console: Console, source: Source, resolved: Resolved, known: Known, target: str | None, written: Written
) -> None:
    """Print what became of each option and setting, what was lost, and what to do about it.

    Args:
        console: Where to.
        source: File and command line.
        resolved: SDPO's options.
        known: The host's settings.
        target: The host written for, or None.
        written: What was written for it.
    """
    if source.file is not None and resolved.became:
        console.print(f"[bold]SDPO's options in {escape(source.file.name)}[/]")
        rows = [(f"{one.written} = {plain(one.value)}", _what_became(one, resolved)) for one in resolved.became]
        _table(console, ("there", "here"), rows)
        console.print()
    if known.settings:
        there = f"in {HOST_NAMES[target]}" if target is not None else "meaning"
        console.print("[bold]Settings of the host[/]")
        settings = [
            (name, shown(one.value), one.origin, _where(name, target, written)) for name, one in known.settings.items()
        ]
        _table(console, ("setting", "value", "from", there), settings)
        console.print()
    lost = [(name, why or "nothing here knows it.") for name, why in known.rest.items()]
    if lost and target != known.host and (target is not None or resolved.dialect is not None):
        console.print("[bold]Not carried over[/]")
        _table(console, ("setting", "why, or what to do"), lost)
        console.print()
    for note in written.notes:
        console.print(f"[yellow]note:[/] {escape(note)}", soft_wrap=True)
    _print_unread(console, source)


def as_mapping(source: Source, resolved: Resolved, known: Known) -> dict[str, Any]:
    """Return everything that the tables show, as plain values.

    Args:
        source: File and command line.
        resolved: SDPO's options.
        known: The host's settings.

    Returns:
        `file`, `kind`, `preset`, `dialect`, `options`, `given`, `host`, `unread`.
    """
    defaults = SDPOConfig().to_mapping()
    options = {}
    for name, value in resolved.config.to_mapping().items():
        origin = resolved.origins[name]
        options[name] = {
            "value": value,
            "default": defaults[name],
            "from": {"place": origin.kind, "name": origin.name, "line": origin.line, "written": origin.written},
        }
    return {
        "file": None if source.file is None else str(source.file),
        "kind": source.kind,
        "preset": resolved.preset,
        "dialect": resolved.dialect,
        "options": options,
        "given": [
            {"name": one.written, "value": one.value, "line": one.origin.line, "options": dict(one.options)}
            for one in resolved.became
        ],
        "host": {
            "name": known.host or None,
            "given": known.raw,
            "settings": {
                name: {"value": _number(one.value), "from": one.origin, "written": one.written}
                for name, one in known.settings.items()
            },
            "not_carried": known.rest,
        },
        "unread": list(source.unread),
    }


def plain(value: Any) -> str:
    """Say a value as a YAML file would, on one line."""
    if isinstance(value, str) and (not value.strip() or value != " ".join(value.split())):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, (dict, list)):
        return json.dumps(value, ensure_ascii=False)
    return shown(value)


def _what_became(one: Became, resolved: Resolved) -> str:
    if not one.options:
        together = [name.written for name in resolved.became if name.written in _readers(one.written) and name.options]
        return f"read together with {together[0]}" if together else "nothing to set"
    if list(one.options) == [one.written] and one.options[one.written] == one.value:
        return "the same"
    return ", ".join(f"{name} = {plain(_listed(value))}" for name, value in one.options.items())


def _readers(name: str) -> set[str]:
    from sdpo_plugins._dialect_tables import DIALECTS

    return {row.name for table in DIALECTS.values() for row in table.rows.values() if name in row.absorbs}


def _where(name: str, target: str | None, written: Written) -> str:
    if target is None:
        return SETTINGS[name].meaning
    there = [_short(key) for key in written.became.get(name, "").split(", ") if key]
    return "\n".join(there) or ("see the note" if any(f"`{name}`" in note for note in written.notes) else "–")


def _short(key: str) -> str:
    """The end of a long dotted name; the whole stands in what is written."""
    return key if len(key) < _LONG or key.count(".") < 2 else "…" + ".".join(key.split(".")[-2:])


def _print_unread(console: Console, source: Source) -> None:
    for place in source.unread:
        console.print(
            f"[yellow]note:[/] {escape(place)} is known only when the script runs; give its value behind the file.",
            soft_wrap=True,
        )


def _table(console: Console, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in headings:
        names = heading in ("option", "setting")
        table.add_column(heading, no_wrap=names, overflow="ignore" if names else "fold")
    for row in rows:
        table.add_row(*(escape(cell) for cell in row))
    console.print(table)


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _number(value: Any) -> Any:
    from fractions import Fraction

    if isinstance(value, Fraction):
        return int(value) if value.denominator == 1 else float(value)
    return list(value) if isinstance(value, tuple) else value
