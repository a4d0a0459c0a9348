"""The whole loss: masks and padding, metrics, weights through the configuration, plug-in divergences, bad input."""

import math
import warnings

import pytest
import torch

from sdpo_plugins.config import SDPOConfig
from sdpo_plugins.errors import ConfigError, DataError, SDPOError
from sdpo_plugins.losses import per_token_losses, resolve_divergence, self_distillation_loss
from sdpo_plugins.losses import support as support_module
from sdpo_plugins.plugins import build_divergence

INF, NAN = float("inf"), float("nan")
CONFIG = SDPOConfig(distillation_topk=4)
SAMPLED = SDPOConfig(alpha=1.0, full_logit_distillation=False)
MODES = {
    "full": SDPOConfig(distillation_topk=None),
    "tail": CONFIG,
    "renormalised": SDPOConfig(distillation_topk=4, distillation_add_tail=False),
    "sampled": SAMPLED,
}


def draw(rows=3, columns=4, size=9, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, rows, columns, size, generator=generator, dtype=torch.float64).to(dtype)
    return student, teacher, torch.randint(size, (rows, columns), generator=generator)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("agg", ["token-mean", "seq-mean-token-mean"])
def test_nothing_active_is_exactly_zero_with_zero_gradients(mode, agg):
    student, teacher, tokens = draw()
    for mask, rows in ((torch.ones(3, 4), torch.zeros(3)), (torch.zeros(3, 4), None)):
        logits = student.clone().requires_grad_()
        loss, metrics = self_distillation_loss(
            logits, teacher, tokens, mask, MODES[mode], self_distillation_mask=rows, loss_agg_mode=agg
        )
        assert loss.item() == 0.0 and loss.requires_grad
        loss.backward()
        assert torch.equal(logits.grad, torch.zeros_like(logits))
        assert metrics["self_distillation/empty_target_batch"] == 1.0
        assert metrics["self_distillation/active_tokens"] == 0.0
        assert all(torch.isfinite(value) for value in metrics.values())


@pytest.mark.parametrize("mode", MODES)
def test_one_masked_row_counts_for_nothing(mode):
    student, teacher, tokens = draw()
    mask = torch.ones(3, 4)
    mask[1] = 0
    logits = student.clone().requires_grad_()
    loss, _ = self_distillation_loss(logits, teacher, tokens, mask, MODES[mode])
    loss.backward()
    keep = torch.tensor([0, 2])
    alone, _ = self_distillation_loss(student[keep], teacher[keep], tokens[keep], mask[keep], MODES[mode])
    torch.testing.assert_close(loss.detach(), alone, rtol=1e-13, atol=0)
    assert logits.grad[1].abs().sum() == 0 and logits.grad[0].abs().sum() > 0


@pytest.mark.parametrize("mode", MODES)
def test_padding_may_hold_anything(mode):
    """Labels of −100 and NaN log-probs at masked tokens reach neither the loss nor the gradient."""
    student, teacher, tokens = draw()
    mask = torch.ones(3, 4, dtype=torch.long)
    mask[0, 2:] = 0
    old, weights = torch.full((3, 4), -2.0, dtype=torch.float64), torch.full((3, 4), 0.5, dtype=torch.float64)

    def run(tokens, old, weights):
        logits = student.clone().requires_grad_()
        loss, metrics = self_distillation_loss(
            logits, teacher, tokens, mask, MODES[mode], old_log_probs=old, rollout_is_weights=weights
        )
        loss.backward()
        return loss.detach(), logits.grad, metrics

    garbage = tokens.masked_fill(mask == 0, -100), old.masked_fill(mask == 0, NAN), weights.masked_fill(mask == 0, NAN)
    clean, dirty = run(tokens, old, weights), run(*garbage)
    assert torch.equal(clean[0], dirty[0]) and torch.equal(clean[1], dirty[1])
    assert {name: value.item() for name, value in clean[2].items()} == {
        name: value.item() for name, value in dirty[2].items()
    }


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("clip", [0.5, 1.0, 2.0])
def test_without_old_log_probs_the_step_is_on_policy(mode, clip):
    student, teacher, tokens = draw()
    options = {**MODES[mode].to_mapping(), "is_clip": clip}
    config = SDPOConfig.from_mapping(options)
    own = student.log_softmax(-1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    mask = torch.ones(3, 4)
    left, _ = self_distillation_loss(student, teacher, tokens, mask, config)
    right, _ = self_distillation_loss(student, teacher, tokens, mask, config, old_log_probs=own)
    off = SDPOConfig.from_mapping({**options, "is_clip": None})
    plain, _ = self_distillation_loss(student, teacher, tokens, mask, off)
    torch.testing.assert_close(left, right, rtol=1e-12, atol=0)
    torch.testing.assert_close(left, plain * min(1.0, clip), rtol=1e-12, atol=0)


def test_per_token_clip_comes_before_the_weights():
    student, teacher, tokens = draw()
    weights = torch.full((3, 4), 3.0)
    plain = per_token_losses(student, teacher, tokens, CONFIG)
    limit = plain.divergence.median().item()
    clipped = per_token_losses(
        student, teacher, tokens, CONFIG.replace(per_token_loss_clip=limit), rollout_is_weights=weights
    )
    torch.testing.assert_close(clipped.per_token, plain.per_token.clamp(max=limit) * 3)
    torch.testing.assert_close(clipped.divergence, plain.per_token)
    _, metrics = self_distillation_loss(
        student, teacher, tokens, torch.ones(3, 4), CONFIG.replace(per_token_loss_clip=limit)
    )
    expected = (plain.divergence > limit).double().mean()
    torch.testing.assert_close(metrics["self_distillation/loss_clip_fraction"], expected)


def test_in_sampled_token_mode_the_clip_is_on_the_gap():
    student, teacher, tokens = draw()
    student.requires_grad_()
    found = per_token_losses(student, teacher, tokens, SAMPLED.replace(per_token_loss_clip=0.3, is_clip=None))
    gap = (found.student_log_probs - found.teacher_log_probs).detach()
    assert (gap > 0.3).any() and (gap < 0.3).any()
    torch.testing.assert_close(found.per_token, gap.clamp(max=0.3) * found.student_log_probs)
    torch.testing.assert_close(found.divergence, gap)


def test_metrics_by_hand():
    """Two active tokens of three; the student is uniform over 4, the teacher holds 0.7 on token 0, 0.1 elsewhere."""
    student = torch.zeros(1, 3, 4, dtype=torch.float64)
    teacher = torch.tensor([0.7, 0.1, 0.1, 0.1], dtype=torch.float64).log().expand(1, 3, 4)
    tokens, mask = torch.tensor([[0, 1, 0]]), torch.tensor([[1, 1, 0]])
    config = SDPOConfig(alpha=0.0, distillation_topk=1, topk_support="teacher", is_clip=1.2, per_token_loss_clip=0.1)
    old = torch.tensor([[0.125, 0.25, 0.25]], dtype=torch.float64).log()
    loss, metrics = self_distillation_loss(
        student, teacher, tokens, mask, config, old_log_probs=old, rollout_is_weights=torch.tensor([[0.5, 1.5, 9.0]])
    )
    divergence = 0.7 * math.log(0.7 / 0.25) + 0.3 * math.log(0.3 / 0.75)
    expected = {
        "active_tokens": 2,
        "active_sequences": 1,
        "empty_target_batch": 0,
        "divergence": divergence,
        "teacher_student_gap": (math.log(0.7 / 0.25) + math.log(0.1 / 0.25)) / 2,
        "teacher_student_gap_abs": (math.log(0.7 / 0.25) - math.log(0.1 / 0.25)) / 2,
        "student_log_prob": math.log(0.25),
        "student_topk_mass": 0.25,
        "teacher_topk_mass": 0.7,
        "importance_ratio": 1.5,
        "importance_clip_fraction": 0.5,
        "rollout_is_weight": 1.0,
        "loss_clip_fraction": 1.0,
    }
    found = {name.removeprefix("self_distillation/"): value.item() for name, value in metrics.items()}
    assert found == pytest.approx(expected)
    assert loss.item() == pytest.approx(0.1 * (1.2 * 0.5 + 1.0 * 1.5) / 2)
    assert not any(value.requires_grad for value in metrics.values())


def test_the_gap_is_positive_where_the_teacher_likes_the_sampled_tokens_better():
    student = torch.zeros(1, 1, 3)
    teacher = torch.tensor([[[5.0, 0.0, 0.0]]])
    for token, sign in ((0, 1), (1, -1)):
        _, metrics = self_distillation_loss(
            student, teacher, torch.tensor([[token]]), torch.ones(1, 1), SDPOConfig(distillation_topk=None)
        )
        assert metrics["self_distillation/teacher_student_gap"].item() * sign > 0


def test_a_teacher_equal_to_the_student_shows_as_zero_divergence():
    student, _, tokens = draw()
    for config in MODES.values():
        _, metrics = self_distillation_loss(student, student.clone(), tokens, torch.ones(3, 4), config)
        assert abs(metrics["self_distillation/divergence"].item()) < 1e-12
        assert abs(metrics["self_distillation/teacher_student_gap_abs"].item()) < 1e-12


def test_the_aggregation_comes_from_the_configuration_unless_given():
    student, teacher, tokens = draw()
    mask = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 0, 0]])
    config = CONFIG.replace(loss_agg_mode="seq-mean-token-sum-norm", loss_scale_factor=14)
    by_config, _ = self_distillation_loss(student, teacher, tokens, mask, config)
    given, _ = self_distillation_loss(student, teacher, tokens, mask, config, loss_agg_mode="token-mean")
    mean, _ = self_distillation_loss(student, teacher, tokens, mask, CONFIG)
    # 7 active tokens: their mean is twice their sum over 14.
    assert given.item() == mean.item() == pytest.approx(2 * by_config.item())


def test_a_foreign_divergence_gets_finite_log_probs_and_its_result_is_used():
    student, teacher, tokens = draw()
    student[..., 8] = teacher[..., 8] = -INF
    seen = []

    def squared(student_logp, teacher_logp):
        seen.append(torch.isfinite(student_logp).all() and torch.isfinite(teacher_logp).all())
        return (student_logp.exp() - teacher_logp.exp()).square().sum(-1)

    config = SDPOConfig(divergence="squared", distillation_topk=None)
    loss, _ = self_distillation_loss(student, teacher, tokens, torch.ones(3, 4), config, divergence=squared)
    expected = (student.softmax(-1) - teacher.softmax(-1)).square().sum(-1).mean()
    torch.testing.assert_close(loss, expected)
    assert seen == [True]


def test_a_divergence_of_the_wrong_shape_is_refused():
    student, teacher, tokens = draw()
    with pytest.raises(DataError, match=r"the result of the divergence.*\[3, 4\].*got \[3, 4, 5\]"):
        per_token_losses(student, teacher, tokens, CONFIG, divergence=lambda s, t: s - t)


def test_k_above_the_vocabulary_is_clamped_with_one_notice(monkeypatch):
    monkeypatch.setattr(support_module, "_notices_given", set())
    student, teacher, tokens = draw()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        large = [per_token_losses(student, teacher, tokens, SDPOConfig(distillation_topk=k)) for k in (100, 50, 10)]
    assert len(caught) == 1 and "`distillation_topk`=100 is larger than the vocabulary (9)" in str(caught[0].message)
    exact = per_token_losses(student, teacher, tokens, SDPOConfig(distillation_topk=9))
    assert all(torch.equal(found.per_token, exact.per_token) for found in large)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("value", [NAN, INF])
@pytest.mark.parametrize("which", ["student_logits", "teacher_logits"])
def test_nan_and_infinite_logits_are_named(mode, value, which):
    student, teacher, tokens = draw()
    (student if which == "student_logits" else teacher)[2, 1, 5] = value
    tokens[2, 1] = 5
    with pytest.raises(DataError, match=rf"`{which}`.*got {value} for vocabulary entry 5 in row 2, position 1\."):
        self_distillation_loss(student, teacher, tokens, torch.ones(3, 4), MODES[mode])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("which", ["student_logits", "teacher_logits"])
def test_nan_logits_of_inactive_tokens_are_refused_since_they_would_reach_the_gradient(mode, which):
    student, teacher, tokens = draw()
    (student if which == "student_logits" else teacher)[0, 3] = NAN
    mask = torch.ones(3, 4)
    mask[0, 3] = 0
    with pytest.raises(DataError, match=rf"`{which}`.*got nan.*row 0, position 3 \(an inactive token"):
        self_distillation_loss(student, teacher, tokens, mask, MODES[mode])


@pytest.mark.parametrize("mode", MODES)
def test_a_row_without_any_possible_token_is_named(mode):
    student, teacher, tokens = draw()
    student[1, 3] = -INF
    with pytest.raises(DataError, match=r"`student_logits`.*whole vocabulary in row 1, position 3"):
        self_distillation_loss(student, teacher, tokens, torch.ones(3, 4), MODES[mode])


@pytest.mark.parametrize("name", ["old_log_probs", "rollout_is_weights"])
def test_nan_in_the_weights_is_named(name):
    student, teacher, tokens = draw()
    given = torch.zeros(3, 4)
    given[0, 2] = NAN
    with pytest.raises(DataError, match=rf"`{name}` must be finite.*got nan in row 0, position 2"):
        self_distillation_loss(student, teacher, tokens, torch.ones(3, 4), CONFIG, **{name: given})


def test_a_divergence_that_overflows_is_named():
    student, teacher, tokens = draw()
    with pytest.raises(DataError, match=r"token losses must be finite, got inf.*Check the divergence"):
        self_distillation_loss(
            student, teacher, tokens, torch.ones(3, 4), CONFIG, divergence=lambda s, t: s.sum(-1) * 0 + INF
        )


def test_wrong_shapes_are_refused():
    student, teacher, tokens = draw()
    mask = torch.ones(3, 4)

    def run(student=student, teacher=teacher, tokens=tokens, mask=mask, **more):
        return self_distillation_loss(student, teacher, tokens, mask, CONFIG, **more)

    cases = [
        (r"one vocabulary, got 9 and 8 logits", {"teacher": teacher[..., :8]}),
        (r"one shape, got \[3, 4, 9\] and \[3, 3, 9\]", {"teacher": teacher[:, :3]}),
        (r"`token_ids` must have the shape \[3, 4\].*got \[3, 3\]", {"tokens": tokens[:, :3], "mask": mask[:, :3]}),
        (r"`response_mask` must have the shape \[3, 4\].*got \[3, 5\]", {"mask": torch.ones(3, 5)}),
        (r"`self_distillation_mask`.*\[3\].*got \[3, 4\]", {"self_distillation_mask": mask}),
        (r"`old_log_probs`.*\[3, 4\].*got \[4\]", {"old_log_probs": torch.zeros(4)}),
        (r"`rollout_is_weights`.*\[3, 4\].*got \[3, 1\]", {"rollout_is_weights": torch.zeros(3, 1)}),
        (r"`student_logits` must be float logits", {"student": student.long()}),
        (r"`token_ids` must be whole numbers", {"tokens": tokens.float()}),
        (r"`token_ids` must lie in \[0, 9\).*from 0 to 9", {"tokens": torch.tensor([[0, 9, 0, 0]] * 3)}),
    ]
    for message, arguments in cases:
        with pytest.raises(DataError, match=message):
            run(**arguments)


@pytest.mark.parametrize("temperature", [0.0, -1.0, NAN, INF])
def test_bad_temperatures_are_refused(temperature):
    student, teacher, tokens = draw()
    with pytest.raises(ConfigError, match="`temperature` must be a finite number greater than 0"):
        self_distillation_loss(student, teacher, tokens, torch.ones(3, 4), CONFIG, temperature=temperature)


def test_unknown_aggregation_is_refused():
    student, teacher, tokens = draw()
    with pytest.raises(ConfigError, match="`loss_agg_mode` must be one of"):
        self_distillation_loss(student, teacher, tokens, torch.ones(3, 4), CONFIG, loss_agg_mode="mean")


@pytest.mark.parametrize("mode", MODES)
def test_autocast_of_the_host_does_not_lower_the_precision(mode):
    student, teacher, tokens = draw(dtype=torch.float32)
    mask = torch.ones(3, 4)
    plain, _ = self_distillation_loss(student, teacher, tokens, mask, MODES[mode])
    with torch.autocast("cpu", torch.bfloat16):
        inside, _ = self_distillation_loss(student, teacher, tokens, mask, MODES[mode])
    assert inside.dtype == torch.float32
    torch.testing.assert_close(inside, plain, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", ["generalized_jsd", "forward_kl", "reverse_kl", "js"])
def test_the_catalogue_and_the_direct_way_give_the_same_divergence(name):
    student, teacher, _ = (value.log_softmax(-1) if value.is_floating_point() else value for value in draw())
    config = SDPOConfig(divergence=name)
    assert torch.equal(resolve_divergence(config)(student, teacher), build_divergence(config)(student, teacher))


def test_our_divergences_refuse_options():
    with pytest.raises(SDPOError, match="sharpness"):
        resolve_divergence(SDPOConfig(divergence="js", divergence_options={"sharpness": 2}))


def test_an_unknown_divergence_names_the_nearest():
    with pytest.raises(SDPOError, match="reverse_kl"):
        resolve_divergence(SDPOConfig(divergence="revers_kl"))
