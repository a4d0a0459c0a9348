"""Reading a run's records back, while it runs or after it ended."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sdpo_plugins.errors import DataError
from sdpo_plugins.records.files import read_lines
from sdpo_plugins.records.lines import FORMAT

__all__ = ["FOLDER", "RecordedRollout", "RunRecords", "Step", "find_runs", "fingerprint", "read_run"]

FOLDER = "records"
"""Name of the folder of records inside of a run's output folder."""

_STEPS = "steps.jsonl"
_SEARCHED_DEPTH = 4


@dataclass(frozen=True)
class Step:
    """A step's metrics.

    Args:
        step: The host's number of the step.
        time: Seconds since 1970 when the last of them were written.
        metrics: By name; None where a value was not finite.
    """

    step: int
    time: float
    metrics: Mapping[str, float | None]


@dataclass(frozen=True)
class RecordedRollout:
    """A recorded rollout: its line, and the line of its token values or None, see the record format."""

    line: Mapping[str, Any]
    tokens: Mapping[str, Any] | None = None

    @property
    def id(self) -> int:
        """By which text and token values found each other."""
        return int(self.line["id"])

    @property
    def step(self) -> int:
        """The host's step that first trained on it."""
        return int(self.line["step"])


@dataclass(frozen=True)
class RunRecords:
    """Everything that was recorded of a run.

    Args:
        folder: The folder with the files.
        name: What to call the run among others.
        headers: `run` lines, one for each start.
        steps: Metrics in the order of steps.
        rollouts: In the order of steps, then rows.
        warnings: (step, text) of what the run warned of.
        end: The `end` line, or None while the run goes on, or if it was killed.
        problems: Lines that could not be read.
    """

    folder: Path
    name: str
    headers: tuple[Mapping[str, Any], ...]
    steps: tuple[Step, ...]
    rollouts: tuple[RecordedRollout, ...]
    warnings: tuple[tuple[int, str], ...] = ()
    end: Mapping[str, Any] | None = None
    problems: tuple[str, ...] = field(default=())

    @property
    def config(self) -> Mapping[str, Any]:
        """The SDPO options of the last start."""
        config: Mapping[str, Any] = self.headers[-1].get("config", {}) if self.headers else {}
        return config

    def series(self, metric: str) -> tuple[list[int], list[float]]:
        """Return steps and values of a metric, where it has any."""
        found = [(step.step, step.metrics[metric]) for step in self.steps if step.metrics.get(metric) is not None]
        return [at for at, _ in found], [value for _, value in found if value is not None]


def find_runs(path: str | Path) -> list[Path]:
    """Return the folders of records at or below a path, sorted.

    Args:
        path: A run's output folder, its folder of records, or a folder of several runs.

    Raises:
        DataError: There is no such folder, or it holds no records.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(
            f"There is no folder {path}. Give the output folder of a run (TRL: `output_dir`, verl: "
            "`trainer.default_local_dir`, OpenRLHF: `--ckpt.output_dir`), or one that holds several."
        )
    if not path.is_dir():
        raise DataError(f"{path} is a file. Give the output folder of a run; its records lie in a folder `{FOLDER}`.")
    found = sorted(folder for folder, names in _walk(path) if _STEPS in names)
    if not found:
        raise DataError(
            f"{path} holds no records (no {_STEPS} in it or in its folders). A run writes them into the folder "
            f"`{FOLDER}` of its output folder unless `record` is false or `record_dir` names another place."
        )
    return found


def read_run(path: str | Path, *, name: str | None = None) -> RunRecords:
    """Read the records of one run.

    Args:
        path: Its output folder, or its folder of records.
        name: What to call it; by default its output folder's name.

    Raises:
        DataError: No records, those of several runs, or a format that this version does not know.
    """
    folders = find_runs(path)
    if len(folders) > 1:
        listing = ", ".join(str(folder) for folder in folders[:5])
        raise DataError(f"{path} holds the records of {len(folders)} runs ({listing} …); name one of them.")
    folder = folders[0]
    problems: list[str] = []
    lines = _current(folder / _STEPS, problems)
    headers = [line for line in lines if line["kind"] == "run"]
    for header in headers:
        if header.get("format") != FORMAT:
            raise DataError(
                f"{folder} is of record format {header.get('format')!r}, and this version reads {FORMAT}. Install the "
                f"version of sdpo-plugins that wrote it ({header.get('version')})."
            )
    ends = [line for line in lines if line["kind"] in ("end", "run")]
    return RunRecords(
        folder=folder,
        name=name or _name(folder),
        headers=tuple(headers),
        steps=_steps(lines),
        rollouts=_rollouts(folder, problems),
        warnings=tuple((int(line["step"]), str(line["text"])) for line in lines if line["kind"] == "warning"),
        end=ends[-1] if ends and ends[-1]["kind"] == "end" else None,
        problems=tuple(problems),
    )


def fingerprint(folder: str | Path) -> tuple[tuple[str, int, int], ...]:
    """Return something that changes whenever the records in a folder do: names, sizes and times of its files."""
    files = sorted(Path(folder).glob("*.jsonl"))
    states = [(file.name, file.stat()) for file in files]
    return tuple((name, state.st_size, state.st_mtime_ns) for name, state in states)


def _walk(path: Path) -> Iterable[tuple[Path, list[str]]]:
    for folder, folders, names in os.walk(path):
        here = Path(folder)
        if len(here.relative_to(path).parts) >= _SEARCHED_DEPTH:
            folders.clear()
        yield here, names


def _name(folder: Path) -> str:
    folder = folder.resolve()
    return folder.parent.name if folder.name == FOLDER else folder.name


def _current(path: Path, problems: list[str]) -> list[dict[str, Any]]:
    """Return a file's lines without those that a restart has superseded."""
    lines, found = read_lines(path)
    problems += found
    current: list[dict[str, Any]] = []
    for line in lines:
        if line["kind"] in ("run", "resume"):
            start = int(line.get("step", 0))
            current = [old for old in current if old["kind"] == "run" or int(old.get("step", 0)) <= start]
        current.append(line)
    return current


def _steps(lines: Iterable[Mapping[str, Any]]) -> tuple[Step, ...]:
    merged: dict[int, Step] = {}
    for line in lines:
        if line["kind"] == "step":
            step = int(line["step"])
            before = merged[step].metrics if step in merged else {}
            merged[step] = Step(step, float(line["time"]), {**before, **line["metrics"]})
    return tuple(merged[step] for step in sorted(merged))


def _rollouts(folder: Path, problems: list[str]) -> tuple[RecordedRollout, ...]:
    texts: dict[int, Mapping[str, Any]] = {}
    tokens: dict[int, Mapping[str, Any]] = {}
    for path in sorted(folder.glob("rollouts-*.jsonl")):
        for line in _current(path, problems):
            if line["kind"] == "rollout":
                texts[int(line["id"])] = line
            elif line["kind"] == "tokens":
                tokens[int(line["id"])] = line
    found = [RecordedRollout(line, tokens.get(key)) for key, line in texts.items()]
    return tuple(sorted(found, key=lambda rollout: (rollout.step, rollout.id)))
