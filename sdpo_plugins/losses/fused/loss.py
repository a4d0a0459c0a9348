"""The self-distillation loss from hidden states: no `[tokens, V]` tensor outlives its chunk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sdpo_plugins.errors import DataError
from sdpo_plugins.losses._checks import check_same_shape, check_temperature
from sdpo_plugins.losses.aggregate import active_mask, aggregate
from sdpo_plugins.losses.divergences import DivergenceFunction, accumulation_dtype
from sdpo_plugins.losses.fused.checks import check_rows, check_token_ids, explain_rows
from sdpo_plugins.losses.fused.function import FusedPass, TeacherSide, run_fused
from sdpo_plugins.losses.fused.head import LMHead, as_head
from sdpo_plugins.losses.fused.objective import LogProbTerm, Objective, PolicyTerm
from sdpo_plugins.losses.hybrid import CLIP_HIGH, CLIP_LOW
from sdpo_plugins.losses.metrics import loss_metrics
from sdpo_plugins.losses.sdpo import TokenLosses

if TYPE_CHECKING:
    from sdpo_plugins.config import SDPOConfig

__all__ = ["FusedRows", "fused_row_losses", "fused_self_distillation_loss", "row_weights"]


@dataclass(frozen=True)
class FusedRows:
    """What a fused pass over N rows gives.

    Args:
        loss: Σ over rows of weight·loss, 0-dim, the only one with gradient.
        log_probs: log π(y) `[N]`.
        entropies: H(π) in nats `[N]`, or None if not asked for.
        tokens: Token losses `[M]` of the rows with a teacher, unweighted; None without a teacher.
    """

    loss: Tensor
    log_probs: Tensor
    entropies: Tensor | None
    tokens: TokenLosses | None


def fused_row_losses(
    student_hidden: Tensor,
    student_head: Any,
    teacher_hidden: Tensor | Sequence[Tensor] | None,
    teacher_head: Any,
    token_ids: Tensor,
    weights: Tensor | None,
    config: SDPOConfig,
    *,
    old_log_probs: Tensor | None = None,
    rollout_is_weights: Tensor | None = None,
    terms: Sequence[LogProbTerm] = (),
    temperature: float = 1.0,
    divergence: DivergenceFunction | None = None,
    teacher_shares: Sequence[float] = (1.0,),
    entropies: bool = False,
    chunk_memory_mb: float | None = None,
    rows_per_chunk: int | None = None,
    place: Callable[[int], str] = "row {}".format,
) -> FusedRows:
    r"""Weighted self-distillation loss of single tokens, for hosts that choose and weigh the rows themselves.

    Formula:
        Σ_{m<M} weights_m·ℓ_m + Σ_terms term(log π(y)), ℓ as in `per_token_losses`. Gradients with respect to hidden
        states and head are computed chunk by chunk in the forward pass.

    Args:
        student_hidden: `[N, H]` last hidden states (after the final norm) at the positions that predict `token_ids`.
        student_head: `LMHead`, weight `[V, H]` or nn.Linear. Gets a gradient if its weight requires one.
        teacher_hidden: `[M, H']`, M ≤ N: the teacher's, for the first M rows; a sequence of them for a teacher of
            several passes; None for no distillation.
        teacher_head: The teacher's head, or a sequence of one for each pass. No gradient.
        token_ids: `[N]` sampled tokens, in [0, V).
        weights: `[M]` what each row's loss is multiplied by, see `row_weights`.
        config: Divergence, support and weights.
        old_log_probs: `[M]` log π_old(y); None: on-policy.
        rollout_is_weights: `[M]`; None: 1.
        terms: Further terms of log π(y) over all N rows, `PolicyTerm` for example.
        temperature: τ of student and teacher.
        divergence: Built once by the caller; None: resolved from the configuration.
        teacher_shares: Shares of the passes, whose logits are mixed.
        entropies: Whether to compute the student's entropies.
        chunk_memory_mb: Working memory in MiB; None: `default_chunk_memory_mb`.
        rows_per_chunk: Overrides the memory budget.
        place: What messages call a row.

    Returns:
        `FusedRows`. Backward works once: the gradients are handed over, not copied.

    Raises:
        DataError: Shapes or vocabularies that do not fit, NaN or infinity (named with its row).
        ConfigError: A temperature or a budget that cannot be used.

    Example:
        >>> from sdpo_plugins.config import SDPOConfig
        >>> hidden, head, ids = torch.randn(3, 8), torch.randn(50, 8), torch.tensor([4, 0, 49])
        >>> config = SDPOConfig(distillation_topk=5)
        >>> rows = fused_row_losses(hidden, head, hidden, head, ids, torch.ones(3), config, entropies=True)
        >>> rows.entropies.shape, float(rows.loss) < 1e-5
        (torch.Size([3]), True)

    Source: arXiv 2601.20802; gradients inside the forward pass as in Liger-Kernel (arXiv 2410.10989).
    """
    check_temperature(temperature)
    head = as_head(student_head, "student_head")
    check_rows("student_hidden", student_hidden, head, token_ids.shape[0] if token_ids.dim() else None)
    check_token_ids(token_ids, head)
    teacher = _teacher_side(teacher_hidden, teacher_head, teacher_shares, head)
    distilled = 0 if teacher is None else teacher.hidden[0].shape[0]
    if distilled:
        check_same_shape(
            torch.Size([distilled]),
            weights=torch.empty(0) if weights is None else weights,
            old_log_probs=old_log_probs,
            rollout_is_weights=rollout_is_weights,
        )
    if rows_per_chunk is not None and rows_per_chunk < 1:
        raise ValueError(f"`rows_per_chunk` must be at least 1, got {rows_per_chunk}.")
    weights = student_hidden.new_zeros(0) if weights is None else weights
    objective = Objective(
        config,
        divergence,
        weights.detach(),
        _plain(old_log_probs),
        _plain(rollout_is_weights),
        terms=terms,
    )
    work = FusedPass(
        objective, head, token_ids, teacher, float(temperature), entropies, chunk_memory_mb, rows_per_chunk
    )
    loss = run_fused(work, student_hidden)
    parts = work.results
    found = FusedRows(
        loss,
        _joined([part.log_probs for part in parts], loss),
        _joined([part.entropies for part in parts if part.entropies is not None], loss) if entropies else None,
        _join_tokens([part.tokens for part in parts if part.tokens is not None]),
    )
    if not bool(torch.isfinite(loss)):
        raise explain_rows(
            [(part.log_probs, None if part.tokens is None else part.tokens.per_token) for part in parts],
            {"student_hidden": student_hidden, **({} if teacher is None else {"teacher_hidden": teacher.hidden[0]})},
            {"old_log_probs": old_log_probs, "rollout_is_weights": rollout_is_weights, "weights": weights},
            place,
        )
    return found


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
        Loss and metrics as `self_distillation_loss`; with a renormalised top-K the metrics that would need the
        teacher's whole vocabulary (`teacher_student_gap`, `teacher_topk_mass`) are left out. The backward pass works
        once.

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
        check_same_shape(token_ids.shape, **{f"{name} without its last dimension": states[..., 0]})
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
    return found.loss, _metrics(found, mask, distilled, config)


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
    with torch.enable_grad():
        per_token = torch.zeros(mask.shape, dtype=dtype, device=mask.device, requires_grad=True)
        reduced = aggregate(per_token, mask, mode, denominator=denominator, scale_factor=scale_factor)
        (weights,) = torch.autograd.grad(reduced, per_token)
    return weights


def _teacher_side(hidden: Any, head: Any, shares: Sequence[float], student: LMHead) -> TeacherSide | None:
    if hidden is None:
        return None
    states = [hidden] if isinstance(hidden, Tensor) else list(hidden)
    heads = list(head) if isinstance(head, (list, tuple)) else [head] * len(states)
    if not (len(states) == len(heads) == len(shares)):
        raise DataError(
            f"a teacher of several passes needs hidden states, a head and a share for each, got {len(states)}, "
            f"{len(heads)} and {len(shares)}."
        )
    checked = [as_head(item, "teacher_head").detached() for item in heads]
    for part, item in zip(states, checked, strict=True):
        check_rows("teacher_hidden", part, item, states[0].shape[0])
        if item.vocabulary != student.vocabulary:
            raise DataError(
                f"Student and teacher must share one vocabulary, got heads of {student.vocabulary} and "
                f"{item.vocabulary} tokens. Use a teacher of the same model family, or cut both to the tokenizer's "
                "size if only the padding of the output layer differs."
            )
    return TeacherSide([part.detach() for part in states], checked, list(shares))


def _plain(values: Tensor | None) -> Tensor | None:
    return None if values is None else values.detach()


def _take(hidden: Tensor, rows: Tensor) -> Tensor:
    flat = hidden.reshape(-1, hidden.shape[-1])
    return flat if rows.numel() == flat.shape[0] else flat.index_select(0, rows)


def _place(index: int, shape: torch.Size) -> str:
    return f"row {index // shape[-1]}, position {index % shape[-1]}" if len(shape) == 2 else f"row {index}"


def _joined(parts: Sequence[Tensor], like: Tensor) -> Tensor:
    return torch.cat(list(parts)) if parts else like.new_zeros(0).detach()


def _join_tokens(parts: Sequence[TokenLosses]) -> TokenLosses | None:
    if not parts:
        return None
    joined: dict[str, Any] = {}
    for item in fields(TokenLosses):
        values = [getattr(part, item.name) for part in parts]
        joined[item.name] = None if values[0] is None else torch.cat([value.detach() for value in values])
    return TokenLosses(**joined)


@torch.no_grad()
def _metrics(found: FusedRows, mask: Tensor, distilled: Tensor, config: SDPOConfig) -> dict[str, Tensor]:
    tokens, active = found.tokens, mask.reshape(-1)[distilled]
    if tokens is None:
        none = found.log_probs.new_zeros(0)
        tokens = TokenLosses(none, none, none, none)
    metrics = loss_metrics(tokens, active, config)
    metrics["self_distillation/active_sequences"] = (mask != 0).any(-1).sum().to(torch.float32)
    if found.entropies is not None:
        # Rows with a teacher come first; the others only have a policy term.
        entropies = found.entropies[: distilled.numel()]
        metrics["self_distillation/entropy"] = entropies.sum() / max(1, entropies.numel())
    return metrics
