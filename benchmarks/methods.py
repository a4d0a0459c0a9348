"""The losses that are compared, ours and the peers', each as a function of a problem."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.problem import Problem
from sdpo_plugins.config import SDPOConfig
from sdpo_plugins.losses import fused_self_distillation_loss, self_distillation_loss

__all__ = ["ALPHA", "METHODS", "OBJECTIVES", "Method", "config_of", "fused_loss", "why_not"]

ALPHA = 0.5
OBJECTIVES = {
    "tail": "top-K + tail, JSD",
    "renormalised": "top-K renormalised, JSD",
    "full": "whole vocabulary, JSD",
    "sampled": "sampled token, reverse KL",
}


@dataclass(frozen=True)
class Method:
    """One way to compute one objective.

    Args:
        name: Unique.
        label: What tables call it.
        objective: Key of `OBJECTIVES`.
        loss: Gives the 0-dim loss, from hidden states to scalar.
        module: What has to be importable; None: nothing but this project.
        install: How a user gets it.
    """

    name: str
    label: str
    objective: str
    loss: Callable[[Problem], Tensor]
    module: str | None = None
    install: str = ""

    @property
    def ours(self) -> bool:
        """Whether it is this project's."""
        return self.name.startswith("ours")


def config_of(objective: str, top_k: int) -> SDPOConfig:
    """Return the options of an objective; the step is on-policy, so the importance ratio plays no part."""
    if objective == "sampled":
        return SDPOConfig(alpha=1.0, full_logit_distillation=False, distillation_topk=None, is_clip=None)
    top = None if objective == "full" else top_k
    return SDPOConfig(alpha=ALPHA, distillation_topk=top, distillation_add_tail=objective == "tail", is_clip=None)


def why_not(method: Method) -> str | None:
    """Say why a method cannot run here, or None."""
    if method.module is not None and importlib.util.find_spec(method.module.partition(".")[0]) is None:
        return f"not installed: {method.install}"
    return None


def fused_loss(p: Problem, objective: str, chunk_memory_mb: float | None = None) -> Tensor:
    """Return our fused loss of a problem, 0-dim, with gradient.

    Args:
        p: The problem.
        objective: Key of `OBJECTIVES`.
        chunk_memory_mb: Working memory of a chunk in MiB; None: the device's default.
    """
    return fused_self_distillation_loss(
        p.hidden,
        p.weight,
        p.teacher_hidden,
        p.teacher_weight,
        p.token_ids,
        p.mask,
        config_of(objective, p.shape.top_k),
        chunk_memory_mb=chunk_memory_mb,
    )[0]


def _plain(objective: str) -> Callable[[Problem], Tensor]:
    def loss(p: Problem) -> Tensor:
        student = p.hidden @ p.weight.t()
        with torch.no_grad():
            teacher = p.teacher_hidden @ p.teacher_weight.t()
        config = config_of(objective, p.shape.top_k)
        return self_distillation_loss(student, teacher, p.token_ids, p.mask, config)[0]

    return loss


def _authors(objective: str) -> Callable[[Problem], Tensor]:
    """The published formula as their worker runs it: log-probs of the top-K first, then the loss on those."""

    def picked(logits: Tensor, at: Tensor) -> Tensor:
        return logits.gather(-1, at) - torch.logsumexp(logits, -1, keepdim=True)

    def loss(p: Problem) -> Tensor:
        token = p.token_ids.unsqueeze(-1)
        student = p.hidden @ p.weight.t()
        # The sampled tokens' log-probs feed the importance ratio; a row at a time, as the worker does.
        own = torch.stack([picked(row, at) for row, at in zip(student, token, strict=True)]).squeeze(-1)
        if objective == "sampled":
            with torch.no_grad():
                theirs = picked(p.teacher_hidden @ p.teacher_weight.t(), token).squeeze(-1)
            return p.mean((own - theirs).detach() * own)
        if objective == "full":
            log_s = torch.log_softmax(student, -1)
            with torch.no_grad():
                log_t = torch.log_softmax(p.teacher_hidden @ p.teacher_weight.t(), -1)
        else:
            top = student.topk(p.shape.top_k, -1)
            log_s = top.values - torch.logsumexp(student, -1, keepdim=True)
            with torch.no_grad():
                log_t = picked(p.teacher_hidden @ p.teacher_weight.t(), top.indices)
            finish = _with_rest if objective == "tail" else _rescaled
            log_s, log_t = finish(log_s), finish(log_t)
        ratio = (own - own.detach()).detach().clamp(-20.0, 20.0).exp().clamp(max=2.0)
        return p.mean(_jensen_shannon(log_s, log_t) * ratio)

    return loss


def _with_rest(log_p: Tensor) -> Tensor:
    held = torch.logsumexp(log_p, -1, keepdim=True).clamp(max=-1e-7)
    return torch.cat([log_p, (-torch.expm1(held)).log()], -1)


def _rescaled(log_p: Tensor) -> Tensor:
    return log_p - torch.logsumexp(log_p, -1, keepdim=True)


def _jensen_shannon(log_s: Tensor, log_t: Tensor) -> Tensor:
    share = torch.tensor(ALPHA)
    log_m = torch.logsumexp(torch.stack([log_s + (1.0 - share).log(), log_t + share.log()]), 0)
    kl = torch.nn.functional.kl_div
    from_student = kl(log_m, log_s, reduction="none", log_target=True)
    return torch.lerp(from_student, kl(log_m, log_t, reduction="none", log_target=True), ALPHA).sum(-1)


def _trl(objective: str) -> Callable[[Problem], Tensor]:
    """`trl.experimental.sdpo`: both models' logits divided by the temperature, then its loss functions."""

    def loss(p: Problem) -> Tensor:
        from trl.experimental.sdpo import loss_utils

        student = (p.hidden @ p.weight.t()) / 1.0
        with torch.no_grad():
            teacher = (p.teacher_hidden @ p.teacher_weight.t()) / 1.0
        if objective == "full":
            found = loss_utils.compute_full_logit_self_distillation_loss(student, teacher, distillation_alpha=ALPHA)
        elif objective == "sampled":
            found = loss_utils.compute_sampled_token_self_distillation_loss(
                student, teacher, p.token_ids, distillation_alpha=1.0
            )
        else:
            found = loss_utils.compute_topk_self_distillation_loss(
                student,
                teacher,
                distillation_topk=p.shape.top_k,
                distillation_alpha=ALPHA,
                distillation_add_tail=objective == "tail",
            )
        return p.mean(found)

    return loss


def _trl_chunked_full(p: Problem) -> Tensor:
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

    found: Any = ChunkedDivergenceFunction.apply(
        p.hidden.flatten(0, 1), p.weight, None, p.teacher_hidden.flatten(0, 1), p.teacher_weight, None, ALPHA, 1.0
    )
    return p.mean(found[0].view_as(p.mask))


def _trl_chunked_sampled(p: Problem) -> Tensor:
    from trl.kernels import ChunkedLogProbFunction

    def log_probs(hidden: Tensor, weight: Tensor) -> Tensor:
        found: Any = ChunkedLogProbFunction.apply(
            hidden.flatten(0, 1), weight, None, p.token_ids.flatten(), 1.0, 32768, None, 1.0, ()
        )
        return found[0].view_as(p.mask)

    own = log_probs(p.hidden, p.weight)
    with torch.no_grad():
        theirs = log_probs(p.teacher_hidden, p.teacher_weight)
    return p.mean((own - theirs).detach() * own)


def _sdpo_rl(objective: str) -> Callable[[Problem], Tensor]:
    """sdpo-rl, called as its trainer does: log-softmax of whole rows, then its loss."""

    def loss(p: Problem) -> Tensor:
        from sdpo_rl.distillation import compute_self_distillation_loss

        token = p.token_ids.unsqueeze(-1)
        student = torch.log_softmax(p.hidden @ p.weight.t(), -1)
        top = student.topk(p.shape.top_k, -1)
        with torch.no_grad():
            teacher = torch.log_softmax(p.teacher_hidden @ p.teacher_weight.t(), -1)
            theirs, theirs_top = teacher.gather(-1, token).squeeze(-1), teacher.gather(-1, top.indices)
        found: Tensor = compute_self_distillation_loss(
            student.gather(-1, token).squeeze(-1),
            theirs,
            p.mask,
            top.values,
            theirs_top,
            alpha=ALPHA,
            add_tail=objective == "tail",
        )[0]
        return found

    return loss


def _liger(p: Problem) -> Tensor:
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    # It divides by the number of labels that count; the labels play no other part at a hard weight of 0.
    labels = p.token_ids.masked_fill(p.mask == 0, -100).flatten()
    jsd = LigerFusedLinearJSDLoss(weight_hard_loss=0.0, weight_soft_loss=1.0, beta=ALPHA, compiled=False)
    found: Tensor = jsd(p.hidden.flatten(0, 1), p.weight, p.teacher_hidden.flatten(0, 1), p.teacher_weight, labels)
    return found


def _methods() -> list[Method]:
    trl, rl, liger = "pip install 'trl<1.17'", "pip install sdpo-rl", "pip install --no-deps liger-kernel"
    found = []
    for objective in OBJECTIVES:
        found.append(Method(f"ours_{objective}", "ours, fused", objective, partial(fused_loss, objective=objective)))
        found.append(Method(f"ours_plain_{objective}", "ours, on logits", objective, _plain(objective)))
        found.append(Method(f"authors_{objective}", "the authors' formula", objective, _authors(objective)))
        found.append(Method(f"trl_{objective}", "TRL experimental.sdpo", objective, _trl(objective), "trl", trl))
        if objective in ("tail", "renormalised"):
            label = "sdpo-rl"
            found.append(Method(f"sdpo_rl_{objective}", label, objective, _sdpo_rl(objective), "sdpo_rl", rl))
    found.append(Method("trl_chunked_full", "TRL's chunked kernel", "full", _trl_chunked_full, "trl", trl))
    found.append(Method("trl_chunked_sampled", "TRL's chunked kernel", "sampled", _trl_chunked_sampled, "trl", trl))
    found.append(Method("liger_full", "Liger's fused linear JSD", "full", _liger, "liger_kernel", liger))
    return found


METHODS = {method.name: method for method in _methods()}
