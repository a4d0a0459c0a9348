"""Now and then a picture of a rollout's tokens, for those of verl's loggers that show images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
        self._number = 0
        self._texts: dict[int, Mapping[str, Any]] = {}
        self._pending: RecordedRollout | None = None

    def rollouts(self, number: int, lines: Sequence[Mapping[str, Any]]) -> None:
        """Take a batch's recorded rollouts.

        Args:
            number: Of the batch, from 0 on.
            lines: Of the rollouts.
        """
        self._number = number
        self._texts = {int(line["id"]): line for line in lines}

    def tokens(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Take the batch's token values. If it is time, the first is drawn; a batch without leaves it to the next."""
        if self._every == 0 or self._number < self._next or not lines:
            return
        self._next = self._number + self._every
        self._pending = RecordedRollout(self._texts[int(lines[0]["id"])], lines[0])

    def log(self, loggers: Mapping[str, Any], step: int) -> None:
        """Hand the picture to the loggers, after they were given the metrics of its step.

        Args:
            loggers: verl's, by name.
            step: verl's number of the step.
        """
        record, self._pending = self._pending, None
        if record is None:
            return
        from sdpo_plugins.report.heatmap import token_picture
        from sdpo_plugins.report.sinks import log_picture, open_sinks

        writer = getattr(loggers.get("tensorboard"), "writer", None)
        sinks = open_sinks(writer=writer, numbered=True)
        if not sinks:
            return
        try:
            log_picture(_NAME, token_picture(record), step, sinks)
        except Exception as error:  # whatever a logger's service says: a picture is no reason to end a training
            self._every = 0
            self._warn(
                f"The picture of a rollout's tokens could not be logged ({type(error).__name__}: {error}); there will "
                "be no more. Set `record_picture_every` to 0 to do without from the start."
            )
