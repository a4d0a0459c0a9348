"""Row-wise softmax statistics of a chunk of logits, a block of columns at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from sdpo_plugins.losses.divergences import LOG_PROB_FLOOR
from sdpo_plugins.losses.fused.budget import product_block, vocabulary_block
from sdpo_plugins.losses.fused.matmul import blocks

__all__ = ["RunningNormalizer", "cache_blocks", "column_blocks", "exp_in_place", "row_dot", "row_normalizer"]


def column_blocks(logits: Tensor) -> list[slice]:
    """Cut the columns of a chunk `[n, V]` into blocks that are wide enough for matrix products."""
    rows, width = logits.shape
    return list(blocks(width, product_block(rows, width, logits.element_size(), logits.device.type)))


def cache_blocks(logits: Tensor) -> list[slice]:
    """Cut the columns of a chunk `[n, V]` into blocks that a cache holds, for work entry by entry."""
    rows, width = logits.shape
    return list(blocks(width, vocabulary_block(rows, width, logits.element_size(), logits.device.type)))


def row_dot(left: Tensor, right: Tensor) -> Tensor:
    """Return Σ_v left·right of each row `[n]`, without a temporary of their size."""
    return torch.linalg.vecdot(left, right)


class RunningNormalizer:
    """logsumexp of rows whose columns arrive block by block."""

    def __init__(self, like: Tensor) -> None:
        self.largest = torch.full_like(like, float("-inf"))
        self.total = torch.zeros_like(like)

    def add(self, block: Tensor) -> None:
        """Count some columns `[n, v]`."""
        for part in cache_blocks(block):
            self._add(block[:, part])

    def _add(self, block: Tensor) -> None:
        largest = torch.maximum(self.largest, block.amax(-1))
        # A row of −inf alone so far: any finite shift will do, and −inf − 0 stays −inf.
        shift = torch.where(torch.isneginf(largest), torch.zeros_like(largest), largest)
        self.total = self.total * (self.largest - shift).exp() + (block - shift.unsqueeze(-1)).exp_().sum(-1)
        self.largest = largest

    @property
    def value(self) -> Tensor:
        """The normaliser `[n]`: −inf where all was −inf, NaN where there was NaN or +inf."""
        return self.largest + self.total.log()


def row_normalizer(logits: Tensor) -> Tensor:
    """Return log Σ_v exp(logit_v) of each row of `[n, V]`; NaN where a row holds NaN or +inf."""
    running = RunningNormalizer(logits[:, 0])
    running.add(logits)
    return running.value


def exp_in_place(logits: Tensor, entropies: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """Overwrite `[n, V]` logits with exp(logit − max), and say what that has to be divided by.

    Args:
        logits: Overwritten.
        entropies: Whether to compute them.

    Returns:
        The normaliser log Σ exp(logit) `[n]`, Σ exp(logit − max) `[n]`, and the entropies in nats `[n]` or None.
    """
    largest = logits.amax(-1, keepdim=True)
    total = torch.zeros_like(largest[:, 0])
    moment = torch.zeros_like(total)
    for block in cache_blocks(logits):
        part = logits[:, block].sub_(largest)
        if entropies:
            # −inf would make 0·(−inf); an entry this small has probability 0 in any float.
            shifted = part.clamp(min=LOG_PROB_FLOOR)
            part.exp_()
            moment += row_dot(part, shifted)
        else:
            part.exp_()
        total += part.sum(-1)
    normalizer = largest[:, 0] + total.log()
    return normalizer, total, total.log() - moment / total if entropies else None
