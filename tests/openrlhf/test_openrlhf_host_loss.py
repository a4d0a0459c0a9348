"""The host's own parts of the objective: its correction of rollouts, its policy loss, its KL."""

from __future__ import annotations

import inspect
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import openrlhf_cpu.hooks

openrlhf_cpu.hooks.install()

from openrlhf.models import PolicyLoss  # noqa: E402
from openrlhf.models.utils import masked_mean  # noqa: E402

from sdpo_openrlhf.host_loss import host_loss_of, rollout_weights  # noqa: E402
from sdpo_plugins.losses import truncated_importance_weights  # noqa: E402

NEWEST = "is_correction_level" in inspect.signature(PolicyLoss).parameters


def policy_loss(kind: str, low: float = 0.0, high: float = 2.0, **more: Any) -> Any:
    """The host's loss with a correction: "token clip", "token mask", "sequence mask", "off", in any release's words."""
    if NEWEST:
        level, _, mode = kind.partition(" ")
        level = {"sequence": "seq"}.get(level, level)
        given = {"is_correction_level": level, "is_correction_mode": mode or "mask"}
        return PolicyLoss(is_correction_threshold=[low, high], **given, **more)
    types = {"token clip": "tis", "token mask": "icepop", "sequence mask": "seq-mask-tis", "off": "tis"}
    return PolicyLoss(
        enable_vllm_is_correction=kind != "off",
        vllm_is_truncated_threshold=[low, high],
        vllm_is_correction_type=types[kind],
        **more,
    )


@pytest.fixture
def experience() -> SimpleNamespace:
    draw = torch.Generator().manual_seed(0)
    mask = torch.tensor([[0, 1, 1, 1], [0, 1, 0, 1], [0, 0, 0, 0]])
    old, rollout = (-3 * torch.rand(3, 4, generator=draw) for _ in range(2))
    return SimpleNamespace(
        action_mask=mask,
        action_log_probs=old,
        rollout_log_probs=rollout,
        base_action_log_probs=-3 * torch.rand(3, 4, generator=draw),
        advantages=torch.randn(3, 4, generator=draw),
    )


def ratio(experience: Any) -> Tensor:
    return (experience.action_log_probs - experience.rollout_log_probs).exp()


def test_clipped_token_weights_are_the_papers(experience: Any) -> None:
    found = rollout_weights(policy_loss("token clip"), experience)
    mask = experience.action_mask
    wanted = truncated_importance_weights(experience.action_log_probs, experience.rollout_log_probs, 2.0)
    assert (ratio(experience)[mask != 0] > 2).any() and (ratio(experience)[mask != 0] < 2).any()
    torch.testing.assert_close(found, wanted * mask)


def test_a_lower_bound_counts(experience: Any) -> None:
    found = rollout_weights(policy_loss("token clip", 0.5, 2.0), experience)
    torch.testing.assert_close(found, ratio(experience).clamp(0.5, 2.0) * experience.action_mask)


def test_masked_tokens_weigh_nothing(experience: Any) -> None:
    found = rollout_weights(policy_loss("token mask", 0.5, 2.0), experience)
    kept = (ratio(experience) >= 0.5) & (ratio(experience) <= 2.0)
    torch.testing.assert_close(found, torch.where(kept, ratio(experience), 0.0) * experience.action_mask)


def test_masked_sequences_weigh_nothing(experience: Any) -> None:
    low, high = 0.2, 0.9
    found = rollout_weights(policy_loss("sequence mask", low, high), experience)
    means = masked_mean(ratio(experience).log(), experience.action_mask, dim=-1).exp()
    kept = (means >= low) & (means <= high)
    assert kept[:2].any() and not kept[:2].all()
    assert found is not None
    assert ((found != 0).any(1)[:2] == kept[:2]).all()


@pytest.mark.parametrize("more", [{"policy_loss_type": "gspo"}, {"dual_clip": 3.0}, {"clip_eps_low": 0.01}])
def test_weights_do_not_depend_on_the_policy_gradient(experience: Any, more: dict[str, Any]) -> None:
    plain = rollout_weights(policy_loss("token clip"), experience)
    torch.testing.assert_close(rollout_weights(policy_loss("token clip", **more), experience), plain)


def test_no_correction_no_weights(experience: Any) -> None:
    assert rollout_weights(policy_loss("off"), experience) is None
    experience.rollout_log_probs = None
    assert rollout_weights(policy_loss("token clip"), experience) is None


# The hybrid and the KL ------------------------------------------------------------------------------------------------

NORMALISERS = {"dp_size": 1, "batch_num_tokens": 5.0, "global_batch_size": 2.0}


def kl_options(**more: Any) -> SimpleNamespace:
    return SimpleNamespace(**{"use_loss": False, "init_coef": 0.0, "estimator": "k2", **more})


def test_without_hybrid_and_kl_there_is_no_term() -> None:
    assert host_loss_of(policy_loss("off"), kl_options(), 0.0) is None
    # A reference model whose KL goes into the reward is none of the loss.
    assert host_loss_of(policy_loss("off"), kl_options(init_coef=0.1), 0.0) is None


def test_the_hybrids_part_is_the_hosts_loss(experience: Any) -> None:
    host = policy_loss("token clip")
    term = host_loss_of(host, kl_options(), 0.25)
    assert term is not None
    now = experience.action_log_probs + 0.1
    wanted = host(
        now,
        experience.action_log_probs,
        experience.advantages,
        action_mask=experience.action_mask,
        rollout_log_probs=experience.rollout_log_probs,
        **NORMALISERS,
    )[0]
    assert float(term(now, experience, 0.0, NORMALISERS)) == pytest.approx(0.25 * float(wanted))


def test_the_kl_is_the_hosts(experience: Any) -> None:
    term = host_loss_of(policy_loss("off"), kl_options(use_loss=True, init_coef=0.1), 0.0)
    assert term is not None
    now = experience.action_log_probs.clone().requires_grad_()
    value = term(now, experience, 0.1, NORMALISERS)
    squares = 0.5 * (now - experience.base_action_log_probs).square() * experience.action_mask
    assert float(value) == pytest.approx(0.1 * float(squares.sum()) / 5.0, rel=1e-5)
    (slope,) = torch.autograd.grad(value, now)
    expected = 0.1 * (now - experience.base_action_log_probs) * experience.action_mask / 5.0
    torch.testing.assert_close(slope, expected.detach())
