"""A host's own loss as a term of SDPO's pass: what it needs are the log-probabilities of the sampled tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sdpo_plugins.losses.fused import LinearTerm, LMHead, fused_row_losses

if TYPE_CHECKING:
    from sdpo_plugins.config import SDPOConfig

__all__ = ["HostTerm", "linear_term"]


@dataclass(frozen=True)
class HostTerm:
    """The host's own loss, as a function of the log-probs of the sampled tokens.

    Args:
        share: What it is multiplied by.
        loss: `loss(log_probs [B, T], entropies [B, T]) -> 0-dim`, with gradient to the log-probs; what is masked holds
            zeros.

    Example:
        >>> term = HostTerm(0.5, lambda log_probs, entropies: -log_probs.sum())
        >>> value, slope = term.slope(torch.zeros(1, 2), torch.zeros(1, 2))
        >>> slope
        tensor([[-0.5000, -0.5000]])
    """

    share: float
    loss: Callable[[Tensor, Tensor], Tensor]

    def slope(self, log_probs: Tensor, entropies: Tensor) -> tuple[Tensor, Tensor]:
        """Return share·loss without gradient, and its derivative by the log-probs `[B, T]`.

        Args:
            log_probs: log π(y) `[B, T]`.
            entropies: In nats, `[B, T]`; they carry no gradient.
        """
        with torch.enable_grad():
            leaf = log_probs.detach().requires_grad_()
            value = self.share * self.loss(leaf, entropies)
            if not value.requires_grad:
                return value.detach(), torch.zeros_like(leaf)
            (slope,) = torch.autograd.grad(value, leaf)
        return value.detach(), slope


@torch.no_grad()
def linear_term(
    host: HostTerm,
    hidden: Tensor,
    head: LMHead,
    token_ids: Tensor,
    places: tuple[Tensor, Tensor],
    shape: torch.Size,
    config: SDPOConfig,
    *,
    temperature: float = 1.0,
    chunk_memory_mb: float | None = None,
) -> tuple[LinearTerm, Tensor]:
    """Let the host compute its loss from our log-probs, and return its derivative as a term of the fused pass.

    Formula:
        L(log π) becomes Σ s_n·log π(y_n) + (L − Σ s_n·log π(y_n)) with s = ∂L/∂log π: the same value, and the same
        gradient with respect to hidden states and head, without a second set of logits.

    Args:
        host: The host's loss.
        hidden: `[N, H]` the student's last hidden states at the positions that predict `token_ids`.
        head: The student's, whole.
        token_ids: `[N]` sampled tokens.
        places: Row and position of each of them in the host's batch, `[N]` each.
        shape: `[B, T]` of the host's batch; what is at none of the places holds zeros.
        config: The SDPO options.
        temperature: τ of the rollouts.
        chunk_memory_mb: As in `fused_row_losses`.

    Returns:
        The term, for `fused_row_losses`, and what has to be added to its value to make it the host's loss.

    Example:
        >>> from sdpo_plugins.config import SDPOConfig
        >>> host = HostTerm(0.5, lambda log_probs, entropies: (log_probs**2).sum())
        >>> places = torch.tensor([0, 1]), torch.tensor([2, 0])
        >>> head, ids = LMHead(torch.zeros(8, 4)), torch.tensor([3, 5])
        >>> term, rest = linear_term(host, torch.zeros(2, 4), head, ids, places, torch.Size([2, 3]), SDPOConfig())
        >>> term.weights  # 2 · 0.5 · log(1/8)
        tensor([-2.0794, -2.0794])
    """
    known = fused_row_losses(
        hidden,
        head,
        None,
        None,
        token_ids,
        None,
        config,
        entropies=True,
        temperature=temperature,
        chunk_memory_mb=chunk_memory_mb,
    )
    assert known.entropies is not None
    log_probs, entropies = (
        values.new_zeros(shape).index_put(places, values) for values in (known.log_probs, known.entropies)
    )
    value, slope = host.slope(log_probs, entropies)
    picked = slope[places]
    return LinearTerm(picked), value - (picked * known.log_probs).sum()
