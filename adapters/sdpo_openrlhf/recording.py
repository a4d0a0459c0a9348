"""The run's records, written by the controller: metrics, warnings, sampled rollouts, and the ranks' token values."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from sdpo_openrlhf.rollouts import Sample
from sdpo_plugins.config import SDPOConfig
from sdpo_plugins.records import (
    Pieces,
    RunRecorder,
    TokenValues,
    chosen_rows,
    record_folder,
    rollout_line,
    token_line,
)
from sdpo_plugins.report.pictures import Pictures
from sdpo_plugins.reprompt import EncodedContext
from sdpo_plugins.types import Rollout, TeacherContext

__all__ = ["Recording", "RowToRecord"]

_HOST = "openrlhf"


@dataclass(frozen=True)
class RowToRecord:
    """A rollout that is recorded.

    Args:
        row: Its place in the batch, in the order in which it was sampled.
        sample: As the host holds it.
        rollout: Made of it.
        context: What the teacher was to read.
        encoded: What it reads; None without SDPO.
    """

    row: int
    sample: Sample
    rollout: Rollout
    context: TeacherContext
    encoded: EncodedContext | None


class Recording:
    """Records one start of a run.

    OpenRLHF's step is a rollout batch; so steps number batches too, over restarts.

    Args:
        args: The host's arguments.
        config: The SDPO options.
        tokenizer: Of the policy; only read.
        warn: Says something to the user.
        step: Steps that are done already.
    """

    def __init__(
        self, args: Any, config: SDPOConfig, tokenizer: Any, warn: Callable[[str], None], *, step: int
    ) -> None:
        self.step = step
        """The step that is being taken, or was the last one."""
        self.pictures = Pictures(config.record_picture_every, warn)
        self._config = config
        self._pieces = Pieces(tokenizer)
        self._recorder = RunRecorder(record_folder(config, args.ckpt.output_dir), config, warn)
        self._recorder.start(
            host=_HOST,
            host_version=version(_HOST),
            model=args.actor.model_name_or_path,
            step=step,
            ranks=args.actor.num_nodes * args.actor.num_gpus_per_node,
            writers=1,
        )

    def chosen(self, rows: Sequence[int]) -> list[int]:
        """Choose among rows of the step's batch those that are recorded."""
        return chosen_rows(self._batch, rows, self._config.record_rollouts)

    def rollouts(self, rows: Iterable[RowToRecord]) -> dict[int, int]:
        """Record some rollouts of the step's batch.

        Args:
            rows: The chosen ones.

        Returns:
            By row, the id under which it is recorded.
        """
        lines = [self._line(given) for given in rows]
        self._recorder.lines(lines)
        self.pictures.rollouts(lines)
        return {line["row"]: line["id"] for line in lines}

    def tokens(self, found: Iterable[TokenValues]) -> None:
        """Record the token values of some of the step's rollouts."""
        lines = [token_line(values, self.step, self._pieces.of(values.used_ids())) for values in found]
        self._recorder.lines(lines)
        self.pictures.tokens(lines)

    def metrics(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Record what the host logs at a step; its sample of a text is no number, and is left out."""
        self._recorder.metrics(step, metrics)

    def warnings(self, messages: Iterable[str]) -> None:
        """Record what the user was told."""
        for message in messages:
            self._recorder.warning(self.step, message)

    def end(self) -> None:
        """Say that the run came to its end."""
        self._recorder.end(self.step)

    @property
    def _batch(self) -> int:
        return self.step - 1

    def _line(self, given: RowToRecord) -> dict[str, Any]:
        config, named = self._config, given.rollout.rewards or {}
        if config.success_reward_name not in (None, *named):  # an error where SDPO learns from it
            config = config.replace(success_reward_name=None)
        return rollout_line(
            given.row,
            given.rollout,
            given.context,
            given.encoded,
            config,
            step=self.step,
            batch=self._batch,
            response_tokens=len(given.sample.response_ids),
            cut_off=given.sample.cut_off,
        )
