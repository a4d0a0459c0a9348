"""`sdpo list`: plug-ins, strategies of each kind, hosts."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from sdpo_plugins._catalogues import HOST_KIND, KINDS
from sdpo_plugins._version import __version__
from sdpo_plugins.cli.hosts import advice, state
from sdpo_plugins.errors import SDPOError
from sdpo_plugins.plugins import HostStatus, catalogue, host_status, installed_plugins

__all__ = ["BUILTIN", "PluginReport", "hosts_of", "listing", "plugin_reports", "show_listing"]

BUILTIN = "builtin"
STRATEGY_KINDS = tuple(kind.name for kind in KINDS if kind.name != HOST_KIND.name)


@dataclass(frozen=True)
class PluginReport:
    """One installed plug-in and what it offers.

    Args:
        name: What `plugins` takes.
        distribution: The installed distribution it comes from.
        version: Of that distribution.
        problem: Why it cannot be used, or "".
        entries: Strategies by kind, and hosts under "host".
    """

    name: str
    distribution: str
    version: str
    problem: str = ""
    entries: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)


def plugin_reports() -> list[PluginReport]:
    """Load each installed plug-in by itself, so that one which is broken hides nothing of the others.

    Returns:
        Our own first, then others by name.
    """
    own = {kind.name: catalogue(kind.name) for kind in KINDS}
    reports = []
    for plugin in installed_plugins():
        identity = (plugin.name, plugin.distribution, plugin.version)
        if plugin.name == BUILTIN:
            reports.append(
                PluginReport(*identity, entries={kind: tuple(found.values()) for kind, found in own.items()})
            )
            continue
        try:
            entries = {
                kind: tuple(entry for name, entry in catalogue(kind, (plugin.name,)).items() if name not in known)
                for kind, known in own.items()
            }
        except SDPOError as error:
            reports.append(PluginReport(*identity, problem=str(error)))
        else:
            reports.append(PluginReport(*identity, entries=entries))
    return reports


def hosts_of(reports: list[PluginReport]) -> list[HostStatus]:
    """Return the state of every host that the plug-ins offer."""
    return [host_status(host) for report in reports for host in report.entries.get(HOST_KIND.name, ())]


def listing() -> dict[str, Any]:
    """Return everything that `sdpo list` shows, as plain values.

    Returns:
        `version`; `plugins`; `strategies`, by kind in the plural; `hosts`.
    """
    reports = plugin_reports()
    return {
        "version": __version__,
        "plugins": [
            {"name": each.name, "distribution": each.distribution, "version": each.version, "problem": each.problem}
            for each in reports
        ],
        "strategies": {f"{kind}s": list(_strategies(reports, kind)) for kind in STRATEGY_KINDS},
        "hosts": [
            {
                "name": status.host.name,
                "summary": status.host.summary,
                "distribution": status.host.distribution,
                "installed": status.installed,
                "supported": status.host.requirement,
                "state": state(status),
                "advice": advice(status),
            }
            for status in hosts_of(reports)
        ],
    }


def show_listing(as_json: bool) -> None:
    """Print the listing.

    Args:
        as_json: JSON instead of tables.
    """
    shown = listing()
    if as_json:
        print(json.dumps(shown, indent=2, ensure_ascii=False))
        return
    console = Console()
    _print_table(
        console,
        "plug-ins",
        [(each["name"], f"{each['distribution']} {each['version']}", each["problem"]) for each in shown["plugins"]],
    )
    # A column that says the same in every row tells nothing.
    others = len(shown["plugins"]) > 1
    for kind, entries in shown["strategies"].items():
        rows = [(each["name"], each["summary"], *([each["plugin"]] if others else [])) for each in entries]
        _print_table(console, kind, rows or [("none", "a plug-in may add one")])
    _print_table(
        console,
        "hosts (installed; supported)",
        [
            (
                each["name"],
                each["state"],
                f"{each['installed'] or 'not installed'}; {each['supported']}",
                each["advice"] or each["summary"],
            )
            for each in shown["hosts"]
        ],
    )


def _strategies(reports: list[PluginReport], kind: str) -> Iterator[dict[str, str]]:
    for report in reports:
        for entry in report.entries.get(kind, ()):
            yield {"name": entry.name, "summary": entry.summary, "plugin": report.name}


def _print_table(console: Console, title: str, rows: list[tuple[str, ...]]) -> None:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 2))
    table.add_column(style="cyan", no_wrap=True)
    for row in rows:
        table.add_row(*(escape(cell) for cell in row))
    console.print(f"[bold]{title}[/]")
    console.print(table)
    console.print()
