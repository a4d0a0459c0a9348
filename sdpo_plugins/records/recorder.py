"""Writing a run's records from one process of a host."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdpo_plugins._version import __version__
from sdpo_plugins.records.files import BoundedLines
from sdpo_plugins.records.lines import FORMAT

if TYPE_CHECKING:
    from sdpo_plugins.config import SDPOConfig

__all__ = ["RunRecorder", "record_folder"]


def record_folder(config: SDPOConfig, output: str | Path) -> Path:
    """Return where a run's records go: `record_dir`, or `records` in the host's output folder.

    Args:
        config: The SDPO options.
        output: The host's output folder.

    Example:
        >>> from sdpo_plugins import SDPOConfig
        >>> str(record_folder(SDPOConfig(), "runs/x"))
        'runs/x/records'
    """
    from sdpo_plugins.records.reading import FOLDER

    return Path(output, FOLDER) if config.record_dir is None else Path(config.record_dir)


class RunRecorder:
    """Writes metrics, warnings, rollouts and token values; nothing of it can end a training.

    A disk that is full or a folder that cannot be written stops the recording, with one warning, not the run.

    Args:
        folder: The folder of records.
        config: The SDPO options; `record_max_mb` and, for the header, all of them are read.
        warn: Says something to the user.
        rank: Of this process. Rank 0 writes `steps.jsonl` too.

    Example:
        >>> import tempfile
        >>> from sdpo_plugins import SDPOConfig
        >>> from sdpo_plugins.records import read_run
        >>> folder = tempfile.mkdtemp()
        >>> recorder = RunRecorder(folder, SDPOConfig())
        >>> recorder.start(host="trl", host_version="1.16.1", model="tiny", step=0, ranks=1)
        >>> recorder.metrics(1, {"reward": 0.5})
        >>> recorder.end(1)
        >>> read_run(folder).series("reward")
        ([1], [0.5])
    """

    def __init__(
        self, folder: str | Path, config: SDPOConfig, warn: Callable[[str], None] = print, *, rank: int = 0
    ) -> None:
        self.folder = Path(folder)
        self._config = config
        self._warn = warn
        self._rank = rank
        self._files: dict[str, BoundedLines] = {}
        self._stopped = False

    def start(
        self, *, host: str, host_version: str, model: str, step: int, ranks: int, writers: int | None = None
    ) -> None:
        """Say that a run begins, or goes on from a checkpoint: what was recorded after that step no longer counts.

        Every process that records calls this.

        Args:
            host: "trl", "verl" or "openrlhf".
            host_version: Of the host.
            model: Its name or path.
            step: Steps that are done already; 0 for a new run.
            ranks: Processes that train.
            writers: Processes that record; None: all of these.
        """
        # A new run in the folder of an old one: the old lines would only be superseded, and take room.
        self._try(self._remove_old if step == 0 else lambda: None)
        if self._rank == 0:
            self._try(lambda: self._end_of_other_ranks(ranks if writers is None else writers, step))
        if self._rank == 0:
            self._write(
                "steps",
                {
                    "kind": "run",
                    "format": FORMAT,
                    "version": __version__,
                    "host": host,
                    "host_version": host_version,
                    "method": "sdpo" if self._config.enabled and self._config.grpo_weight < 1.0 else "grpo",
                    "model": _model_name(model),
                    "started": time.time(),
                    "step": step,
                    "ranks": ranks,
                    "config": self._config.to_mapping(),
                },
            )
        if step > 0:
            self._write("rollouts", {"kind": "resume", "step": step})

    def metrics(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Record metrics of a step; several calls for one step add up.

        Args:
            step: The host's number of the step.
            metrics: Numbers by name; what is no number is left out, and one that is not finite is null in the file.
        """
        numbers = {name: number for name, value in metrics.items() if (number := _number(value)) is not None}
        if numbers and self._rank == 0:
            self._write("steps", {"kind": "step", "step": step, "time": time.time(), "metrics": numbers})

    def warning(self, step: int, text: str) -> None:
        """Record what the user was warned of."""
        if self._rank == 0:
            self._write("steps", {"kind": "warning", "step": step, "text": text})

    def lines(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Record rollouts (`rollout_line`) and their token values (`token_line`)."""
        for line in lines:
            self._write("rollouts", line)

    def end(self, step: int, reason: str = "finished") -> None:
        """Say that the run came to its end; without this line it goes on, or was killed."""
        if self._rank == 0:
            self._write("steps", {"kind": "end", "step": step, "time": time.time(), "reason": reason})

    def _write(self, name: str, line: Mapping[str, Any]) -> None:
        def write() -> None:
            if name not in self._files:
                file = f"{name}.jsonl" if name == "steps" else f"{name}-{self._rank:05d}.jsonl"
                self._files[name] = BoundedLines(self.folder / file, self._config.record_max_mb)
            self._files[name].write(line)

        self._try(write)

    def _remove_old(self) -> None:
        names = [f"rollouts-{self._rank:05d}.jsonl", *(["steps.jsonl"] if self._rank == 0 else [])]
        for name in names:
            (self.folder / name).unlink(missing_ok=True)

    def _end_of_other_ranks(self, writers: int, step: int) -> None:
        """See to the files of ranks that the last start had and this one has not: nobody else would."""
        for path in self.folder.glob("rollouts-*.jsonl"):
            rank = path.stem.removeprefix("rollouts-")
            if not rank.isdecimal() or int(rank) < writers:  # a copy of somebody's is none of ours
                continue
            if step == 0:
                path.unlink()
            else:
                BoundedLines(path, self._config.record_max_mb).write({"kind": "resume", "step": step})

    def _try(self, act: Callable[[], None]) -> None:
        if self._stopped:
            return
        try:
            act()
        except OSError as error:
            self._stopped = True
            self._warn(
                f"The run's records can no longer be written ({error}); training goes on without them. Free some "
                f"space in {self.folder}, or set `record_dir` to another place, or `record` to false."
            )


def _model_name(model: str) -> str:
    """Name the project's own model by its place in the package, wherever that is installed."""
    try:
        return str(Path(model).relative_to(Path(__file__).resolve().parents[1]))
    except ValueError:
        return model


def _number(value: Any) -> float | None:
    """Return a metric as a number; None if it is none, or several."""
    if not isinstance(value, (bool, int, float)) and callable(getattr(value, "item", None)):
        # Of torch and numpy; a whole array has no one value.
        count = getattr(value, "numel", None)
        value = value.item() if (count() if callable(count) else getattr(value, "size", None)) == 1 else None
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None
