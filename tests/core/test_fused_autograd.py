"""The fused loss as a node of autograd: finite differences, factors, one backward pass, none, and the compiler."""

import pytest
import torch

from fused_cases import MODES, assert_same, draw, fused, fused_loss, on, plain, relative_error
from live_tensors import LiveTensors
from sdpo_plugins.losses import LinearTerm, LMHead, PolicyTerm, fused_row_losses

SMOOTH = [mode for mode in MODES if mode != "sampled"]


class Again(torch.autograd.Function):
    """Call a function anew in every backward pass: the fused loss gives its gradients once, gradcheck asks twice."""

    @staticmethod
    def forward(ctx, function, *leaves):
        ctx.function = function
        ctx.save_for_backward(*leaves)
        return function(*leaves).detach()

    @staticmethod
    def backward(ctx, upstream):
        with torch.enable_grad():
            leaves = [leaf.detach().requires_grad_() for leaf in ctx.saved_tensors]
            return None, *torch.autograd.grad(ctx.function(*leaves), leaves, upstream)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("mode", SMOOTH)
def test_gradients_are_those_of_the_value(mode, alpha):
    """By finite differences, with policy terms beside; factors that carry no gradient are left to the parity tests."""
    case = draw(1, 5, 7, 3, bias=True, soft_cap=3.0)
    config = on(mode, alpha, distillation_topk=None if mode == "full" else 3, is_clip=None)
    numbers = torch.randn(4, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    for terms in ((), (PolicyTerm(numbers[0], numbers[1], numbers[2].abs() - 2.2), LinearTerm(numbers[3]))):

        def loss(hidden, weight, bias, terms=terms):
            return fused_row_losses(
                hidden,
                LMHead(weight, bias, 1.2, 3.0),
                case.teacher_hidden[0, :4],
                case.teacher_head,
                case.token_ids[0],
                numbers[3, :4],
                config,
                terms=terms,
                temperature=0.8,
                rows_per_chunk=2,
            ).loss

        leaves = (case.hidden.detach()[0].requires_grad_(), case.weight, case.bias)
        assert torch.autograd.gradcheck(
            lambda *leaves, loss=loss: Again.apply(loss, *leaves), leaves, check_undefined_grad=False
        )


@pytest.mark.parametrize("mode", MODES)
def test_a_factor_on_the_loss_is_a_factor_on_the_gradients(mode):
    case = draw(bias=True)
    _, expected, _ = fused(case, MODES[mode])
    for factor in (3.0, -0.5, 0.0):
        loss, _ = fused_loss(case, MODES[mode])
        ours = torch.autograd.grad(loss * factor + 1.0, list(case.leaves.values()))
        for gradient, name in zip(ours, expected, strict=True):
            torch.testing.assert_close(gradient, expected[name] * factor, rtol=1e-12, atol=0)


@pytest.mark.parametrize("mode", ["tail", "renormalised", "full"])
def test_a_loss_scale_saves_small_float16_gradients(mode):
    """A weight of 10⁻⁷ a token, as in a mean over many micro-batches: float16 alone would flush the gradients to 0."""
    case = draw(dtype=torch.float16, bias=True)
    exact = case.to(torch.float64)
    weights = torch.full((15,), 1e-7)

    def gradients(case):
        rows = fused_row_losses(
            case.hidden.flatten(0, 1),
            case.head,
            case.teacher_hidden.flatten(0, 1),
            case.teacher_head,
            case.token_ids.flatten(),
            weights,
            MODES[mode],
        )
        return torch.autograd.grad(rows.loss * 2.0**16, list(case.leaves.values()))

    for ours, theirs in zip(gradients(case), gradients(exact), strict=True):
        assert ours.dtype == torch.float16 and relative_error(ours, theirs) <= 5e-3


def test_a_second_backward_pass_is_refused():
    case = draw()
    loss, _ = fused_loss(case, MODES["tail"])
    loss.backward(retain_graph=True)
    before = case.weight.grad.clone()
    with pytest.raises(RuntimeError, match="hands its gradients over once"):
        loss.backward()
    assert torch.equal(case.weight.grad, before)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("without", [torch.no_grad, torch.inference_mode])
def test_without_gradients_none_are_computed(mode, without):
    case = draw(rows=1, columns=4, size=501, width=64, bias=True)
    expected = plain(case, MODES[mode])
    with without():
        inside = case.with_(mask=case.mask.clone(), token_ids=case.token_ids.clone())
        with LiveTensors() as live:
            loss, metrics = fused_loss(inside, MODES[mode])
    assert not loss.requires_grad and case.weight.numel() not in live.counts
    assert_same((loss, {}, metrics), (expected[0], {}, expected[2]), 1e-9)


def test_inside_of_a_compiled_function():
    """The compiler goes around the loss: what it sees are the few operations before and after it."""
    case = draw(bias=True)
    seen = []

    def backend(graph, inputs):
        seen.extend(node for node in graph.graph.nodes if node.op.startswith("call"))
        return graph.forward

    def step(hidden):
        loss, metrics = fused_loss(case.with_(hidden=torch.tanh(hidden) * 2), MODES["tail"])
        return loss * 3, metrics

    expected, theirs = step(case.hidden)
    wanted = torch.autograd.grad(expected, list(case.leaves.values()))
    loss, metrics = torch.compile(step, backend=backend)(case.hidden)
    found = torch.autograd.grad(loss, list(case.leaves.values()))
    assert torch.equal(loss, expected) and all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    assert metrics.keys() == theirs.keys() and 0 < len(seen) < 10
