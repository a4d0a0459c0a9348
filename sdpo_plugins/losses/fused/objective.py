"""What the rows of a fused pass add to the loss, as a function of a few log-probabilities each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sdpo_plugins.losses.divergences import DivergenceFunction
from sdpo_plugins.losses.hybrid import CLIP_HIGH, CLIP_LOW, policy_gradient_loss
from sdpo_plugins.losses.sdpo import TokenLosses, token_losses_of
from sdpo_plugins.losses.support import LogProbPair

if TYPE_CHECKING:
    from sdpo_plugins.config import SDPOConfig

__all__ = ["LinearTerm", "LogProbTerm", "Objective", "PolicyTerm"]


LogProbTerm = Callable[[Tensor, slice], Tensor]
"""`f(log_probs [n], rows) -> 0-dim`: a term of log π(y) alone, summed over the rows it is given and weighed already."""


@dataclass(frozen=True)
class PolicyTerm:
    """PPO's clipped token loss as a `LogProbTerm`.

    Args:
        weights: `[N]` what each row's token loss is multiplied by: share of the term over the number of tokens.
        advantages: `[N]`, positive where a token should become likelier.
        old_log_probs: `[N]` log π_old(y); None: on-policy.
        clip_low: ε_low.
        clip_high: ε_high.

    Example:
        >>> term = PolicyTerm(torch.tensor([0.5, 0.5]), torch.tensor([1.0, -1.0]))
        >>> float(term(torch.tensor([-2.0]), slice(0, 1)))
        -0.5
    """

    weights: Tensor
    advantages: Tensor
    old_log_probs: Tensor | None = None
    clip_low: float = CLIP_LOW
    clip_high: float = CLIP_HIGH

    def __call__(self, log_probs: Tensor, rows: slice) -> Tensor:
        """Return Σ w·loss over these rows."""
        old = None if self.old_log_probs is None else self.old_log_probs[rows]
        losses = policy_gradient_loss(
            log_probs, self.advantages[rows], old, clip_low=self.clip_low, clip_high=self.clip_high
        )
        return (losses * self.weights[rows].to(losses.dtype)).sum()


@dataclass(frozen=True)
class LinearTerm:
    """Σ w_n·log π(y_n): a term whose derivative by the log-probs is known already, as a `LogProbTerm`.

    Args:
        weights: `[N]`.

    Example:
        >>> float(LinearTerm(torch.tensor([0.5, 2.0]))(torch.tensor([-1.0]), slice(1, 2)))
        -2.0
    """

    weights: Tensor

    def __call__(self, log_probs: Tensor, rows: slice) -> Tensor:
        """Return Σ w·log π(y) over these rows."""
        return (log_probs * self.weights[rows].to(log_probs.dtype)).sum()


@dataclass(frozen=True)
class Objective:
    """The weighted sum over rows that is differentiated.

    Args:
        config: The SDPO options.
        divergence: Per-token divergence; None: the configured one.
        weights: `[M]` multiplies the token losses of the rows that have a teacher.
        old_log_probs: `[M]` or None.
        rollout_is_weights: `[M]` or None.
        terms: Further terms, over all N rows.
    """

    config: SDPOConfig
    divergence: DivergenceFunction | None
    weights: Tensor
    old_log_probs: Tensor | None = None
    rollout_is_weights: Tensor | None = None
    terms: Sequence[LogProbTerm] = ()

    def distilled(
        self, pair: LogProbPair, rows: slice, divergence: Callable[[Tensor, Tensor], Tensor] | None = None
    ) -> tuple[Tensor, TokenLosses]:
        """Return Σ w·ℓ over rows with a teacher, and their token losses.

        Args:
            pair: Log-probs of these rows.
            rows: Which rows of the batch they are.
            divergence: In place of the configured one.
        """
        old, weights = self.old_log_probs, self.rollout_is_weights
        tokens = token_losses_of(
            pair,
            self.config,
            divergence or self.divergence,
            old_log_probs=None if old is None else old[rows],
            rollout_is_weights=None if weights is None else weights[rows],
        )
        per_token = tokens.per_token
        return (per_token * self.weights[rows].to(per_token.dtype)).sum(), tokens

    def beside(self, log_probs: Tensor, rows: slice) -> Tensor:
        """Return the terms that need no teacher, from log π of the sampled tokens of these rows `[n]`."""
        total = log_probs.new_zeros(())
        for term in self.terms:
            total = total + term(log_probs, rows)
        return total

    def gradients(self, scalar: Tensor, *leaves: Tensor) -> list[Tensor]:
        """Return ∂scalar/∂leaf, zeros where a leaf plays no part."""
        # Rows without a teacher and without a term have nothing to differentiate.
        found = torch.autograd.grad(scalar, leaves, allow_unused=True) if scalar.requires_grad else [None] * len(leaves)
        return [torch.zeros_like(leaf) if g is None else g for leaf, g in zip(leaves, found, strict=True)]
