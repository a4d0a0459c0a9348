"""OpenRLHF's own loss as a part of SDPO's: the hybrid's policy gradient, a KL, and its correction of rollouts."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from openrlhf.models import aggregate_loss
from openrlhf.models.utils import compute_approx_kl
from torch import Tensor

__all__ = ["HostLoss", "host_loss_of", "rollout_weights"]

HostLoss = Callable[[Tensor, Any, float, Mapping[str, Any]], Tensor]
"""`f(log_probs [B, A], experience, kl_coefficient, normalisers) -> 0-dim`: the host's part of the objective."""


def host_loss_of(policy_loss: Any, kl_options: Any, grpo_weight: float) -> HostLoss | None:
    r"""Return λ·policy loss + the KL to the reference, both as OpenRLHF computes them; None if there is neither.

    Formula:
        λ·pg + c·KL with λ = `grpo_weight` and, with `--algo.kl.use_loss` and a reference model, c the KL coefficient.

    Args:
        policy_loss: The host's `PolicyLoss`.
        kl_options: The host's `args.algo.kl`.
        grpo_weight: λ.

    Returns:
        A function of log-probs `[B, A]`, an experience, the KL coefficient and the host's normalisers, or None.
    """
    with_kl = bool(kl_options.use_loss) and kl_options.init_coef > 0
    if grpo_weight == 0.0 and not with_kl:
        return None

    def loss(log_probs: Tensor, experience: Any, kl_coefficient: float, normalisers: Mapping[str, Any]) -> Tensor:
        total = log_probs.new_zeros(())
        if grpo_weight > 0.0:
            found = policy_loss(
                log_probs,
                experience.action_log_probs,
                experience.advantages,
                action_mask=experience.action_mask,
                rollout_log_probs=experience.rollout_log_probs,
                **normalisers,
            )
            total = total + grpo_weight * found[0]
        if with_kl:
            more: dict[str, Any] = {}
            if getattr(kl_options, "unbiased_gradient", False):
                more = {"log_probs_old": experience.action_log_probs, "unbiased_gradient": True}
            kl = compute_approx_kl(
                log_probs, experience.base_action_log_probs, kl_estimator=kl_options.estimator, **more
            )
            total = total + kl_coefficient * aggregate_loss(kl, experience.action_mask, **normalisers)
        return total

    return loss


def rollout_weights(policy_loss: Any, experience: Any) -> Tensor | None:
    r"""Return what the host's correction of the rollouts multiplies each token's loss by; None where it is off.

    Every setting of the host counts (clip or mask, token or sequence, in all its releases), because the weights are
    read off its own loss: with advantages a and log-probs equal to the old ones its token losses are −w·a, so that
    −∂/∂a of their sum is w.

    Args:
        policy_loss: The host's `PolicyLoss`.
        experience: A micro-batch; without `rollout_log_probs` there is no correction.

    Returns:
        w `[B, A]`, 0 outside of `action_mask`: min(π_old/π_rollout, 2) with `--algo.advantage.is_correction_level
        token`, mode `clip` and the threshold 0 2.

    Source: arXiv 2601.20802, Eq. 12 (truncated importance weights).
    """
    if experience.rollout_log_probs is None or not _corrects(policy_loss):
        return None
    # Weights are those of single tokens, whatever the host's policy gradient is made of.
    plain = copy.copy(policy_loss)
    plain.policy_loss_type, plain.token_level_loss = "ppo", True
    with torch.enable_grad():
        old = experience.action_log_probs.detach()
        advantages = torch.ones_like(old, requires_grad=True)
        found = plain(
            old,
            old,
            advantages,
            action_mask=experience.action_mask,
            rollout_log_probs=experience.rollout_log_probs,
            dp_size=1,
            batch_num_tokens=1.0,
            global_batch_size=1.0,
        )
        (slope,) = torch.autograd.grad(found[0], advantages)
    return -slope


def _corrects(policy_loss: Any) -> bool:
    # Named `enable_vllm_is_correction` up to 0.11.1.
    level = getattr(policy_loss, "is_correction_level", None)
    return bool(policy_loss.enable_vllm_is_correction) if level is None else level != "off"
