"""Losses as pure functions on tensors: divergences, supports, weights, aggregation. Needs torch, knows no host."""

from sdpo_plugins.losses.aggregate import active_mask, aggregate, loss_denominator, loss_numerator
from sdpo_plugins.losses.divergences import (
    DivergenceFunction,
    floor_log_probs,
    forward_kl,
    generalized_jsd,
    js,
    reverse_kl,
)
from sdpo_plugins.losses.fused import (
    FusedRows,
    LinearTerm,
    LMHead,
    PolicyTerm,
    as_head,
    fused_row_losses,
    fused_self_distillation_loss,
    row_weights,
)
from sdpo_plugins.losses.hybrid import (
    distillation_advantages,
    group_advantages,
    hybrid_per_token,
    off_policy_token_loss,
    policy_gradient_loss,
)
from sdpo_plugins.losses.metrics import loss_metrics
from sdpo_plugins.losses.normalize import gather_log_probs, log_normalizer
from sdpo_plugins.losses.sdpo import (
    TokenLosses,
    per_token_losses,
    resolve_divergence,
    self_distillation_loss,
    token_losses_of,
)
from sdpo_plugins.losses.support import LogProbPair, add_tail, compare_log_probs, renormalize, top_k_ids
from sdpo_plugins.losses.weights import clip_token_losses, importance_ratio, truncated_importance_weights

__all__ = [
    "DivergenceFunction",
    "FusedRows",
    "LMHead",
    "LinearTerm",
    "LogProbPair",
    "PolicyTerm",
    "TokenLosses",
    "active_mask",
    "add_tail",
    "aggregate",
    "as_head",
    "clip_token_losses",
    "compare_log_probs",
    "distillation_advantages",
    "floor_log_probs",
    "forward_kl",
    "fused_row_losses",
    "fused_self_distillation_loss",
    "gather_log_probs",
    "generalized_jsd",
    "group_advantages",
    "hybrid_per_token",
    "importance_ratio",
    "js",
    "log_normalizer",
    "loss_denominator",
    "loss_metrics",
    "loss_numerator",
    "off_policy_token_loss",
    "per_token_losses",
    "policy_gradient_loss",
    "renormalize",
    "resolve_divergence",
    "reverse_kl",
    "row_weights",
    "self_distillation_loss",
    "token_losses_of",
    "top_k_ids",
    "truncated_importance_weights",
]
