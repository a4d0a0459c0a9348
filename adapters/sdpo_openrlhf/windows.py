"""What an optimizer step's micro-batches are normalised by: the active tokens of all of them, on all ranks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from openrlhf.trainer.ppo_utils import NaiveReplayBuffer
from torch import Tensor

from sdpo_openrlhf.fields import ACTIVE
from sdpo_plugins.losses import active_mask, loss_denominator

__all__ = ["SDPOReplayBuffer", "Window", "Windows"]


class SDPOReplayBuffer(NaiveReplayBuffer):
    """OpenRLHF's replay buffer, which also notes the micro-batches that it hands out.

    OpenRLHF collates all micro-batches of an optimizer step before it trains on the first one; so at that moment what
    was noted is this step's.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._handed_out: list[Tensor] = []

    def collate_fn(self, batch: Any) -> Any:
        """Combine rows to a micro-batch, as the host does, and note which tokens of it are active."""
        experience = super().collate_fn(batch)
        flags = torch.stack([torch.as_tensor(flag) for flag in experience.info[ACTIVE]])
        self._handed_out.append(active_mask(experience.action_mask, flags.reshape(-1)))
        return experience

    def handed_out(self) -> list[Tensor]:
        """Return the active masks `[B, A]` of the micro-batches since the last call, in order."""
        masks, self._handed_out = self._handed_out, []
        return masks

    def planned(self, micro_batches: Sequence[int]) -> list[Tensor]:
        """Return the active masks `[1, A]` of the rows of some micro-batches of a dynamic schedule."""
        items = [self.items[at] for number in micro_batches for at in self.dynamic_indices[number]]
        return [
            active_mask(item.action_mask.unsqueeze(0), torch.as_tensor(item.info[ACTIVE]).reshape(1)) for item in items
        ]


@dataclass(frozen=True)
class Window:
    """The micro-batches of one optimizer step.

    Args:
        denominator: Active tokens or sequences (by the aggregation mode) of all of them on all ranks.
        rows: Rows of all of them on this rank.
    """

    denominator: float
    rows: int


class Windows:
    """Tells for each micro-batch of a rollout batch which window it belongs to.

    Args:
        buffer: Hands the micro-batches out.
        mode: The aggregation mode.
        reduce: Adds numbers up over the ranks; called once for each window, by every rank together.
    """

    def __init__(self, buffer: SDPOReplayBuffer, mode: str, reduce: Callable[[list[float]], list[float]]) -> None:
        self._buffer, self._mode, self._reduce = buffer, mode, reduce
        self._left = 0
        self._window = Window(0.0, 0)

    def begin(self) -> None:
        """Begin a rollout batch."""
        self._buffer.handed_out()
        self._left = 0

    def next(self, step: int) -> Window:
        """Return the window of the next micro-batch.

        Args:
            step: Its number in the epoch, from 0.
        """
        if self._left == 0:
            self._left, masks = self._masks(step)
            count = sum(float(loss_denominator(mask, self._mode)) for mask in masks)
            self._window = Window(self._reduce([count])[0], sum(len(mask) for mask in masks))
        self._left -= 1
        return self._window

    def _masks(self, step: int) -> tuple[int, list[Tensor]]:
        if self._buffer.dynamic_batch:
            last = self._buffer.dynamic_optimizer_step.index(1, step)
            members = range(step, last + 1)
            return len(members), self._buffer.planned(members)
        masks = self._buffer.handed_out()
        return len(masks), masks
