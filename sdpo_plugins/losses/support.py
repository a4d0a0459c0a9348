"""Which vocabulary entries student and teacher are compared on: sampled token, top-K, or everything."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sdpo_plugins.losses.divergences import accumulation_dtype, floor_log_probs
from sdpo_plugins.losses.normalize import gather_log_probs, log_normalizer

if TYPE_CHECKING:
    from sdpo_plugins.config import SDPOConfig

__all__ = ["LogProbPair", "add_tail", "compare_log_probs", "renormalize", "top_k_ids"]

_LARGEST_LOG_MASS = -1e-7


@dataclass(frozen=True)
class LogProbPair:
    """Log-probabilities of student and teacher on the same vocabulary entries; the teacher's carry no gradient.

    Args:
        student_token: Student's log-prob of the sampled token `[...]`, normalised over the whole vocabulary.
        teacher_token: Teacher's, likewise; None where nobody computed its normaliser.
        student: Student's log-probs on the support `[..., K']`, or None in sampled-token mode. K' is K + 1 with a tail
            bucket, K when renormalised, V for the whole vocabulary.
        teacher: Teacher's, at the same entries.
        student_mass: Student's probability of the top-K together `[...]`, without gradient; None without a top-K.
        teacher_mass: Teacher's probability of the same entries.
    """

    student_token: Tensor
    teacher_token: Tensor | None
    student: Tensor | None = None
    teacher: Tensor | None = None
    student_mass: Tensor | None = None
    teacher_mass: Tensor | None = None


def compare_log_probs(
    student_logits: Tensor, teacher_logits: Tensor, token_ids: Tensor, config: SDPOConfig, temperature: float = 1.0
) -> LogProbPair:
    """Turn logits into the log-probabilities that the configuration compares.

    Formula:
        log p = logit/τ − logsumexp_V(logit/τ). Top-K of the student's logits (of the teacher's if `topk_support` says
        so), both gathered at those ids; then one entry log(1 − Σ_topK p) for the rest (`distillation_add_tail`), or
        both normalised again within the K.

    Args:
        student_logits: `[..., V]` logits, any float dtype, −inf allowed.
        teacher_logits: `[..., V]` logits; never receives a gradient.
        token_ids: `[...]` the sampled tokens, in [0, V).
        config: `full_logit_distillation`, `distillation_topk`, `topk_support`, `distillation_add_tail` are read.
        temperature: τ of both; the temperature of the rollouts.

    Returns:
        A `LogProbPair`. On a renormalised top-K the loss has exactly K nonzero gradient entries per token.

    Example:
        >>> from sdpo_plugins.config import SDPOConfig
        >>> logits = torch.zeros(1, 2, 8)
        >>> ids = torch.zeros(1, 2, dtype=torch.long)
        >>> compare_log_probs(logits, logits, ids, SDPOConfig(distillation_topk=3)).student.shape
        torch.Size([1, 2, 4])

    Source: arXiv 2601.20802, section 3 and the authors' code.
    """
    teacher_logits = teacher_logits.detach()
    token = token_ids.unsqueeze(-1)
    if config.full_logit_distillation and config.distillation_topk is None:
        student = _full_log_probs(student_logits, temperature)
        teacher = _full_log_probs(teacher_logits, temperature)
        return LogProbPair(_at(student, token), _at(teacher, token), student, teacher)

    student_norm = log_normalizer(student_logits, temperature)
    teacher_norm = log_normalizer(teacher_logits, temperature)
    if not config.full_logit_distillation:
        return LogProbPair(
            floor_log_probs(gather_log_probs(student_logits, token, temperature, student_norm)).squeeze(-1),
            floor_log_probs(gather_log_probs(teacher_logits, token, temperature, teacher_norm)).squeeze(-1),
        )

    assert config.distillation_topk is not None
    source = student_logits if config.topk_support == "student" else teacher_logits
    top = top_k_ids(source, config.distillation_topk)
    both = torch.cat([top, token], dim=-1)
    teacher = floor_log_probs(gather_log_probs(teacher_logits, both, temperature, teacher_norm))
    teacher, teacher_token = teacher[..., :-1], teacher[..., -1]
    if config.distillation_add_tail:
        # One gather for the support and the sampled token: its backward pass fills a single [..., V] buffer.
        student = floor_log_probs(gather_log_probs(student_logits, both, temperature, student_norm))
        student, student_token = student[..., :-1], student[..., -1]
        finish = add_tail
    else:
        # Renormalising cancels the normaliser over V. Taking it as a constant keeps the gradient exactly sparse.
        picked = student_logits.gather(-1, top).to(student_norm.dtype) / temperature
        student = floor_log_probs(picked - student_norm.unsqueeze(-1))
        student_token = floor_log_probs(gather_log_probs(student_logits, token, temperature, student_norm)).squeeze(-1)
        finish = renormalize
    return LogProbPair(
        student_token,
        teacher_token,
        finish(student),
        finish(teacher),
        student.detach().exp().sum(-1),
        teacher.exp().sum(-1),
    )


def top_k_ids(logits: Tensor, k: int) -> Tensor:
    """Return the ids of the K largest logits of each row, largest first.

    Args:
        logits: `[..., V]`.
        k: K ≥ 1; above V it is clamped to V, with one notice per process.

    Returns:
        Ids `[..., min(K, V)]`.

    Example:
        >>> top_k_ids(torch.tensor([0.0, 2.0, 1.0]), 2)
        tensor([1, 2])
    """
    size = logits.shape[-1]
    if k > size:
        _notice_clamped(k, size)
        k = size
    return torch.topk(logits.detach(), k, dim=-1).indices


def add_tail(log_probs: Tensor) -> Tensor:
    """Append one entry that holds the probability outside of the given ones.

    Formula:
        log(1 − Σ_k p_k) = log(−expm1(min(logsumexp_k log p_k, −10⁻⁷))); the clamp keeps it finite when nothing is left.

    Args:
        log_probs: Log-probs `[..., K]` with a sum of at most 1.

    Returns:
        Log-probs `[..., K + 1]`.

    Example:
        >>> add_tail(torch.tensor([0.5, 0.25]).log()).exp()
        tensor([0.5000, 0.2500, 0.2500])
    """
    mass = torch.logsumexp(log_probs, dim=-1, keepdim=True).clamp(max=_LARGEST_LOG_MASS)
    return torch.cat([log_probs, torch.log(-torch.expm1(mass))], dim=-1)


def renormalize(log_probs: Tensor) -> Tensor:
    """Make the given entries a distribution of their own: log p − logsumexp(log p).

    Args:
        log_probs: Log-probs `[..., K]`.

    Returns:
        Log-probs `[..., K]` whose probabilities sum to 1.

    Example:
        >>> renormalize(torch.tensor([0.4, 0.1]).log()).exp()
        tensor([0.8000, 0.2000])
    """
    return log_probs - torch.logsumexp(log_probs, dim=-1, keepdim=True)


_notices_given: set[str] = set()


def _notice_clamped(k: int, size: int) -> None:
    if "clamped" in _notices_given:
        return
    _notices_given.add("clamped")
    warnings.warn(
        f"`distillation_topk`={k} is larger than the vocabulary ({size}); it is clamped to {size}. "
        "Set distillation_topk=null to compare the whole vocabulary without a tail bucket.",
        stacklevel=4,
    )


def _full_log_probs(logits: Tensor, temperature: float) -> Tensor:
    wide = logits.to(accumulation_dtype(logits.dtype))
    return torch.log_softmax(wide if temperature == 1.0 else wide / temperature, dim=-1)


def _at(log_probs: Tensor, token: Tensor) -> Tensor:
    return floor_log_probs(log_probs.gather(-1, token)).squeeze(-1)
