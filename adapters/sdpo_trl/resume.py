"""The teacher's life beside TRL's: when it starts and moves, and what a checkpoint holds so that a run goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from sdpo_plugins.health import HealthMonitor
from sdpo_plugins.plugins import Strategies
from sdpo_plugins.teacher import local_tensors
from sdpo_trl.clock import TeacherClock
from sdpo_trl.forward import is_sharded
from sdpo_trl.probe import TeacherProbe
from sdpo_trl.recorded import RecordedHost
from sdpo_trl.state import (
    check_same_cut,
    load_run_state,
    load_teacher_state,
    save_run_state,
    save_teacher_state,
    skip_epochs,
)

__all__ = ["TeacherHost"]


class TeacherHost(RecordedHost):
    """GRPO's trainer with a teacher that is updated and saved; knows nothing of contexts and loss."""

    _sdpo_on: bool
    _strategies: Strategies
    _health: HealthMonitor
    _clock: TeacherClock
    _probe: TeacherProbe
    _sampler: Any

    def _start_teacher(self) -> None:
        teacher = self._strategies.teacher
        if not teacher.started:
            teacher.start(local_tensors(self._bare_model()))

    def _advance_teacher(self, batches: int, steps: int) -> None:
        teacher = self._strategies.teacher
        if teacher.due(batches, steps):
            module = self._bare_model()
            reduce = self._sum_over_ranks if is_sharded(module) else None
            self._note("train", teacher.update(local_tensors(module), reduce=reduce))

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
        self._sampler = super()._get_train_sampler(*args, **kwargs)
        return self._sampler

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        # Ours first: the host's part ends by deleting older checkpoints, which must not go before this one is whole.
        if self._sdpo_on:
            self._save_sdpo(trial)
        super()._save_checkpoint(model, trial)

    def _save_sdpo(self, trial: Any) -> None:
        checkpoint = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        self._start_teacher()
        save_teacher_state(self._strategies.teacher, checkpoint, rank, world, is_sharded(self._bare_model()))
        every = self._options.steps_per_generation * self.num_iterations
        middle = self._step % every != 0
        state = {
            "step": self._step,
            "cut": [self._options.steps_per_generation, self.num_iterations],
            "epochs": int(self.state.epoch or 0),
            "clock": self._clock.state_dict(),
            "health": self._health.state_dict(),
            "probed": self._probe.seen,
            "metrics": {name: list(values) for name, values in self._metrics["train"].items()},
        }
        save_run_state(checkpoint, rank, state, self._buffered_inputs if middle else None)
        self.accelerator.wait_for_everyone()

    def _load_optimizer_and_scheduler(self, checkpoint: Any) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if not self._sdpo_on or checkpoint is None:
            return
        folder = Path(checkpoint)
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        module = self._bare_model()
        load_teacher_state(self._strategies.teacher, folder, local_tensors(module), rank, world, is_sharded(module))
        state, rollouts = load_run_state(folder, rank, self.accelerator.device)
        if rollouts is not None:
            check_same_cut(folder, state["cut"], [self._options.steps_per_generation, self.num_iterations])
        self._clock.load_state_dict(state["clock"])
        self._health.load_state_dict(state["health"])
        self._probe.seen = state["probed"]
        self._metrics["train"].clear()
        for name, values in state["metrics"].items():
            self._metrics["train"][name].extend(values)
        # Between two rollout batches the host's own count, from zero, is as good.
        self._step = 0 if rollouts is None else state["step"]
        self._buffered_inputs = cast(Any, rollouts)
        skip_epochs(self._sampler, state["epochs"])
