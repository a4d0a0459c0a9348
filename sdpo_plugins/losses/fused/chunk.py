"""One chunk of rows: from hidden states to token losses and to the gradient with respect to the logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sdpo_plugins.losses.divergences import floor_log_probs
from sdpo_plugins.losses.fused.full import full_vocabulary
from sdpo_plugins.losses.fused.matmul import Projection
from sdpo_plugins.losses.fused.objective import Objective
from sdpo_plugins.losses.fused.softmax import RunningNormalizer, column_blocks, exp_in_place, row_normalizer
from sdpo_plugins.losses.sdpo import TokenLosses, combine_tokens, is_own_divergence
from sdpo_plugins.losses.support import LogProbPair, add_tail, renormalize, top_k_ids

if TYPE_CHECKING:
    from sdpo_plugins.config import SDPOConfig

__all__ = ["ChunkResult", "TeacherRows", "Workspace", "chunk_of", "is_sparse"]


@dataclass(frozen=True)
class TeacherRows:
    """The teacher's hidden states of some rows; several passes are mixed as logits: Σ share·logits.

    Args:
        hidden: One `[n, H]` for each pass.
        projections: One for each pass.
        shares: Add up to 1.
    """

    hidden: Sequence[Tensor]
    projections: Sequence[Projection]
    shares: Sequence[float]

    def logits_of_block(self, block: slice) -> Tensor:
        """Return the teacher's logits/τ of some columns `[n, v]`."""
        return self._mixed([p.logits_of_block(h, block) for p, h in zip(self.projections, self.hidden, strict=True)])

    def logits_at(self, ids: Tensor) -> Tensor:
        """Return the teacher's logits/τ of the entries `ids [n, K]`, and compute no others."""
        return self._mixed([p.logits_at(h, ids) for p, h in zip(self.projections, self.hidden, strict=True)])

    def logits(self, out: Tensor) -> Tensor:
        """Write all logits/τ into `out [n, V]` and return it."""
        if len(self.shares) == 1:
            self.projections[0].logits(self.hidden[0], out)
            return out
        for block in column_blocks(out):
            out[:, block] = self.logits_of_block(block)
        return out

    def log_probs_at(self, ids: Tensor, vocabulary: int) -> Tensor:
        """Return log q of the entries `ids [n, K]`; the other logits are only ever there a block at a time."""
        like = self.hidden[0].new_empty(ids.shape[0], dtype=self.projections[0].wide)
        running = RunningNormalizer(like)
        picked = like.new_zeros(ids.shape)
        for block in column_blocks(like.unsqueeze(-1).expand(-1, vocabulary)):
            part = self.logits_of_block(block)
            running.add(part)
            inside = (ids >= block.start) & (ids < block.stop)
            found = part.gather(-1, (ids - block.start).clamp_(0, part.shape[1] - 1))
            picked = torch.where(inside, found, picked)
            # Or it would still be there while the next block is computed.
            del part
        return floor_log_probs(picked - running.value.unsqueeze(-1))

    def _mixed(self, outputs: Sequence[Tensor]) -> Tensor:
        if len(outputs) == 1:
            return outputs[0]
        # A weighted sum, not lerp: where both logits are −inf, lerp's difference would be NaN.
        total = outputs[0].mul_(self.shares[0])
        for share, output in zip(self.shares[1:], outputs[1:], strict=True):
            total.add_(output, alpha=share)
        return total


class Workspace:
    """Buffers `[rows, V]` that every chunk uses again.

    Args:
        rows: Height of the largest chunk.
        vocabulary: V.
        dtype: Of the logits.
        device: Where.
    """

    def __init__(self, rows: int, vocabulary: int, dtype: torch.dtype, device: torch.device) -> None:
        self._make = partial(torch.empty, rows, vocabulary, dtype=dtype, device=device)
        self._buffers: dict[int, Tensor] = {}

    def take(self, number: int, rows: int) -> Tensor:
        """Return the first rows of a buffer; what they hold is anything."""
        if number not in self._buffers:
            self._buffers[number] = self._make()
        return self._buffers[number][:rows]


@dataclass
class ChunkResult:
    """What a chunk gives.

    Args:
        loss: Its part of the weighted sum, 0-dim, without gradient.
        log_probs: log π(y) `[n]`.
        entropies: `[n]` in nats, or None.
        tokens: Token losses of the rows with a teacher, without gradient; None if there are none.
        dense: ∂loss/∂(h·Wᵀ) `[n, V]`; None where it is sparse or not wanted.
        sparse: The same as (ids, values), both `[n, K]`.
    """

    loss: Tensor
    log_probs: Tensor
    entropies: Tensor | None = None
    tokens: TokenLosses | None = None
    dense: Tensor | None = None
    sparse: tuple[Tensor, Tensor] | None = None


def is_sparse(config: SDPOConfig, objective: Objective) -> bool:
    """Say whether ∂loss/∂logits has only K entries a row: a renormalised top-K, and no other term."""
    within = config.full_logit_distillation and config.distillation_topk is not None
    return within and not config.distillation_add_tail and not objective.terms


def chunk_of(
    objective: Objective,
    student: Projection,
    hidden: Tensor,
    token_ids: Tensor,
    rows: slice,
    teacher: TeacherRows | None,
    space: Workspace,
    *,
    entropies: bool,
    gradient: bool,
) -> ChunkResult:
    """Compute one chunk.

    Args:
        objective: What is differentiated.
        student: The student's head.
        hidden: `[n, H]` in the type of the products.
        token_ids: `[n]`.
        rows: Which rows of the batch these are.
        teacher: The teacher's side, or None for rows that only have a policy term.
        space: Holds the logits, then their gradient.
        entropies: Whether the student's entropies are wanted.
        gradient: Whether the gradient is.
    """
    logits = space.take(0, hidden.shape[0])
    slope = student.logits(hidden, out=logits)
    config = objective.config
    if teacher is not None and config.full_logit_distillation and config.distillation_topk is None:
        full = full_vocabulary(
            objective, logits, teacher.logits(space.take(1, len(token_ids))), token_ids, rows, entropies, gradient
        )
        dense = None
        if gradient:
            dense = logits.mul_(student.slope if slope is None else slope)
        return ChunkResult(full.loss, full.log_probs, full.entropies, _kept(full.tokens), dense)
    token = token_ids.unsqueeze(-1)
    return _gathered(objective, student, logits, slope, token, rows, teacher, space, entropies, gradient)


def _gathered(
    objective: Objective,
    student: Projection,
    logits: Tensor,
    slope: Tensor | None,
    token: Tensor,
    rows: slice,
    teacher: TeacherRows | None,
    space: Workspace,
    entropies: bool,
    gradient: bool,
) -> ChunkResult:
    config = objective.config
    top_k = config.distillation_topk if teacher is not None and config.full_logit_distillation else None
    sparse = teacher is not None and is_sparse(config, objective)
    ids, top, teacher_log_probs = token, None, None
    if teacher is not None and top_k is not None and config.topk_support == "teacher":
        theirs = teacher.logits(space.take(1, len(token)))
        top = top_k_ids(theirs, top_k)
        ids = torch.cat([top, token], dim=-1)
        teacher_log_probs = floor_log_probs(theirs.gather(-1, ids) - row_normalizer(theirs).unsqueeze(-1))
    elif teacher is not None and top_k is not None:
        top = top_k_ids(logits, top_k)
        ids = torch.cat([top, token], dim=-1)
    picked = logits.gather(-1, ids)
    slope_at_ids = student.slope_at(picked)
    normalizer, total, entropy = exp_in_place(logits, entropies)
    teacher_token, teacher_support, teacher_mass = None, None, None
    if teacher is not None:
        if teacher_log_probs is None and sparse and top is not None:
            # Renormalising cancels the teacher's normaliser: K dot products, and none of the other V − K.
            raw = teacher.logits_at(top)
            teacher_support = floor_log_probs(raw - raw.amax(-1, keepdim=True))
        else:
            if teacher_log_probs is None:
                teacher_log_probs = teacher.log_probs_at(ids, student.head.vocabulary)
            teacher_token = teacher_log_probs[..., -1]
            if top is not None:
                teacher_support = teacher_log_probs[..., :-1]
                teacher_mass = teacher_support.exp().sum(-1)

    with torch.enable_grad():
        leaf = (picked - normalizer.unsqueeze(-1)).requires_grad_(gradient)
        values = floor_log_probs(leaf)
        log_probs = values[..., -1]
        loss = objective.beside(log_probs, rows)
        tokens = None
        if teacher is not None:
            support, mass = None, None
            if teacher_support is not None:
                finish = add_tail if config.distillation_add_tail else renormalize
                support, teacher_support = finish(values[..., :-1]), finish(teacher_support)
                mass = values.detach()[..., :-1].exp().sum(-1)
                if not is_own_divergence(config):
                    support, teacher_support = floor_log_probs(support), floor_log_probs(teacher_support)
            pair = LogProbPair(log_probs, teacher_token, support, teacher_support, mass, teacher_mass)
            part, tokens = objective.distilled(pair, rows)
            loss = loss + part
        if gradient:
            (upstream,) = objective.gradients(loss, leaf)
    result = ChunkResult(loss.detach(), log_probs.detach().clone(), entropy, None if tokens is None else _kept(tokens))
    if not gradient:
        return result
    entries = upstream * slope_at_ids
    if sparse:
        result.sparse = (ids[..., :-1], entries[..., :-1])
        return result
    # Within a renormalised top-K the normaliser over V cancels: only the sampled token's log-prob carries it.
    renormalised = teacher is not None and top_k is not None and not config.distillation_add_tail
    carried = upstream[..., -1] if renormalised else upstream.sum(-1)
    factor = -carried / total
    if slope is not None:
        logits.mul_(slope)
    else:
        factor = factor * student.slope
    logits.mul_(factor.unsqueeze(-1))
    result.dense = logits.scatter_add_(-1, ids, entries)
    return result


def _kept(tokens: TokenLosses) -> TokenLosses:
    """Copy the rows' values: as views they would keep the chunk's K entries and its graph until the last chunk."""
    return combine_tokens([tokens], lambda values: values[0].detach().clone())
