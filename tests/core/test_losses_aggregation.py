"""Weights and aggregation: values by hand, inactive rows, and independence of the cut into micro-batches."""

import itertools
import math

import pytest
import torch

from sdpo_plugins._options import LOSS_AGG_MODES
from sdpo_plugins.config import SDPOConfig
from sdpo_plugins.errors import ConfigError, DataError
from sdpo_plugins.losses import (
    active_mask,
    aggregate,
    clip_token_losses,
    importance_ratio,
    loss_denominator,
    loss_numerator,
    self_distillation_loss,
    truncated_importance_weights,
)

LOSSES = torch.tensor([[1.0, 2.0, 3.0], [10.0, 20.0, 30.0], [100.0, 200.0, 300.0]], dtype=torch.float64)
MASK = torch.tensor([[1, 1, 0], [1, 0, 0], [0, 0, 0]])
BY_HAND = {
    "token-mean": 13 / 3,
    "seq-mean-token-sum": (3 + 10) / 2,
    "seq-mean-token-mean": (1.5 + 10) / 2,
    "seq-mean-token-sum-norm": 13 / 3,
}


@pytest.mark.parametrize("mode", LOSS_AGG_MODES)
@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32, torch.float64])
def test_modes_by_hand_with_an_inactive_row(mode, dtype):
    assert aggregate(LOSSES, MASK.to(dtype), mode).item() == pytest.approx(BY_HAND[mode], rel=1e-7)


def test_the_norm_mode_divides_by_the_given_length_and_not_by_the_number_of_sequences():
    assert aggregate(LOSSES, MASK, "seq-mean-token-sum-norm", scale_factor=10).item() == pytest.approx(1.3)
    twice = aggregate(torch.cat([LOSSES, LOSSES]), torch.cat([MASK, MASK]), "seq-mean-token-sum-norm", scale_factor=10)
    assert twice.item() == pytest.approx(2.6)


@pytest.mark.parametrize("mode", LOSS_AGG_MODES)
def test_inactive_tokens_matter_neither_to_the_loss_nor_to_its_scale(mode):
    """The defect: gradients that shrink with the number of inactive rows."""
    padded = torch.cat([LOSSES, torch.full((5, 3), float("nan"), dtype=torch.float64)])
    padded_mask = torch.cat([MASK, torch.zeros(5, 3, dtype=MASK.dtype)])
    assert torch.equal(aggregate(padded, padded_mask, mode), aggregate(LOSSES, MASK, mode))


@pytest.mark.parametrize("mode", LOSS_AGG_MODES)
def test_nothing_active_is_zero_with_a_graph(mode):
    losses = LOSSES.clone().requires_grad_()
    for denominator in (None, 0.0, torch.tensor(0.0), 17.0):
        losses.grad = None
        loss = aggregate(losses, torch.zeros(3, 3), mode, denominator=denominator)
        assert loss.item() == 0.0 and loss.requires_grad
        loss.backward()
        assert torch.equal(losses.grad, torch.zeros(3, 3, dtype=torch.float64))


@pytest.mark.parametrize("mode", LOSS_AGG_MODES)
def test_an_empty_batch_is_zero(mode):
    for shape in ((0, 3), (2, 0)):
        assert aggregate(torch.zeros(shape), torch.zeros(shape), mode).item() == 0.0


def test_denominators_count_active_tokens_or_sequences():
    counts = {mode: loss_denominator(MASK, mode).item() for mode in LOSS_AGG_MODES}
    assert counts == {
        "token-mean": 3,
        "seq-mean-token-sum": 2,
        "seq-mean-token-mean": 2,
        "seq-mean-token-sum-norm": 2,
    }


@pytest.mark.parametrize("mode", LOSS_AGG_MODES)
def test_loss_is_numerator_over_denominator(mode):
    numerator = loss_numerator(LOSSES, MASK, mode)
    divisor = 1.0 if mode == "seq-mean-token-sum-norm" else loss_denominator(MASK, mode).item()
    assert aggregate(LOSSES, MASK, mode).item() == pytest.approx(numerator.item() / divisor, rel=1e-12)


def test_a_denominator_below_one_is_kept():
    """Hosts that average gradients over ranks pass tokens / ranks, which may be less than 1."""
    assert aggregate(LOSSES, MASK, "token-mean", denominator=0.5).item() == pytest.approx(26.0)


def cuts_of(rows):
    """Every way to cut rows 0 … n−1 into consecutive micro-batches."""
    for bars in itertools.product([False, True], repeat=rows - 1):
        edges = [0, *(i + 1 for i, bar in enumerate(bars) if bar), rows]
        yield list(itertools.pairwise(edges))


@pytest.mark.parametrize("mode", LOSS_AGG_MODES)
@pytest.mark.parametrize("sampled", [False, True])
def test_the_sum_over_micro_batches_is_the_whole_whatever_the_cut(mode, sampled):
    generator = torch.Generator().manual_seed(5)
    rows, columns, size = 5, 4, 9
    student, teacher = torch.randn(2, rows, columns, size, generator=generator, dtype=torch.float64)
    tokens = torch.randint(size, (rows, columns), generator=generator)
    mask = (torch.arange(columns) < torch.tensor([4, 1, 3, 2, 4]).unsqueeze(-1)).long()
    old = torch.full((rows, columns), -2.0, dtype=torch.float64)
    weights = torch.rand(rows, columns, generator=generator, dtype=torch.float64)
    config = SDPOConfig(alpha=1.0, distillation_topk=4, full_logit_distillation=not sampled, loss_agg_mode=mode)
    for active in ([1, 0, 1, 1, 0], [0, 0, 0, 0, 1], [0, 0, 0, 0, 0]):
        active = torch.tensor(active)

        def run(logits, start, stop, denominator, active=active):
            part = slice(start, stop)
            return self_distillation_loss(
                logits[part],
                teacher[part],
                tokens[part],
                mask[part],
                config,
                old_log_probs=old[part],
                self_distillation_mask=active[part],
                rollout_is_weights=weights[part],
                denominator=denominator,
            )[0]

        whole = student.clone().requires_grad_()
        expected = run(whole, 0, rows, None)
        expected.backward()
        for cut in cuts_of(rows):
            denominator = sum(loss_denominator(active_mask(mask[a:b], active[a:b]), mode) for a, b in cut)
            logits = student.clone().requires_grad_()
            total = 0.0
            for start, stop in cut:
                loss = run(logits, start, stop, denominator)
                loss.backward()
                total += loss.item()
            assert total == pytest.approx(expected.item(), rel=1e-12, abs=1e-15)
            torch.testing.assert_close(logits.grad, whole.grad, rtol=1e-11, atol=1e-15)


def test_without_a_denominator_micro_batches_do_not_add_up():
    """Why it is there: the authors' normalisation per micro-batch depends on the cut."""
    parts = aggregate(LOSSES[:1], MASK[:1], "token-mean") + aggregate(LOSSES[1:], MASK[1:], "token-mean")
    assert parts.item() / 2 != pytest.approx(BY_HAND["token-mean"])


def test_importance_ratio_is_current_over_old_clipped_above_and_detached():
    current = torch.tensor([math.log(0.4), math.log(0.1), 0.0, -100.0, 0.0], requires_grad=True)
    old = torch.tensor([math.log(0.1), math.log(0.4), -3.0, 0.0, float("-inf")])
    ratio = importance_ratio(current, old, 2.0)
    torch.testing.assert_close(ratio, torch.tensor([2.0, 0.25, 2.0, math.exp(-20), 2.0]))
    assert not ratio.requires_grad
    unclipped = importance_ratio(current, old)
    torch.testing.assert_close(unclipped[:3], torch.tensor([4.0, 0.25, math.exp(3)]))
    assert unclipped[4].item() == pytest.approx(math.exp(20), rel=1e-5)


def test_rollout_weights_are_trainer_over_engine():
    weights = truncated_importance_weights(torch.tensor([0.4, 0.1]).log(), torch.tensor([0.1, 0.4]).log(), cap=2.0)
    torch.testing.assert_close(weights, torch.tensor([2.0, 0.25]))


def test_clipped_tokens_get_no_gradient():
    losses = torch.tensor([0.5, 3.0], requires_grad=True)
    clipped = clip_token_losses(losses, 1.0)
    clipped.sum().backward()
    assert clipped.tolist() == [0.5, 1.0] and losses.grad.tolist() == [1.0, 0.0]
    assert clip_token_losses(losses, None) is losses


@pytest.mark.parametrize("bad", ["token_mean", "mean", ""])
def test_unknown_modes_are_refused(bad):
    for call in (lambda: aggregate(LOSSES, MASK, bad), lambda: loss_denominator(MASK, bad)):
        with pytest.raises(ConfigError, match="`loss_agg_mode` must be one of 'token-mean'") as caught:
            call()
    assert bad != "token_mean" or "Did you mean 'token-mean'?" in str(caught.value)


def test_wrong_shapes_and_denominators_are_refused():
    with pytest.raises(DataError, match=r"token losses \[3, 3\] and mask \[3, 2\]"):
        aggregate(LOSSES, MASK[:, :2], "token-mean")
    for bad in (-1.0, float("nan")):
        with pytest.raises(DataError, match="`denominator` must be a count"):
            aggregate(LOSSES, MASK, "token-mean", denominator=bad)
    with pytest.raises(DataError, match=r"`self_distillation_mask` must have the shape \[3\]"):
        active_mask(MASK, torch.ones(2))
