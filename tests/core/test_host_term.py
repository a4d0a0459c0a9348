"""A host's own loss as a linear term of the fused pass: the same value and gradient as from whole logits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sdpo_plugins.config import SDPOConfig
from sdpo_plugins.host_term import HostTerm, linear_term
from sdpo_plugins.losses import LMHead, fused_row_losses

TEMPERATURE, SHARE = 0.7, 0.3
# The host's batch is [3, 4]; five of its tokens are computed, in an order of their own.
PLACES = torch.tensor([2, 0, 0, 2, 1]), torch.tensor([3, 1, 0, 0, 2])
SHAPE = torch.Size([3, 4])


def host_loss(log_probs: Tensor, entropies: Tensor) -> Tensor:
    """Nonlinear, different at each place, and with an entropy that only scales."""
    factors = torch.arange(1.0, 13.0, dtype=log_probs.dtype).view(SHAPE)
    return (factors * (1.0 + entropies) * log_probs.square()).sum() / 10.0


def numbers() -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(1)
    hidden, weight = (torch.randn(n, 6, generator=g, dtype=torch.float64) for n in (5, 11))
    return hidden.requires_grad_(), weight.requires_grad_(), torch.tensor([4, 0, 10, 4, 7])


def test_value_and_gradient_are_those_from_logits() -> None:
    hidden, weight, ids = numbers()
    log_probs = torch.log_softmax(hidden @ weight.T / TEMPERATURE, -1)
    entropies = -(log_probs.exp() * log_probs).sum(-1).detach()
    spread = [torch.zeros(SHAPE, dtype=torch.float64) for _ in range(2)]
    spread = [
        zeros.index_put(PLACES, values)
        for zeros, values in zip(spread, (log_probs.gather(-1, ids[:, None])[:, 0], entropies), strict=True)
    ]
    wanted = SHARE * host_loss(*spread)
    wanted_gradients = torch.autograd.grad(wanted, (hidden, weight))

    config, head = SDPOConfig(), LMHead(weight)
    host = HostTerm(SHARE, host_loss)
    term, correction = linear_term(host, hidden, head, ids, PLACES, SHAPE, config, temperature=TEMPERATURE)
    assert not correction.requires_grad
    found = fused_row_losses(hidden, head, None, None, ids, None, config, terms=[term], temperature=TEMPERATURE)
    loss = found.loss + correction
    assert float(loss.detach()) == pytest.approx(float(wanted.detach()), rel=1e-12)
    for got, expected in zip(torch.autograd.grad(loss, (hidden, weight)), wanted_gradients, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)


def test_a_host_loss_that_does_not_depend_on_the_policy_only_adds_its_value() -> None:
    hidden, weight, ids = numbers()
    host = HostTerm(SHARE, lambda log_probs, entropies: torch.tensor(2.0))
    term, correction = linear_term(host, hidden, LMHead(weight), ids, PLACES, SHAPE, SDPOConfig())
    assert term.weights.tolist() == [0.0] * 5
    assert float(correction) == pytest.approx(0.6)
