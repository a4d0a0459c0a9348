"""Teacher's and student's pass over chosen tokens, for hosts that train inside of an engine (FSDP2, DeepSpeed).

The host lays its batch out, runs the body, and says which hidden states predict which tokens; all else is here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sdpo_plugins.host_term import HostTerm, linear_term
from sdpo_plugins.inside import Opaque, loss_inside, run_inside
from sdpo_plugins.losses.fused import FusedRows, LMHead, LogProbTerm, fused_row_losses
from sdpo_plugins.modes import evaluating
from sdpo_plugins.records.capture import Watch, logits_from_hidden, watch_tokens

if TYPE_CHECKING:
    from sdpo_plugins.causal_lm import SplitModel
    from sdpo_plugins.config import SDPOConfig
    from sdpo_plugins.teacher import LocalTensors, Teacher

__all__ = ["ChosenTokens", "TeacherStates", "student_loss", "teacher_states"]


@dataclass(frozen=True)
class TeacherStates:
    """What the teacher's passes left: of each, its head, and its hidden states `[M, H]` before the distilled tokens."""

    heads: Sequence[LMHead]
    hidden: Sequence[Tensor]


@dataclass(frozen=True)
class ChosenTokens:
    """Tokens in a host's batch, those that are distilled first.

    Args:
        ids: `[N]`.
        row: Of each in the batch, `[N]`.
        position: Of each in its row, `[N]`.
        shape: `[B, T]` of the batch.
        weights: `[M]` what the loss of each of the first M tokens is multiplied by.
        old_log_probs: `[M]` log π_old; None: on-policy.
        rollout_is_weights: `[M]`; None: 1.
    """

    ids: Tensor
    row: Tensor
    position: Tensor
    shape: torch.Size
    weights: Tensor
    old_log_probs: Tensor | None = None
    rollout_is_weights: Tensor | None = None


@torch.no_grad()
def teacher_states(
    wrapper: nn.Module,
    module: nn.Module,
    split: SplitModel,
    teacher: Teacher,
    tensors: LocalTensors,
    body: Callable[[], Tensor],
    places: Tensor,
) -> TeacherStates:
    """Run the teacher's passes inside of what wraps the model.

    Args:
        wrapper: FSDP2's module, DeepSpeed's engine, or the bare model.
        module: The bare model in it.
        split: Its body and head.
        teacher: Whose weights take effect.
        tensors: The student's, on this rank.
        body: Runs the body on the teacher's input; returns hidden states `[…, H]`, flat.
        places: Which of these predict the distilled tokens, `[M]`.
    """

    def forward() -> Opaque:
        states = body()
        return Opaque((states[places].clone(), split.copy_of_head(states)))

    heads, hidden = [], []
    with evaluating(module):
        for item in teacher.passes:
            with teacher.in_effect(item, tensors):
                states, head = run_inside(wrapper, module, forward).value
            heads.append(head)
            hidden.append(states)
    return TeacherStates(heads, hidden)


def student_loss(
    split: SplitModel,
    states: Tensor,
    tokens: ChosenTokens,
    teacher: Teacher,
    scored: TeacherStates,
    config: SDPOConfig,
    divergence: Callable[[Tensor, Tensor], Tensor],
    *,
    host: HostTerm | None = None,
    temperature: float = 1.0,
    place: str = "row {} of the micro-batch, position {} of the response",
    watch: Watch | None = None,
) -> tuple[Tensor, FusedRows]:
    """Compute the weighted loss of chosen tokens inside of the head's own forward; call it in the model's forward.

    Args:
        split: Body and head.
        states: `[N, H]` the student's hidden states before the tokens, with gradient.
        tokens: N of them; the first M are distilled.
        teacher: For the shares of its passes.
        scored: From `teacher_states`.
        config: The SDPO options.
        divergence: Resolved once.
        host: The host's own part of the objective, over all N tokens; None: none.
        temperature: τ of the rollouts.
        place: What messages call a token, made of its row and position.
        watch: Takes the token values of rows that are recorded; None: none are.

    Returns:
        The loss, 0-dim, and everything of the tokens.
    """
    common: dict[str, Any] = {"temperature": temperature, "chunk_memory_mb": config.chunk_memory_mb}

    def inside(given: Tensor) -> tuple[Tensor, FusedRows]:
        head = split.head()
        terms: list[LogProbTerm] = []
        correction = torch.zeros((), device=given.device)
        if host is not None:
            places = (tokens.row, tokens.position)
            linear, correction = linear_term(host, given, head, tokens.ids, places, tokens.shape, config, **common)
            terms.append(linear)
        found = fused_row_losses(
            given,
            head,
            scored.hidden if tokens.weights.numel() else None,
            scored.heads,
            tokens.ids,
            tokens.weights,
            config,
            old_log_probs=tokens.old_log_probs,
            rollout_is_weights=tokens.rollout_is_weights,
            terms=terms,
            divergence=divergence,
            teacher_shares=[item.share for item in teacher.passes],
            entropies=True,
            place=lambda at: place.format(int(tokens.row[at]), int(tokens.position[at])),
            **common,
        )
        if watch is not None and watch.wanted and found.tokens is not None:
            shares, distilled = [item.share for item in teacher.passes], tokens.weights.numel()
            watch_tokens(
                watch,
                tokens.row[:distilled],
                tokens.position[:distilled],
                found.tokens.divergence,
                logits_from_hidden([given.detach()], [head], [1.0], temperature),
                logits_from_hidden(scored.hidden, scored.heads, shares, temperature),
            )
        return found.loss + correction, found

    return loss_inside(split.linear, split.linear, inside, states)
