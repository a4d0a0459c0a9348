"""`sdpo report`: one HTML page of one or several runs, once or as they go on."""

from __future__ import annotations

import json
import time
import webbrowser
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from sdpo_plugins.errors import ConfigError, DataError
from sdpo_plugins.report import MAX_ROLLOUTS

__all__ = ["report_command"]

# A page of fewer rollouts is there before a bar is read.
_BAR_FROM = 200
_PAGE = "report.html"
_EVERY = 5.0

_STATES = {"bad": "[bold red]problem[/]", "warning": "[yellow]warning[/]", "note": "[dim]note[/]"}


def report_command(
    paths: Annotated[
        list[Path], typer.Argument(metavar="PATH…", help="Output folders of runs, or a folder that holds several.")
    ],
    output: Annotated[
        Path | None, typer.Option(show_default=False, help=f"The page. Default: {_PAGE} in the first PATH.")
    ] = None,
    open_page: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="Follow runs until they end; an open page shows what is new.")
    ] = False,
    every: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS", min=0.2, show_default=f"{_EVERY:g}", help="With --watch: seconds between looks."
        ),
    ] = None,
    max_rollouts: Annotated[
        int, typer.Option(min=1, help="How many rollouts the page holds; of more, an even choice.")
    ] = MAX_ROLLOUTS,
    as_json: Annotated[bool, typer.Option("--json", help="Print runs, counts and findings as JSON.")] = False,
) -> None:
    """Make a page that shows which tokens the teacher approves or rejects, and whether the run is healthy."""
    if watch and as_json:
        raise ConfigError("--json prints one result, --watch goes on: give one of them.")
    if every is not None and not watch:
        raise ConfigError(f"--every {every:g} is of --watch, which is not given.")
    target = output or _folder_of(paths[0]) / _PAGE
    try:
        if watch:
            _follow(paths, target, every or _EVERY, max_rollouts, open_page)
        else:
            _once(paths, target, max_rollouts, open_page, as_json)
    except OSError as error:
        raise DataError(f"{error.filename or paths[0]} cannot be read ({error.strerror or error}).") from error


def _once(paths: Sequence[Path], target: Path, max_rollouts: int, open_page: bool, as_json: bool) -> None:
    from sdpo_plugins.records import read_run
    from sdpo_plugins.report.page import as_summary, build_page, write_page

    runs = [read_run(folder) for folder in _folders(paths)]
    shown = min(max_rollouts, sum(len(run.rollouts) for run in runs))
    with _bar(shown) as progress:
        page = build_page(runs, max_rollouts=max_rollouts, now=time.time(), progress=progress)
    write_page(page.html, target)
    if as_json:
        print(json.dumps(as_summary(page, target), ensure_ascii=False, indent=2))
    else:
        console = Console(soft_wrap=True, highlight=False)
        for name, found in zip(page.runs, page.findings, strict=True):
            for finding in found:
                if finding.level in _STATES:
                    where = f"{escape(name)}: " if len(page.runs) > 1 else ""
                    console.print(f"{_STATES[finding.level]}: {where}{escape(finding.title)}. {escape(finding.text)}")
        of = "" if page.shown == page.recorded else f" of {page.recorded:,} (--max-rollouts)"
        console.print(
            f"{len(page.runs)} run{'s'[: len(page.runs) > 1]}, {page.shown:,} rollouts{of}: {escape(str(target))}"
        )
    if open_page:
        _open(target)


def _follow(paths: Sequence[Path], target: Path, every: float, max_rollouts: int, open_page: bool) -> None:
    from sdpo_plugins.report.page import Page, follow

    console = Console(soft_wrap=True, highlight=False)
    missing = [path for path in paths if not path.is_dir()]
    if missing:
        _folders(missing)  # says what is wrong
    said = {"waiting": False, "pages": 0}

    def find() -> list[Path]:
        try:
            return _folders(paths)
        except DataError as error:
            # The folder is there, the run has not begun.
            if not said["waiting"]:
                console.print(f"Waiting for the first records. {escape(str(error))}")
                said["waiting"] = True
            return []

    def written(page: Page, last: bool) -> None:
        said["pages"] += 1
        if said["pages"] == 1:
            console.print(
                f"Following {len(page.runs)} run{'s'[: len(page.runs) > 1]} in {escape(str(target))}. Ctrl+C ends it."
            )
            if open_page:
                _open(target)
        if last:
            console.print(f"The last page, with {page.shown:,} rollouts: {escape(str(target))}")

    try:
        follow(find, target, every=every, max_rollouts=max_rollouts, written=written)
    except KeyboardInterrupt:
        console.print("Stopped following; the training itself goes on.")
    else:
        console.print("Every run has ended.")


def _folders(paths: Sequence[Path]) -> list[Path]:
    from sdpo_plugins.records import find_runs

    return list(dict.fromkeys(folder.resolve() for path in paths for folder in find_runs(path)))


def _folder_of(path: Path) -> Path:
    """A run may be named by its folder of records; the page stands beside that."""
    from sdpo_plugins.records import FOLDER

    return path.parent if path.name == FOLDER else path


def _open(target: Path) -> None:
    if not webbrowser.open(target.resolve().as_uri()):
        raise ConfigError(f"No browser was found. Open {target} in one by hand, and leave --open out.")


@contextmanager
def _bar(rollouts: int) -> Iterator[Callable[[int, int], None] | None]:
    """Give a function that shows how far the page is; None where nobody looks or it is quick."""
    console = Console(stderr=True)
    if not console.is_terminal or rollouts < _BAR_FROM:
        yield None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("Rollouts", total=rollouts)
        yield lambda done, total: bar.update(task, completed=done, total=total)
