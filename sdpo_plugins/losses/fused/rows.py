"""The fused loss of single tokens, for those who choose and weigh them themselves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sdpo_plugins.errors import ConfigError, DataError
from sdpo_plugins.losses._checks import check_same_shape, check_temperature
from sdpo_plugins.losses.divergences import DivergenceFunction
from sdpo_plugins.losses.fused.checks import check_rows, check_token_ids, explain_rows
from sdpo_plugins.losses.fused.chunk import is_sparse
from sdpo_plugins.losses.fused.function import FusedPass, TeacherSide, never_compiled, run_fused
from sdpo_plugins.losses.fused.head import LMHead, as_head
from sdpo_plugins.losses.fused.objective import LogProbTerm, Objective
from sdpo_plugins.losses.sdpo import TokenLosses, combine_tokens, resolve_divergence

if TYPE_CHECKING:
    from sdpo_plugins.config import SDPOConfig

__all__ = ["FusedRows", "fused_row_losses"]


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


@never_compiled
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
    check_token_ids(token_ids, head)
    check_rows("student_hidden", student_hidden, head, token_ids.shape[0])
    teacher = _teacher_side(teacher_hidden, teacher_head, teacher_shares, head)
    distilled = 0 if teacher is None else teacher.hidden[0].shape[0]
    if distilled > token_ids.shape[0]:
        raise DataError(
            f"`teacher_hidden` must have at most the {token_ids.shape[0]} rows of the student, whose first ones it "
            f"belongs to, got {distilled}."
        )
    if distilled:
        if weights is None:
            raise DataError(
                "`weights` must be given where there is a teacher: what each row's loss counts, see `row_weights`."
            )
        check_same_shape(
            torch.Size([distilled]),
            weights=weights,
            old_log_probs=old_log_probs,
            rollout_is_weights=rollout_is_weights,
        )
    if rows_per_chunk is not None and rows_per_chunk < 1:
        raise ConfigError(
            f"`rows_per_chunk` must be a number of tokens, at least 1, got {rows_per_chunk!r}. Leave it out to have it "
            "chosen from `chunk_memory_mb`."
        )
    weights = student_hidden.new_zeros(0) if weights is None else weights
    if divergence is None and distilled and config.full_logit_distillation:
        divergence = resolve_divergence(config)
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
        None
        if teacher is None
        else combine_tokens(
            [part.tokens for part in parts if part.tokens is not None] or [_no_tokens(objective)], torch.cat
        ),
    )
    if not bool(torch.isfinite(loss)):
        teacher_states = [] if teacher is None else teacher.hidden
        raise explain_rows(
            [(part.log_probs, None if part.tokens is None else part.tokens.per_token) for part in parts],
            [("student_hidden", student_hidden), *(("teacher_hidden", part) for part in teacher_states)],
            [
                ("old_log_probs", old_log_probs),
                ("rollout_is_weights", rollout_is_weights),
                ("weights", weights),
                *(pair for term in terms for pair in getattr(term, "__dict__", {}).items()),
            ],
            place,
        )
    return found


def _teacher_side(hidden: Any, head: Any, shares: Sequence[float], student: LMHead) -> TeacherSide | None:
    if hidden is None:
        return None
    states = [hidden] if isinstance(hidden, Tensor) else list(hidden)
    heads = list(head) if isinstance(head, (list, tuple)) else [head] * len(states)
    if not (0 < len(states) == len(heads) == len(shares)):
        raise DataError(
            f"a teacher of several passes needs hidden states, a head and a share for each, got {len(states)}, "
            f"{len(heads)} and {len(shares)} (`teacher_shares`)."
        )
    if not abs(sum(shares) - 1.0) <= 1e-6:
        raise DataError(f"`teacher_shares` must add up to 1, got {list(shares)!r}.")
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


def _joined(parts: Sequence[Tensor], like: Tensor) -> Tensor:
    return torch.cat(list(parts)) if parts else like.new_zeros(0).detach()


def _no_tokens(objective: Objective) -> TokenLosses:
    """Return the losses of no rows, with what those of a row would hold, so that every batch has the same metrics."""
    config, none = objective.config, objective.weights.new_zeros(0)
    top_k = config.full_logit_distillation and config.distillation_topk is not None
    # Without the teacher's normaliser, see `chunk_of`.
    unknown = is_sparse(config, objective) and config.topk_support == "student"
    return TokenLosses(
        per_token=none,
        divergence=none,
        student_log_probs=none,
        teacher_log_probs=None if unknown else none,
        importance_ratio=None if config.is_clip is None else none,
        rollout_is_weights=None if objective.rollout_is_weights is None else none,
        student_mass=none if top_k else None,
        teacher_mass=none if top_k and not unknown else None,
    )
