"""When the teacher moves: after the last optimizer step of a rollout batch, before anything is saved."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

__all__ = ["TeacherClock"]


class TeacherClock(TrainerCallback):
    """Counts optimizer steps and finished rollout batches, and tells the trainer's hooks when each turn comes.

    Args:
        start: Called when training begins, with the model prepared and any checkpoint loaded.
        step_begins: Called before the first micro-batch of each optimizer step.
        advance: Called after each optimizer step with the rollout batches finished and the optimizer steps taken since
            training began, across restarts.
        position: Gives the number of micro-batches done.
        batch_size: Gives the number of micro-batches that one rollout batch serves.
    """

    def __init__(
        self,
        start: Callable[[], None],
        step_begins: Callable[[], None],
        advance: Callable[[int, int], None],
        position: Callable[[], int],
        batch_size: Callable[[], int],
    ) -> None:
        self._start, self._step_begins, self._advance = start, step_begins, advance
        self._position, self._batch_size = position, batch_size
        self._finished_here = 0
        self.batches = 0
        self.steps = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._finished_here = self._position() // self._batch_size()
        self._start()

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._step_begins()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        finished = self._position() // self._batch_size()
        self.batches += finished - self._finished_here
        self._finished_here = finished
        self.steps += 1
        self._advance(self.batches, self.steps)

    def state_dict(self) -> dict[str, int]:
        """Return the counters as plain values."""
        return {"batches": self.batches, "steps": self.steps}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Take the counters up again."""
        self.batches, self.steps = int(state["batches"]), int(state["steps"])
