"""What a run leaves to be looked at: the driver writes it, the ranks note the token values as they train."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from sdpo_plugins.config import SDPOConfig
from sdpo_plugins.records import (
    NOT_RECORDED,
    Pieces,
    RunRecorder,
    TokenValues,
    chosen_rows,
    record_id,
    rollout_line,
    token_line,
)
from sdpo_plugins.records.capture import Watch
from sdpo_plugins.report.pictures import Pictures
from sdpo_plugins.reprompt import EncodedContext
from sdpo_plugins.types import Rollout, TeacherContext

__all__ = ["FIELD", "CapturedTokens", "RecordedBatch", "RunRecords", "group_numbers", "record_field", "rollout_lines"]

FIELD = "sdpo_record"
"""The field of a batch that says which rows are recorded; absent where none is."""

# Among verl's own names for its loggers (console, wandb, …).
_LOGGER = "sdpo_records"


@dataclass
class CapturedTokens:
    """Token values of a rank's recorded rows, from the first pass over each; later epochs are left out.

    Args:
        config: `record_alternatives` and `record_tokens` are read.
    """

    config: SDPOConfig
    _seen: set[int] = field(default_factory=set)
    _found: list[TokenValues] = field(default_factory=list)

    def watch(self, micro_batch: TensorDict, ids: Tensor) -> Watch | None:
        """Return what to watch in a micro-batch; None: nothing, as no row of it is recorded.

        Args:
            micro_batch: With or without the field `FIELD`.
            ids: Token ids of its responses, [B, T].
        """
        if FIELD not in micro_batch.keys():  # noqa: SIM118  a TensorDict iterates over its rows
            return None
        records = [NOT_RECORDED if at in self._seen else at for at in micro_batch[FIELD].reshape(-1).tolist()]
        watch = Watch(torch.tensor(records), ids, self.config.record_alternatives, self.config.record_tokens)
        return watch if watch.wanted else None

    def keep(self, watch: Watch | None) -> None:
        """Keep what was found."""
        if watch is not None:
            self._found += watch.found
            self._seen.update(values.id for values in watch.found)

    def take(self) -> list[TokenValues]:
        """Return what was kept, and begin a new rollout batch."""
        found, self._found = self._found, []
        self._seen.clear()
        return found


@dataclass(frozen=True)
class RecordedBatch:
    """Which rows of a rollout batch are recorded.

    Args:
        number: Of the batch, from 0 on, over restarts.
        step: verl's number of the step that trains on it.
        rows: Places in the batch, ascending.
        groups: Number of each row's question, of all rows.
    """

    number: int
    step: int
    rows: Sequence[int]
    groups: Sequence[int]

    def of(self, values: Sequence[Any]) -> list[Any]:
        """Pick the recorded rows' values."""
        return [values[row] for row in self.rows]


class RunRecords:
    """The run's records as the driver writes them; before `start`, and with `record` off, nothing is written.

    Args:
        folder: Of the records.
        config: The SDPO options.
        tokenizer: Only read.
    """

    def __init__(self, folder: Path, config: SDPOConfig, tokenizer: Any) -> None:
        self._config = config
        self._recorder = RunRecorder(folder, config, _say)
        self._pieces = Pieces(tokenizer)
        self._pictures = Pictures(config.record_picture_every, _say)
        self._loggers: Mapping[str, Any] = {}
        self._on = False
        self._step = 0

    def start(self, *, model: str, step: int, ranks: int) -> None:
        """Say that the run begins, or goes on from a checkpoint, after a step."""
        self._on, self._step = self._config.record, step
        if self._on:
            self._recorder.start(
                host="verl", host_version=version("verl"), model=model, step=step, ranks=ranks, writers=1
            )

    def attach(self, tracking: Any) -> None:
        """Become one more of the loggers that verl hands each step's metrics to.

        Args:
            tracking: verl's `Tracking`, which holds loggers by name; a logger has `log(data, step)`.
        """
        if self._on:
            # Not `tracking` itself, which closes its loggers when the last reference to it goes.
            self._loggers = tracking.logger
            tracking.logger[_LOGGER] = self

    def log(self, data: Mapping[str, Any], step: int) -> None:
        """Take the metrics of a step or of a validation, as verl's loggers do."""
        self._step = step
        self._recorder.metrics(step, data)
        self._pictures.log(step, writer=getattr(self._loggers.get("tensorboard"), "writer", None), numbered=True)

    def warning(self, step: int, text: str) -> None:
        """Record what the user was told."""
        if self._on:
            self._recorder.warning(step, text)

    def batch(self, number: int, step: int, keys: Sequence[str], idle: Sequence[bool]) -> RecordedBatch:
        """Choose the rows of a batch that are recorded.

        Args:
            number: Of the batch, from 0 on, over restarts.
            step: verl's number of the step that trains on it.
            keys: verl's, of the rows.
            idle: Which rows are no rollouts of their own.
        """
        count = self._config.record_rollouts if self._on else 0
        rollouts = [row for row, skip in enumerate(idle) if not skip]
        return RecordedBatch(number, step, chosen_rows(number, rollouts, count), group_numbers(keys))

    def rollouts(self, batch: RecordedBatch, lines: Sequence[Mapping[str, Any]]) -> None:
        """Write the recorded rollouts of a batch."""
        self._recorder.lines(lines)
        self._pictures.rollouts(lines)

    def tokens(self, step: int, found: Iterable[TokenValues]) -> None:
        """Write the token values that all ranks found in the last batch."""
        lines = [
            token_line(values, step, self._pieces.of(values.used_ids()))
            for values in sorted(found, key=lambda values: values.id)
        ]
        self._recorder.lines(lines)
        self._pictures.tokens(lines)

    @contextmanager
    def ending(self) -> Iterator[None]:
        """Say how the training within came to its end."""
        reason = "failed"
        try:
            yield
            reason = "finished"
        except KeyboardInterrupt:
            reason = "interrupted"
            raise
        finally:
            if self._on:
                self._recorder.end(self._step, reason)


def record_field(batch: RecordedBatch) -> Tensor:
    """Return the record id of each row, or `NOT_RECORDED`: [B], int64.

    Example:
        >>> record_field(RecordedBatch(number=1, step=2, rows=[0, 2], groups=[0, 0, 1])).tolist()
        [1048576, -1, 1048578]
    """
    ids = torch.full((len(batch.groups),), NOT_RECORDED, dtype=torch.int64)
    for row in batch.rows:
        ids[row] = record_id(batch.number, row)
    return ids


def group_numbers(keys: Sequence[str]) -> list[int]:
    """Number the questions of a batch in the order in which they come.

    Args:
        keys: verl's keys of the rows, `{uid}_{session}_{index}`.

    Example:
        >>> group_numbers(["7c_0_0", "7c_1_0", "9a_0_0", "7c_2_0"])
        [0, 0, 1, 0]
    """
    names = [key.rsplit("_", 2)[0] for key in keys]
    numbers = {name: at for at, name in enumerate(dict.fromkeys(names))}
    return [numbers[name] for name in names]


def rollout_lines(
    batch: RecordedBatch,
    rollouts: Sequence[Rollout],
    contexts: Sequence[tuple[TeacherContext, EncodedContext | None]],
    responses: Sequence[Tensor],
    config: SDPOConfig,
    *,
    longest: int,
    end: int | None,
) -> list[dict[str, Any]]:
    """Return the lines of a batch's recorded rollouts.

    Args:
        batch: Says which rows.
        rollouts: Of these rows.
        contexts: What the teacher was to read, and what it read; None: there is no teacher.
        responses: Token ids of each.
        config: Says what a success is.
        longest: verl's limit of a response, in tokens.
        end: Token id that ends an answer.
    """
    return [
        rollout_line(
            row,
            replace(rollout, group_id=batch.groups[row]),
            *context,
            config,
            step=batch.step,
            batch=batch.number,
            response_tokens=len(response),
            cut_off=len(response) >= longest and int(response[-1]) != end,
        )
        for row, rollout, context, response in zip(batch.rows, rollouts, contexts, responses, strict=True)
    ]


def _say(text: str) -> None:
    print(f"SDPO: {text}", flush=True)
