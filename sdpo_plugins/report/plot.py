"""Static pictures of a run's curves, for papers: one file a curve, and an overview of all."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdpo_plugins.errors import DataError
from sdpo_plugins.records import RunRecords
from sdpo_plugins.report.curves import Curve, curve, find_curve, smooth, standard_curves
from sdpo_plugins.report.drawing import Look, drawing, new_figure, save_figure
from sdpo_plugins.report.naming import without_seed
from sdpo_plugins.report.standard import STANDARD

__all__ = ["Panel", "draw_panels", "panels", "plot_curves"]

_COLUMNS = 3
_PANEL = (3.3, 2.3)
_ONE = (5.0, 3.2)
_SMOOTHED_PART = 0.1
OVERVIEW = "overview"


@dataclass(frozen=True)
class Panel:
    """One curve of several runs.

    Args:
        key: Of the curve.
        lines: Curves of each group of runs that differ by their seed only, by the group's name.
    """

    key: str
    lines: Mapping[str, Sequence[Curve]]

    @property
    def first(self) -> Curve:
        """Any of the curves: title and unit are the same for all."""
        return next(iter(self.lines.values()))[0]


def panels(runs: Sequence[RunRecords], metrics: Sequence[str] = ()) -> list[Panel]:
    """Return what to draw of several runs.

    Args:
        runs: With names that tell them apart. Those whose names differ by a seed only ("sdpo-seed0", "sdpo-seed1")
            are one group.
        metrics: Keys of curves or names of metrics; none: every standard curve that any run has.

    Raises:
        DataError: No run has a metric that was asked for, or none has any.
    """
    known = [{found.key: found for found in standard_curves(run)} for run in runs]
    keys = list(dict.fromkeys(metrics)) or _in_order(known)
    if not keys:
        names = ", ".join(run.name for run in runs)
        raise DataError(f"There is nothing to draw yet: {names} recorded no values. Try again after the first step.")
    found = []
    for key in keys:
        lines: dict[str, list[Curve]] = {}
        for run, curves in zip(runs, known, strict=True):
            one = curves.get(key) or find_curve(run, key)
            if one is not None:
                lines.setdefault(without_seed(run.name), []).append(one)
        if not lines:
            curve(runs[0], key)  # says what there is
        found.append(Panel(key, lines))
    return found


def plot_curves(
    chosen: Sequence[Panel],
    target: Path,
    look: Look,
    *,
    smoothed: bool = False,
    ending: str = "png",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Path]:
    """Draw curves into files.

    Args:
        chosen: From `panels`.
        target: A folder, for one file a curve and `overview`; or a file's name, for all in one picture.
        look: The look.
        smoothed: Draw a moving mean over a tenth of the steps, and the values behind it, faintly.
        ending: Format of the files in a folder; a file's own ending counts otherwise.
        progress: Told after each file how many are done, and of how many.

    Returns:
        The files.

    Raises:
        DataError: A file cannot be written.
    """
    groups = _groups(chosen)
    with drawing(look):
        if target.suffix:
            return [save_figure(draw_panels(chosen, groups, look, smoothed), target, look)]
        pictures = {panel.key.replace("/", "-").replace("\\", "-"): [panel] for panel in chosen}
        if len(chosen) > 1:
            pictures[OVERVIEW] = list(chosen)
        files = []
        for name, shown in pictures.items():
            figure = draw_panels(shown, groups, look, smoothed)
            files.append(save_figure(figure, target / f"{name}.{ending}", look))
            progress(len(files), len(pictures))
        return files


def draw_panels(chosen: Sequence[Panel], groups: Sequence[str], look: Look, smoothed: bool) -> Any:
    """Return a figure with one panel or a grid of them; call it inside of `drawing`.

    Args:
        chosen: The panels.
        groups: Names of all groups, so that each keeps its colour in every picture.
        look: The look.
        smoothed: As in `plot_curves`.
    """
    columns = min(_COLUMNS, len(chosen))
    rows = math.ceil(len(chosen) / columns)
    wide, high = _ONE if len(chosen) == 1 else (_PANEL[0] * columns, _PANEL[1] * rows + 0.3)
    figure = new_figure(look.width or wide, look.height or high, layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    drawn: dict[str, Any] = {}
    for panel, axis in zip(chosen, axes, strict=False):
        for name, curves in panel.lines.items():
            colour = look.colour(groups.index(name))
            label = f"{name} ({len(curves)} seeds)" if len(curves) > 1 else name
            handle = _draw_line(axis, curves, colour, label, smoothed)
            drawn.setdefault(name, handle)
        _label(axis, panel.first, in_grid=len(chosen) > 1)
    for axis in axes[len(chosen) :]:
        axis.remove()
    if len(groups) > 1:
        handles = [drawn[name] for name in groups if name in drawn]
        if len(chosen) == 1:
            axes[0].legend(handles=handles)
        else:
            figure.legend(handles=handles, loc="outside upper left", ncols=min(len(handles), 4))
    return figure


def _draw_line(axis: Any, curves: Sequence[Curve], colour: str, label: str, smoothed: bool) -> Any:
    steps, rows = _together(curves)
    span = max(len(steps) * _SMOOTHED_PART, 1.0) if smoothed else 1.0
    drawn = [smooth(values, span) for values in rows]
    mean = [sum(column) / len(column) for column in zip(*drawn, strict=True)]
    if len(drawn) > 1:
        low, high = ([pick(column) for column in zip(*drawn, strict=True)] for pick in (min, max))
        axis.fill_between(steps, low, high, color=colour, alpha=0.2, linewidth=0)
    elif smoothed:
        axis.plot(steps, rows[0], color=colour, alpha=0.3, linewidth=0.8)
    marker = "o" if len(steps) == 1 else None
    (line,) = axis.plot(steps, mean, color=colour, linewidth=1.6, marker=marker, label=label)
    return line


def _together(curves: Sequence[Curve]) -> tuple[list[int], list[list[float]]]:
    """Return the steps that lie within all curves, and each one's values there, drawn straight between its own."""
    if len(curves) == 1:
        return list(curves[0].steps), [list(curves[0].values)]
    import numpy as np

    low = max(one.steps[0] for one in curves)
    high = min(one.steps[-1] for one in curves)
    steps = sorted({step for one in curves for step in one.steps if low <= step <= high})
    if not steps:
        raise DataError(
            f"The curve {curves[0].key!r} of runs whose names differ by their seed only is drawn as one, but no step "
            "lies within all of them. Name the runs' folders differently, or draw them one by one."
        )
    return steps, [np.interp(steps, one.steps, one.values).tolist() for one in curves]


def _label(axis: Any, shown: Curve, in_grid: bool) -> None:
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    axis.set_xlabel("step")
    if shown.unit == "share":
        axis.yaxis.set_major_formatter(PercentFormatter(xmax=1.0, decimals=0))
        axis.set_ylim(-0.03, 1.03)
    unit = f" ({shown.unit})" if shown.unit and shown.unit != "share" else ""
    if in_grid:
        axis.set_title(f"{shown.title}{unit}", loc="left")
    else:
        axis.set_ylabel(f"{shown.title}{unit}")


def _in_order(known: Sequence[Mapping[str, Curve]]) -> list[str]:
    return [entry.key for entry in STANDARD if any(entry.key in curves for curves in known)]


def _groups(chosen: Sequence[Panel]) -> list[str]:
    return list(dict.fromkeys(name for panel in chosen for name in panel.lines))
