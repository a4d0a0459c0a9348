"""Now and then a picture of a rollout's tokens, for the loggers of a run that show images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

from sdpo_plugins.records import RecordedRollout

__all__ = ["NAME", "Pictures"]


NAME = "sdpo/tokens"
"""Of the picture in a logger."""


class Pictures:
    """Draws one recorded rollout of every n-th rollout batch; nothing where no logger would show it.

    Args:
        every: Draw every n rollout batches; 0: never.
    """

    def __init__(self, every: int) -> None:
        self.callbacks: Sequence[Any] | None = None
        """The trainer's, among them TensorBoard's with its writer; None on all ranks but the first."""
        self._every = every
        self._batches = 0
        self._due = False
        self._texts: dict[int, Mapping[str, Any]] = {}

    def batch(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Take a rollout batch's recorded rollouts."""
        # If nothing recorded of a batch has an active token on this rank, the next one is drawn.
        self._due = self._due or (self._every > 0 and self._batches % self._every == 0)
        self._batches += 1
        self._texts = {int(line["id"]): line for line in lines}

    def tokens(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Take token values, and draw the first rollout if it is time."""
        known = [line for line in lines if int(line["id"]) in self._texts]
        if not self._due or not known or self.callbacks is None:
            return
        self._due = False
        from sdpo_plugins.report.sinks import log_picture, open_sinks

        writers = (getattr(callback, "tb_writer", None) for callback in self.callbacks)
        sinks = open_sinks(writer=next((writer for writer in writers if writer is not None), None))
        if not sinks or find_spec("matplotlib") is None:
            return
        from sdpo_plugins.report.heatmap import token_picture

        rollout = RecordedRollout(self._texts[int(known[0]["id"])], known[0])
        log_picture(NAME, token_picture(rollout), rollout.step, sinks)
