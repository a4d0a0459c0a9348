"""Results of demo runs: a file for programs, a table for people, learning curves.

matplotlib is needed by `draw_curves` alone, and comes with a host's extra, not with the core.
"""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["Run", "draw_curves", "print_table", "write_results"]

_NAMES = {"grpo": "GRPO", "sdpo": "SDPO"}
_COLOURS = {"grpo": "#d1495b", "sdpo": "#2e6f95"}


@dataclass(frozen=True)
class Run:
    """One finished run.

    Args:
        task: Name of the task.
        method: "grpo" or "sdpo".
        seed: Seed of the run.
        accuracy_before: Sampled accuracy of the checkpoint, in [0, 1].
        accuracy_after: Sampled accuracy after training, in [0, 1].
        generations: Answers sampled for training.
        seconds: Training time.
        generations_per_step: Answers sampled for each step.
        curve: Mean reward of each step's answers.
    """

    task: str
    method: str
    seed: int
    accuracy_before: float
    accuracy_after: float
    generations: int
    seconds: float
    generations_per_step: int = 0
    curve: list[float] = field(default_factory=list)


def write_results(runs: Sequence[Run], folder: Path, **more: Any) -> Path:
    """Write `results.json`, a list of runs, and `curves.json`, the reward of every step in the same order.

    Each file is replaced whole, never half-written.

    Args:
        runs: The runs so far.
        folder: Where the files go.
        more: What every row of `results.json` is to say beside its run, e.g. `host="verl"`.

    Returns:
        The path of `results.json`.
    """
    rows = [asdict(run) for run in runs]
    curves = [{key: row.pop(key) for key in ("generations_per_step", "curve")} for row in rows]
    rows = [{**row, **more} for row in rows]
    for name, content in (("curves", curves), ("results", rows)):
        temporary = folder / f"{name}.tmp"
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        os.replace(temporary, folder / f"{name}.json")
    return folder / "results.json"


def spread(values: Sequence[float]) -> str:
    """Return a mean in percent, with the standard deviation where there are several values.

    Example:
        >>> spread([0.8, 0.9])
        '85 ± 7 %'
    """
    mean = f"{100 * statistics.fmean(values):.0f}"
    return f"{mean} %" if len(values) == 1 else f"{mean} ± {100 * statistics.stdev(values):.0f} %"


def print_table(runs: Sequence[Run]) -> None:
    """Print one row a task: accuracy before, after GRPO, after SDPO, generations, seconds."""
    from rich.console import Console
    from rich.table import Table

    seeds = len({run.seed for run in runs})
    title = "Sampled accuracy" + (f", mean ± standard deviation over {seeds} seeds" if seeds > 1 else "")
    table = Table(title=title)
    for heading in ("task", "before", "GRPO", "SDPO", "generations", "seconds GRPO / SDPO"):
        table.add_column(heading, justify="left" if heading == "task" else "right")
    for task in dict.fromkeys(run.task for run in runs):
        rows = [run for run in runs if run.task == task]
        of = {method: [run for run in rows if run.method == method] for method in _NAMES}
        if not all(of.values()):
            continue
        table.add_row(
            task,
            spread([run.accuracy_before for run in of["grpo"]]),
            *(spread([run.accuracy_after for run in of[method]]) for method in _NAMES),
            " / ".join(dict.fromkeys(str(of[method][0].generations) for method in _NAMES)),
            " / ".join(f"{statistics.fmean([run.seconds for run in of[method]]):.0f}" for method in _NAMES),
        )
    Console().print(table)


def draw_curves(runs: Sequence[Run], path: Path) -> Path:
    """Draw the reward of the sampled answers over the generations spent, a line a method, a band over seeds.

    Args:
        runs: Runs of one task.
        path: Where the PNG goes.

    Returns:
        The path.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.4, 4.0), dpi=150)
    for method, name in _NAMES.items():
        curves = [_smooth(run.curve) for run in runs if run.method == method]
        if not curves:
            continue
        one = next(run for run in runs if run.method == method)
        spent = [one.generations_per_step * (step + 1) for step in range(len(curves[0]))]
        middle = [statistics.fmean(values) for values in zip(*curves, strict=True)]
        axes.plot(spent, middle, color=_COLOURS[method], label=name, linewidth=2)
        low, high = ([pick(values) for values in zip(*curves, strict=True)] for pick in (min, max))
        axes.fill_between(spent, low, high, color=_COLOURS[method], alpha=0.2, linewidth=0)
    axes.set_xlabel("answers sampled")
    axes.set_ylabel("share of right answers")
    axes.set_ylim(-0.02, 1.02)
    axes.set_title(f"{runs[0].task}: the same model, the same budget")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)
    return path


def _smooth(values: Sequence[float], weight: float = 0.8) -> list[float]:
    """Average with the past: single steps hold few answers."""
    smoothed: list[float] = []
    total = norm = 0.0
    for value in values:
        total, norm = weight * total + value, weight * norm + 1.0
        smoothed.append(total / norm)
    return smoothed
