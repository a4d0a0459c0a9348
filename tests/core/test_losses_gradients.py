"""Gradients: gradcheck of each mode, the closed formulas, exact sparsity, −inf logits, and reading in blocks."""

import pytest
import torch

from sdpo_plugins.config import SDPOConfig
from sdpo_plugins.losses import gather_log_probs, log_normalizer, per_token_losses, self_distillation_loss
from sdpo_plugins.losses import normalize as normalize_module

INF = float("inf")
SUPPORTS = {
    "full": {"distillation_topk": None},
    "tail": {"distillation_topk": 4},
    "renormalised": {"distillation_topk": 4, "distillation_add_tail": False},
    "teachers_tail": {"distillation_topk": 4, "topk_support": "teacher"},
    "teachers_renormalised": {"distillation_topk": 4, "topk_support": "teacher", "distillation_add_tail": False},
}


def draw(rows=2, columns=3, size=11, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = 2 * torch.randn(2, rows, columns, size, generator=generator, dtype=torch.float64).to(dtype)
    return student, teacher, torch.randint(size, (rows, columns), generator=generator)


def gradient(student, teacher, tokens, config, **more):
    logits = student.clone().requires_grad_()
    per_token_losses(logits, teacher, tokens, config, **more).per_token.sum().backward()
    return logits.grad


@pytest.mark.parametrize("support", SUPPORTS)
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_gradcheck_of_every_distribution_mode(support, alpha):
    student, teacher, tokens = draw()
    config = SDPOConfig(alpha=alpha, is_clip=None, **SUPPORTS[support])
    weights = torch.rand(tokens.shape, dtype=torch.float64)

    def losses(logits):
        found = per_token_losses(logits, teacher, tokens, config, rollout_is_weights=weights, temperature=0.8)
        return found.per_token, found.student_log_probs

    assert torch.autograd.gradcheck(losses, student.requires_grad_())


def test_gradcheck_of_gathered_log_probs_with_repeated_ids():
    logits = torch.randn(2, 3, 7, dtype=torch.float64, requires_grad=True)
    ids = torch.tensor([[[1, 1, 4]] * 3, [[0, 6, 0]] * 3])
    assert torch.autograd.gradcheck(lambda x: gather_log_probs(x, ids, 1.3), logits)
    torch.testing.assert_close(gather_log_probs(logits, ids), logits.log_softmax(-1).gather(-1, ids))


def test_sampled_token_gradient_is_the_detached_gap_times_the_score():
    """Its value is sg(gap)·log π, not a divergence, so a finite difference of the value would not show this."""
    student, teacher, tokens = draw()
    found = gradient(student, teacher, tokens, SDPOConfig(alpha=1.0, full_logit_distillation=False))
    p, q = student.softmax(-1), teacher.softmax(-1)
    gap = (p.log() - q.log()).gather(-1, tokens.unsqueeze(-1))
    score = torch.nn.functional.one_hot(tokens, student.shape[-1]) - p
    torch.testing.assert_close(found, gap * score, rtol=1e-12, atol=1e-14)


def test_sampled_token_gradient_is_unbiased_for_the_reverse_kl():
    student, teacher, _ = draw(1, 1, 6)
    every = torch.arange(6).view(6, 1)
    sampled = gradient(
        student.expand(6, 1, 6), teacher.expand(6, 1, 6), every, SDPOConfig(alpha=1.0, full_logit_distillation=False)
    )
    expected = (student.softmax(-1).view(6, 1, 1) * sampled).sum(0)
    whole = gradient(student, teacher, every[:1], SDPOConfig(alpha=1.0, distillation_topk=None))
    torch.testing.assert_close(expected, whole[0], rtol=1e-11, atol=1e-13)


def test_reverse_kl_formula():
    student, teacher, tokens = draw()
    p, q = student.softmax(-1), teacher.softmax(-1)
    ratio = (p / q).log()
    expected = p * (ratio - (p * ratio).sum(-1, keepdim=True))
    found = gradient(student, teacher, tokens, SDPOConfig(alpha=1.0, distillation_topk=None))
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-13)


def test_forward_kl_formula():
    student, teacher, tokens = draw()
    found = gradient(student, teacher, tokens, SDPOConfig(alpha=0.0, distillation_topk=None))
    torch.testing.assert_close(found, student.softmax(-1) - teacher.softmax(-1), rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_top_k_with_tail_formula(alpha):
    """p_v·(g_b(v) − Σ_b P_b·g_b) with g = ∂D/∂P of the K + 1 buckets: all tail tokens share one g."""
    student, teacher, tokens = draw()
    k = 4
    p, q = student.softmax(-1), teacher.softmax(-1)
    top = student.topk(k, -1).indices
    big_p, big_q = p.gather(-1, top), q.gather(-1, top)
    big_p = torch.cat([big_p, 1 - big_p.sum(-1, keepdim=True)], -1)
    big_q = torch.cat([big_q, 1 - big_q.sum(-1, keepdim=True)], -1)
    g = -big_q / big_p if alpha == 0 else (big_p / big_q).log() + 1
    bucket = torch.full(student.shape, k).scatter(-1, top, torch.arange(k).expand(top.shape))
    expected = p * (g.gather(-1, bucket) - (big_p * g).sum(-1, keepdim=True))
    found = gradient(student, teacher, tokens, SDPOConfig(alpha=alpha, distillation_topk=k))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("support", ["student", "teacher"])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_renormalised_top_k_has_exactly_k_nonzero_entries(alpha, support, dtype):
    student, teacher, tokens = draw(3, 4, 50, dtype=dtype)
    config = SDPOConfig(alpha=alpha, distillation_topk=5, distillation_add_tail=False, topk_support=support)
    found = gradient(student, teacher, tokens, config, old_log_probs=torch.full((3, 4), -1.0))
    assert ((found != 0).sum(-1) == 5).all()
    top = (student if support == "student" else teacher).topk(5, -1).indices
    assert (found.gather(-1, top) != 0).all()


def test_the_teacher_and_the_weights_get_no_gradient():
    student, teacher, tokens = (value.requires_grad_() if value.is_floating_point() else value for value in draw())
    old, weights = torch.zeros(2, 3, requires_grad=True), torch.ones(2, 3, requires_grad=True)
    config = SDPOConfig(distillation_topk=4)
    found = per_token_losses(student, teacher, tokens, config, old_log_probs=old, rollout_is_weights=weights)
    found.per_token.sum().backward()
    assert teacher.grad is None and old.grad is None and weights.grad is None
    assert student.grad.abs().sum() > 0


def test_student_log_probs_carry_a_gradient_for_the_hybrid_loss():
    for options in (*SUPPORTS.values(), {"full_logit_distillation": False, "alpha": 1.0}):
        student, teacher, tokens = draw()
        student.requires_grad_()
        per_token_losses(student, teacher, tokens, SDPOConfig(**options)).student_log_probs.sum().backward()
        expected = torch.nn.functional.one_hot(tokens, student.shape[-1]) - student.detach().softmax(-1)
        torch.testing.assert_close(student.grad, expected, rtol=1e-12, atol=1e-14)


MASKED = {
    "both": ([2, 5, 7], [2, 5, 7]),
    "student_only": ([2, 5, 7], []),
    "teacher_only": ([], [2, 5, 7]),
    "all_but_two": (list(range(2, 11)), list(range(2, 11))),
    "disjoint": (list(range(5, 11)), list(range(5))),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("which", MASKED)
@pytest.mark.parametrize("support", [*SUPPORTS, "sampled"])
def test_masked_vocabulary_gives_no_nan(support, which, dtype):
    student, teacher, tokens = draw(dtype=dtype)
    for ids, logits in zip(MASKED[which], (student, teacher), strict=True):
        logits[..., ids] = -INF
    for alpha in (1.0,) if support == "sampled" else (0.0, 0.5, 1.0):
        options = {"full_logit_distillation": False} if support == "sampled" else SUPPORTS[support]
        logits = student.clone().requires_grad_()
        loss, metrics = self_distillation_loss(
            logits, teacher, tokens, torch.ones(2, 3), SDPOConfig(alpha=alpha, **options)
        )
        loss.backward()
        assert torch.isfinite(loss)
        assert torch.isfinite(logits.grad).all()
        assert all(torch.isfinite(value) for value in metrics.values())


@pytest.mark.parametrize("support", SUPPORTS)
def test_entries_masked_for_both_count_as_if_they_were_not_there(support):
    student, teacher, tokens = draw(size=8)
    excluded = torch.full((2, 3, 4), -INF, dtype=torch.float64)
    config = SDPOConfig(alpha=0.5, **SUPPORTS[support])
    wider = per_token_losses(torch.cat([student, excluded], -1), torch.cat([teacher, excluded], -1), tokens, config)
    torch.testing.assert_close(
        wider.per_token, per_token_losses(student, teacher, tokens, config).per_token, rtol=1e-12, atol=1e-14
    )


@pytest.mark.parametrize("elements", [1, 11, 40, 1000])
@pytest.mark.parametrize("shape", [(4, 6, 11), (1, 24, 11), (24, 1, 11), (0, 3, 11)])
def test_reading_in_blocks_changes_nothing(monkeypatch, elements, shape):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)
    ids = torch.randint(11, (*shape[:-1], 3), generator=generator)
    monkeypatch.setattr(normalize_module, "_BLOCK_ELEMENTS", elements)
    values = gather_log_probs(logits, ids, 0.9)
    values.square().sum().backward()
    plain = logits.detach().clone().requires_grad_()
    expected = (plain / 0.9).log_softmax(-1).gather(-1, ids)
    expected.square().sum().backward()
    torch.testing.assert_close(values, expected, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(logits.grad, plain.grad, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(log_normalizer(logits, 0.9), torch.logsumexp(plain / 0.9, -1), rtol=1e-13, atol=0)


def test_slices_of_a_longer_sequence_work_without_a_copy_of_theirs():
    """Hosts pass `logits[:, prompt:-1]`, which is not contiguous."""
    student, teacher, tokens = draw(3, 9, 12)
    whole = student.clone().requires_grad_()
    config = SDPOConfig(distillation_topk=4)
    per_token_losses(whole[:, 3:-1], teacher[:, 3:-1], tokens[:, 3:-1], config).per_token.sum().backward()
    assert torch.equal(whole.grad[:, 3:-1], gradient(student[:, 3:-1], teacher[:, 3:-1], tokens[:, 3:-1], config))
    assert whole.grad[:, :3].abs().sum() == 0 and whole.grad[:, -1].abs().sum() == 0


@pytest.mark.parametrize("support", ["tail", "renormalised"])
def test_top_k_makes_no_float32_copy_of_half_precision_logits(support):
    """What autograd keeps for the backward pass: the logits themselves, and nothing else of that size."""
    student, teacher, tokens = draw(4, 8, 1000, dtype=torch.bfloat16)
    student.requires_grad_()
    kept = []

    def remember(tensor):
        kept.append((tensor.untyped_storage().data_ptr(), tensor.numel()))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor):
        per_token_losses(student, teacher, tokens, SDPOConfig(**{**SUPPORTS[support], "distillation_topk": 20}))
    own = {student.untyped_storage().data_ptr(), teacher.untyped_storage().data_ptr()}
    others = [count for pointer, count in kept if pointer not in own]
    assert others and max(others) <= 4 * 8 * 21
