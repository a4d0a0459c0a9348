"""How much one micro-batch counts in its optimizer step, whatever the cut into micro-batches and ranks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sdpo_plugins.losses import loss_denominator

__all__ = ["Window", "Windows", "loss_mask", "measure"]


@dataclass(frozen=True)
class Window:
    """The micro-batches of one optimizer step whose rollouts are known together.

    Args:
        active: What the SDPO loss of the window is divided by, summed over its micro-batches and all ranks.
        all_tokens: The same for terms that run over every completion token (the KL to the reference model).
        share: Part of the optimizer step that the window covers; 1 unless a step spans several generations.
    """

    active: Tensor
    all_tokens: Tensor
    share: float


class Windows:
    """Opens a window at the first micro-batch of an optimizer step, or of a generation inside of it."""

    def __init__(self) -> None:
        self._window: Window | None = None
        self._left = self._done = 0

    def step_begins(self) -> None:
        """Forget the last optimizer step."""
        self._left = self._done = 0

    def current(
        self,
        known: Sequence[dict[str, Any]],
        steps: int,
        measure: Callable[[Sequence[dict[str, Any]], float], Window],
    ) -> Window:
        """Return the window of the micro-batch whose turn it is. Every rank must call this together.

        Args:
            known: The micro-batches of the generation from this one on.
            steps: Micro-batches of this optimizer step.
            measure: Counts micro-batches that cover a share of the step.
        """
        if self._left == 0 or self._window is None:
            size = max(min(steps - self._done, len(known)), 1)
            self._window = measure(known[:size], size / steps)
            self._left = size
        self._left -= 1
        self._done += 1
        return self._window


def loss_mask(inputs: dict[str, Any]) -> Tensor:
    """Return the tokens that the model itself wrote [B, T]; tool output is attended to but never learnt."""
    mask: Tensor = inputs["completion_mask"]
    if "tool_mask" in inputs:
        mask = mask * inputs["tool_mask"]
    return mask


def measure(batches: Sequence[dict[str, Any]], mode: str, share: float, reduce_sum: Any) -> Window:
    """Add up the denominators of micro-batches over all ranks. Every rank must call this together.

    Args:
        batches: This rank's micro-batches.
        mode: Loss aggregation mode.
        share: See `Window`.
        reduce_sum: Adds a tensor up over the ranks.

    Returns:
        The window.
    """
    device = batches[0]["completion_mask"].device
    # Counts of tokens outgrow float32's whole numbers; Apple's GPUs have nothing wider.
    sums = torch.zeros(2, dtype=torch.float32 if device.type == "mps" else torch.float64, device=device)
    for batch in batches:
        mask = loss_mask(batch)
        active = mask * batch["sdpo_active"].to(mask).unsqueeze(1)
        for index, chosen in enumerate((active, mask)):
            sums[index] += loss_denominator(chosen, mode)
    total = reduce_sum(sums)
    # A plain sum over tokens has no mean for a share to be part of.
    share = 1.0 if mode == "seq-mean-token-sum-norm" else share
    return Window(active=total[0], all_tokens=total[1], share=share)
