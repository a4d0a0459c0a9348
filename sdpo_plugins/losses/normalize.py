"""Log-probabilities of chosen vocabulary entries, normalised over all of them, without a `[tokens, V]` float32 copy.

Logits are read in blocks of rows. The backward pass recomputes each block's softmax from the saved logits and writes
one gradient buffer in the logits' own dtype; nothing else of that size is ever held.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from sdpo_plugins.losses.divergences import accumulation_dtype

__all__ = ["gather_log_probs", "log_normalizer"]

_BLOCK_ELEMENTS = 1 << 24
"""Logits read at once (64 MiB as float32)."""


def log_normalizer(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Return log Σ_v exp(logit_v / τ) of each row, without gradient.

    Args:
        logits: `[..., V]`, any float dtype; −inf excludes an entry.
        temperature: τ > 0.

    Returns:
        `[...]`, computed in float32 (float64 for float64 logits); −inf where a whole row is −inf, NaN where a row holds
        NaN or +inf.

    Example:
        >>> log_normalizer(torch.zeros(1, 4))
        tensor([1.3863])
    """
    rows = _as_batches(logits.detach())
    result = torch.empty(rows.shape[:-1], dtype=accumulation_dtype(logits.dtype), device=logits.device)
    for block in _blocks(rows):
        result[block] = torch.logsumexp(_scaled(rows[block], temperature), dim=-1)
    # A logit of +inf would leave −inf for all others, which the floor on log-probs would then hide.
    return result.masked_fill_(torch.isposinf(result), float("nan")).view(logits.shape[:-1])


def gather_log_probs(logits: Tensor, ids: Tensor, temperature: float = 1.0, normalizer: Tensor | None = None) -> Tensor:
    """Return the log-probabilities of some vocabulary entries, with gradient to all logits.

    Formula:
        log p_v = logit_v / τ − log Σ_u exp(logit_u / τ). Gradient for upstream g:
        ∂/∂logit_u = (g_u − p_u·Σ_v g_v) / τ, with g_u = 0 outside of `ids`.

    Args:
        logits: `[..., V]`, any float dtype; −inf excludes an entry.
        ids: `[..., M]` whole numbers in [0, V); they may repeat.
        temperature: τ > 0.
        normalizer: `log_normalizer(logits, temperature)` where it is known already; its gradient is accounted for.

    Returns:
        Log-probs `[..., M]` in float32 (float64 for float64 logits); −inf where the logit is.

    Example:
        >>> gather_log_probs(torch.zeros(1, 4), torch.tensor([[2]]))
        tensor([[-1.3863]])
    """
    if normalizer is None:
        normalizer = log_normalizer(logits, temperature)
    result: Tensor = _GatherLogProbs.apply(logits, ids, normalizer, temperature)
    return result


class _GatherLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, ids: Tensor, normalizer: Tensor, temperature: float) -> Tensor:
        ctx.save_for_backward(logits, ids, normalizer)
        ctx.temperature = temperature
        return _scaled(logits.gather(-1, ids), temperature) - normalizer.unsqueeze(-1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, None, None, None]:
        if not ctx.needs_input_grad[0]:
            return None, None, None, None
        logits, ids, normalizer = ctx.saved_tensors
        grads = upstream[0] / ctx.temperature
        totals = grads.sum(-1)
        rows, ids, grads = _as_batches(logits), _as_batches(ids), _as_batches(grads)
        totals, normalizer = totals.view(rows.shape[:-1]), normalizer.view(rows.shape[:-1])
        result = torch.empty(rows.shape, dtype=logits.dtype, device=logits.device)
        for block in _blocks(rows):
            part = (_scaled(rows[block], ctx.temperature) - normalizer[block].unsqueeze(-1)).exp_()
            part.mul_(-totals[block].unsqueeze(-1)).scatter_add_(-1, ids[block], grads[block])
            result[block] = part
        return result.view(logits.shape), None, None, None


def _scaled(logits: Tensor, temperature: float) -> Tensor:
    wide = logits.to(accumulation_dtype(logits.dtype))
    return wide if temperature == 1.0 else wide / temperature


def _as_batches(tensor: Tensor) -> Tensor:
    """View `[..., V]` as `[B, T, V]`: hosts pass slices of three dimensions, which flattening to two would copy."""
    if tensor.dim() == 3:
        return tensor
    if tensor.dim() == 2:
        return tensor.unsqueeze(0)
    return tensor.reshape(1, -1, tensor.shape[-1])


def _blocks(rows: Tensor) -> Iterator[tuple[slice, slice]]:
    batch, length, vocabulary = rows.shape
    count = max(1, _BLOCK_ELEMENTS // vocabulary)
    if batch * length <= count:
        yield slice(None), slice(None)
    elif length <= count:
        step = count // length
        for start in range(0, batch, step):
            yield slice(start, start + step), slice(None)
    else:
        for row in range(batch):
            for start in range(0, length, count):
                yield slice(row, row + 1), slice(start, start + count)
