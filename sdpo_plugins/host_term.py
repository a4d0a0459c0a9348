"""A host's own loss as a term of SDPO's pass: what it needs are the log-probabilities of the sampled tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["HostTerm"]


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
