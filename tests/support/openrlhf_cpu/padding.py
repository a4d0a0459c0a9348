"""Stand-ins for those functions of flash-attn that OpenRLHF imports: they only move rows, so plain torch does it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange

__all__ = ["index_first_axis", "pad_input", "rearrange", "unpad_input"]


def index_first_axis(rows: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """Choose rows.

    Args:
        rows: `[N, ...]`.
        indices: `[M]`, int64.

    Returns:
        `[M, ...]`.
    """
    return rows.index_select(0, indices)


def unpad_input(
    padded: torch.Tensor, attention_mask: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, int, torch.Tensor]:
    """Put a batch's tokens one behind the other, without the padding.

    Args:
        padded: `[B, S, ...]`.
        attention_mask: `[B, S]`, nonzero for a token.

    Returns:
        The tokens' rows `[T, ...]`, their places in the flattened batch `[T]`, the sequences' borders `[B+1]` (int32),
        the longest sequence's length, and the lengths `[B]` (int32).
    """
    lengths = attention_mask.sum(-1, dtype=torch.int32)
    indices = attention_mask.flatten().nonzero().flatten()
    borders = F.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))
    return index_first_axis(padded.flatten(0, 1), indices), indices, borders, int(lengths.max()), lengths


def pad_input(rows: torch.Tensor, indices: torch.Tensor, batch: int, length: int) -> torch.Tensor:
    """Undo `unpad_input`; padding becomes 0.

    Args:
        rows: `[T, ...]`.
        indices: Places in the flattened batch, `[T]`.
        batch: B.
        length: S.

    Returns:
        `[B, S, ...]`.
    """
    padded = rows.new_zeros(batch * length, *rows.shape[1:]).index_copy(0, indices, rows)
    return padded.unflatten(0, (batch, length))
