"""How many tokens the fused loss works on at a time, from a memory budget."""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable

import torch

from sdpo_plugins.errors import ConfigError

__all__ = [
    "DEFAULT_CHUNK_MEMORY_MB",
    "block_bytes",
    "chunk_rows",
    "default_chunk_memory_mb",
    "gathered_rows",
    "product_block",
    "vocabulary_block",
]

DEFAULT_CHUNK_MEMORY_MB = {"cpu": 256, "cuda": 1024}
"""MiB of working memory per device type; others take the CPU's. Matrix products on a GPU want taller chunks."""

# What element-wise work is done on at a time. A CPU's core caches it, and below 1 MiB the C library recycles memory
# where it would else fetch fresh pages; on a GPU the work has to outlast the launch of its kernels.
_BLOCK_BYTES = {"cpu": 960 << 10, "cuda": 64 << 20}

# Matrix products want wider blocks: narrow ones leave the units idle at their edges.
_PRODUCT_BYTES = {"cpu": 32 << 20, "cuda": 128 << 20}


def default_chunk_memory_mb(device: torch.device) -> int:
    """Return the working memory that the loss takes where none is asked for, in MiB.

    Example:
        >>> default_chunk_memory_mb(torch.device("cpu"))
        256
    """
    return DEFAULT_CHUNK_MEMORY_MB.get(device.type, DEFAULT_CHUNK_MEMORY_MB["cpu"])


def chunk_rows(rows: int, size_of: Callable[[int], int], memory_mb: float | None, device: torch.device) -> int:
    """Return how many tokens make a chunk: as many as fit, cut so that the chunks are about equal.

    Args:
        rows: N, tokens in all.
        size_of: Working memory of a chunk of so many tokens, in bytes.
        memory_mb: Budget in MiB; None: `default_chunk_memory_mb`.
        device: Where the work is done.

    Raises:
        ConfigError: Not even one token's row fits.

    Example:
        >>> chunk_rows(1000, lambda count: count << 20, 300, torch.device("cpu"))
        250
    """
    budget = default_chunk_memory_mb(device) if memory_mb is None else memory_mb
    if not (math.isfinite(budget) and budget > 0):
        raise ConfigError(f"`chunk_memory_mb` must be a finite number greater than 0 (MiB), got {budget!r}.")
    most = bisect.bisect_right(range(1, max(rows, 1) + 1), int(budget * (1 << 20)), key=size_of)
    if most < 1:
        least = size_of(1) / (1 << 20)
        raise ConfigError(
            f"`chunk_memory_mb={budget:g}` is too small: one token's row of logits and what is computed from it take "
            f"{least:.3g} MiB here. Give at least {math.ceil(least)}; the default on this device is "
            f"{default_chunk_memory_mb(device)}."
        )
    chunks = math.ceil(max(rows, 1) / most)
    return math.ceil(max(rows, 1) / chunks)


def vocabulary_block(rows: int, vocabulary: int, item_bytes: int, device: str = "cpu") -> int:
    """Return how many columns of a chunk are worked on at a time, entry by entry: about 1 MiB on a CPU.

    Example:
        >>> vocabulary_block(60, 1 << 18, 4)
        4096
    """
    return _columns(_for(_BLOCK_BYTES, device), rows, vocabulary, item_bytes)


def product_block(rows: int, vocabulary: int, item_bytes: int, device: str = "cpu") -> int:
    """Return how many logits of each row are computed at a time where not all are kept: 32 MiB on a CPU.

    Example:
        >>> product_block(64, 1 << 18, 4)
        131072
    """
    return _columns(_for(_PRODUCT_BYTES, device), rows, vocabulary, item_bytes)


def block_bytes(rows: int, vocabulary: int, item_bytes: int, device: str = "cpu", *, product: bool = False) -> int:
    """Return the most memory that such a block of columns takes: of a `vocabulary_block`, or of a `product_block`.

    Example:
        >>> block_bytes(1, 1000, 4), block_bytes(60, 1 << 18, 4)
        (4000, 983040)
    """
    size = _for(_PRODUCT_BYTES if product else _BLOCK_BYTES, device)
    return max(min(rows * vocabulary * item_bytes, size), rows * min(256, vocabulary) * item_bytes)


def gathered_rows(row_bytes: int, device: str = "cpu") -> int:
    """Return for how many tokens at a time rows of a head are gathered, `row_bytes` for each token.

    Example:
        >>> gathered_rows(100 * 896 * 4)
        2
    """
    return max(1, _for(_BLOCK_BYTES, device) // row_bytes)


def _columns(size: int, rows: int, vocabulary: int, item_bytes: int) -> int:
    return max(256, min(vocabulary, size // max(1, rows * item_bytes)))


def _for(sizes: dict[str, int], device: str) -> int:
    return sizes.get(device, sizes["cpu"])
