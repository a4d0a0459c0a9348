"""Heads as real models have them: tied, biased, scaled, capped, frozen, adapted, of another type."""

import pytest
import torch
from torch import nn

from fused_cases import MODES, assert_same, draw, fused, plain, relative_error
from live_tensors import LiveTensors
from sdpo_plugins.losses import (
    fused_self_distillation_loss,
    self_distillation_loss,
)


@pytest.mark.parametrize(
    "head", [{"scale": 0.3}, {"soft_cap": 2.0}, {"scale": 2.5, "soft_cap": 1.5, "bias": True}], ids=str
)
@pytest.mark.parametrize("mode", MODES)
def test_scaled_and_capped_logits(mode, head):
    case = draw(**head)
    expected = plain(case, MODES[mode], temperature=0.7)
    assert relative_error(expected[0], plain(draw(), MODES[mode], temperature=0.7)[0]) > 1e-3
    assert_same(fused(case, MODES[mode], temperature=0.7, rows_per_chunk=4), expected, 1e-9)


@pytest.mark.parametrize("mode", MODES)
def test_a_tied_head(mode):
    """The embedding is the head: its two gradients add up."""
    case = draw()
    embedding = nn.Parameter(case.weight.detach().clone())

    def states():
        return torch.tanh(embedding[(case.token_ids + 1) % 23] * 2)

    rest = (case.token_ids, case.mask, MODES[mode])
    teacher_logits = case.teacher_head.logits(case.teacher_hidden)
    expected, _ = self_distillation_loss(states() @ embedding.t(), teacher_logits, *rest)
    (theirs,) = torch.autograd.grad(expected, embedding)
    loss, _ = fused_self_distillation_loss(states(), embedding, case.teacher_hidden, case.teacher_weight, *rest)
    loss.backward()
    assert relative_error(embedding.grad, theirs) <= 1e-9


@pytest.mark.parametrize("mode", MODES)
def test_a_frozen_head_costs_no_gradient(mode):
    case = draw(rows=1, columns=4, size=501, width=64, bias=True)
    expected = plain(case, MODES[mode])
    for leaf in (case.weight, case.bias):
        leaf.requires_grad_(False)
    with LiveTensors() as live:
        found = fused(case, MODES[mode])
    assert_same(found, (expected[0], {"hidden": expected[1]["hidden"]}, expected[2]), 1e-9)
    assert case.weight.grad is None and case.bias.grad is None
    assert case.weight.numel() not in live.counts and live.largest() <= 4 * 501
    frozen_body = draw(rows=1, columns=4, size=501, width=64, bias=True)
    frozen_body.hidden.requires_grad_(False)
    found = fused(frozen_body, MODES[mode])
    assert_same(found, (expected[0], {name: expected[1][name] for name in ("weight", "bias")}, expected[2]), 1e-9)


@pytest.mark.parametrize("mode", MODES)
def test_an_adapter_on_a_frozen_head(mode):
    case = draw()
    generator = torch.Generator().manual_seed(5)
    down = torch.randn(2, 8, generator=generator, dtype=torch.float64, requires_grad=True)
    up = torch.randn(23, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = case.weight.detach() + up @ down
    rest = (case.token_ids, case.mask, MODES[mode])
    expected, _ = self_distillation_loss(case.hidden @ weight.t(), case.teacher_head.logits(case.teacher_hidden), *rest)
    theirs = torch.autograd.grad(expected, (up, down, case.hidden), retain_graph=True)
    loss, _ = fused_self_distillation_loss(case.hidden, weight, case.teacher_hidden, case.teacher_head, *rest)
    for ours, wanted in zip(torch.autograd.grad(loss, (up, down, case.hidden)), theirs, strict=True):
        assert relative_error(ours, wanted) <= 1e-9


# Of loss, head's and hidden states' gradients: the 16-bit side rounds its own gradient, and nothing else.
@pytest.mark.parametrize(("body", "head"), [(torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16)], ids=str)
@pytest.mark.parametrize("mode", MODES)
def test_head_and_body_of_two_types(mode, body, head):
    case = draw(dtype=torch.bfloat16, bias=True)
    expected = plain(case.to(torch.float64), MODES[mode])
    heads, bodies = case.to(head), case.to(body)
    mixed = heads.with_(hidden=bodies.hidden, teacher_hidden=bodies.teacher_hidden)
    loss, ours, _ = fused(mixed, MODES[mode], rows_per_chunk=4)
    assert relative_error(loss, expected[0]) <= 2e-5
    for name, gradient in ours.items():
        dtype = body if name == "hidden" else head
        assert gradient.dtype == dtype
        assert relative_error(gradient, expected[1][name]) <= (4e-3 if dtype == torch.bfloat16 else 2e-5)


@pytest.mark.parametrize("mode", MODES)
def test_under_autocast_the_products_run_in_its_type(mode):
    case = draw(dtype=torch.float32, bias=True)
    with torch.autocast("cpu", torch.bfloat16):
        found = fused(case, MODES[mode])
    rounded = case.to(torch.bfloat16).with_(bias=case.bias, teacher_bias=case.teacher_bias)
    assert found[0].dtype == torch.float32
    torch.testing.assert_close(found[0], fused(rounded, MODES[mode])[0], rtol=1e-6, atol=0)
    assert not torch.equal(found[0], fused(case, MODES[mode])[0])
    assert all(gradient.dtype == torch.float32 for gradient in found[1].values())
    assert_same(found, plain(case, MODES[mode]), 4e-2)


def test_heads_may_come_as_layer_matrix_or_description():
    case = draw(bias=True)
    layer, teacher = nn.Linear(8, 23).double(), nn.Linear(8, 23, bias=False).double()
    with torch.no_grad():
        layer.weight.copy_(case.weight), layer.bias.copy_(case.bias), teacher.weight.copy_(case.teacher_weight)
    rest = (case.token_ids, case.mask, MODES["tail"])
    expected, _ = fused_self_distillation_loss(case.hidden, case.head, case.teacher_hidden, case.teacher_weight, *rest)
    loss, _ = fused_self_distillation_loss(case.hidden, layer, case.teacher_hidden, teacher, *rest)
    (theirs,) = torch.autograd.grad(expected, case.weight)
    loss.backward()
    assert torch.equal(loss, expected) and torch.equal(layer.weight.grad, theirs)
    assert layer.bias.grad is not None and teacher.weight.grad is None
