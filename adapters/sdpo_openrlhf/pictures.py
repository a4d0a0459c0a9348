"""Now and then a picture of a rollout's tokens, for those of OpenRLHF's loggers that show images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from sdpo_plugins.records import RecordedRollout

__all__ = ["Pictures"]

_NAME = "sdpo/tokens"


class Pictures:
    """Draws one recorded rollout of every n-th rollout batch; nothing where no logger would show it.

    Args:
        every: Draw every n rollout batches; 0: never.
        warn: Says something to the user.
    """

    def __init__(self, every: int, warn: Callable[[str], None]) -> None:
        self._every = every
        self._warn = warn
        self._next = 0
        self._pending: RecordedRollout | None = None

    def batch(self, number: int, rollouts: Sequence[RecordedRollout]) -> None:
        """Take a batch's rollouts with token values. If it is time, the first is drawn; if there is none, a later one.

        Args:
            number: Of the batch, from 0 on.
            rollouts: Recorded.
        """
        if self._every and rollouts and number >= self._next:
            self._next = number + self._every
            self._pending = rollouts[0]

    def log(self, tensorboard: Any, step: int) -> None:
        """Hand the picture to the loggers, before they get the metrics of its step.

        Args:
            tensorboard: The host's `TensorboardLogger`, or None.
            step: The host's.
        """
        record, self._pending = self._pending, None
        if record is None:
            return
        from sdpo_plugins.report.heatmap import token_picture
        from sdpo_plugins.report.sinks import log_picture, open_sinks

        sinks = open_sinks(writer=None if tensorboard is None else tensorboard.writer)
        if not sinks:
            return
        try:
            log_picture(_NAME, token_picture(record), step, sinks)
        except Exception as error:  # whatever a logger's service says: a picture is no reason to end a training
            self._every = 0
            self._warn(
                f"The picture of a rollout's tokens could not be logged ({type(error).__name__}: {error}); there will "
                "be no more. Set `--sdpo.record_picture_every 0` to do without from the start."
            )
