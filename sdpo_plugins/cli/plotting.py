"""What `sdpo plot` does: which runs, which curves or which rollout, into which files."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from sdpo_plugins.errors import ConfigError, DataError, nearest
from sdpo_plugins.records import RecordedRollout, RunRecords, find_runs, read_run
from sdpo_plugins.report.drawing import FORMATS, Look
from sdpo_plugins.report.heatmap import save_token_picture, verdicts
from sdpo_plugins.report.naming import run_names
from sdpo_plugins.report.plot import Panel, panels, plot_curves

__all__ = ["plot"]

_SHOWN_IDS = 8


def plot(
    paths: Sequence[Path],
    metrics: Sequence[str],
    output: Path,
    ending: str | None,
    look: Look,
    *,
    smoothed: bool,
    rollout: int | None,
    as_json: bool,
) -> None:
    """Draw the curves of runs, or the tokens of one rollout, and print the names of the files.

    Args:
        paths: Output folders of runs, or folders of several.
        metrics: Keys of curves or names of metrics; none: all standard curves.
        output: A folder, or a file that ends in one of `FORMATS`.
        ending: The format in a folder; None: png.
        look: How the pictures look.
        smoothed: Draw a moving mean, and the values faintly.
        rollout: Draw the tokens of the rollout with this number instead of curves.
        as_json: Print JSON: the files, and what is drawn in them.

    Raises:
        DataError: There are no records, no such metric, no such rollout, or a file cannot be written.
        ConfigError: Options that contradict one another.
    """
    ending = _ending(output, ending)
    if rollout is not None and metrics:
        raise ConfigError("`--rollout` draws the tokens of an answer, `--metric` draws curves: leave one of them out.")
    if rollout is not None and smoothed:
        raise ConfigError(
            "`--smooth` is of curves, and `--rollout` draws the tokens of an answer: leave one of them out."
        )
    try:
        folders = list(dict.fromkeys(folder for path in paths for folder in find_runs(path)))
        runs = [read_run(folder, name=name) for folder, name in zip(folders, run_names(folders), strict=True)]
    except OSError as error:
        raise DataError(f"{error.filename or paths[0]} cannot be read ({error.strerror or error}).") from error
    found: dict[str, Any]
    if rollout is not None:
        run, record = _rollout(runs, rollout)
        path = output if output.suffix else output / f"rollout-{rollout}.{ending}"
        save_token_picture(record, path, look)
        files, found = [path], {"run": run.name, "rollout": rollout, "verdicts": verdicts(record.tokens or {})}
    else:
        chosen = panels(runs, metrics)
        with _bar() as progress:
            files = plot_curves(chosen, output, look, smoothed=smoothed, ending=ending, progress=progress)
        found = {"curves": _as_mappings(chosen)}
    if as_json:
        print(json.dumps({"files": [str(file) for file in files], **found}, ensure_ascii=False, indent=2))
    else:
        print(*files, sep="\n")


@contextmanager
def _bar() -> Iterator[Callable[[int, int], None]]:
    """A bar on a terminal, none in a pipe or a log."""
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("Pictures", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _ending(output: Path, ending: str | None) -> str:
    named = output.suffix.removeprefix(".").lower()
    if ending is not None and ending not in FORMATS:
        raise ConfigError(f"`--format` must be one of {', '.join(FORMATS)}, got {ending!r}.{nearest(ending, FORMATS)}")
    if not named or output.is_dir():
        return ending or FORMATS[0]
    if named not in FORMATS:
        raise ConfigError(
            f"`--output` {output} ends in {output.suffix!r}. A picture ends in {', '.join(FORMATS)}; a folder's name "
            "has no ending."
        )
    if ending is not None and ending != named:
        raise ConfigError(f"`--output` {output} is a {named} file, but `--format` is {ending}: leave one of them out.")
    return named


def _rollout(runs: Sequence[RunRecords], number: int) -> tuple[RunRecords, RecordedRollout]:
    found = [(run, record) for run in runs for record in run.rollouts if record.id == number]
    if len(found) > 1:
        names = ", ".join(run.name for run, _ in found)
        raise DataError(f"Rollout {number} is in {len(found)} runs ({names}): name one run only.")
    if found and found[0][1].tokens is not None:
        return found[0]
    drawable = [record.id for run in runs for record in run.rollouts if record.tokens is not None]
    some = ", ".join(map(str, drawable[-_SHOWN_IDS:]))
    hint = f"Rollouts with token values are, for example, {some}." if drawable else _NO_TOKENS
    if found:
        raise DataError(f"Rollout {number} was recorded without token values. {hint}")
    raise DataError(f"There is no rollout {number} among the recorded ones. {hint}")


def _as_mappings(chosen: Sequence[Panel]) -> list[dict[str, Any]]:
    return [
        {
            "key": panel.key,
            "title": shown.title,
            "unit": shown.unit,
            "group": group,
            "metric": shown.metric,
            "steps": shown.steps,
            "values": shown.values,
        }
        for panel in chosen
        for group, curves in panel.lines.items()
        for shown in curves
    ]


_NO_TOKENS = "No rollout of these runs has any: `record_rollouts` was 0, or nothing was active."
