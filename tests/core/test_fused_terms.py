"""What else one pass gives: the hybrid with GRPO, further terms, teachers of two passes, log-probs and entropies."""

import pytest
import torch

from fused_cases import MODES, assert_same, draw, fused, gradients, on, plain, relative_error
from live_tensors import LiveTensors
from sdpo_plugins.losses import (
    LinearTerm,
    PolicyTerm,
    aggregate,
    fused_row_losses,
    fused_self_distillation_loss,
    hybrid_per_token,
    policy_gradient_loss,
    self_distillation_loss,
)

COUNTS = {f"self_distillation/{name}" for name in ("active_tokens", "active_sequences", "empty_target_batch")}


def log_probs_of(case, temperature=1.0):
    every = (case.head.logits(case.hidden) / temperature).log_softmax(-1)
    return every, every.gather(-1, case.token_ids.unsqueeze(-1)).squeeze(-1)


def hybrid(case, config, advantages, *, clips=None, policy_denominator=None, temperature=1.0, **options):
    """λ·GRPO over the response mask + (1−λ)·SDPO over the active mask, from logits."""
    sdpo, metrics = self_distillation_loss(
        case.head.logits(case.hidden),
        case.teacher_head.logits(case.teacher_hidden),
        case.token_ids,
        case.mask,
        config,
        temperature=temperature,
        **options,
    )
    per_token = policy_gradient_loss(
        log_probs_of(case, temperature)[1], advantages, options.get("old_log_probs"), **(clips or {})
    )
    grpo = aggregate(
        per_token,
        case.mask,
        config.loss_agg_mode,
        denominator=policy_denominator,
        scale_factor=config.loss_scale_factor,
    )
    loss = hybrid_per_token(grpo, sdpo, config.grpo_weight)
    return loss.detach(), gradients(loss, case), metrics


@pytest.mark.parametrize("whole", [False, True], ids=["padded", "unpadded"])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("mode", MODES)
def test_hybrid_with_inactive_rows(mode, share, whole):
    """An inactive rollout keeps its part of the policy gradient, in its own place."""
    case = draw(bias=True)
    case = case.with_(mask=torch.ones(3, 5)) if whole else case
    active = torch.tensor([0, 1, 0])
    per_sequence = torch.tensor([1.5, -0.5, 1.0])
    per_token = torch.randn(3, 5, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    options = {**case.per_token(), "self_distillation_mask": active, "temperature": 0.9}
    for advantages in (per_sequence, per_token):
        for aggregation in ("token-mean", "seq-mean-token-mean"):
            config = MODES[mode].replace(grpo_weight=share, loss_agg_mode=aggregation)
            expected = hybrid(case, config, advantages, **options)
            found = fused(case, config, advantages=advantages, rows_per_chunk=4, **options)
            assert_same(found, expected, 1e-9)
            if share == 1.0:
                assert found[2].keys() == COUNTS
            elif share > 0.0:
                assert found[1]["hidden"][0].abs().sum() > 0
            else:
                assert found[1]["hidden"][0].abs().sum() == 0


def test_hybrid_clips_and_denominators():
    case = draw()
    advantages = torch.tensor([1.5, -0.5, 1.0])
    config = on("tail", grpo_weight=0.4)
    options = {**case.per_token(), "denominator": 31.0, "policy_denominator": torch.tensor(44.0)}
    clips = {"clip_low": 0.05, "clip_high": 0.4}
    expected = hybrid(case, config, advantages, clips=clips, **options)
    assert relative_error(expected[0], hybrid(case, config, advantages, **options)[0]) > 1e-4
    assert_same(fused(case, config, advantages=advantages, **clips, **options), expected, 1e-9)


@pytest.mark.parametrize("mode", MODES)
def test_hybrid_where_nobody_is_active(mode):
    case = draw()
    config = MODES[mode].replace(grpo_weight=0.4)
    options = {"self_distillation_mask": torch.zeros(3)}
    advantages = torch.tensor([1.5, -0.5, 1.0])
    expected = hybrid(case, config, advantages, **options)
    assert expected[0] != 0
    assert_same(fused(case, config, advantages=advantages, **options), expected, 1e-9)


def test_the_policy_gradient_alone_needs_no_teacher():
    case = draw(size=97)
    config = on("full", grpo_weight=1.0)
    with LiveTensors() as live:
        fused(case, config, advantages=torch.tensor([1.5, -0.5, 1.0]))
    tokens = int(case.mask.sum())
    # Logits, and both gradients.
    assert live.multiplications == 3 * tokens * 97 * 8


@pytest.mark.parametrize("mode", MODES)
def test_further_terms(mode):
    """A policy term and a linear one over all rows; only the first ones have a teacher."""
    case = draw(1, 9).with_(mask=torch.ones(1, 9))
    numbers = torch.randn(4, 9, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    config, taught = MODES[mode].replace(is_clip=None), 5
    every, own = log_probs_of(case)
    old = own.detach()[0] + numbers[3] * 0.3
    mask = torch.zeros(1, 9)
    mask[:, :taught] = 1
    sdpo, _ = self_distillation_loss(
        case.head.logits(case.hidden),
        case.teacher_head.logits(case.teacher_hidden),
        case.token_ids,
        mask,
        config.replace(loss_agg_mode="seq-mean-token-sum"),
    )
    policy = (policy_gradient_loss(own, numbers[:1], old.unsqueeze(0))[0] * numbers[1]).sum()
    expected = 0.3 * sdpo + policy + (own[0] * numbers[2]).sum()
    wanted = gradients(expected, case)
    found = fused_row_losses(
        case.hidden[0],
        case.head,
        case.teacher_hidden[0, :taught],
        case.teacher_head,
        case.token_ids[0],
        torch.full((taught,), 0.3),
        config,
        terms=[PolicyTerm(numbers[1], numbers[0], old), LinearTerm(numbers[2])],
        entropies=True,
        rows_per_chunk=2,
    )
    assert relative_error(found.loss.detach(), expected.detach()) <= 1e-7
    for name, gradient in gradients(found.loss, case).items():
        assert relative_error(gradient, wanted[name]) <= 1e-7
    assert found.tokens is not None and found.tokens.per_token.shape == (taught,)
    assert relative_error(found.log_probs, own[0].detach()) <= 1e-12
    assert relative_error(found.entropies, -(every.exp() * every).sum(-1)[0].detach()) <= 1e-12


@pytest.mark.parametrize("mode", MODES)
def test_log_probs_and_entropies(mode):
    case = draw(bias=True, soft_cap=2.0)
    every, own = log_probs_of(case, 0.7)
    entropy = -(every.exp() * every).sum(-1).detach()
    flat = (case.hidden.flatten(0, 1), case.head)
    taught = (case.teacher_hidden.flatten(0, 1), case.teacher_head)
    for teacher, weights in ((taught, torch.ones(15)), ((None, None), None)):
        options = {"temperature": 0.7, "entropies": True, "rows_per_chunk": 4}
        found = fused_row_losses(*flat, *teacher, case.token_ids.flatten(), weights, MODES[mode], **options)
        assert relative_error(found.log_probs, own.detach().flatten()) <= 1e-12
        assert relative_error(found.entropies, entropy.flatten()) <= 1e-12
        assert not found.log_probs.requires_grad and not found.entropies.requires_grad
    assert found.tokens is None and found.loss == 0
    _, metrics = fused_self_distillation_loss(
        case.hidden,
        *flat[1:],
        case.teacher_hidden,
        case.teacher_head,
        case.token_ids,
        case.mask,
        MODES[mode],
        **options,
    )
    torch.testing.assert_close(metrics["self_distillation/entropy"], entropy[case.mask != 0].mean())


@pytest.mark.parametrize("mode", MODES)
def test_a_teacher_of_two_passes(mode):
    """A trust region mixes the logits of two models; theirs need not have the student's width."""
    case = draw(bias=True, soft_cap=2.0)
    other = draw(seed=9, width=6, bias=True, scale=0.7)
    shares = (0.8, 0.2)
    mixed = shares[0] * case.teacher_head.logits(case.teacher_hidden)
    mixed = mixed + shares[1] * other.head.logits(other.teacher_hidden).detach()
    rest = (case.token_ids, case.mask, MODES[mode])
    expected, metrics = self_distillation_loss(case.head.logits(case.hidden), mixed, *rest, temperature=0.7)
    alone, _, _ = plain(case, MODES[mode], temperature=0.7)
    assert relative_error(expected.detach(), alone) > 1e-3
    wanted = (expected.detach(), gradients(expected, case), metrics)
    loss, found = fused_self_distillation_loss(
        case.hidden,
        case.head,
        [case.teacher_hidden, other.teacher_hidden],
        [case.teacher_head, other.head],
        *rest,
        temperature=0.7,
        teacher_shares=shares,
        rows_per_chunk=4,
    )
    assert_same((loss.detach(), gradients(loss, case), found), wanted, 1e-9)
