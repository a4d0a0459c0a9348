"""Records of a TRL run: metrics through a callback that fits any trainer, rollouts and token values of SDPO's own."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import trl
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from sdpo_plugins.config import SDPOConfig
from sdpo_plugins.records import (
    NOT_RECORDED,
    Pieces,
    RunRecorder,
    chosen_rows,
    record_folder,
    record_id,
    rollout_line,
    token_line,
)
from sdpo_plugins.records.capture import Watch
from sdpo_plugins.report.pictures import Pictures
from sdpo_plugins.reprompt import EncodedContext
from sdpo_plugins.types import Rollout, TeacherContext
from sdpo_trl.rollouts import ScoredBatch

__all__ = ["FIELD", "RecordCallback", "RunRecords"]

FIELD = "sdpo_record"
"""Of a batch: each row's record id, or `NOT_RECORDED`."""

# A batch is numbered by the optimizer step in which it was generated, so that its number is known after a restart,
# too; a second one in the same step gets this much more.
_STEPS = 1 << 20
# Where SDPO is off nobody reads one.
_NO_CONTEXT = TeacherContext("", active=False)


class RecordCallback(TrainerCallback):
    """Record the metrics of any of TRL's trainers, for `sdpo report` to compare SDPO with.

    `SDPOTrainer` records by itself, and rollouts and token values besides.

    Args:
        records: The folder of records; None: `records` in the trainer's output folder. Or an `SDPOConfig`, of which
            the options `record`, `record_dir` and `record_max_mb` are read.

    Example:
        >>> from sdpo_trl import RecordCallback
        >>> callback = RecordCallback()  # GRPOTrainer(..., callbacks=[callback])
    """

    def __init__(self, records: SDPOConfig | str | Path | None = None) -> None:
        if not isinstance(records, SDPOConfig):
            records = SDPOConfig(record_dir=None if records is None else str(records))
        # What trains here is not SDPO, and the run's header says so.
        self._config = replace(records, enabled=False)
        self._recorder: RunRecorder | None = None
        self._open = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if not self._config.record:
            return
        folder = record_folder(self._config, str(args.output_dir))
        self._recorder = RunRecorder(folder, self._config, _warn, rank=args.process_index)
        self._recorder.start(
            host="trl",
            host_version=str(trl.__version__),
            model=_name_of(kwargs.get("model")),
            step=state.global_step,
            ranks=args.world_size,
        )
        self._open = True

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if self._recorder is not None:
            self._recorder.metrics(state.global_step, logs or {})

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._end(state.global_step, "finished")

    def _end(self, step: int, reason: str) -> None:
        if self._recorder is not None and self._open:
            self._open = False
            self._recorder.end(step, reason)


class RunRecords(RecordCallback):
    """Records an SDPO run: on each rank the rollouts it sampled and what its loss says of their tokens.

    Nothing here waits for another rank or draws a random number of the run.

    Args:
        config: The SDPO options.
    """

    def __init__(self, config: SDPOConfig) -> None:
        super().__init__(config)
        self._config = config
        self._pieces: Pieces | None = None
        self._pictures = Pictures(config.record_picture_every, _warn)
        self._callbacks: Sequence[Any] | None = None
        self._generated = (-1, 0)

    @property
    def wanted(self) -> bool:
        """Whether rollouts are recorded."""
        return self._config.record and self._config.record_rollouts > 0

    def prepare(self, tokenizer: Any, callbacks: Sequence[Any], main: bool) -> None:
        """Take what exists once the trainer does.

        Args:
            tokenizer: Gives tokens their texts.
            callbacks: The trainer's, the loggers among them; looked through when there is a picture to log.
            main: Whether this is the process that logs.
        """
        self._pieces = Pieces(tokenizer)
        self._callbacks = callbacks if main else None

    def warning(self, step: int, text: str) -> None:
        """Record what the user was warned of while that step was made."""
        if self._recorder is not None:
            self._recorder.warning(step, text)

    @contextmanager
    def ending(self, step: Callable[[], int]) -> Iterator[None]:
        """Say how a training ended that an exception cut short; `step` gives the optimizer steps done."""
        try:
            yield
        except KeyboardInterrupt:
            self._end(step(), "interrupted")
            raise
        except BaseException:
            self._end(step(), "failed")
            raise

    def rollouts(
        self,
        done: int,
        rollouts: Sequence[Rollout],
        mine: slice,
        scored: ScoredBatch,
        contexts: Sequence[TeacherContext] | None,
        encoded: Sequence[EncodedContext] | None,
        device: torch.device,
    ) -> dict[str, Tensor]:
        """Record those of this rank's rollouts that were chosen, and say in the batch which these are.

        Args:
            done: Optimizer steps done.
            rollouts: All ranks' rollouts.
            mine: This rank's.
            scored: The same as TRL gave them.
            contexts: All ranks' teacher contexts; None where SDPO is off.
            encoded: What this rank's came to; None where SDPO is off.
            device: Of the batch.

        Returns:
            `sdpo_record` [B]; nothing if no rollouts are recorded.
        """
        if not self.wanted:
            return {}
        batch = self._number(done)
        rows = range(mine.start, mine.stop)
        marks = [NOT_RECORDED] * len(rows)
        lines = []
        for row in chosen_rows(batch, range(len(rollouts)), self._config.record_rollouts):
            if row not in rows:
                continue
            at = row - mine.start
            marks[at] = record_id(batch, row)
            rollout = rollouts[row]
            lines.append(
                rollout_line(
                    row,
                    rollout,
                    _NO_CONTEXT if contexts is None else contexts[row],
                    None if encoded is None else encoded[at],
                    self._config,
                    step=_step_of(marks[at]),
                    batch=batch,
                    response_tokens=scored.lengths[at],
                    cut_off=scored.cut_off[at],
                )
            )
        if self._recorder is not None:
            self._recorder.lines(lines)
            self._pictures.rollouts(lines)
        return {FIELD: torch.tensor(marks, dtype=torch.int64, device=device)}

    def watch(self, inputs: Mapping[str, Any]) -> Watch | None:
        """Return what takes the token values of a micro-batch; None if nothing of it is recorded.

        Args:
            inputs: TRL's micro-batch with our entries.
        """
        records = inputs.get(FIELD)
        if self._recorder is None or records is None:
            return None
        config = self._config
        watch = Watch(records, inputs["completion_ids"], config.record_alternatives, config.record_tokens)
        return watch if watch.wanted else None

    def tokens(self, watch: Watch | None) -> None:
        """Record the token values that were found."""
        if watch is None or not watch.found or self._recorder is None or self._pieces is None:
            return
        lines = [token_line(found, _step_of(found.id), self._pieces.of(found.used_ids())) for found in watch.found]
        self._recorder.lines(lines)
        self._pictures.tokens(lines)
        if self._callbacks is not None:
            # TensorBoard's callback holds its writer.
            writers = (getattr(callback, "tb_writer", None) for callback in self._callbacks)
            self._pictures.log(writer=next((writer for writer in writers if writer is not None), None))

    def _number(self, done: int) -> int:
        step, count = self._generated
        count = count + 1 if step == done else 0
        self._generated = (done, count)
        return done + count * _STEPS


def _step_of(record: int) -> int:
    """Return the optimizer step that first trains on a recorded rollout."""
    return record // record_id(1, 0) % _STEPS + 1


def _name_of(model: Any) -> str:
    name = getattr(getattr(model, "config", None), "_name_or_path", "")
    return str(name) or type(model).__name__


def _warn(text: str) -> None:
    warnings.warn(text, stacklevel=2)
