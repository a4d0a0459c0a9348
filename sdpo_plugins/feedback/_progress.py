"""How far a batch is: a bar on the terminal for those who wait."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["Progress", "reporting"]

Progress = Callable[[int, int], None]
"""progress(done, total), called in the thread that scores, once at the start and after each response."""

_PATIENCE = 1.0


@contextmanager
def reporting(progress: Progress | bool, what: str, total: int) -> Iterator[Progress]:
    """Give the function to report to.

    Args:
        progress: A function; True: a bar, on a terminal only, once the batch has taken a second, on the first rank
            only; False: nothing.
        what: What is done, for the bar.
        total: Number of responses.
    """
    if callable(progress):
        yield progress
        return
    shown = progress and sys.stderr.isatty() and os.environ.get("RANK", "0") == "0"
    bar = _Bar(what) if shown and total > 1 else None
    try:
        yield bar.report if bar else _silent
    finally:
        if bar:
            bar.end()


def _silent(done: int, total: int) -> None:
    """Report nothing."""


class _Bar:
    def __init__(self, what: str) -> None:
        self._what, self._begin = what, time.monotonic()
        self._bar: Any = None
        self._task: Any = None

    def report(self, done: int, total: int) -> None:
        if self._bar is None and time.monotonic() - self._begin >= _PATIENCE and done < total:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self._task = self._bar.add_task(self._what, total=total)
            self._bar.start()
        if self._bar is not None:
            self._bar.update(self._task, completed=done)

    def end(self) -> None:
        if self._bar is not None:
            self._bar.stop()
