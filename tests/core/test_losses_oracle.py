"""Every mode against a second implementation: plain loops over Python floats, in probabilities instead of logs.

The inputs are rounded to the tested type first, so that the tolerances below only cover the arithmetic: float32
accumulation for everything but float64, and, for the gradient, one rounding to the type of the logits.
"""

import itertools
import math

import pytest
import torch

from sdpo_plugins.config import SDPOConfig
from sdpo_plugins.losses import per_token_losses

SHAPES = [(1, 1, 2), (3, 5, 37), (2, 7, 130), (5, 1, 3)]
MODES = {
    "full": {"distillation_topk": None},
    "top4_tail": {"distillation_topk": 4},
    "top4_renormalised": {"distillation_topk": 4, "distillation_add_tail": False},
    "teachers_top4_tail": {"distillation_topk": 4, "topk_support": "teacher"},
    "teachers_top4_renormalised": {"distillation_topk": 4, "topk_support": "teacher", "distillation_add_tail": False},
}
VALUE_TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 2e-5, torch.float16: 2e-5}
GRADIENT_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.bfloat16: 8e-3, torch.float16: 2e-3}


def oracle_token(student, teacher, token, config, temperature, old=None, weight=1.0):
    """One token's loss from two lists of logits."""

    def probabilities(logits):
        largest = max(logits)
        powers = [math.exp((value - largest) / temperature) for value in logits]
        return [power / math.fsum(powers) for power in powers]

    p, q = probabilities(student), probabilities(teacher)
    p_token, q_token = p[token], q[token]
    if not config.full_logit_distillation:
        loss = math.log(p_token / q_token) * math.log(p_token)
    else:
        k = config.distillation_topk
        if k is not None:
            source = student if config.topk_support == "student" else teacher
            chosen = sorted(range(len(source)), key=lambda v: -source[v])[:k]
            p, q = [p[v] for v in chosen], [q[v] for v in chosen]
            if config.distillation_add_tail:
                # The definition's clamp: the top-K never holds more than e^(−1e-7).
                p.append(1 - min(math.fsum(p), math.exp(-1e-7)))
                q.append(1 - min(math.fsum(q), math.exp(-1e-7)))
            else:
                p, q = [x / math.fsum(p) for x in p], [x / math.fsum(q) for x in q]
        a = config.alpha
        if a == 0:
            loss = math.fsum(y * math.log(y / x) for x, y in zip(p, q, strict=True))
        elif a == 1:
            loss = math.fsum(x * math.log(x / y) for x, y in zip(p, q, strict=True))
        else:
            mixed = [(1 - a) * x + a * y for x, y in zip(p, q, strict=True)]
            loss = (1 - a) * math.fsum(x * math.log(x / m) for x, m in zip(p, mixed, strict=True))
            loss += a * math.fsum(y * math.log(y / m) for y, m in zip(q, mixed, strict=True))
    if config.is_clip is not None and old is not None:
        loss *= min(p_token / math.exp(old), config.is_clip)
    return loss * weight


def oracle(student, teacher, tokens, config, temperature=1.0, old=None, weights=None):
    rows, columns = tokens.shape
    values = [
        [
            oracle_token(
                student[i, t].tolist(),
                teacher[i, t].tolist(),
                tokens[i, t].item(),
                config,
                temperature,
                None if old is None else old[i, t].item(),
                1.0 if weights is None else weights[i, t].item(),
            )
            for t in range(columns)
        ]
        for i in range(rows)
    ]
    return torch.tensor(values, dtype=torch.float64)


def inputs(shape, dtype, seed=0):
    """Logits without ties in any of the types: shuffled multiples of 1/16, so that the top-K is unique."""
    generator = torch.Generator().manual_seed(seed)
    rows, columns, size = shape

    def shuffled():
        order = torch.rand(rows, columns, size, generator=generator).argsort(-1)
        return ((order - size // 2) / 16).to(dtype)

    tokens = torch.randint(size, (rows, columns), generator=generator)
    return shuffled(), shuffled(), tokens


def close(ours, theirs, tolerance):
    scale = max(0.05, theirs.abs().max().item())
    assert (ours.double() - theirs).abs().max().item() <= tolerance * scale


@pytest.mark.parametrize("dtype", VALUE_TOLERANCE, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.filterwarnings("ignore:`distillation_topk`=4 is larger")
def test_values(mode, shape, dtype):
    student, teacher, tokens = inputs(shape, dtype)
    for alpha in (0.0, 0.25, 0.5, 1.0):
        config = SDPOConfig(alpha=alpha, is_clip=None, **MODES[mode])
        found = per_token_losses(student, teacher, tokens, config)
        assert found.per_token.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        # With K = V the tail is a difference of nearly equal numbers: 1e-7, whose last digits float32 lacks.
        tolerance = VALUE_TOLERANCE[dtype] if shape[-1] > 4 or dtype != torch.float64 else 1e-9
        close(found.per_token, oracle(student.double(), teacher.double(), tokens, config), tolerance)


@pytest.mark.parametrize("dtype", VALUE_TOLERANCE, ids=str)
def test_sampled_token_mode(dtype):
    student, teacher, tokens = inputs((3, 5, 37), dtype)
    config = SDPOConfig(alpha=1.0, full_logit_distillation=False, is_clip=None)
    found = per_token_losses(student, teacher, tokens, config).per_token
    close(found, oracle(student.double(), teacher.double(), tokens, config), VALUE_TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", GRADIENT_TOLERANCE, ids=str)
@pytest.mark.parametrize("mode", MODES)
def test_gradients_by_finite_differences_of_the_oracle(mode, dtype):
    student, teacher, tokens = inputs((1, 2, 9), dtype, seed=4)
    for alpha in (0.0, 0.5, 1.0):
        config = SDPOConfig(alpha=alpha, is_clip=None, **MODES[mode])
        logits = student.clone().requires_grad_()
        per_token_losses(logits, teacher, tokens, config).per_token.sum().backward()
        assert logits.grad.dtype == dtype
        expected = torch.zeros(logits.shape, dtype=torch.float64)
        step = 1e-5
        for place in itertools.product(*map(range, logits.shape)):
            up, down = student.double().clone(), student.double().clone()
            up[place] += step
            down[place] -= step
            above = oracle(up, teacher.double(), tokens, config).sum()
            below = oracle(down, teacher.double(), tokens, config).sum()
            expected[place] = (above - below) / (2 * step)
        close(logits.grad, expected, GRADIENT_TOLERANCE[dtype])


@pytest.mark.parametrize("mode", [*MODES, "sampled"])
@pytest.mark.parametrize("temperature", [0.6, 1.0, 1.7])
def test_temperature_and_weights(mode, temperature):
    student, teacher, tokens = inputs((3, 4, 21), torch.float64, seed=2)
    generator = torch.Generator().manual_seed(9)
    old = -3 * torch.rand(3, 4, generator=generator, dtype=torch.float64)
    weights = 2 * torch.rand(3, 4, generator=generator, dtype=torch.float64)
    options = {"full_logit_distillation": False} if mode == "sampled" else MODES[mode]
    config = SDPOConfig(alpha=1.0, is_clip=1.5, **options)
    found = per_token_losses(
        student, teacher, tokens, config, old_log_probs=old, rollout_is_weights=weights, temperature=temperature
    )
    close(found.per_token, oracle(student, teacher, tokens, config, temperature, old, weights), 1e-12)


@pytest.mark.parametrize("mode", MODES)
def test_temperature_is_a_division_of_both_logits(mode):
    student, teacher, tokens = inputs((2, 3, 16), torch.float64)
    config = SDPOConfig(alpha=0.5, is_clip=None, **MODES[mode])
    scaled = per_token_losses(student / 0.7, teacher / 0.7, tokens, config).per_token
    torch.testing.assert_close(
        per_token_losses(student, teacher, tokens, config, temperature=0.7).per_token, scaled, rtol=1e-12, atol=1e-14
    )


@pytest.mark.parametrize("mode", MODES)
def test_rows_of_two_dimensions_equal_batches(mode):
    student, teacher, tokens = inputs((3, 5, 37), torch.float32)
    config = SDPOConfig(**MODES[mode])
    batched = per_token_losses(student, teacher, tokens, config).per_token
    flat = per_token_losses(student.flatten(0, 1), teacher.flatten(0, 1), tokens.flatten(), config).per_token
    assert torch.equal(flat.view(3, 5), batched)
