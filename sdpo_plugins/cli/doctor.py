"""`sdpo doctor`: what is installed, what is supported, what is missing and how to get it."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Literal

from packaging.requirements import Requirement
from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table

from sdpo_plugins._version import __version__
from sdpo_plugins.cli.hosts import State, advice, loading_problem, state
from sdpo_plugins.cli.listing import BUILTIN, PluginReport, hosts_of, plugin_reports

__all__ = ["Finding", "diagnose", "show_diagnosis"]

DISTRIBUTION = "sdpo-plugins"

# Not required by the core, but of interest to whoever reads a report of a problem.
_COMPANIONS = ("transformers", "tokenizers", "accelerate", "peft", "datasets", "vllm")

_HOST_STATES: dict[State, Literal["ok", "note", "warning"]] = {
    "ready": "ok",
    "missing": "note",
    "no adapter": "note",
    "unsupported": "warning",
}

_NO_HOST = "hosts"

_STYLES = {"ok": "green", "note": "dim", "warning": "yellow", "broken": "bold red"}


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Args:
        subject: What was looked at.
        state: "ok", "note" (not there, and not needed), "warning" (there, but cannot be used as it is), "broken".
        found: What is there.
        advice: What to do, or "".
    """

    subject: str
    state: Literal["ok", "note", "warning", "broken"]
    found: str
    advice: str = ""


def diagnose() -> list[Finding]:
    """Look at this Python, the core's dependencies, the device, the sandbox, plug-ins and hosts.

    Returns:
        The findings in reading order; the installation is broken if any of them is.
    """
    reports = plugin_reports()
    return [
        *_python(),
        *_dependencies(),
        *_device(),
        *_companions(),
        *_report(),
        *_sandbox(),
        *_plugins(reports),
        *_hosts(reports),
    ]


def show_diagnosis(as_json: bool) -> bool:
    """Print the findings.

    Args:
        as_json: JSON instead of a table.

    Returns:
        False if the installation is broken.
    """
    findings = diagnose()
    healthy = all(finding.state != "broken" for finding in findings)
    if as_json:
        print(json.dumps({"healthy": healthy, "findings": [asdict(finding) for finding in findings]}, indent=2))
        return healthy
    console = Console(highlight=False)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("", "state", "found"):
        table.add_column(heading, no_wrap=heading != "found", overflow="fold")
    for finding in findings:
        state = f"[{_STYLES[finding.state]}]{finding.state}[/]"
        table.add_row(escape(finding.subject), state, escape(finding.found))
    console.print(table)
    _print_advice(console, findings)
    console.print()
    console.print(_verdict(findings))
    return healthy


def _print_advice(console: Console, findings: list[Finding]) -> None:
    """What to do stands below the table, where a sentence has the whole width; the most urgent comes first."""
    advised = [finding for state in ("broken", "warning", "note") for finding in findings if finding.state == state]
    advised = [finding for finding in advised if finding.advice]
    if advised:
        console.print("\n[bold]What to do[/]")
    for finding in advised:
        style = _STYLES[finding.state]
        text = f"[{style}]{escape(finding.subject)}[/]: {escape(finding.advice)}"
        console.print(Padding(text, (0, 0, 0, 2)))


def _verdict(findings: list[Finding]) -> str:
    if any(finding.state == "broken" for finding in findings):
        return "[bold red]Something is broken; see above.[/]"
    if any(finding.subject == _NO_HOST for finding in findings):
        return "[yellow]The package works, and no host is ready to train with; see above.[/]"
    hosts = [finding for finding in findings if finding.subject.startswith("host ") and finding.state == "ok"]
    return f"[green]Ready.[/] Hosts to train with: {', '.join(each.subject.removeprefix('host ') for each in hosts)}."


def _python() -> Iterator[Finding]:
    yield Finding("python", "ok", f"{platform.python_version()} at {sys.executable}")
    yield Finding(DISTRIBUTION, "ok", __version__)


def _dependencies() -> Iterator[Finding]:
    """The core's own requirements, as its metadata declares them; nothing is declared twice."""
    try:
        declared = importlib.metadata.requires(DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        found = "used from a folder without being installed, so its requirements cannot be checked"
        yield Finding("requirements", "warning", found, "pip install -e . in that folder")
        return
    for text in declared:
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        advice = f"pip install '{requirement.name}{requirement.specifier}'"
        installed = _version(requirement.name)
        if installed is None:
            yield Finding(requirement.name, "broken", f"missing; needs {requirement.specifier}", advice)
        elif not requirement.specifier.contains(installed, prereleases=True):
            yield Finding(requirement.name, "broken", f"{installed}; needs {requirement.specifier}", advice)
        else:
            yield Finding(requirement.name, "ok", installed)


def _device() -> Iterator[Finding]:
    try:
        import torch
    except (ImportError, OSError) as error:  # OSError: a shared library of another build is missing
        yield Finding("torch device", "broken", f"torch cannot be imported: {error}", "reinstall torch")
        return
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        found = f"CUDA {torch.version.cuda}: {', '.join(names)}"
    elif torch.backends.mps.is_available():
        found = "Apple GPU (mps)"
    else:
        found = f"CPU, {torch.get_num_threads()} threads"
    yield Finding("torch device", "ok", found)


def _companions() -> Iterator[Finding]:
    for name in _COMPANIONS:
        installed = _version(name)
        yield Finding(name, "note" if installed is None else "ok", installed or "not installed")


def _report() -> Iterator[Finding]:
    """What `sdpo report` and `sdpo plot` draw with, as the metadata declares it."""
    try:
        declared = [Requirement(text) for text in importlib.metadata.requires(DISTRIBUTION) or []]
    except importlib.metadata.PackageNotFoundError:
        return  # said among the dependencies
    # An extra's requirement is one that holds with the extra and not without.
    found = {
        one.name: _version(one.name)
        for one in declared
        if one.marker and one.marker.evaluate({"extra": "report"}) and not one.marker.evaluate({"extra": ""})
    }
    missing = [name for name, version in found.items() if version is None]
    if missing:
        yield Finding("report", "note", f"not installed: {', '.join(missing)}", f"pip install '{DISTRIBUTION}[report]'")
    else:
        yield Finding("report", "ok", ", ".join(f"{name} {version}" for name, version in found.items()))


def _sandbox() -> Iterator[Finding]:
    """What programs that a model wrote would run in, which is needed by the scorer `code` alone."""
    from sdpo_plugins.feedback.sandbox.opening import describe_isolation

    yield Finding("sandbox", *describe_isolation())


def _plugins(reports: list[PluginReport]) -> Iterator[Finding]:
    for report in reports:
        subject = f"plug-in {report.name}"
        if report.problem:
            yield Finding(
                subject, "broken", report.problem, f"pip install --upgrade {report.distribution}, or remove it"
            )
        elif report.name != BUILTIN:
            yield Finding(subject, "ok", f"{report.distribution} {report.version}")


def _hosts(reports: list[PluginReport]) -> Iterator[Finding]:
    statuses = hosts_of(reports)
    for status in statuses:
        found = f"{status.installed or 'not installed'}; supported {status.host.requirement}"
        if not status.adapter:
            found += "; its adapter is not in this release"
        problem = loading_problem(status)
        if problem:
            yield Finding(f"host {status.host.name}", "warning", f"{found}; it would not load its adapter", problem)
        else:
            yield Finding(f"host {status.host.name}", _HOST_STATES[state(status)], found, advice(status))
    if not any(state(status) == "ready" for status in statuses):
        choices = " or ".join(status.host.install for status in statuses if status.adapter)
        yield Finding(_NO_HOST, "warning", "none is ready, so nothing can be trained", choices)


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
