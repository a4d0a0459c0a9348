"""The whole vocabulary compared: divergence and its gradient in place, a block of columns at a time."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sdpo_plugins.losses.divergences import LOG_PROB_FLOOR, floor_log_probs, jsd_alpha
from sdpo_plugins.losses.fused.objective import Objective
from sdpo_plugins.losses.fused.softmax import cache_blocks, row_dot, row_normalizer
from sdpo_plugins.losses.sdpo import TokenLosses, resolve_divergence
from sdpo_plugins.losses.support import LogProbPair

__all__ = ["FullResult", "full_vocabulary"]


@dataclass
class FullResult:
    """A chunk's part of the loss, and what each of its rows gave; nothing carries gradient."""

    loss: Tensor
    log_probs: Tensor
    entropies: Tensor | None
    tokens: TokenLosses


def full_vocabulary(
    objective: Objective,
    student: Tensor,
    teacher: Tensor,
    token_ids: Tensor,
    rows: slice,
    entropies: bool,
    gradient: bool,
) -> FullResult:
    r"""Overwrite the student's logits with ∂loss/∂logit.

    Formula:
        With D the divergence and u_v = ∂D/∂log S_v: ∂D/∂logit_v = u_v − S_v·Σu. For the generalized Jensen–Shannon
        divergence u_v = (1−α)·S_v·(log S_v − log M_v); for KL(T‖S) u_v = −T_v; for KL(S‖T)
        u_v = S_v·(log S_v − log T_v), up to a multiple of S, which cancels. Others: autograd.

    Args:
        objective: Weighs each row's D and log π(y).
        student: logits/τ `[n, V]`, overwritten.
        teacher: logits/τ `[n, V]`, overwritten.
        token_ids: `[n]`.
        rows: Which rows of the batch these are.
        entropies: Whether the student's entropies are wanted.
        gradient: Whether the gradient is; else what `student` holds afterwards is anything.

    Returns:
        Loss and row values.
    """
    token = token_ids.unsqueeze(-1)
    student_norm, teacher_norm = row_normalizer(student).unsqueeze(-1), row_normalizer(teacher).unsqueeze(-1)
    log_prob = (student.gather(-1, token) - student_norm).squeeze(-1)
    teacher_log_prob = floor_log_probs(teacher.gather(-1, token) - teacher_norm).squeeze(-1)
    divergence = objective.divergence or resolve_divergence(objective.config)
    alpha = jsd_alpha(divergence)
    if alpha is None:
        # What autograd keeps of a divergence that we do not know takes several times the chunk.
        leaf = floor_log_probs(student.sub_(student_norm)).requires_grad_(gradient)
        with torch.set_grad_enabled(gradient):
            graph = divergence(leaf, floor_log_probs(teacher.sub_(teacher_norm)))
        value, total, entropy = graph.detach(), torch.zeros_like(log_prob), torch.zeros_like(log_prob)
        if entropies:
            entropy = -row_dot(leaf.detach().exp(), leaf.detach())
    else:
        value, total, entropy = _in_blocks(student, teacher, student_norm, teacher_norm, alpha, entropies)

    with torch.enable_grad():
        leaves = [value.clone().requires_grad_(gradient), log_prob.requires_grad_(gradient)]
        floored = floor_log_probs(leaves[1])
        loss = objective.beside(floored, rows)
        pair = LogProbPair(floored, teacher_log_prob, leaves[0], leaves[0])
        part, tokens = objective.distilled(pair, rows, lambda *_: leaves[0])
        loss = loss + part
        if gradient:
            per_divergence, per_log_prob = objective.gradients(loss, *leaves)
    result = FullResult(loss.detach(), floored.detach(), entropy if entropies else None, tokens)
    if not gradient:
        return result
    if alpha is None:
        (slope,) = torch.autograd.grad(graph, leaf, per_divergence)
        # A floored entry is a constant.
        slope = slope.masked_fill(leaf.detach() <= LOG_PROB_FLOOR, 0.0)
        total, per_divergence = slope.sum(-1), torch.ones_like(per_divergence)
        torch.exp(student, out=teacher)
        student.copy_(slope)
    # student: u (for an own divergence not yet weighed); teacher: S
    student.mul_(per_divergence.unsqueeze(-1))
    student.addcmul_(teacher, (-(per_divergence * total + per_log_prob)).unsqueeze(-1))
    student.scatter_add_(-1, token, per_log_prob.unsqueeze(-1))
    return result


def _in_blocks(
    student: Tensor, teacher: Tensor, student_norm: Tensor, teacher_norm: Tensor, alpha: float, entropies: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Turn logits into u (`student`) and S (`teacher`); return the divergence, Σu and the entropy of each row."""
    value, total, entropy = (torch.zeros_like(student[:, 0]) for _ in range(3))
    for block in cache_blocks(student):
        log_s = student[:, block].sub_(student_norm).clamp_(min=LOG_PROB_FLOOR)
        log_t = teacher[:, block].sub_(teacher_norm).clamp_(min=LOG_PROB_FLOOR)
        s, t = log_s.exp(), log_t.exp()
        if entropies:
            entropy -= row_dot(s, log_s)
        if alpha == 0.0:
            value += row_dot(t, log_t.sub_(log_s))
            # A floored entry is a constant.
            slope = t.neg_().masked_fill_(log_s <= LOG_PROB_FLOOR, 0.0)
            total += slope.sum(-1)
            student[:, block] = slope
        else:
            if alpha == 1.0:
                log_s.sub_(log_t)
                share = 1.0
            else:
                # Both may be 0: any finite logarithm will do, as it is multiplied by 0.
                log_m = (s * (1.0 - alpha)).add_(t, alpha=alpha).clamp_(min=torch.finfo(s.dtype).tiny).log_()
                value += alpha * row_dot(t, log_t.sub_(log_m))
                log_s.sub_(log_m)
                share = 1.0 - alpha
            part = share * row_dot(s, log_s)
            value += part
            total += part
            log_s.mul_(s).mul_(share)
        teacher[:, block] = s
    return value, total, entropy
