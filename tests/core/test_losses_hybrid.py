"""Advantage view, GRPO's token loss, the hybrid and the off-policy form."""

import pytest
import torch

from sdpo_plugins.config import SDPOConfig
from sdpo_plugins.errors import ConfigError, DataError
from sdpo_plugins.losses import (
    distillation_advantages,
    group_advantages,
    hybrid_per_token,
    off_policy_token_loss,
    per_token_losses,
    policy_gradient_loss,
    reverse_kl,
)


def test_advantages_are_positive_where_the_teacher_likes_a_token_better():
    advantages = distillation_advantages(torch.tensor([0.2, 0.8]).log(), torch.tensor([0.8, 0.2]).log())
    assert advantages[0] > 0 > advantages[1]
    torch.testing.assert_close(advantages, torch.tensor([4.0, 0.25]).log())


def test_the_advantages_give_the_reverse_kl_and_its_gradient():
    generator = torch.Generator().manual_seed(0)
    logits, other = torch.randn(2, 3, 6, generator=generator, dtype=torch.float64)
    logits.requires_grad_()
    student, teacher = logits.log_softmax(-1), other.log_softmax(-1)
    divergence = reverse_kl(student, teacher)
    advantages = distillation_advantages(student, teacher)
    assert not advantages.requires_grad
    torch.testing.assert_close(-(student.exp() * advantages).sum(-1), divergence)
    (expected,) = torch.autograd.grad(divergence.sum(), logits, retain_graph=True)
    (found,) = torch.autograd.grad(-(student.detach().exp() * advantages * student).sum(), logits)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_impossible_tokens_have_finite_advantages():
    student = torch.tensor([0.0, float("-inf"), float("-inf")])
    teacher = torch.tensor([float("-inf"), 0.0, float("-inf")])
    assert torch.isfinite(distillation_advantages(student, teacher)).all()
    assert distillation_advantages(student, teacher)[2] == 0


def test_group_advantages_subtract_the_mean_of_their_own_group_in_any_order():
    rewards = torch.tensor([1.0, 5.0, 0.0, 7.0, 2.0])
    groups = torch.tensor([9, -4, 9, -4, 3])
    torch.testing.assert_close(group_advantages(rewards, groups), torch.tensor([0.5, -1.0, -0.5, 1.0, 0.0]))


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected", "slope"),
    [
        (1.0, 2.0, -2.0, -2.0),
        (1.2, 1.0, -1.2, -1.2),
        (1.5, 1.0, -1.28, 0.0),  # good and already likelier: clipped above
        (1.5, -1.0, 1.5, 1.5),  # bad and likelier: full gradient
        (0.9, -1.0, 0.9, 0.9),
        (0.5, -1.0, 0.8, 0.0),  # bad and already rarer: clipped below
        (0.5, 1.0, -0.5, -0.5),
    ],
)
def test_ppo_clip_by_hand(ratio, advantage, expected, slope):
    log_probs = torch.tensor([[ratio]], dtype=torch.float64).log().requires_grad_()
    loss = policy_gradient_loss(log_probs, torch.tensor([advantage]), torch.zeros(1, 1))
    loss.sum().backward()
    assert loss.item() == pytest.approx(expected)
    assert log_probs.grad.item() == pytest.approx(slope)


def test_on_policy_it_is_minus_advantage_times_the_score():
    log_probs = torch.full((2, 3), -1.5, requires_grad=True)
    advantages = torch.tensor([2.0, -1.0])
    loss = policy_gradient_loss(log_probs, advantages)
    loss.sum().backward()
    assert torch.equal(loss, -advantages.unsqueeze(-1).expand(2, 3))
    assert torch.equal(log_probs.grad, -advantages.unsqueeze(-1).expand(2, 3))
    assert torch.equal(policy_gradient_loss(log_probs, advantages.unsqueeze(-1).expand(2, 3)), loss)


def test_hybrid_is_linear_and_exact_at_its_ends():
    grpo, sdpo = torch.tensor([[1.0, 2.0]]), torch.tensor([[10.0, float("nan")]])
    assert hybrid_per_token(grpo, sdpo, 1.0) is grpo
    assert hybrid_per_token(grpo, sdpo, 0.0) is sdpo
    torch.testing.assert_close(hybrid_per_token(grpo, torch.tensor([[10.0, 0.0]]), 0.9), torch.tensor([[1.9, 1.8]]))


def test_hybrid_gradient_is_that_of_the_mixed_advantage():
    """Eq. 3 on the sampled tokens: λ·A_GRPO + (1−λ)·(log q − log π)."""
    generator = torch.Generator().manual_seed(3)
    student, teacher = torch.randn(2, 2, 3, 7, generator=generator, dtype=torch.float64)
    student.requires_grad_()
    tokens = torch.randint(7, (2, 3), generator=generator)
    config = SDPOConfig(alpha=1.0, full_logit_distillation=False)
    found = per_token_losses(student, teacher, tokens, config)
    advantages = torch.tensor([0.75, -0.25], dtype=torch.float64)
    mix = hybrid_per_token(policy_gradient_loss(found.student_log_probs, advantages), found.per_token, 0.9)
    (gradient,) = torch.autograd.grad(mix.sum(), student, retain_graph=True)
    own = distillation_advantages(found.student_log_probs, found.teacher_log_probs)
    mixed = 0.9 * advantages.unsqueeze(-1) + 0.1 * own
    (expected,) = torch.autograd.grad(-(mixed * found.student_log_probs).sum(), student)
    torch.testing.assert_close(gradient, expected, rtol=1e-11, atol=1e-13)


def test_off_policy_form_by_hand():
    student = torch.tensor([[0.6, 0.5, 0.1]], dtype=torch.float64).log().requires_grad_()
    teacher = torch.tensor([[0.9, 0.5, 0.05]], dtype=torch.float64).log()
    old = torch.tensor([[0.3, 0.5, 0.2]], dtype=torch.float64).log()
    rollout = torch.tensor([[0.1, 0.5, 0.4]], dtype=torch.float64).log()
    loss = off_policy_token_loss(student, teacher, old, rollout)
    loss.sum().backward()
    up, down = torch.tensor([1.5, 0.5]).double().log()
    # Ratios 2, 1, ½ are clipped at 1.28 and 0.8; weights 3, 1, ½ are cut at 2.
    torch.testing.assert_close(loss.detach(), torch.stack([-2 * 1.28 * up, 0 * up, -0.5 * 0.8 * down]).unsqueeze(0))
    assert student.grad[0, 0] == 0 and student.grad[0, 2] == 0
    plain = off_policy_token_loss(student, teacher, old)
    torch.testing.assert_close(plain[0, 0].item(), (-1.28 * up).item())


def test_on_policy_off_policy_form_has_the_gradient_of_the_sampled_token_mode():
    log_probs = torch.tensor([[0.3, 0.7]], dtype=torch.float64).log().requires_grad_()
    teacher = torch.tensor([[0.5, 0.2]], dtype=torch.float64).log()
    (found,) = torch.autograd.grad(off_policy_token_loss(log_probs, teacher, log_probs).sum(), log_probs)
    torch.testing.assert_close(found, (log_probs - teacher).detach())


def test_bad_input_is_refused():
    zeros = torch.zeros(2, 3)
    with pytest.raises(ConfigError, match=r"`grpo_weight` must lie in \[0, 1\]"):
        hybrid_per_token(zeros, zeros, 1.5)
    with pytest.raises(DataError, match="one shape"):
        hybrid_per_token(zeros, zeros[:1], 0.5)
    with pytest.raises(ConfigError, match="at least 0"):
        policy_gradient_loss(zeros, torch.zeros(2), clip_low=-0.1)
    with pytest.raises(DataError, match=r"`advantages` must have the shape \[2\]"):
        policy_gradient_loss(zeros, torch.zeros(3))
    with pytest.raises(DataError, match=r"`teacher_log_probs` must have the shape \[2, 3\]"):
        off_policy_token_loss(zeros, torch.zeros(2, 2), zeros)
    with pytest.raises(DataError, match=r"shape \[N\]"):
        group_advantages(torch.zeros(2), torch.zeros(3))
