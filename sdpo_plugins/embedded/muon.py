"""The Muon optimizer, small: momentum whose matrix is made orthogonal before each step."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, overload

import torch


def orthogonalize(matrix: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """Push all singular values of a matrix towards 1 by a Newton-Schulz iteration.

    Args:
        matrix: [m, n], any scale.
        steps: iterations; five bring every singular value that matters into about 0.7 to 1.2.

    Returns:
        A matrix of the same shape and singular vectors.

    References:
        Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024), for the coefficients.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix / (matrix.norm() + 1e-7)
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if tall else x


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov momentum and decoupled weight decay, for matrices only.

    Here because torch has its own only since 2.9, and pre-training is to run on older ones.

    Args:
        params: parameters with two dimensions.
        lr: learning rate; an update has about the size of an AdamW update of the same rate.
        momentum: decay of the momentum.
        weight_decay: share of the weight lost in a step, times `lr`.
    """

    def __init__(
        self, params: Iterable[torch.Tensor], lr: float, momentum: float = 0.95, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], Any]) -> Any: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                momentum = self.state[weight].setdefault("momentum", torch.zeros_like(weight))
                momentum.lerp_(weight.grad, 1 - group["momentum"])
                update = orthogonalize(weight.grad.lerp(momentum, group["momentum"]))
                # Entries of AdamW's updates are about 0.2, of an orthogonal matrix 1/sqrt(max(m, n)).
                scale = 0.2 * max(weight.shape) ** 0.5
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.add_(update, alpha=-group["lr"] * scale)
        return loss
