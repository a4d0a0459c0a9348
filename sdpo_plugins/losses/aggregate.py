r"""From token losses `[B, T]` to one number: numerator over denominator, so that hosts can normalise globally.

With token losses ℓ, mask m, n_i = Σ_t m_it and N = #{i: n_i > 0}:

| mode | numerator (adds up over rows) | denominator |
|---|---|---|
| `token-mean` | Σ_i Σ_t m·ℓ | Σ_i n_i, the active tokens |
| `seq-mean-token-sum` | Σ_i Σ_t m·ℓ | N, the active sequences |
| `seq-mean-token-mean` | Σ_i (Σ_t m·ℓ) / (n_i + 10⁻⁸) | N, the active sequences |
| `seq-mean-token-sum-norm` | (Σ_i Σ_t m·ℓ) / L | 1: L is a constant, and no count of the batch enters |

L is `scale_factor`, or the padded length T. Rows without an active token count nowhere. The 10⁻⁸ is the authors'; it
is reproduced because parity to 1e-9 shows it. In the last mode the authors do not divide by the number of sequences,
in spite of the mode's name, and neither does this module.

A host that cuts a mini-batch into micro-batches or spreads it over ranks sums `loss_denominator` over all of them first
and passes the sum to each call; the losses (and gradients) of the parts then add up to those of the whole.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sdpo_plugins._options import LOSS_AGG_MODES
from sdpo_plugins.errors import ConfigError, DataError, nearest
from sdpo_plugins.losses._checks import check_same_shape

__all__ = ["active_mask", "aggregate", "loss_denominator", "loss_numerator"]

_AUTHORS_EPSILON = 1e-8


def active_mask(response_mask: Tensor, self_distillation_mask: Tensor | None = None) -> Tensor:
    """Return which tokens carry loss: response mask times self-distillation mask.

    Args:
        response_mask: `[B, T]`, 1 for tokens that the student generated (0 for padding and tool output).
        self_distillation_mask: `[B]`, 1 for rollouts whose teacher knows more (a demonstration or feedback); None: all.

    Returns:
        `[B, T]` float32, to be given to `aggregate` and `loss_denominator`.

    Raises:
        DataError: Shapes do not fit.

    Example:
        >>> active_mask(torch.ones(2, 2), torch.tensor([1, 0]))
        tensor([[1., 1.],
                [0., 0.]])
    """
    mask = response_mask.to(torch.float32)
    if self_distillation_mask is None:
        return mask
    check_same_shape(response_mask.shape[:1], self_distillation_mask=self_distillation_mask)
    return mask * self_distillation_mask.to(device=mask.device, dtype=mask.dtype).unsqueeze(-1)


def loss_numerator(per_token: Tensor, mask: Tensor, mode: str, *, scale_factor: float | None = None) -> Tensor:
    """Return the part of the loss that adds up over rows, see the module's table.

    Args:
        per_token: Token losses `[B, T]`; values where the mask is 0 are never read, not even NaN.
        mask: `[B, T]`, 1 for active tokens (bool, integer or float).
        mode: One of `LOSS_AGG_MODES`.
        scale_factor: L of `seq-mean-token-sum-norm` in tokens; None: T. Give it where micro-batches are padded to
            different lengths.

    Returns:
        0-dim tensor with gradient; exactly 0, still with a graph, if nothing is active.

    Raises:
        ConfigError: Unknown mode.
        DataError: Shapes differ.
    """
    _check(mode, mask, per_token)
    weights = mask.to(per_token.dtype)
    # `where` before the product, since 0·NaN is NaN.
    masked = torch.where(weights != 0, per_token, torch.zeros_like(per_token)) * weights
    if mode == "seq-mean-token-mean":
        return (masked.sum(-1) / (weights.sum(-1) + _AUTHORS_EPSILON)).sum()
    if mode == "seq-mean-token-sum-norm":
        return masked.sum() / (max(1, mask.shape[-1]) if scale_factor is None else scale_factor)
    return masked.sum()


def loss_denominator(mask: Tensor, mode: str) -> Tensor:
    """Count what the loss is averaged over: active tokens for `token-mean`, active sequences for `seq-mean-*`.

    Args:
        mask: `[B, T]`, 1 for active tokens: response mask times self-distillation mask.
        mode: One of `LOSS_AGG_MODES`.

    Returns:
        0-dim float32 tensor without gradient; sum it over micro-batches and ranks. (`seq-mean-token-sum-norm` gets the
        count, too, so that hosts need no case of their own, but does not divide by it.)

    Raises:
        ConfigError: Unknown mode.

    Example:
        >>> loss_denominator(torch.tensor([[1, 1, 0], [0, 0, 0]]), "token-mean")
        tensor(2.)
    """
    _check(mode, mask)
    counts = mask.detach().to(torch.float32).sum(-1)
    return counts.sum() if mode == "token-mean" else (counts > 0).to(torch.float32).sum()


def aggregate(
    per_token: Tensor,
    mask: Tensor,
    mode: str,
    *,
    denominator: Tensor | float | None = None,
    scale_factor: float | None = None,
) -> Tensor:
    """Reduce token losses to a scalar.

    Formula:
        loss_numerator / denominator, see the module's table.

    Args:
        per_token: Token losses `[B, T]`.
        mask: `[B, T]`, 1 for active tokens.
        mode: One of `LOSS_AGG_MODES`.
        denominator: `loss_denominator` summed over all micro-batches and ranks that make one optimizer step; None:
            this batch alone (the authors' behaviour per micro-batch). 0 counts as 1: with nothing active anywhere the
            loss is 0. The mode `seq-mean-token-sum-norm` divides by L alone and has no use for it.
        scale_factor: L of `seq-mean-token-sum-norm` in tokens; None: T.

    Returns:
        0-dim tensor with gradient.

    Raises:
        ConfigError: Unknown mode.
        DataError: Shapes differ, or a negative denominator.

    Example:
        >>> losses, mask = torch.tensor([[1.0, 3.0], [9.0, 9.0]]), torch.tensor([[1, 1], [0, 0]])
        >>> aggregate(losses, mask, "token-mean")
        tensor(2.)

    Source: arXiv 2601.20802, the authors' `agg_loss`.
    """
    numerator = loss_numerator(per_token, mask, mode, scale_factor=scale_factor)
    if mode == "seq-mean-token-sum-norm":
        return numerator
    if denominator is None:
        return numerator / loss_denominator(mask, mode).to(numerator.dtype).clamp(min=1.0)
    if not isinstance(denominator, Tensor):
        if not denominator >= 0:
            raise DataError(
                f"`denominator` must be a count of active tokens or sequences (0 or more), got {denominator!r}. "
                "Use `loss_denominator` on each micro-batch and add up the results."
            )
        return numerator / (denominator or 1.0)
    divisor = denominator.detach().to(device=numerator.device, dtype=numerator.dtype)
    return numerator / torch.where(divisor == 0, torch.ones_like(divisor), divisor)


def _check(mode: str, mask: Tensor, per_token: Tensor | None = None) -> None:
    if mode not in LOSS_AGG_MODES:
        listing = ", ".join(map(repr, LOSS_AGG_MODES))
        raise ConfigError(f"`loss_agg_mode` must be one of {listing}, got {mode!r}.{nearest(mode, LOSS_AGG_MODES)}")
    if mask.dim() != 2 or (per_token is not None and per_token.shape != mask.shape):
        given = "" if per_token is None else f"token losses {list(per_token.shape)} and "
        raise DataError(f"Token losses and mask must both have the shape [B, T], got {given}mask {list(mask.shape)}.")
