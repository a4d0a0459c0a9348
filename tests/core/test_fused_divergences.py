"""−inf logits, and divergences of plug-ins: as on logits, with finite gradients."""

import sys
from pathlib import Path

import pytest
import torch

from fused_cases import MODES, assert_same, draw, fused, on, plain, relative_error
from sdpo_plugins.config import SDPOConfig

INF = float("inf")
EVERY_MODE = {
    f"{mode}-{alpha}": on(mode, alpha) for mode in MODES for alpha in (0.0, 0.3, 0.5, 1.0) if mode != "sampled"
} | {"sampled": on("sampled")}


def masked_vocabulary(student, teacher):
    """A case whose biases exclude entries; the sampled tokens are possible for both."""
    case = draw(bias=True, size=23)
    for bias, entries in ((case.bias.data, student), (case.teacher_bias, teacher)):
        bias[list(entries)] = -INF
    return case.with_(token_ids=case.token_ids % 10)


@pytest.mark.parametrize("teacher", [(20, 21), (15, 20)], ids=["same", "other"])
@pytest.mark.parametrize("mode", EVERY_MODE)
def test_impossible_tokens(mode, teacher):
    case = masked_vocabulary((20, 21), teacher)
    found = fused(case, EVERY_MODE[mode], rows_per_chunk=4, entropies=True)
    entropy = found[2].pop("self_distillation/entropy")
    # Within a renormalised top-K of the student's the teacher's normaliser is unknown, so the floor that stands for
    # its −inf lies lower, by the log of its mass there (of 10⁴). The student's reverse KL alone reads it.
    other_floor = mode == "renormalised-1.0" and 15 in teacher
    assert_same(found, plain(case, EVERY_MODE[mode]), 2e-4 if other_floor else 1e-9)
    assert torch.isfinite(entropy) and all(torch.isfinite(gradient).all() for gradient in found[1].values())


@pytest.mark.parametrize("mode", ["tail", "renormalised", "renormalised-teacher", "full"])
def test_a_support_with_impossible_tokens(mode):
    """Only six entries are possible for the student, so a top-8 holds impossible ones."""
    case = masked_vocabulary(range(6, 23), range(10, 23))
    case = case.with_(token_ids=case.token_ids % 6)
    config = on(mode) if mode == "full" else on(mode, distillation_topk=8)
    assert_same(fused(case, config), plain(case, config), 1e-9)


@pytest.mark.parametrize("who", ["student", "teacher"])
@pytest.mark.parametrize("mode", MODES)
def test_a_sampled_token_that_is_impossible(mode, who):
    case = masked_vocabulary(*(((3,), ()) if who == "student" else ((), (3,))))
    case = case.with_(token_ids=torch.full((3, 5), 3))
    config = MODES[mode].replace(is_clip=None)
    assert_same(fused(case, config), plain(case, config), 1e-9)


# Divergences of plug-ins


def squared(student_logp, teacher_logp):
    return (student_logp - teacher_logp).square().sum(-1)


@pytest.fixture(scope="module")
def renyi():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parents[1] / "example_plugin")
        yield {"divergence": "renyi", "plugins": ("sdpo_renyi",)}
    sys.modules.pop("sdpo_renyi", None)


@pytest.mark.parametrize("mode", ["full", "tail", "tail-teacher", "renormalised", "renormalised-teacher"])
def test_a_divergence_of_a_plugin(mode, renyi):
    case = draw(bias=True)
    for order in (0.5, 2.0):
        config = on(mode, **renyi, divergence_options={"order": order}, is_clip=1.1, per_token_loss_clip=0.3)
        for options in ({}, {**case.per_token(), "temperature": 0.8}):
            expected = plain(case, config, **options)
            assert expected[0] > 0
            found = fused(case, config, rows_per_chunk=3, entropies=True, **options)
            found[2].pop("self_distillation/entropy")
            assert_same(found, expected, 1e-9)


@pytest.mark.parametrize("mode", ["full", "tail", "tail-teacher", "renormalised", "renormalised-teacher"])
def test_a_divergence_that_is_passed(mode):
    case = draw()
    expected = plain(case, MODES[mode], divergence=squared)
    assert relative_error(expected[0], plain(case, MODES[mode])[0]) > 0.1
    assert_same(fused(case, MODES[mode], divergence=squared, rows_per_chunk=3), expected, 1e-9)


@pytest.mark.parametrize("teacher", [(20, 21), (15, 20)], ids=["same", "other"])
def test_a_foreign_divergence_and_impossible_tokens(teacher):
    """An entry at the floor is a constant, even where the divergence has a slope there."""
    case = masked_vocabulary((20, 21), teacher)
    config = SDPOConfig(divergence="foreign", distillation_topk=None)
    expected = plain(case, config, divergence=squared)
    assert_same(fused(case, config, divergence=squared), expected, 1e-9)
