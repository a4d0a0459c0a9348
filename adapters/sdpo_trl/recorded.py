"""The records beside TRL's trainer: where its methods hand over what is to be recorded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from sdpo_plugins.config import SDPOConfig
from sdpo_plugins.errors import ConfigError
from sdpo_plugins.records.capture import Watch
from sdpo_plugins.reprompt import EncodedContext
from sdpo_plugins.types import Rollout, TeacherContext
from sdpo_trl.checks import check_reward_name
from sdpo_trl.host import GRPOHost
from sdpo_trl.records import RecordCallback, RunRecords
from sdpo_trl.rollouts import ScoredBatch

__all__ = ["RecordedHost"]


class RecordedHost(GRPOHost):
    """GRPO's trainer with records of its run; knows nothing of teacher and loss."""

    sdpo_config: SDPOConfig
    _records: RunRecords

    def train(self, *args: Any, **kwargs: Any) -> Any:
        with self._records.ending(lambda: self.state.global_step):
            return super().train(*args, **kwargs)

    def _prepare_records(self) -> None:
        if any(isinstance(callback, RecordCallback) for callback in self.callback_handler.callbacks):
            raise ConfigError(
                "A RecordCallback was given to SDPOTrainer, which records its run by itself; two would write the same "
                "files. Leave the callback out, and set `record_dir` for another folder."
            )
        if self._records.wanted:
            check_reward_name(self.sdpo_config, self.reward_func_names)
        main = self.accelerator.is_main_process
        self._records.prepare(self._tokenizer, self.callback_handler.callbacks, main)
        self.add_callback(self._records)

    @property
    def _records_rollouts(self) -> bool:
        """Whether the rollouts that are being sampled are recorded; those of an evaluation never are."""
        return self._records.wanted and self._mode == "train"

    def _record_rollouts(
        self,
        rollouts: Sequence[Rollout],
        mine: slice,
        scored: ScoredBatch,
        contexts: Sequence[TeacherContext] | None,
        encoded: Sequence[EncodedContext] | None,
    ) -> dict[str, Tensor]:
        """Record this rank's share of a rollout batch; return what says in the batch which rows are recorded."""
        if not self._records_rollouts:
            return {}
        done, device = self.state.global_step, self.accelerator.device
        return self._records.rollouts(done, rollouts, mine, scored, contexts, encoded, device)

    def _watch(self, inputs: Mapping[str, Any]) -> Watch | None:
        """Return what takes the token values of a micro-batch, if it is trained on for the first time."""
        slices = self._options.steps_per_generation
        return self._records.watch(inputs) if self._step % (slices * self.num_iterations) < slices else None

    def _warn(self, messages: Sequence[str]) -> None:
        super()._warn(messages)
        for message in messages:
            # As the step's in which it came up: what a restart repeats must not stand there twice.
            self._records.warning(self.state.global_step + 1, message)
