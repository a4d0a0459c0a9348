"""Divergences: values by hand, orientation, ranges, gradients, and impossible entries."""

import math

import pytest
import torch

from sdpo_plugins.config import SDPOConfig
from sdpo_plugins.errors import ConfigError
from sdpo_plugins.losses import (
    add_tail,
    floor_log_probs,
    forward_kl,
    generalized_jsd,
    js,
    renormalize,
    resolve_divergence,
    reverse_kl,
)
from sdpo_plugins.losses.divergences import build_forward_kl, build_generalized_jsd, build_js, build_reverse_kl

INF = float("inf")
EVERY = {
    "forward_kl": forward_kl,
    "reverse_kl": reverse_kl,
    "js": js,
    "jsd_0.01": lambda s, t: generalized_jsd(s, t, 0.01),
    "jsd_0.3": lambda s, t: generalized_jsd(s, t, 0.3),
    "jsd_0.99": lambda s, t: generalized_jsd(s, t, 0.99),
}


def distributions(*shape, seed=0, scale=2.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    both = torch.randn(2, *shape, generator=generator, dtype=torch.float64) * scale
    student, teacher = both.log_softmax(-1).to(dtype)
    return student, teacher


def test_forward_kl_expects_under_the_teacher():
    """The teacher is sure of entry 0, the student unsure: only the forward KL is log 2, the reverse one is infinite."""
    student, teacher = torch.tensor([0.5, 0.5]).log(), torch.tensor([1.0, 0.0]).log()
    assert forward_kl(student, teacher).item() == pytest.approx(math.log(2))
    assert reverse_kl(student, teacher).item() > 1000


def test_reverse_kl_expects_under_the_student():
    student, teacher = torch.tensor([1.0, 0.0]).log(), torch.tensor([0.5, 0.5]).log()
    assert reverse_kl(student, teacher).item() == pytest.approx(math.log(2))
    assert forward_kl(student, teacher).item() > 1000


def test_values_by_hand():
    student, teacher = torch.tensor([0.5, 0.5], dtype=torch.float64).log(), torch.tensor([0.9, 0.1]).double().log()
    assert forward_kl(student, teacher).item() == pytest.approx(0.9 * math.log(1.8) + 0.1 * math.log(0.2))
    assert reverse_kl(student, teacher).item() == pytest.approx(0.5 * math.log(5 / 9) + 0.5 * math.log(5))
    # α = 0.25: M = 0.75·S + 0.25·T = (0.6, 0.4).
    expected = 0.75 * (0.5 * math.log(5 / 6) + 0.5 * math.log(5 / 4)) + 0.25 * (
        0.9 * math.log(1.5) + 0.1 * math.log(0.25)
    )
    assert generalized_jsd(student, teacher, 0.25).item() == pytest.approx(expected)


def test_alpha_0_is_forward_and_alpha_1_is_reverse():
    student, teacher = distributions(7, 11)
    assert torch.equal(generalized_jsd(student, teacher, 0.0), forward_kl(student, teacher))
    assert torch.equal(generalized_jsd(student, teacher, 1.0), reverse_kl(student, teacher))
    assert not torch.allclose(forward_kl(student, teacher), reverse_kl(student, teacher))


@pytest.mark.parametrize("small", [1e-3, 1e-4])
def test_the_generalized_form_vanishes_at_its_ends_like_alpha_times_the_kl(small):
    student, teacher = distributions(5, 9, scale=1.0)
    near_forward = generalized_jsd(student, teacher, small) / small
    near_reverse = generalized_jsd(student, teacher, 1 - small) / small
    torch.testing.assert_close(near_forward, forward_kl(student, teacher), rtol=50 * small, atol=0)
    torch.testing.assert_close(near_reverse, reverse_kl(student, teacher), rtol=50 * small, atol=0)


def test_js_is_symmetric_bounded_and_the_half_of_the_generalized_form():
    student, teacher = distributions(50, 6, scale=6.0)
    assert torch.allclose(js(student, teacher), js(teacher, student), rtol=1e-12)
    assert js(student, teacher).max() <= math.log(2)
    assert torch.equal(js(student, teacher), generalized_jsd(student, teacher, 0.5))


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize(("dtype", "slack"), [(torch.float64, 1e-15), (torch.float32, 1e-6)])
def test_never_negative_beyond_rounding_and_zero_for_equal_inputs(name, dtype, slack):
    for distance in (1e-6, 1e-3, 1.0, 30.0):
        student, other = distributions(200, 40, seed=3, dtype=dtype)
        teacher = (student + distance * other).log_softmax(-1)
        assert EVERY[name](student, teacher).min() >= -slack
    assert EVERY[name](student, student).abs().max() <= slack


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("where", ["student", "teacher", "both"])
def test_impossible_entries_give_finite_values_and_gradients(name, where):
    student_logits, teacher_logits = (torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(1))).unbind(0)
    student_logits.requires_grad_()
    mask = torch.tensor([0, 0, 1, 0, 1, 0], dtype=torch.bool)
    student = student_logits.masked_fill(mask, -INF) if where != "teacher" else student_logits
    teacher = teacher_logits.masked_fill(mask, -INF) if where != "student" else teacher_logits
    value = EVERY[name](student.log_softmax(-1), teacher.log_softmax(-1))
    value.sum().backward()
    assert torch.isfinite(value).all()
    assert torch.isfinite(student_logits.grad).all()
    assert value.min() >= -1e-6


@pytest.mark.parametrize("name", EVERY)
def test_entries_impossible_for_both_change_nothing(name):
    student, teacher = distributions(4, 6)
    excluded = torch.full((4, 3), -INF, dtype=torch.float64)
    wider = EVERY[name](torch.cat([student, excluded], -1), torch.cat([teacher, excluded], -1))
    torch.testing.assert_close(wider, EVERY[name](student, teacher), rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("name", EVERY)
def test_gradcheck(name):
    student_logits, teacher = distributions(3, 5)
    student_logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: EVERY[name](x.log_softmax(-1), teacher), student_logits)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_accumulated_in_float32(dtype):
    student, teacher = distributions(3, 64, dtype=dtype)
    value = forward_kl(student, teacher)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, forward_kl(student.double(), teacher.double()).float(), rtol=1e-5, atol=1e-6)


def test_floor_has_probability_zero_and_keeps_nan():
    floored = floor_log_probs(torch.tensor([-INF, -3.0, float("nan")]))
    assert floored[0].exp() == 0 and torch.isfinite(floored[0])
    assert floored[1] == -3.0 and torch.isnan(floored[2])


@pytest.mark.parametrize("alpha", [-0.1, 1.7, float("nan")])
def test_alpha_outside_its_range_is_refused(alpha):
    with pytest.raises(ConfigError, match=r"`alpha` must lie in \[0, 1\].*got"):
        generalized_jsd(*distributions(2, 3), alpha)


def test_builders_give_what_their_name_says():
    student, teacher = distributions(4, 8)
    config = SDPOConfig(alpha=0.3)
    expected = {
        build_generalized_jsd: generalized_jsd(student, teacher, 0.3),
        build_forward_kl: forward_kl(student, teacher),
        build_reverse_kl: reverse_kl(student, teacher),
        build_js: js(student, teacher),
    }
    for build, value in expected.items():
        assert torch.equal(build(config, None)(student, teacher), value)
        named = SDPOConfig(alpha=0.3, divergence=build.__name__.removeprefix("build_"))
        assert torch.equal(resolve_divergence(named)(student, teacher), value)


def test_tail_holds_the_rest_and_stays_finite_without_one():
    torch.testing.assert_close(add_tail(torch.tensor([0.5, 0.2]).log()).exp(), torch.tensor([0.5, 0.2, 0.3]))
    full = add_tail(torch.tensor([0.25, 0.75]).log())
    assert full[-1].item() == pytest.approx(math.log(1e-7), rel=1e-6)
    nothing = add_tail(floor_log_probs(torch.tensor([-INF, -INF])))
    assert nothing[-1].item() == 0.0


def test_renormalised_entries_sum_to_one():
    torch.testing.assert_close(renormalize(torch.tensor([0.06, 0.02]).log()).exp(), torch.tensor([0.75, 0.25]))
