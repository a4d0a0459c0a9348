"""How many tokens the fused loss works on at a time, from a memory budget."""

from __future__ import annotations

import math

import torch

from sdpo_plugins.errors import ConfigError

__all__ = ["DEFAULT_CHUNK_MEMORY_MB", "chunk_rows", "default_chunk_memory_mb", "vocabulary_block"]

DEFAULT_CHUNK_MEMORY_MB = {"cpu": 256, "cuda": 1024}
"""MiB of working memory per device type; others take the CPU's. Matrix products on a GPU want taller chunks."""

_BLOCK_BYTES = 8 << 20


def default_chunk_memory_mb(device: torch.device) -> int:
    """Return the working memory that the loss takes where none is asked for, in MiB.

    Example:
        >>> default_chunk_memory_mb(torch.device("cpu"))
        256
    """
    return DEFAULT_CHUNK_MEMORY_MB.get(device.type, DEFAULT_CHUNK_MEMORY_MB["cpu"])


def chunk_rows(rows: int, row_bytes: int, memory_mb: float | None, device: torch.device) -> int:
    """Return how many tokens make a chunk: as many as fit, cut so that the chunks are about equal.

    Args:
        rows: N, tokens in all.
        row_bytes: Working memory of one token, in bytes.
        memory_mb: Budget in MiB; None: `default_chunk_memory_mb`.
        device: Where the work is done.

    Raises:
        ConfigError: Not even one token's row fits.

    Example:
        >>> chunk_rows(1000, 1 << 20, 300, torch.device("cpu"))
        250
    """
    budget = default_chunk_memory_mb(device) if memory_mb is None else memory_mb
    if not (math.isfinite(budget) and budget > 0):
        raise ConfigError(f"`chunk_memory_mb` must be a finite number greater than 0 (MiB), got {budget!r}.")
    most = int(budget * (1 << 20)) // row_bytes
    if most < 1:
        raise ConfigError(
            f"`chunk_memory_mb={budget:g}` is too small: one token's row of logits and what is computed from it take "
            f"{row_bytes / (1 << 20):.3g} MiB here. Give at least {math.ceil(row_bytes / (1 << 20))}; the default on "
            f"this device is {default_chunk_memory_mb(device)}."
        )
    chunks = math.ceil(max(rows, 1) / most)
    return math.ceil(max(rows, 1) / chunks)


def vocabulary_block(rows: int, vocabulary: int, item_bytes: int) -> int:
    """Return how many columns of a chunk are worked on at a time: about 8 MiB, which a cache can hold.

    Example:
        >>> vocabulary_block(64, 1 << 18, 4)
        32768
    """
    return max(256, min(vocabulary, _BLOCK_BYTES // max(1, rows * item_bytes)))
