"""The forwards that make up a teacher's logits, and their mix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sdpo_plugins.errors import TeacherError

__all__ = ["Pass", "mix_passes"]


@dataclass(frozen=True)
class Pass:
    """One forward of the model on the teacher's input.

    Args:
        name: For messages and profiles.
        share: Its weight in the mix of logits; the shares of a teacher add up to 1.
        held: True: with the teacher's own weights in the module; False: with the student's, as they are now.
    """

    name: str
    share: float
    held: bool


@torch.no_grad()
def mix_passes(passes: Sequence[Pass], outputs: Sequence[Any]) -> Any:
    """Return Σ share·logits over the passes, in float32; a single pass's output is returned as it is.

    Args:
        passes: One or more.
        outputs: What the forwards returned, in the same order: raw logits [..., V], before the temperature.

    Returns:
        Logits [..., V].

    Raises:
        TeacherError: There are more or fewer outputs than passes, or outputs to be mixed are no tensors.

    Example:
        >>> halves = [Pass("reference", 0.5, True), Pass("student", 0.5, False)]
        >>> mix_passes(halves, [torch.tensor([0.0, 2.0]), torch.tensor([1.0, 0.0])]).tolist()
        [0.5, 1.0]
    """
    if len(outputs) != len(passes):
        wanted = ", ".join(item.name for item in passes)
        raise TeacherError(
            f"there must be one output for each of this teacher's passes ({wanted}), got {len(outputs)} outputs."
        )
    if len(outputs) == 1:
        return outputs[0]
    for item, output in zip(passes, outputs, strict=True):
        if not isinstance(output, Tensor):
            raise TeacherError(
                f"passes are mixed as logits, so `forward` must return one tensor [..., vocabulary], but the pass "
                f"{item.name!r} gave {type(output).__name__}. Return `output.logits`, for example."
            )
    # A weighted sum, not lerp: where both logits are −inf, lerp's difference would be NaN.
    total = outputs[0].float() * passes[0].share
    for item, output in zip(passes[1:], outputs[1:], strict=True):
        total.add_(output.float(), alpha=item.share)
    return total
