"""Following a running training: the page is made anew whenever the records change, and an open one learns of it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from sdpo_plugins.errors import DataError
from sdpo_plugins.records import RunRecords, fingerprint, read_run
from sdpo_plugins.report import MAX_ROLLOUTS
from sdpo_plugins.report.page.building import ASKED_EVERY_S, Page, build_page, write_page

__all__ = ["follow"]

# At most a fifth of one core is spent on pages.
_REST = 4.0


def follow(
    find: Callable[[], Sequence[Path]],
    output: Path,
    *,
    every: float,
    max_rollouts: int = MAX_ROLLOUTS,
    written: Callable[[Page, bool], None] | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Write the page again whenever the records have changed, until every run has ended.

    While it is followed the page asks every two seconds for a small file beside it, `<output>.stamp.js`, which works
    from `file://` too, and loads itself again when that names another page. The last page asks no more.

    Args:
        find: Returns the folders of records; none yet is an empty sequence.
        output: The page's file.
        every: Seconds between two looks at the records.
        max_rollouts: How many rollouts the page holds at most.
        written: Called after each page with it and whether it is the last one.
        sleep: Waits.

    Raises:
        KeyboardInterrupt: Ctrl+C; the page that stands is the last one then, too.
    """
    stamp_file = output.with_name(f"{output.name}.stamp.js")
    seen: object = None
    runs: list[RunRecords] = []

    def write(last: bool) -> None:
        page = build_page(
            runs, max_rollouts=max_rollouts, stamp_file=None if last else stamp_file.name, now=time.time()
        )
        write_page(page.html, output)
        if not last:
            # After the page: who reads the new stamp finds the new page.
            _write_stamp(stamp_file, page.stamp)
        if written is not None:
            written(page, last)

    try:
        while True:
            began = time.monotonic()
            folders = find()
            try:
                # Taken before reading: what is written meanwhile is seen at the next look.
                state = [(folder, fingerprint(folder)) for folder in folders]
                changed = [read_run(folder) for folder in folders] if state != seen else []
            except FileNotFoundError:
                changed = []  # a new run has just cleared the folder; its files are there at the next look
            if changed:
                seen, runs = state, changed
                if all(run.end is not None for run in runs):
                    break
                write(last=False)
            # A large page takes a while, and the run needs the machine, too.
            sleep(max(every, _REST * (time.monotonic() - began)))
    except KeyboardInterrupt:
        if runs:
            write(last=True)
        raise
    else:
        write(last=True)
        if stamp_file.exists():
            # Open pages ask once more, and find the last one.
            _write_stamp(stamp_file, "")
            sleep(ASKED_EVERY_S * 1.5)
    finally:
        stamp_file.unlink(missing_ok=True)


def _write_stamp(path: Path, stamp: str) -> None:
    temporary = path.with_name(f".{path.name}.new")
    try:
        temporary.write_text(f"globalThis.sdpoStamp?.({json.dumps(stamp)});\n", encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        raise DataError(f"{path} cannot be written ({error.strerror or error}).") from error
