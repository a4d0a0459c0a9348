"""Refusing hidden states, heads and token ids that do not belong together, with the reason."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from sdpo_plugins.errors import DataError
from sdpo_plugins.losses.fused.head import LMHead

__all__ = ["check_rows", "check_token_ids", "explain_rows"]


def check_rows(name: str, hidden: Tensor, head: LMHead, most: int) -> None:
    """Raise DataError unless `hidden` is `[N, H]` for this head, with the number of rows that is wanted."""
    if hidden.dim() != 2 or not hidden.is_floating_point():
        raise DataError(
            f"`{name}` must be float hidden states, one row of width H for each token, got {list(hidden.shape)} of "
            f"{hidden.dtype}."
        )
    if hidden.shape[1] != head.width:
        raise DataError(
            f"`{name}` has the width {hidden.shape[1]}, but its head multiplies {head.width}: the weight is "
            f"[V, H] = {[head.vocabulary, head.width]}. Pass the last hidden states (after the final norm) of the "
            "model that the head belongs to."
        )
    if hidden.shape[0] != most:
        raise DataError(f"`{name}` must have one row for each of the {most} tokens, got {hidden.shape[0]}.")
    if hidden.device != head.weight.device:
        raise DataError(f"`{name}` lies on {hidden.device}, its head on {head.weight.device}. Move one to the other.")


def check_token_ids(token_ids: Tensor, head: LMHead) -> None:
    """Raise DataError unless the ids are whole numbers in [0, V)."""
    if token_ids.dim() != 1 or token_ids.is_floating_point() or token_ids.dtype == torch.bool:
        raise DataError(f"`token_ids` must be whole numbers, got {token_ids.dtype} of shape {list(token_ids.shape)}.")
    if token_ids.numel():
        low, high = (int(bound) for bound in torch.aminmax(token_ids))
        if low < 0 or high >= head.vocabulary:
            raise DataError(
                f"`token_ids` must lie in [0, {head.vocabulary}), the vocabulary of the head, got values from {low} to "
                f"{high}. Mask label paddings such as -100."
            )


def explain_rows(
    values: Sequence[tuple[Tensor, Tensor | None]],
    hidden: Sequence[tuple[str, Tensor]],
    per_row: Sequence[tuple[str, Any]],
    place: Callable[[int], str],
) -> DataError:
    """Find out why a fused loss is not finite.

    Args:
        values: Log-probs and token losses of each chunk.
        hidden: Named `[N, H]` hidden states.
        per_row: Named `[N]` inputs; what is no tensor is passed over.
        place: Names a row.

    Returns:
        The error to raise; it names tensor and row.
    """
    for name, states in hidden:
        bad = (~torch.isfinite(states)).any(-1).nonzero()
        if bad.numel():
            row = int(bad[0])
            entry = int((~torch.isfinite(states[row])).nonzero()[0])
            return DataError(
                f"`{name}` must be finite, got {states[row, entry].item()} in {place(row)}, entry {entry} of "
                f"{states.shape[1]}. Look for an overflow in the model (float16?), a too large learning rate, or a "
                "corrupt checkpoint."
            )
    for name, numbers in per_row:
        if isinstance(numbers, Tensor) and not bool(torch.isfinite(numbers).all()):
            row = int((~torch.isfinite(numbers)).nonzero()[0])
            return DataError(
                f"`{name}` must be finite at active tokens, got {numbers[row].item()} in {place(row)}. Check what the "
                "host computed."
            )
    start = 0
    for log_probs, losses in values:
        bad_rows = ~torch.isfinite(log_probs)
        if losses is not None:
            bad_rows |= ~torch.isfinite(losses)
        if bool(bad_rows.any()):
            row = start + int(bad_rows.nonzero()[0])
            return DataError(
                f"the logits or the loss of {place(row)} are not finite, though its hidden states are: look for NaN or "
                "infinity in a head, or, with a divergence of a plug-in, at very small probabilities."
            )
        start += log_probs.shape[0]
    return DataError("the loss is not finite though each token's is: the weighted sum overflows. Check the weights.")
