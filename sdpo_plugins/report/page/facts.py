"""What the page says of a run beside its numbers: where it ran, with what, and how it ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import PurePath
from typing import Any

from sdpo_plugins.config import SDPOConfig
from sdpo_plugins.records import RunRecords
from sdpo_plugins.report.naming import run_names

__all__ = ["RunFacts", "changed_options", "distinct_names", "run_facts"]


@dataclass(frozen=True)
class RunFacts:
    """Facts of a run.

    Args:
        name: What it is called on the page.
        facts: (what, value) in reading order.
        options: (option, value) of those that differ from their defaults.
        state: "finished", "stopped" or "open" (no end was recorded).
        problems: Lines of the records that could not be read.
    """

    name: str
    facts: tuple[tuple[str, str], ...]
    options: tuple[tuple[str, str], ...]
    state: str
    problems: tuple[str, ...]


def run_facts(run: RunRecords, name: str) -> RunFacts:
    """Collect the facts of a run.

    Args:
        run: Its records.
        name: What it is called on the page.
    """
    header: Mapping[str, Any] = run.headers[-1] if run.headers else {}
    state, said = _end(run)
    facts = [
        ("Method", str(header.get("method", "unknown")).upper()),
        ("Model", _model(str(header.get("model", "unknown")))),
        ("Host", " ".join(str(header[key]) for key in ("host", "host_version") if header.get(key)) or "unknown"),
        ("sdpo-plugins", str(header.get("version", "unknown"))),
        ("Started", _moment(run.headers[0].get("started")) if run.headers else "unknown"),
        ("State", said),
        ("Steps", f"{run.steps[-1].step:,}" if run.steps else "none yet"),
        ("Recorded rollouts", _counted(run)),
    ]
    if int(header.get("ranks", 1)) > 1:
        facts.append(("Ranks", str(header["ranks"])))
    if len(run.headers) > 1:
        restarts = ", ".join(str(one.get("step", "?")) for one in run.headers[1:])
        facts.append(("Restarted", f"from step {restarts}"))
    options = changed_options(run.config)
    return RunFacts(name, tuple(facts), options, state, run.problems)


def changed_options(config: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """Return the options that differ from their defaults, as text.

    Args:
        config: All SDPO options of a run.

    Example:
        >>> changed_options({**SDPOConfig().to_mapping(), "alpha": 1.0})
        (('alpha', '1.0'),)
    """
    defaults = SDPOConfig().to_mapping()
    return tuple(
        (name, "null" if value is None else str(value))
        for name, value in config.items()
        if name not in defaults or value != defaults[name]
    )


def distinct_names(runs: Sequence[RunRecords]) -> list[str]:
    """Return a name for each run: its own, or where several share one, the ends of their paths that differ.

    Args:
        runs: The runs.
    """
    names = [run.name for run in runs]
    shared = [at for at, name in enumerate(names) if names.count(name) > 1]
    for at, name in zip(shared, run_names([runs[at].folder for at in shared]), strict=True):
        names[at] = name
    return names


def _model(name: str) -> str:
    """A name on the hub as it is; of a folder what tells it from others, without where it lies on this machine."""
    parts = PurePath(name).parts
    return "/".join(parts[-2:]) if PurePath(name).is_absolute() else name


def _end(run: RunRecords) -> tuple[str, str]:
    if run.end is None:
        return "open", "running, or it was killed (no end was recorded)"
    reason = str(run.end.get("reason", "finished"))
    took = _took(run)
    if reason == "finished":
        return "finished", f"finished{took}"
    return "stopped", f"stopped: {reason}{took}"


def _took(run: RunRecords) -> str:
    started, ended = run.headers[0].get("started") if run.headers else None, (run.end or {}).get("time")
    if started is None or ended is None or ended < started:
        return ""
    seconds = round(float(ended) - float(started))
    hours, minutes = seconds // 3600, seconds % 3600 // 60
    text = f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds % 60} s" if minutes else f"{seconds} s"
    return f" after {text}"


def _moment(seconds: Any) -> str:
    if seconds is None:
        return "unknown"
    return datetime.fromtimestamp(float(seconds), UTC).strftime("%Y-%m-%d %H:%M UTC")


def _counted(run: RunRecords) -> str:
    valued = sum(rollout.tokens is not None for rollout in run.rollouts)
    return "none" if not run.rollouts else f"{len(run.rollouts):,} ({valued:,} with tokens)"
