"""The parts of docs/ that are made from the code: between `<!-- generated: NAME -->` and `<!-- end -->`.

`python -m sdpo_plugins._reference_docs` makes them anew. A test compares the files with what these functions give, so
neither can drift.
"""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from sdpo_plugins._catalogues import KINDS
from sdpo_plugins._dialect_tables import DIALECTS
from sdpo_plugins._markdown import shown, table
from sdpo_plugins._options import describe_type
from sdpo_plugins._reference_code import api_block, command_block, hook_block
from sdpo_plugins.config import SDPOConfig
from sdpo_plugins.metric_names import markdown_table
from sdpo_plugins.plugins import catalogue
from sdpo_plugins.presets import PAPER_HOST_SETTINGS, PRESETS

__all__ = ["BLOCKS", "DOCUMENTS", "filled"]

DOCUMENTS = (
    "configuration.md",
    "feedback.md",
    "migrating.md",
    "reference/api.md",
    "reference/commands.md",
    "reference/hooks.md",
    "reference/metrics.md",
)
_BLOCK = re.compile(r"(<!-- generated: (?P<name>[\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def option_table(options: type[Any] = SDPOConfig) -> str:
    """All options of a dataclass, by default of the configuration: valid values, default, meaning."""
    rows = []
    for item in dataclasses.fields(options):
        default = item.default if item.default_factory is dataclasses.MISSING else item.default_factory()
        rows.append((f"`{item.name}`", _valid(item, options), shown(default), item.metadata["help"]))
    return table(("option", "valid", "default", "meaning"), rows)


def strategy_table() -> str:
    """What the package itself offers to each option that names a strategy."""
    rows = [(kind.name, f"`{name}`", entry.summary) for kind in KINDS for name, entry in catalogue(kind.name).items()]
    return table(("kind", "name", "summary"), rows)


def preset_table() -> str:
    """The options that presets set, side by side; a dash keeps the default."""
    names = list(dict.fromkeys(name for preset in PRESETS.values() for name in preset.options))
    rows = [
        (f"`{name}`", *(shown(preset.options[name]) if name in preset.options else "–" for preset in PRESETS.values()))
        for name in names
    ]
    sources = "\n".join(f"- `{preset.name}`: {preset.source}." for preset in PRESETS.values())
    return sources + "\n\n" + table(("option", *(f"`{name}`" for name in PRESETS)), rows)


def host_settings_table() -> str:
    """What the paper's runs set in the host."""
    first = next(iter(PAPER_HOST_SETTINGS.values()))
    rows = [
        (f"`{item.name}`", *(shown(getattr(settings, item.name)) for settings in PAPER_HOST_SETTINGS.values()))
        for item in dataclasses.fields(first)
    ]
    return table(("setting of the host", *(f"`{name}`" for name in PAPER_HOST_SETTINGS)), rows)


def dialect_block(name: str) -> str:
    """One vocabulary: translated names, shared names, defaults that differ from ours."""
    dialect = DIALECTS[name]
    rows = [(f"`{row.name}`", row.ours, row.values or "as it is") for row in dialect.rows.values()]
    parts = [
        f"Made from: {dialect.source}.",
        table(("their option", "ours", "values"), rows),
        "Same name, same meaning: " + ", ".join(f"`{name}`" for name in sorted(dialect.own)) + ".",
    ]
    ours = SDPOConfig()
    differing = {name: value for name, value in dialect.defaults.items() if value != getattr(ours, name)}
    listing = ", ".join(f"`{name}` = {shown(value)}" for name, value in differing.items())
    parts.append(f"Defaults that differ from ours: {listing}." if listing else "Its defaults are ours.")
    return "\n\n".join(parts)


BLOCKS: dict[str, Callable[[], str]] = {
    "options": option_table,
    "strategies": strategy_table,
    "presets": preset_table,
    "host-settings": host_settings_table,
    **{f"dialect-{name}": partial(dialect_block, name) for name in DIALECTS},
    "api": api_block,
    "commands": command_block,
    "hooks": hook_block,
    "metrics": markdown_table,
    **{
        f"options-of-{name}": partial(option_table, scorer.options)
        for name, scorer in catalogue("scorer").items()
        if scorer.options is not None
    },
}


def filled(text: str) -> str:
    """Return the document with every generated block made anew.

    Args:
        text: Markdown with blocks between `<!-- generated: NAME -->` and `<!-- end -->`.

    Returns:
        The same text with fresh blocks.
    """
    return _BLOCK.sub(lambda match: f"{match[1]}{BLOCKS[match['name']]()}\n{match[3]}", text)


def _valid(item: dataclasses.Field[Any], options: type[Any]) -> str:
    meta = item.metadata
    if meta["choices"]:
        return ", ".join(f"`{choice}`" for choice in meta["choices"])
    if meta["placeholders"]:
        return "a text with " + ", ".join(f"`{{{name}}}`" for name in meta["placeholders"])
    words, otherwise, null = describe_type(typing.get_type_hints(options)[item.name]).partition(" or null")
    low, high = meta["low"], meta["high"]
    if low is not None and high is not None:
        words += f" in {'(' if meta['exclusive'] else '['}{low:g}, {high:g}]"
    elif low is not None:
        words += f" {'>' if meta['exclusive'] else '≥'} {low:g}"
    return words + otherwise + null


if __name__ == "__main__":
    for document in DOCUMENTS:
        path = Path("docs", document)
        path.write_text(filled(path.read_text(encoding="utf-8")), encoding="utf-8")
