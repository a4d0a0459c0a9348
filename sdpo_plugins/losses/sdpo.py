"""The self-distillation loss: the student is pulled to its better-informed self, token by token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sdpo_plugins.errors import DataError
from sdpo_plugins.losses._checks import check_inputs, check_same_shape, check_temperature, explain_non_finite
from sdpo_plugins.losses.aggregate import active_mask, aggregate
from sdpo_plugins.losses.divergences import (
    DivergenceFunction,
    build_forward_kl,
    build_generalized_jsd,
    build_js,
    build_reverse_kl,
    floor_log_probs,
)
from sdpo_plugins.losses.metrics import loss_metrics
from sdpo_plugins.losses.support import LogProbPair, compare_log_probs
from sdpo_plugins.losses.weights import clip_token_losses, importance_ratio

if TYPE_CHECKING:
    from sdpo_plugins.config import SDPOConfig

__all__ = [
    "TokenLosses",
    "combine_tokens",
    "is_own_divergence",
    "per_token_losses",
    "resolve_divergence",
    "self_distillation_loss",
    "token_losses_of",
]

_OWN_DIVERGENCES: dict[str, Callable[..., DivergenceFunction]] = {
    "forward_kl": build_forward_kl,
    "generalized_jsd": build_generalized_jsd,
    "js": build_js,
    "reverse_kl": build_reverse_kl,
}


@dataclass(frozen=True)
class TokenLosses:
    """Unreduced losses and what they were made of; all of the shape of the response tokens, `[B, T]` or `[N]`.

    Args:
        per_token: Loss per token with clip and weights applied, in nats, with gradient. Mask and reduce it.
        divergence: The divergence before clip and weights, without gradient; in sampled-token mode its estimate
            log π(y) − log q(y), which may be negative.
        student_log_probs: log π(y) of the sampled tokens over the whole vocabulary, with gradient.
        teacher_log_probs: log q(y) of the same tokens, without; None where the teacher's normaliser was not computed
            (the fused path on a renormalised top-K).
        importance_ratio: π/π_old before the clip, without gradient; None if `is_clip` is off.
        rollout_is_weights: The rollout weights that were multiplied in, or None.
        student_mass: Student's probability of the top-K entries together, or None without a top-K.
        teacher_mass: Teacher's probability of the same entries, or None.
    """

    per_token: Tensor
    divergence: Tensor
    student_log_probs: Tensor
    teacher_log_probs: Tensor | None
    importance_ratio: Tensor | None = None
    rollout_is_weights: Tensor | None = None
    student_mass: Tensor | None = None
    teacher_mass: Tensor | None = None


def combine_tokens(parts: Sequence[TokenLosses], combine: Callable[[list[Tensor]], Tensor]) -> TokenLosses:
    """Return token losses of which each value is made from those of the parts; None stays None.

    Args:
        parts: At least one, all with the same values.
        combine: What to do with one value's tensors, one of each part.

    Example:
        >>> part = TokenLosses(torch.zeros(2), torch.zeros(2), torch.zeros(2), None)
        >>> combine_tokens([part, part], torch.cat).per_token.shape
        torch.Size([4])
    """
    combined: dict[str, Tensor | None] = {}
    for item in fields(TokenLosses):
        values = [getattr(part, item.name) for part in parts]
        combined[item.name] = None if values[0] is None else combine(values)
    return TokenLosses(**combined)  # type: ignore[arg-type]


def resolve_divergence(config: SDPOConfig) -> DivergenceFunction:
    """Return the divergence that `config.divergence` names; plug-ins are loaded only for names that are not ours.

    Raises:
        PluginError: No plug-in in use provides the name.

    Example:
        >>> from sdpo_plugins.config import SDPOConfig
        >>> resolve_divergence(SDPOConfig(divergence="js")).__name__
        'js'
    """
    build = _OWN_DIVERGENCES.get(config.divergence)
    if build is not None and not config.divergence_options:
        return build(config, None)
    # Ours take no options: the catalogue refuses them by name, as it does for every strategy.
    from sdpo_plugins.plugins import build_divergence

    divergence: DivergenceFunction = build_divergence(config)
    return divergence


def is_own_divergence(config: SDPOConfig) -> bool:
    """Say whether the configured divergence is one of this package, which treat log-probs of −inf themselves."""
    return config.divergence in _OWN_DIVERGENCES


def token_losses_of(
    pair: LogProbPair,
    config: SDPOConfig,
    divergence: DivergenceFunction | None = None,
    *,
    old_log_probs: Tensor | None = None,
    rollout_is_weights: Tensor | None = None,
) -> TokenLosses:
    """Turn log-probabilities on a support into token losses, whatever computed them (logits, or a fused path).

    Formula:
        Distribution modes: D(S, T). Sampled-token mode: sg(log π(y) − log q(y))·log π(y), whose gradient is an unbiased
        estimate of the reverse KL's. Then: min(·, per_token_loss_clip) (in sampled-token mode the clip is on the
        factor sg(log π − log q)), times min(π/π_old, is_clip), times the rollout weights.

    Args:
        pair: Log-probs of student and teacher.
        config: `is_clip`, `per_token_loss_clip` are read, and `divergence` if none is passed.
        divergence: Built once by the caller; None: `resolve_divergence(config)`.
        old_log_probs: log π_old(y), the shape of `pair.student_token`; None: on-policy, π_old is π. It has an effect
            only if `is_clip` is set.
        rollout_is_weights: Token weights min(π_old/π_rollout, 2) of the same shape; None: 1.

    Returns:
        Unreduced `TokenLosses`.
    """
    if pair.student is None or pair.teacher is None:
        if pair.teacher_token is None:
            raise DataError("without a support, the teacher's log-probs of the sampled tokens are needed.")
        estimate = (pair.student_token - pair.teacher_token).detach()
        per_token = clip_token_losses(estimate, config.per_token_loss_clip) * pair.student_token
    else:
        divergence = divergence or resolve_divergence(config)
        full = divergence(pair.student, pair.teacher)
        check_same_shape(pair.student_token.shape, **{"the result of the divergence": full})
        estimate = full.detach()
        per_token = clip_token_losses(full, config.per_token_loss_clip)
    ratio = None
    if config.is_clip is not None:
        # The old log-probs of an on-policy step are the student's own, detached: a ratio of exactly 1.
        old = pair.student_token if old_log_probs is None else old_log_probs
        ratio = importance_ratio(pair.student_token, old)
        per_token = per_token * ratio.clamp(max=config.is_clip)
    if rollout_is_weights is not None:
        rollout_is_weights = rollout_is_weights.detach().to(per_token.dtype)
        per_token = per_token * rollout_is_weights
    return TokenLosses(
        per_token=per_token,
        divergence=estimate,
        student_log_probs=pair.student_token,
        teacher_log_probs=pair.teacher_token,
        importance_ratio=ratio,
        rollout_is_weights=rollout_is_weights,
        student_mass=pair.student_mass,
        teacher_mass=pair.teacher_mass,
    )


def per_token_losses(
    student_logits: Tensor,
    teacher_logits: Tensor,
    token_ids: Tensor,
    config: SDPOConfig,
    *,
    old_log_probs: Tensor | None = None,
    rollout_is_weights: Tensor | None = None,
    temperature: float = 1.0,
    divergence: DivergenceFunction | None = None,
) -> TokenLosses:
    """Unreduced self-distillation losses from logits.

    Formula:
        See `compare_log_probs` (support) and `token_losses_of` (divergence and weights).

    Args:
        student_logits: `[B, T, V]` (or `[N, V]`) logits that predict `token_ids`, any float dtype, −inf allowed.
        teacher_logits: The same shape: the teacher's logits of the same tokens behind its own context. No gradient.
        token_ids: `[B, T]` the sampled tokens, in [0, V) even where masked.
        config: Divergence, support and weights.
        old_log_probs: `[B, T]` log π_old(y); None: on-policy.
        rollout_is_weights: `[B, T]` token weights; None: 1.
        temperature: τ of the rollouts, applied to student and teacher.
        divergence: Built once by the caller; None: resolved from the configuration at each call.

    Returns:
        `TokenLosses`; computed in float32 (float64 for float64 logits).

    Raises:
        DataError: Shapes, vocabularies or token ids that do not belong together.
        ConfigError: A temperature that is not positive.

    Example:
        >>> from sdpo_plugins.config import SDPOConfig
        >>> logits, ids = torch.zeros(1, 2, 8), torch.zeros(1, 2, dtype=torch.long)
        >>> per_token_losses(logits, logits, ids, SDPOConfig(distillation_topk=4)).per_token.shape
        torch.Size([1, 2])

    Source: arXiv 2601.20802 and its authors' code.
    """
    check_temperature(temperature)
    check_inputs(student_logits, teacher_logits, token_ids)
    check_same_shape(token_ids.shape, old_log_probs=old_log_probs, rollout_is_weights=rollout_is_weights)
    pair = compare_log_probs(student_logits, teacher_logits, token_ids, config, temperature)
    if pair.student is not None and pair.teacher is not None and not is_own_divergence(config):
        # Ours treat −inf themselves; a plug-in's need not know about it.
        pair = LogProbPair(
            pair.student_token,
            pair.teacher_token,
            floor_log_probs(pair.student),
            floor_log_probs(pair.teacher),
            pair.student_mass,
            pair.teacher_mass,
        )
    return token_losses_of(pair, config, divergence, old_log_probs=old_log_probs, rollout_is_weights=rollout_is_weights)


def self_distillation_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    token_ids: Tensor,
    response_mask: Tensor,
    config: SDPOConfig,
    *,
    old_log_probs: Tensor | None = None,
    self_distillation_mask: Tensor | None = None,
    rollout_is_weights: Tensor | None = None,
    loss_agg_mode: str | None = None,
    temperature: float = 1.0,
    divergence: DivergenceFunction | None = None,
    denominator: Tensor | float | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The SDPO loss of a (micro-)batch and its health metrics.

    Formula:
        aggregate(per_token_losses, response_mask · self_distillation_mask).

    Args:
        student_logits: `[B, T, V]` logits that predict `token_ids`, any float dtype, −inf allowed.
        teacher_logits: `[B, T, V]`, the teacher's logits of the same tokens. No gradient.
        token_ids: `[B, T]` the sampled tokens; any value where masked.
        response_mask: `[B, T]`, 1 for tokens that the student generated.
        config: Divergence, support, weights and aggregation.
        old_log_probs: `[B, T]` log π_old(y); None: on-policy.
        self_distillation_mask: `[B]`, 1 for active rollouts; None: all.
        rollout_is_weights: `[B, T]` token weights; None: 1.
        loss_agg_mode: Overrides `config.loss_agg_mode`.
        temperature: τ of the rollouts, applied to student and teacher.
        divergence: Built once by the caller; None: resolved from the configuration at each call.
        denominator: `loss_denominator(active_mask(…), mode)` summed over the micro-batches and ranks of one optimizer
            step; None: this batch alone, as the authors do.

    Returns:
        The 0-dim loss with gradient (exactly 0, with zero gradients, if nothing is active) and metrics under
        `self_distillation/`, 0-dim tensors without gradient. Means are over active tokens; weigh them by
        `self_distillation/active_tokens` when you combine micro-batches.

    Raises:
        DataError: Shapes, vocabularies or token ids that do not belong together; NaN or +inf in a tensor (named with
            row and position; in logits at inactive tokens, too, as their gradient would be NaN).
        ConfigError: An unknown aggregation or a temperature that is not positive.

    Example:
        >>> from sdpo_plugins.config import SDPOConfig
        >>> student, teacher = torch.zeros(1, 2, 4), torch.tensor([2.0, 0.0, 0.0, 0.0]).expand(1, 2, 4)
        >>> ids, mask = torch.zeros(1, 2, dtype=torch.long), torch.ones(1, 2)
        >>> config = SDPOConfig(alpha=1.0, distillation_topk=None)
        >>> loss, metrics = self_distillation_loss(student, teacher, ids, mask, config)
        >>> round(loss.item(), 4), metrics["self_distillation/active_tokens"].item()
        (0.4545, 2.0)

    Source: arXiv 2601.20802, `compute_self_distillation_loss` of its authors' code.
    """
    check_same_shape(token_ids.shape, response_mask=response_mask)
    mask = active_mask(response_mask, self_distillation_mask)
    active = mask != 0
    check_same_shape(token_ids.shape, old_log_probs=old_log_probs, rollout_is_weights=rollout_is_weights)
    # Padding may hold anything, -100 or NaN: a value there must reach neither an index nor a gradient. (Logits are too
    # large to be copied for this; they come out of a model, which gives finite ones.)
    tokens = per_token_losses(
        student_logits,
        teacher_logits,
        torch.where(active, token_ids, torch.zeros_like(token_ids)),
        config,
        old_log_probs=_only(active, old_log_probs),
        rollout_is_weights=_only(active, rollout_is_weights),
        temperature=temperature,
        divergence=divergence,
    )
    mode = config.loss_agg_mode if loss_agg_mode is None else loss_agg_mode
    loss = aggregate(tokens.per_token, mask, mode, denominator=denominator, scale_factor=config.loss_scale_factor)
    if not bool(torch.isfinite(tokens.per_token).all()):
        raise explain_non_finite(
            tokens.per_token,
            active,
            {"student_logits": student_logits, "teacher_logits": teacher_logits},
            {
                "old_log_probs": _only(active, old_log_probs),
                "rollout_is_weights": _only(active, rollout_is_weights),
            },
        )
    return loss, loss_metrics(tokens, mask, config)


def _only(active: Tensor, values: Tensor | None) -> Tensor | None:
    return None if values is None else torch.where(active, values, torch.zeros_like(values))
