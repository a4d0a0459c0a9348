"""Now and then a picture of a rollout's tokens, for those of a run's loggers that show images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sdpo_plugins.records import RecordedRollout

__all__ = ["NAME", "Pictures"]

NAME = "sdpo/tokens"
"""Of the picture in a logger."""


class Pictures:
    """Draws one recorded rollout of every n-th rollout batch; nothing where no logger would show it.

    Args:
        every: Draw every n rollout batches, the first one included; 0: never.
        warn: Says something to the user.
    """

    def __init__(self, every: int, warn: Callable[[str], None]) -> None:
        self._every = every
        self._warn = warn
        self._batches = 0
        self._due = False
        self._texts: dict[int, Mapping[str, Any]] = {}
        self._pending: RecordedRollout | None = None

    def rollouts(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Take a batch's recorded rollouts.

        Args:
            lines: Of `rollout_line`.
        """
        # If nothing recorded of a batch has token values, a later one is drawn.
        self._due = self._due or (self._every > 0 and self._batches % self._every == 0)
        self._batches += 1
        self._texts = {int(line["id"]): line for line in lines}

    def tokens(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Take token values of the batch; if it is time, the first becomes the picture.

        Args:
            lines: Of `token_line`.
        """
        known = [line for line in lines if int(line["id"]) in self._texts]
        if self._due and known:
            self._due = False
            self._pending = RecordedRollout(self._texts[int(known[0]["id"])], known[0])

    def log(self, step: int | None = None, *, writer: Any = None, numbered: bool = False) -> None:
        """Hand the picture, if there is one, to the loggers. One that fails ends the pictures, not the training.

        Args:
            step: Under which it is logged; None: the step that trained on the rollout.
            writer: A TensorBoard writer that is open, or None.
            numbered: Whether the host names the step with everything it logs, see `open_sinks`.
        """
        record, self._pending = self._pending, None
        if record is None:
            return
        from sdpo_plugins.report.sinks import log_picture, open_sinks

        sinks = open_sinks(writer=writer, numbered=numbered)
        if not sinks:
            return
        try:
            from sdpo_plugins.report.heatmap import token_picture

            log_picture(NAME, token_picture(record), record.step if step is None else step, sinks)
        except Exception as error:  # whatever a logger's service says: a picture is no reason to end a training
            self._every = 0
            self._warn(
                f"The picture of a rollout's tokens could not be logged ({type(error).__name__}: {error}); there will "
                "be no more. Set `record_picture_every` to 0 to do without from the start."
            )
