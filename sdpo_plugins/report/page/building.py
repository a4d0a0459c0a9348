"""Making the page from run records."""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sdpo_plugins._version import __version__
from sdpo_plugins.errors import DataError, HostError
from sdpo_plugins.records import RunRecords
from sdpo_plugins.report import MAX_ROLLOUTS
from sdpo_plugins.report.curves import standard_curves
from sdpo_plugins.report.health import Finding, findings
from sdpo_plugins.report.page.assets import libraries, licences, own_script, own_style, packed, template_text
from sdpo_plugins.report.page.facts import distinct_names, run_facts
from sdpo_plugins.report.page.rollouts import chosen_rollouts, detail, summary_columns, text_for_search
from sdpo_plugins.report.standard import STANDARD

__all__ = ["ASKED_EVERY_S", "Page", "as_summary", "build_page", "write_page"]

ASKED_EVERY_S = 2.0
"""How often an open page that is followed asks whether there is a new one."""


# Rollouts that are unpacked together when one of them is opened.
_CHUNK = 20
# A screen shows no more points of a line.
_POINTS = 3000
# Numbers compress little; a higher level takes twice the time for one percent.
_CHUNK_LEVEL = 6


@dataclass(frozen=True)
class Page:
    """A finished page.

    Args:
        html: The page.
        stamp: Differs between pages of different content.
        runs: Names of the runs.
        shown: How many rollouts the page holds.
        recorded: How many the records hold.
        findings: What was found of each run's health, worst first.
    """

    html: str
    stamp: str
    runs: tuple[str, ...]
    shown: int
    recorded: int
    findings: tuple[tuple[Finding, ...], ...]


def build_page(
    runs: Sequence[RunRecords],
    *,
    max_rollouts: int = MAX_ROLLOUTS,
    stamp_file: str | None = None,
    now: float | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Page:
    """Make the page of one or several runs.

    Args:
        runs: Their records.
        max_rollouts: How many rollouts it holds at most; of more, an even choice.
        stamp_file: Name of the file beside the page by which it learns that it was made anew; None: it is final.
        now: Seconds since 1970, to tell a run that goes on from one that was killed; None: it cannot be told.
        progress: Called with (rollouts done, rollouts in all).

    Returns:
        The page.

    Raises:
        HostError: A library of the extra `report` is missing.
    """
    try:
        import jinja2
    except ImportError as error:
        raise HostError(
            "The report needs jinja2, which is not installed: pip install 'sdpo-plugins[report]'"
        ) from error
    names = distinct_names(runs)
    chosen = chosen_rollouts(runs, max_rollouts)
    recorded = sum(len(run.rollouts) for run in runs)
    found = tuple(tuple(findings(run, now=now)) for run in runs)
    chunks = _chunks(chosen, progress)
    curves, others = _curves(runs)
    data = {
        "names": names,
        "curves": curves,
        "rollouts": summary_columns(chosen, runs),
        "recorded": recorded,
        "chunk": _CHUNK,
        "stampFile": stamp_file,
        "askedEvery": ASKED_EVERY_S,
    }
    texts = packed(json.dumps([text_for_search(rollout).lower() for _, rollout in chosen]))
    facts = [run_facts(run, name) for run, name in zip(runs, names, strict=True)]
    stamp = _stamp([json.dumps(data), *chunks, texts, repr(facts), repr(found)])
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    html = environment.from_string(template_text()).render(
        title=", ".join(names),
        runs=list(zip(facts, found, strict=True)),
        data={**data, "stamp": stamp},
        chunks=chunks,
        texts=texts,
        others=packed(json.dumps(others)),
        libraries=libraries(),
        licences=licences(),
        style=own_style(),
        script=own_script(),
        version=__version__,
    )
    return Page(html, stamp, tuple(names), len(chosen), recorded, found)


def write_page(html: str, output: Path) -> None:
    """Write a page as a whole: whoever opens it meanwhile sees the one before.

    Args:
        html: The page.
        output: The file.

    Raises:
        DataError: It cannot be written.
    """
    if output.is_dir():
        raise DataError(f"{output} is a folder. Name a file: --output {output / 'report.html'}")
    temporary = None
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=output.parent, prefix=".report-", suffix=".html", delete=False) as file:
            temporary = Path(file.name)
            # A folder's name may hold bytes that are no text.
            file.write(html.encode("utf-8", errors="replace"))
        # Such files are made for their owner alone; a report is read by whoever may read the folder.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(output)
    except OSError as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        raise DataError(
            f"{output} cannot be written ({error.strerror or error}). Name a place for it: --output FILE"
        ) from error


def as_summary(page: Page, output: Path) -> dict[str, Any]:
    """Return what other programs want to know of a page.

    Args:
        page: The page.
        output: Where it was written.
    """
    return {
        "file": str(output),
        "runs": [
            {"name": name, "findings": [asdict(finding) for finding in found]}
            for name, found in zip(page.runs, page.findings, strict=True)
        ],
        "rollouts": {"shown": page.shown, "recorded": page.recorded},
    }


def _chunks(chosen: Sequence[tuple[int, Any]], progress: Callable[[int, int], None] | None) -> list[str]:
    def texts() -> Iterator[str]:
        for start in range(0, len(chosen), _CHUNK):
            part = chosen[start : start + _CHUNK]
            yield json.dumps([detail(rollout) for _, rollout in part], separators=(",", ":"))
            if progress is not None:
                progress(start + len(part), len(chosen))

    # zlib works without Python's lock: what is made is compressed while the next is being made.
    with ThreadPoolExecutor(max_workers=2) as pool:
        return list(pool.map(lambda text: packed(text, _CHUNK_LEVEL), texts()))


def _curves(runs: Sequence[RunRecords]) -> tuple[list[dict[str, Any]], dict[str, list[Any]]]:
    """Return the standard curves with a line for each run, and the lines of every other metric by its name."""
    curves: dict[str, dict[str, Any]] = {}
    others: dict[str, list[Any]] = {}
    for number, run in enumerate(runs):
        drawn = standard_curves(run)
        for curve in drawn:
            entry = curves.setdefault(
                curve.key, {"key": curve.key, "title": curve.title, "unit": curve.unit, "help": curve.help, "lines": []}
            )
            entry["lines"].append(_line(number, curve.metric, curve.steps, curve.values))
        for metric in sorted({name for step in run.steps for name in step.metrics} - {curve.metric for curve in drawn}):
            steps, values = run.series(metric)
            if steps:
                others.setdefault(metric, []).append(_line(number, metric, steps, values))
    # A run that has few of them comes first only by chance.
    ordered = [curves[entry.key] for entry in STANDARD if entry.key in curves]
    return ordered, dict(sorted(others.items()))


def _line(run: int, metric: str | None, steps: Sequence[int], values: Sequence[float | None]) -> dict[str, Any]:
    """Return a run's line of a curve; of a long run evenly chosen points, the last among them."""
    count = len(steps)
    every = -(-count // _POINTS) if count else 1
    picked = range((count - 1) % every if count else 0, count, every)
    return {
        "run": run,
        "metric": metric,
        "steps": [steps[at] for at in picked],
        "values": _numbers(values[at] for at in picked),
    }


def _numbers(values: Iterable[float | None]) -> list[float | None]:
    return [None if value is None or not math.isfinite(value) else float(f"{value:.6g}") for value in values]


def _stamp(parts: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode("utf-8", errors="replace"))
    return digest.hexdigest()[:16]
