"""The self-distillation loss from hidden states: no `[tokens, V]` tensor outlives its chunk."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sdpo_plugins.errors import DataError
from sdpo_plugins.losses._checks import check_same_shape
from sdpo_plugins.losses.aggregate import active_mask, aggregate
from sdpo_plugins.losses.divergences import DivergenceFunction, accumulation_dtype
from sdpo_plugins.losses.fused.function import never_compiled
from sdpo_plugins.losses.fused.head import as_head
from sdpo_plugins.losses.fused.objective import LogProbTerm, PolicyTerm
from sdpo_plugins.losses.fused.rows import FusedRows, fused_row_losses
from sdpo_plugins.losses.hybrid import CLIP_HIGH, CLIP_LOW
from sdpo_plugins.losses.metrics import loss_metrics

if TYPE_CHECKING:
    from sdpo_plugins.config import SDPOConfig

__all__ = ["fused_self_distillation_loss", "row_weights"]


@never_compiled
def fused_self_distillation_loss(
    student_hidden: Tensor,
    student_head: Any,
    teacher_hidden: Tensor | Sequence[Tensor],
    teacher_head: Any,
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
    advantages: Tensor | None = None,
    clip_low: float = CLIP_LOW,
    clip_high: float = CLIP_HIGH,
    policy_denominator: Tensor | float | None = None,
    teacher_shares: Sequence[float] = (1.0,),
    entropies: bool = False,
    chunk_memory_mb: float | None = None,
    rows_per_chunk: int | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    r"""`self_distillation_loss` from hidden states and heads, without ever holding `[B, T, V]` logits.

    Formula:
        aggregate(per_token_losses(h_S·W_Sᵀ, h_T·W_Tᵀ), response_mask · self_distillation_mask); with `advantages`
        λ·aggregate(policy_gradient_loss, response_mask) + (1−λ)·that, λ = `config.grpo_weight`, from one pass.

    Memory: the gradients (hidden states and, if it is trained, the head, summed in float32) and one chunk. Tokens
    without loss are left out before the first product.

    Args:
        student_hidden: `[B, T, H]` last hidden states at the positions that predict `token_ids`; with gradient.
        student_head: `LMHead`, weight `[V, H]` or nn.Linear; gets its gradient if it requires one.
        teacher_hidden: `[B, T, H']` of the same tokens behind the teacher's context; a sequence of them for a teacher
            of several passes. No gradient.
        teacher_head: The teacher's head (one for each pass); the same vocabulary.
        token_ids: `[B, T]` sampled tokens; any value where masked.
        response_mask: `[B, T]`, 1 for tokens that the student generated.
        config: Divergence, support, weights, aggregation; `grpo_weight` if `advantages` are given.
        old_log_probs: `[B, T]` log π_old(y); None: on-policy.
        self_distillation_mask: `[B]`, 1 for active rollouts; None: all.
        rollout_is_weights: `[B, T]` token weights of the distillation; None: 1.
        loss_agg_mode: Overrides `config.loss_agg_mode`.
        temperature: τ of the rollouts, for both.
        divergence: Built once by the caller; None: resolved from the configuration.
        denominator: As in `self_distillation_loss`.
        advantages: `[B]` or `[B, T]` of GRPO; None: distillation alone.
        clip_low: ε_low of the policy term.
        clip_high: ε_high of the policy term.
        policy_denominator: `denominator` of the policy term, over all response tokens.
        teacher_shares: Shares of the teacher's passes.
        entropies: Adds `self_distillation/entropy` to the metrics, in nats.
        chunk_memory_mb: Working memory in MiB; None: `default_chunk_memory_mb`.
        rows_per_chunk: Tokens of a chunk, in place of a budget.

    Returns:
        Loss and metrics as `self_distillation_loss`; with a renormalised top-K of the student's those that would need
        the teacher's whole vocabulary are left out (`teacher_student_gap`, `teacher_student_gap_abs`, and the masses),
        and with λ = 1, which compares nothing, all but the counts. The backward pass works once.

    Raises:
        DataError: Shapes, widths or vocabularies that do not fit; NaN or infinite hidden states, named with row and
            position; a sharded head.
        ConfigError: An unknown aggregation, a temperature that is not positive, a budget below one token's row.

    Example:
        >>> from sdpo_plugins.config import SDPOConfig
        >>> head, ids, mask = torch.eye(4), torch.zeros(1, 2, dtype=torch.long), torch.ones(1, 2)
        >>> student, teacher = torch.zeros(1, 2, 4), torch.tensor([2.0, 0.0, 0.0, 0.0]).expand(1, 2, 4)
        >>> config = SDPOConfig(alpha=1.0, distillation_topk=None)
        >>> loss, metrics = fused_self_distillation_loss(student, head, teacher, head, ids, mask, config)
        >>> round(loss.item(), 4), metrics["self_distillation/active_tokens"].item()
        (0.4545, 2.0)

    Source: arXiv 2601.20802; gradients inside the forward pass as in Liger-Kernel (arXiv 2410.10989).
    """
    check_same_shape(token_ids.shape, response_mask=response_mask)
    check_same_shape(token_ids.shape, old_log_probs=old_log_probs, rollout_is_weights=rollout_is_weights)
    head = as_head(student_head, "student_head")
    teachers = [teacher_hidden] if isinstance(teacher_hidden, Tensor) else list(teacher_hidden)
    for name, states in (("student_hidden", student_hidden), *(("teacher_hidden", part) for part in teachers)):
        if states.dim() != token_ids.dim() + 1 or states.shape[:-1] != token_ids.shape:
            raise DataError(
                f"`{name}` must have the shape {[*token_ids.shape, 'H']}, one row for each response token, got "
                f"{list(states.shape)}. Pass the states at the positions that predict `token_ids`."
            )
    mask = active_mask(response_mask, self_distillation_mask)
    mode = config.loss_agg_mode if loss_agg_mode is None else loss_agg_mode
    scale = config.loss_scale_factor
    weights = row_weights(mask, mode, denominator=denominator, scale_factor=scale, like=student_hidden)
    share = 0.0 if advantages is None else config.grpo_weight
    active = (mask != 0) if share < 1.0 else torch.zeros_like(mask, dtype=torch.bool)
    beside = (response_mask != 0) & ~active if share > 0.0 else torch.zeros_like(active)
    # Rows with a teacher come first; whatever is masked comes nowhere.
    chosen = torch.cat([active.reshape(-1).nonzero().squeeze(1), beside.reshape(-1).nonzero().squeeze(1)])
    distilled = chosen[: int(active.sum())]

    def rows(values: Tensor | None, index: Tensor) -> Tensor | None:
        return None if values is None else values.reshape(-1).index_select(0, index)

    terms: list[LogProbTerm] = []
    if share > 0.0 and advantages is not None:
        of_policy = row_weights(
            response_mask,
            mode,
            denominator=policy_denominator,
            scale_factor=scale,
            like=student_hidden,
        )
        if advantages.dim() < mask.dim():
            check_same_shape(mask.shape[:1], advantages=advantages)
            advantages = advantages.unsqueeze(-1).expand(mask.shape)
        check_same_shape(mask.shape, advantages=advantages)
        term = PolicyTerm(
            share * of_policy.reshape(-1)[chosen],
            advantages.reshape(-1)[chosen].detach(),
            rows(old_log_probs, chosen),
            clip_low,
            clip_high,
        )
        terms.append(term)
    found = fused_row_losses(
        _take(student_hidden, chosen),
        head,
        [_take(part.detach(), distilled) for part in teachers],
        teacher_head,
        token_ids.reshape(-1)[chosen],
        (1.0 - share) * weights.reshape(-1)[distilled],
        config,
        old_log_probs=rows(old_log_probs, distilled),
        rollout_is_weights=rows(rollout_is_weights, distilled),
        terms=terms,
        temperature=temperature,
        divergence=divergence,
        teacher_shares=teacher_shares,
        entropies=entropies,
        chunk_memory_mb=chunk_memory_mb,
        rows_per_chunk=rows_per_chunk,
        place=lambda row: _place(int(chosen[row]), token_ids.shape),
    )
    return found.loss, _metrics(found, mask, distilled, config, share < 1.0)


def row_weights(
    mask: Tensor,
    mode: str,
    *,
    denominator: Tensor | float | None = None,
    scale_factor: float | None = None,
    like: Tensor | None = None,
) -> Tensor:
    """What `aggregate` multiplies each token's loss by: ∂aggregate/∂per_token.

    Args:
        mask: `[B, T]`, 1 for active tokens.
        mode: Aggregation mode.
        denominator: As in `aggregate`.
        scale_factor: As in `aggregate`.
        like: A tensor of the precision to compute in; None: float32.

    Returns:
        Weights `[B, T]`, 0 where nothing is active.

    Example:
        >>> row_weights(torch.tensor([[1.0, 1.0, 0.0]]), "token-mean")
        tensor([[0.5000, 0.5000, 0.0000]])
    """
    dtype = torch.float32 if like is None else accumulation_dtype(like.dtype)
    with torch.inference_mode(False), torch.enable_grad():
        if mask.is_inference():
            mask = mask.clone()
        per_token = torch.zeros(mask.shape, dtype=dtype, device=mask.device, requires_grad=True)
        reduced = aggregate(per_token, mask, mode, denominator=denominator, scale_factor=scale_factor)
        (weights,) = torch.autograd.grad(reduced, per_token)
    return weights


def _take(hidden: Tensor, rows: Tensor) -> Tensor:
    flat = hidden.reshape(-1, hidden.shape[-1])
    # All of them need no copy, but only in their own order: rows of the policy term alone stand behind the others.
    whole = rows.numel() == flat.shape[0] and bool((rows[1:] > rows[:-1]).all())
    return flat if whole else flat.index_select(0, rows)


def _place(index: int, shape: torch.Size) -> str:
    return f"row {index // shape[-1]}, position {index % shape[-1]}" if len(shape) == 2 else f"row {index}"


@torch.no_grad()
def _metrics(
    found: FusedRows, mask: Tensor, distilled: Tensor, config: SDPOConfig, compared: bool
) -> dict[str, Tensor]:
    active, metrics = mask != 0, {}
    if compared and found.tokens is not None:
        metrics = loss_metrics(found.tokens, mask.reshape(-1)[distilled], config)
    # With λ = 1 there is no comparison to tell of, but still tokens that could be compared.
    metrics["self_distillation/active_tokens"] = active.sum().to(torch.float32)
    metrics["self_distillation/active_sequences"] = active.any(-1).sum().to(torch.float32)
    metrics["self_distillation/empty_target_batch"] = (~active.any()).to(torch.float32)
    if found.entropies is not None:
        # Rows with a teacher come first; the others only have a policy term.
        entropies = found.entropies[: distilled.numel()] if compared else found.entropies
        metrics["self_distillation/entropy"] = entropies.sum() / max(1, entropies.numel())
    return metrics
