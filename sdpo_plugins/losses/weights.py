"""Factors on token losses: importance ratios, rollout weights and the per-token clip. All detached."""

from __future__ import annotations

from torch import Tensor

from sdpo_plugins.losses.divergences import accumulation_dtype

__all__ = ["clip_token_losses", "importance_ratio", "truncated_importance_weights"]

_LARGEST_LOG_RATIO = 20.0


def importance_ratio(log_probs: Tensor, old_log_probs: Tensor, clip: float | None = None) -> Tensor:
    """Importance ratio of the current to the old policy per token, clipped from above, without gradient.

    Formula:
        min(exp(clamp(log π − log π_old, −20, 20)), clip).

    Args:
        log_probs: Log-probs of the sampled tokens under the current student, any shape.
        old_log_probs: The same under the policy that the mini-batch started from, same shape.
        clip: Largest ratio; None: no clip.

    Returns:
        Ratios of the same shape in float32 (float64 for float64 inputs), detached.

    Example:
        >>> import torch
        >>> importance_ratio(torch.tensor([0.0, 3.0]), torch.tensor([0.0, 0.0]), clip=2.0)
        tensor([1., 2.])

    Source: arXiv 2601.20802, the authors' `is_clip`.
    """
    dtype = accumulation_dtype(log_probs.dtype)
    difference = log_probs.detach().to(dtype) - old_log_probs.detach().to(dtype)
    ratio = difference.clamp(-_LARGEST_LOG_RATIO, _LARGEST_LOG_RATIO).exp()
    return ratio if clip is None else ratio.clamp(max=clip)


def truncated_importance_weights(old_log_probs: Tensor, rollout_log_probs: Tensor, cap: float) -> Tensor:
    """Rollout correction: how much likelier a token is to the trainer's policy than to the engine that sampled it.

    Formula:
        min(π_old / π_rollout, cap), the log ratio first clamped to ±20.

    Args:
        old_log_probs: Log-probs of the sampled tokens, recomputed by the trainer, any shape.
        rollout_log_probs: Log-probs that the generation engine reported, same shape.
        cap: Largest weight (2 in the paper).

    Returns:
        Token weights to pass as `rollout_is_weights`, detached.

    Example:
        >>> import torch
        >>> truncated_importance_weights(torch.tensor([0.0]), torch.tensor([-5.0]), cap=2.0)
        tensor([2.])

    Source: arXiv 2601.20802, token-level rollout importance sampling.
    """
    return importance_ratio(old_log_probs, rollout_log_probs, cap)


def clip_token_losses(per_token: Tensor, limit: float | None) -> Tensor:
    """Cut each token's loss off at an upper limit; a token above it gets no gradient.

    Formula:
        min(loss, limit).

    Args:
        per_token: Losses in nats, any shape, before weights.
        limit: Largest value; None: unchanged.

    Returns:
        The same shape.

    Example:
        >>> import torch
        >>> clip_token_losses(torch.tensor([0.1, 9.0]), 1.0)
        tensor([0.1000, 1.0000])
    """
    return per_token if limit is None else per_token.clamp(max=limit)
