r"""SDPO beside policy gradients: the advantage view, GRPO's token loss, the hybrid, and the off-policy token form.

Sign: every function returns a loss to be minimised; advantages are positive where a token should become likelier.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sdpo_plugins.errors import ConfigError, DataError
from sdpo_plugins.losses._checks import check_same_shape
from sdpo_plugins.losses.divergences import accumulation_dtype, floor_log_probs
from sdpo_plugins.losses.weights import truncated_importance_weights

__all__ = [
    "CLIP_HIGH",
    "CLIP_LOW",
    "ROLLOUT_WEIGHT_CAP",
    "distillation_advantages",
    "group_advantages",
    "hybrid_per_token",
    "off_policy_token_loss",
    "policy_gradient_loss",
]

CLIP_LOW = 0.2
"""ε_low of the PPO clip in the paper: ratios below 1 − ε_low are clipped."""
CLIP_HIGH = 0.28
"""ε_high of the PPO clip in the paper: ratios above 1 + ε_high are clipped."""
ROLLOUT_WEIGHT_CAP = 2.0
"""ρ of the paper: largest truncated importance weight π_old/π_rollout."""


def distillation_advantages(student_logp: Tensor, teacher_logp: Tensor) -> Tensor:
    """Advantages that self-distillation amounts to: how much likelier a token is to the teacher.

    Formula:
        A_t(v) = log q(v) − log π(v), without gradient. −Σ_v π(v)·A(v) is the reverse KL(S‖T), and
        −Σ_v sg(π(v)·A(v))·∇log π(v) its gradient.

    Args:
        student_logp: Log-probs of the student, any shape: `[..., V]`, or `[B, T]` for the sampled tokens.
        teacher_logp: Log-probs of the teacher, same shape.

    Returns:
        Advantages in nats, the same shape, detached, finite (−inf counts as −10⁴).

    Example:
        >>> distillation_advantages(torch.tensor([0.5]).log(), torch.tensor([1.0]).log())
        tensor([0.6931])

    Source: arXiv 2601.20802, section 2 (advantage view).
    """
    return (floor_log_probs(teacher_logp) - floor_log_probs(student_logp)).detach()


def group_advantages(rewards: Tensor, group_ids: Tensor) -> Tensor:
    """Sequence advantages of GRPO without division by the deviation.

    Formula:
        A_i = r_i − mean of r over the rollouts with the same group id.

    Args:
        rewards: `[N]`.
        group_ids: `[N]` whole numbers: which question each rollout answers.

    Returns:
        Advantages `[N]`, in the unit of the reward.

    Raises:
        DataError: Shapes differ.

    Example:
        >>> group_advantages(torch.tensor([1.0, 0.0, 3.0]), torch.tensor([7, 7, 2]))
        tensor([ 0.5000, -0.5000,  0.0000])

    Source: arXiv 2601.20802, Eq. 3.
    """
    if rewards.dim() != 1 or rewards.shape != group_ids.shape:
        raise DataError(
            f"`rewards` and `group_ids` must both have the shape [N], got {list(rewards.shape)} and "
            f"{list(group_ids.shape)}."
        )
    wide = rewards.to(accumulation_dtype(rewards.dtype))
    _, place, sizes = torch.unique(group_ids, return_inverse=True, return_counts=True)
    sums = torch.zeros(sizes.shape, dtype=wide.dtype, device=wide.device).scatter_add_(0, place, wide)
    return wide - (sums / sizes)[place]


def policy_gradient_loss(
    log_probs: Tensor,
    advantages: Tensor,
    old_log_probs: Tensor | None = None,
    *,
    clip_low: float = CLIP_LOW,
    clip_high: float = CLIP_HIGH,
) -> Tensor:
    """PPO's clipped token loss, unreduced.

    Formula:
        −min(w·A, clamp(w, 1 − clip_low, 1 + clip_high)·A) with w = π/π_old.

    Args:
        log_probs: `[B, T]` log π(y) of the sampled tokens, with gradient.
        advantages: `[B]`, one per sequence (GRPO: `group_advantages`), or `[B, T]`; used without gradient.
        old_log_probs: `[B, T]` log π_old(y); None: on-policy, w is 1 in value and ∇log π in gradient.
        clip_low: ε_low ≥ 0.
        clip_high: ε_high ≥ 0.

    Returns:
        Token losses `[B, T]` with gradient; mask and reduce them with `aggregate`.

    Raises:
        ConfigError: A negative clip.
        DataError: Shapes do not fit.

    Example:
        >>> policy_gradient_loss(torch.zeros(1, 2), torch.tensor([0.5]))
        tensor([[-0.5000, -0.5000]])

    Source: Schulman et al. 2017 (clip); arXiv 2601.20802 for 0.2/0.28.
    """
    if clip_low < 0 or clip_high < 0:
        raise ConfigError(f"PPO clips must be at least 0, got clip_low={clip_low!r}, clip_high={clip_high!r}.")
    check_same_shape(log_probs.shape, old_log_probs=old_log_probs)
    if advantages.dim() < log_probs.dim():
        check_same_shape(log_probs.shape[:1], advantages=advantages)
        advantages = advantages.unsqueeze(-1)
    else:
        check_same_shape(log_probs.shape, advantages=advantages)
    current = log_probs.to(accumulation_dtype(log_probs.dtype))
    advantages = advantages.detach().to(current.dtype)
    old = (current if old_log_probs is None else old_log_probs).detach().to(current.dtype)
    # ±20 keeps exp finite; beyond it the clip decides anyway.
    ratio = (current - old).clamp(-20.0, 20.0).exp()
    return -torch.minimum(ratio * advantages, ratio.clamp(1.0 - clip_low, 1.0 + clip_high) * advantages)


def hybrid_per_token(grpo: Tensor, sdpo: Tensor, grpo_weight: float) -> Tensor:
    """Mix of GRPO's and SDPO's token losses.

    Formula:
        λ·GRPO + (1−λ)·SDPO; at λ = 0 and λ = 1 exactly the one of them.

    Args:
        grpo: Token losses of the policy gradient `[B, T]`, or its reduced loss.
        sdpo: Token losses of SDPO of the same shape, **already 0 where a rollout is inactive** (inactive rollouts keep
            their GRPO part), or its reduced loss. Mixing the reduced losses, GRPO over the response mask and SDPO over
            the active mask, is what `grpo_weight` of the configuration means.
        grpo_weight: λ in [0, 1]; the paper finds 0.9 to help 0.6B models.

    Returns:
        The mix, same shape.

    Raises:
        ConfigError: λ lies outside [0, 1].
        DataError: Shapes differ.

    Example:
        >>> hybrid_per_token(torch.tensor([1.0]), torch.tensor([3.0]), 0.5)
        tensor([2.])

    Source: arXiv 2601.20802, Eq. 3.
    """
    if not 0.0 <= grpo_weight <= 1.0:
        raise ConfigError(f"`grpo_weight` must lie in [0, 1] (0: SDPO alone, 1: GRPO alone), got {grpo_weight!r}.")
    if grpo.shape != sdpo.shape:
        raise DataError(f"GRPO's and SDPO's losses must have one shape, got {list(grpo.shape)} and {list(sdpo.shape)}.")
    if grpo_weight in (0.0, 1.0):
        return grpo if grpo_weight else sdpo
    return grpo_weight * grpo + (1.0 - grpo_weight) * sdpo


def off_policy_token_loss(
    student_log_probs: Tensor,
    teacher_log_probs: Tensor,
    old_log_probs: Tensor,
    rollout_log_probs: Tensor | None = None,
    *,
    clip_low: float = CLIP_LOW,
    clip_high: float = CLIP_HIGH,
    weight_cap: float = ROLLOUT_WEIGHT_CAP,
) -> Tensor:
    """Self-distillation on the sampled tokens of an older policy, as a clipped policy gradient.

    Formula:
        min(π_old/π_rollout, ρ) · policy_gradient_loss with A_t = log q(y_t) − log π(y_t), without gradient.

    Args:
        student_log_probs: `[B, T]` log π(y), with gradient.
        teacher_log_probs: `[B, T]` log q(y).
        old_log_probs: `[B, T]` log π_old(y) at the start of the mini-batches.
        rollout_log_probs: `[B, T]` log-probs of the generation engine; None: it is the old policy itself (weight 1).
        clip_low: ε_low of the PPO clip.
        clip_high: ε_high of the PPO clip.
        weight_cap: ρ, the largest rollout weight.

    Returns:
        Token losses `[B, T]` with gradient, unreduced.

    Raises:
        ConfigError: A negative clip.
        DataError: Shapes do not fit.

    Example:
        >>> log_half, log_one = torch.full((1, 1), 0.5).log(), torch.zeros(1, 1)
        >>> off_policy_token_loss(log_half, log_one, log_half)
        tensor([[-0.6931]])

    Source: arXiv 2601.20802, Eq. 12.
    """
    check_same_shape(
        student_log_probs.shape,
        teacher_log_probs=teacher_log_probs,
        old_log_probs=old_log_probs,
        rollout_log_probs=rollout_log_probs,
    )
    advantages = distillation_advantages(student_log_probs, teacher_log_probs)
    losses = policy_gradient_loss(student_log_probs, advantages, old_log_probs, clip_low=clip_low, clip_high=clip_high)
    if rollout_log_probs is None:
        return losses
    return losses * truncated_importance_weights(old_log_probs, rollout_log_probs, weight_cap)
