"""verl's own loss as a part of SDPO's objective: the hybrid's policy gradient, and the KL to a reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor
from verl.trainer.ppo.core_algos import agg_loss, kl_penalty
from verl.utils.metric import AggregationType, Metric
from verl.workers.utils.losses import ppo_loss

from sdpo_verl.jagged import padded_responses

__all__ = ["HostLoss", "host_loss_of", "log_prob_stream"]

HostLoss = Callable[[Tensor, Tensor, TensorDict], tuple[Tensor, dict[str, Any]]]
"""`f(log_probs [B, T], entropies [B, T], micro_batch) -> (loss, metrics)`: the host's part of the objective."""


def host_loss_of(actor_config: Any, grpo_weight: float) -> HostLoss | None:
    r"""Return λ·policy loss + the KL to the reference, both as verl computes them; None if there is neither.

    Formula:
        λ·pg + c·KL with λ = `grpo_weight` and, if `use_kl_loss`, c = `kl_loss_coef`.

    Args:
        actor_config: verl's actor configuration.
        grpo_weight: λ.

    Returns:
        A function of log-probs and entropies [B, T], or None.
    """
    kl = bool(actor_config.use_kl_loss)
    if grpo_weight == 0.0 and not kl:
        return None

    def loss(log_probs: Tensor, entropies: Tensor, micro_batch: TensorDict) -> tuple[Tensor, dict[str, Any]]:
        total, metrics = log_probs.new_zeros(()), {}
        if grpo_weight > 0.0:
            output = {
                "log_probs": log_prob_stream(log_probs, micro_batch),
                "entropy": log_prob_stream(entropies, micro_batch),
            }
            policy, metrics = ppo_loss(actor_config, output, micro_batch)
            total = total + grpo_weight * policy
        if kl:
            part = _reference_kl(actor_config, log_probs, micro_batch)
            # The policy loss brought λ of it along.
            total = total + (1.0 - grpo_weight) * actor_config.kl_loss_coef * part
            metrics["kl_loss"] = Metric(AggregationType.SUM, part)
            metrics["kl_coef"] = actor_config.kl_loss_coef
        return total, metrics

    return loss


def log_prob_stream(values: Tensor, micro_batch: TensorDict) -> Tensor:
    """Lay response values [B, T] out as a model's output over prompt and response, as verl's losses take it.

    Args:
        values: One value for each response token.
        micro_batch: With jagged `prompts` and `responses`.

    Returns:
        Jagged [B, j]; the value of a token lies at the position before it.
    """
    prompts, responses = (micro_batch[name].offsets().diff().tolist() for name in ("prompts", "responses"))
    parts = []
    for row, (before, length) in enumerate(zip(prompts, responses, strict=True)):
        zeros = values.new_zeros(before)
        parts.append(torch.cat([zeros[1:], values[row, :length], zeros[:1]]))
    return torch.nested.as_nested_tensor(parts, layout=torch.jagged)


def _reference_kl(actor_config: Any, log_probs: Tensor, micro_batch: TensorDict) -> Tensor:
    width = log_probs.shape[1]
    kl = kl_penalty(
        logprob=log_probs,
        ref_logprob=padded_responses(micro_batch["ref_log_prob"], width),
        kl_penalty=actor_config.kl_loss_type,
    )
    return agg_loss(
        loss_mat=kl,
        loss_mask=padded_responses(micro_batch["response_mask"], width).bool(),
        loss_agg_mode=actor_config.loss_agg_mode,
        dp_size=micro_batch["dp_size"],
        batch_num_tokens=micro_batch["batch_num_tokens"],
        global_batch_size=micro_batch["global_batch_size"],
        loss_scale_factor=actor_config.loss_scale_factor,
    )
