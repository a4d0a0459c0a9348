"""Figures as Markdown tables, with ratios, and whether what was aimed at is reached."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.growth import Growth
from benchmarks.loss import Row
from benchmarks.methods import OBJECTIVES
from benchmarks.step import TRAINERS
from benchmarks.verl import METHODS as VERL_METHODS
from benchmarks.verl import TIMINGS

__all__ = [
    "Target",
    "cuda_report",
    "growth_report",
    "growth_targets",
    "loss_report",
    "loss_targets",
    "step_report",
    "verl_engine_report",
    "verl_runs_report",
]


@dataclass(frozen=True)
class Target:
    """One figure that is aimed at: the value has to be at most (or at least) the limit.

    Args:
        name: What it is about.
        value: What was measured; None if it was not.
        limit: The aim.
        unit: "×" or a unit.
        at_least: Whether more is better.

    Example:
        >>> Target("peak", 900.0, 1000.0, "MiB").line()
        '| peak | ≤ 1000 MiB | 900 MiB | reached |'
    """

    name: str
    value: float | None
    limit: float
    unit: str = "×"
    at_least: bool = False

    @property
    def reached(self) -> bool | None:
        """Whether the aim is met, None if there is no value."""
        if self.value is None:
            return None
        return self.value >= self.limit if self.at_least else self.value <= self.limit

    def line(self) -> str:
        """Return the row of the table."""
        verdict = {True: "reached", False: "**missed**", None: "not measured"}[self.reached]
        sign = "≥" if self.at_least else "≤"
        return f"| {self.name} | {sign} {self._text(self.limit)} | {self._text(self.value)} | {verdict} |"

    def _text(self, value: float | None) -> str:
        if value is None:
            return "–"
        return f"{value:.2f} ×" if self.unit == "×" else f"{value:.0f} {self.unit}"


def loss_targets(rows: Iterable[Row]) -> list[Target]:
    """Return what the loss is to reach against TRL's, and what it reached."""
    by = {(row.method, row.masked): row.values for row in rows if row.values}

    def value(method: str, name: str, masked: float = 0.0) -> float | None:
        found: float | None = by.get((method, masked), {}).get(name)
        return found

    def ratio(objective: str, name: str, masked: float = 0.0) -> float | None:
        return _ratio(value(f"ours_{objective}", name, masked), value(f"trl_{objective}", name))

    cpu, peak = "cpu_seconds", "peak_mb"
    return [
        Target("top-K + tail, peak", value("ours_tail", peak), 1000, "MiB"),
        Target("top-K + tail, peak to TRL's", ratio("tail", peak), 0.35),
        Target("top-K + tail, CPU time to TRL's", ratio("tail", cpu), 1.0),
        Target("the same, 20% of our tokens masked", ratio("tail", cpu, 0.2), 0.85),
        Target("renormalised, CPU time to TRL's", ratio("renormalised", cpu), 0.4),
        Target("renormalised, peak to TRL's", ratio("renormalised", peak), 0.3),
        Target("whole vocabulary, peak", value("ours_full", peak), 1100, "MiB"),
        Target("whole vocabulary, CPU time to TRL's", ratio("full", cpu), 0.7),
    ]


def loss_report(rows: Sequence[Row], aims: bool = True) -> str:
    """Return the tables of the loss, one line for each method, with ratios to TRL's."""
    base = {row.objective: row.values for row in rows if row.method == f"trl_{row.objective}" and not row.masked}
    lines = ["| objective | method | CPU s | to TRL | peak MiB | to TRL |", "|---|---|---:|---:|---:|---:|"]
    for row in rows:
        name = OBJECTIVES[row.objective] + (f", {row.masked:.0%} masked" if row.masked else "")
        if not row.values:
            lines.append(f"| {name} | {row.label} | {row.reason} | | | |")
            continue
        trl, cells = base.get(row.objective, {}), []
        for figure, digits in (("cpu_seconds", 1), ("peak_mb", 0)):
            cells += [_number(row.values[figure], digits), _times(_ratio(row.values[figure], trl.get(figure)))]
        lines.append(f"| {name} | {row.label} | {' | '.join(cells)} |")
    return "\n".join([*lines, *_targets(loss_targets(rows), aims)])


def growth_targets(found: Iterable[Growth], chunk_mb: float) -> list[Target]:
    """Return what our peak may grow by: some copies of the hidden states; the head's gradient and one chunk."""
    targets = []
    for growth in found:
        if growth.method != "ours_tail":
            continue
        grown = growth.growth_mb
        if growth.size == "tokens":
            copies = None if grown is None else grown / growth.unavoidable_mb
            targets.append(Target("tokens × 8: growth to that of the hidden states", copies, 2.0))
        else:
            rest = None if grown is None else grown - growth.unavoidable_mb
            targets.append(Target("vocabulary × 4: growth beyond the head's gradient", rest, chunk_mb, "MiB"))
    return targets


def growth_report(found: Sequence[Growth], chunk_mb: float, aims: bool = True) -> str:
    """Return how peaks grow."""
    lines = [
        "| method | what grows | from | to | peak MiB from | to | growth | of it kept in any case |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for growth in found:
        peaks = [_number(peak, 0) for peak in (*growth.peaks_mb, growth.growth_mb, growth.unavoidable_mb)]
        lines.append(f"| {growth.label} | {growth.size} | {growth.small} | {growth.large} | {' | '.join(peaks)} |")
    return "\n".join([*lines, *_targets(growth_targets(found, chunk_mb), aims)])


def step_report(found: Mapping[str, Mapping[str, Any]], aims: bool = True) -> str:
    """Return the table of whole steps, with ratios to TRL's SDPO."""
    trl = found.get("trl", {})
    lines = [
        "| trainer | CPU s a step | to TRL's SDPO | peak MiB | to TRL's SDPO | teacher's passes, CPU s | of the step |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, values in found.items():
        cells = []
        for figure, digits in (("cpu_seconds", 2), ("peak_mb", 0)):
            cells += [_number(values[figure], digits), _times(_ratio(values[figure], trl.get(figure)))]
        share = values["teacher_seconds"] / values["cpu_seconds"]
        cells += [_number(values["teacher_seconds"], 2), f"{share:.1%}"]
        lines.append(f"| {TRAINERS[name]} | {' | '.join(cells)} |")
    time, peak = (_ratio(found.get("ours", {}).get(figure), trl.get(figure)) for figure in ("cpu_seconds", "peak_mb"))
    targets = [Target("a step, CPU time to TRL's SDPO", time, 1.0), Target("a step, peak to TRL's SDPO", peak, 1.0)]
    return "\n".join([*lines, *_targets(targets, aims)])


def cuda_report(found: Mapping[str, Any] | None, aims: bool = True) -> str:
    """Return the tables of a GPU."""
    if found is None:
        return "This machine has no CUDA device: nothing of this part was measured."
    lines = ["| loss | ms | peak MiB | net of the head's gradient |", "|---|---:|---:|---:|"]
    rows = {"ours, on logits": found["plain"], "ours, fused": found["fused"]}
    rows |= {f"fused, chunks of {budget:g} MiB": values for budget, values in found["chunks"].items()}
    for name, values in rows.items():
        milliseconds = _number(1000 * values["seconds"], 1)
        lines.append(f"| {name} | {milliseconds} | {_number(values['peak_mb'], 0)} | {_number(values['net_mb'], 0)} |")
    lines += ["", "| step | s | peak MiB above the weights |", "|---|---:|---:|"]
    for name, values in found["models"].items():
        lines.append(f"| {name} | {_number(values['seconds'], 2)} | {_number(values['peak_mb'], 0)} |")
    targets = [
        Target("fused loss, share of the speed of a large matrix product", found["roofline"], 0.6, at_least=True),
        Target("fused loss, peak net of the head's gradient, to logits'", found["net_ratio"], 0.2),
    ]
    return "\n".join([*lines, *_targets(targets, aims)])


def verl_runs_report(found: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    """Return the table of verl's steps: medians with ranges over all steps, and SDPO's median to GRPO's."""
    lines = ["| part of a step | GRPO, s | range | SDPO, s | range | SDPO to GRPO |", "|---|---:|---:|---:|---:|---:|"]
    for name in TIMINGS:
        cells, typical = [], []
        for mode in ("sync", "sdpo"):
            middle, low, high = _timing_summary(found[mode][name])
            typical.append(middle)
            cells += [_number(middle, 3), f"{low:.3f}–{high:.3f}"]
        lines.append(f"| `{name}` | {' | '.join(cells)} | {_times(_ratio(typical[1], typical[0]))} |")
    return "\n".join([*lines, "", f"{len(found['sync']['step'])} and {len(found['sdpo']['step'])} steps."])


def verl_engine_report(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the table of a micro-batch in verl's engine, with ratios to verl's GRPO."""
    lines = [
        "| method | CPU s | to GRPO | s on the clock | peak MiB | to GRPO |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    base = found["grpo"]
    for name, values in found.items():
        time, peak = (_times(_ratio(values[figure], base[figure])) for figure in ("cpu_seconds", "peak_mb"))
        seconds = f"{_number(values['cpu_seconds'], 1)} | {time} | {_number(values['wall_seconds'], 1)}"
        lines.append(f"| {VERL_METHODS[name]} | {seconds} | {_number(values['peak_mb'], 0)} | {peak} |")
    return "\n".join(lines)


def _targets(targets: Iterable[Target], aims: bool) -> list[str]:
    """Return the table of aims; they are for the full sizes, so a quick look has none."""
    if not aims:
        return []
    return ["", "| aim | limit | measured | |", "|---|---:|---:|---|", *(target.line() for target in targets)]


def _ratio(value: float | None, base: float | None) -> float | None:
    return None if value is None or not base else value / base


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _times(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f} ×"


def _timing_summary(seconds: Sequence[float]) -> tuple[float, float, float]:
    """Return median, smallest and largest."""
    return statistics.median(seconds), min(seconds), max(seconds)
