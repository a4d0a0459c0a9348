"""What the fused loss holds and computes: a chunk of logits, states and gradients; nothing for masked tokens."""

import pytest
import torch

from fused_cases import MODES, draw, on
from live_tensors import LiveTensors
from sdpo_plugins.losses import LMHead, fused_self_distillation_loss
from sdpo_plugins.losses.fused import budget

MIB = 1 << 20
# Chunks of logits that are alive at once: the teacher's whole row is needed to compare all of it, or to choose from it.
WORKSPACES = {"full": 2, "tail": 1, "tail-teacher": 2, "renormalised": 1, "renormalised-teacher": 2, "sampled": 1}


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of 256 columns, so that a small test sees a chunk and a block of it apart."""
    monkeypatch.setitem(budget._BLOCK_BYTES, "cpu", 1)
    monkeypatch.setitem(budget._PRODUCT_BYTES, "cpu", 1)


def watch(mode, tokens, size, width=8, *, k=16, trained=True, mask=None, config=None, dtype=torch.float32, **options):
    """Run forward and backward; return what was alive and the case with its gradients."""
    case = draw(1, tokens, size, width, dtype=dtype).with_(mask=torch.ones(1, tokens) if mask is None else mask)
    case.weight.requires_grad_(trained)
    if config is None:
        config = MODES[mode] if mode in ("full", "sampled") else MODES[mode].replace(distillation_topk=k)
    head = LMHead(case.weight, soft_cap=options.pop("soft_cap", None))
    with LiveTensors() as live:
        loss, _ = fused_self_distillation_loss(
            case.hidden, head, case.teacher_hidden, case.teacher_head, case.token_ids, case.mask, config, **options
        )
        (loss * 2).backward()
    return live, case


def test_the_tracker_sees_what_it_should():
    given = torch.ones(10, 7)
    with LiveTensors() as live:
        views = given.t()[:3]
        kept = given * 2
        for _ in range(3):
            gone = torch.cat([kept, kept])
            del gone
        product = kept @ kept.t()
    assert live.peak == (70 + 140) * 4 and live.counts == {70: 1, 140: 1, 100: 1}
    assert live.largest() == 140 and live.largest(apart_from=[140]) == 100
    assert live.products == [(10, 7, 10)] and live.multiplications == 700
    assert views.shape == (3, 10) and product.shape == (10, 10)


@pytest.mark.parametrize("entropies", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_one_chunk_of_logits_is_alive(mode, entropies, small_blocks):
    size, chunk = 4000, 24
    live, case = watch(mode, 72, size, rows_per_chunk=chunk, entropies=entropies)
    head = case.weight.numel()
    assert live.largest(apart_from=[head]) == chunk * size
    assert live.counts[chunk * size] == WORKSPACES[mode]
    # Whatever else is alive beside them are blocks of 256 columns, a dozen values for each of the K entries, states.
    others = 8 * chunk * 256 + 24 * chunk * 17 + 8 * case.hidden.numel()
    assert live.peak <= 4 * (head + WORKSPACES[mode] * chunk * size + others)


@pytest.mark.parametrize("mode", ["tail", "sampled"])
def test_the_teachers_blocks_come_one_by_one(mode, monkeypatch):
    size, chunk, columns = 4000, 24, 1300
    monkeypatch.setitem(budget._BLOCK_BYTES, "cpu", 1)
    monkeypatch.setitem(budget._PRODUCT_BYTES, "cpu", 4 * chunk * columns)
    live, _ = watch(mode, 48, size, rows_per_chunk=chunk)
    assert live.counts[chunk * columns] == 1


def test_a_soft_cap_takes_one_more(small_blocks):
    live, _ = watch("tail", 48, 4000, rows_per_chunk=24, soft_cap=3.0)
    assert live.counts[24 * 4000] == 2


@pytest.mark.parametrize("mode", MODES)
def test_the_heads_gradient_is_there_once(mode):
    """Also after the backward pass with a factor, which scales it in place and hands it over."""
    live, case = watch(mode, 12, 3001, 16)
    assert live.counts[case.weight.numel()] == 1
    assert case.weight.grad.abs().sum() > 0
    frozen, _ = watch(mode, 12, 3001, 16, trained=False)
    assert case.weight.numel() not in frozen.counts


@pytest.mark.parametrize("mode", MODES)
def test_more_tokens_cost_their_hidden_states(mode):
    """Gradient of the states, a copy of either model's active ones, a row's values; not its K entries."""
    width, k = 16, 512
    peaks = []
    for tokens in (33, 264):
        mask = torch.ones(1, tokens)
        mask[0, -1] = 0
        peaks.append(watch(mode, tokens, 2000, width, k=k, mask=mask, rows_per_chunk=16)[0].peak)
    a_row = (peaks[1] - peaks[0]) / (264 - 33)
    assert 4 * width <= a_row <= 4 * 4 * width + 200 < 4 * k


@pytest.mark.parametrize("mode", MODES)
def test_a_larger_vocabulary_costs_its_head_and_a_chunk(mode, small_blocks):
    width, rows = 4, 16
    peaks = [watch(mode, 32, size, width, rows_per_chunk=rows)[0].peak for size in (6_000, 24_000)]
    more = (peaks[1] - peaks[0]) / (4 * 18_000)
    assert width + rows <= more <= 1.01 * (width + WORKSPACES[mode] * rows)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("trained", [True, False], ids=["trained", "frozen"])
def test_products_by_the_active_token(mode, trained):
    """Student's and teacher's logits and two gradients; within a renormalised top-K the student's logits alone."""
    size, width = 503, 8
    mask = torch.zeros(1, 40)
    for active in (5, 40):
        mask[0, :active] = 1
        live, _ = watch(mode, 40, size, width, mask=mask, trained=trained, rows_per_chunk=7)
        dense = [shape for shape in live.products if size in shape]
        assert {shape for shape in dense if width in shape} == set(dense)
        count = sum(rows * inner * columns for rows, inner, columns in dense)
        passes = {"renormalised": 1, "renormalised-teacher": 2}.get(mode, 4 if trained else 3)
        assert count == passes * active * size * width
        # The K dot products of a row, and its gradients from and to K rows of the head.
        assert live.multiplications - count <= (3 * 16 * width * active if mode.startswith("renormalised") else 0)


def test_a_renormalised_top_k_multiplies_no_whole_vocabulary_but_for_the_students_logits():
    live, _ = watch("renormalised", 21, 503, rows_per_chunk=7)
    assert [shape for shape in live.products if 503 in shape] == [(7, 8, 503)] * 3


@pytest.mark.parametrize("mode", MODES)
def test_nothing_active_multiplies_nothing(mode):
    live, case = watch(mode, 12, 503, mask=torch.zeros(1, 12))
    assert live.multiplications == 0
    assert torch.equal(case.weight.grad, torch.zeros_like(case.weight))


@pytest.mark.parametrize("memory_mb", [6, 24])
@pytest.mark.parametrize(
    ("mode", "options"),
    [*((mode, {}) for mode in MODES), ("tail", {"soft_cap": 3.0}), ("full", {"soft_cap": 3.0}), ("tail", {"k": 600})],
    ids=str,
)
def test_the_budget_is_kept_and_used(mode, options, memory_mb):
    size, width, tokens = 30_000, 4, 12 * memory_mb
    live, case = watch(mode, tokens, size, width, chunk_memory_mb=memory_mb, entropies=True, **options)
    # Beside the gradients: the states that the masks select, and what is kept of each row.
    beyond = live.peak - 4 * (case.weight.numel() + case.hidden.numel()) - tokens * 200
    assert beyond <= memory_mb * MIB
    assert beyond >= 0.3 * memory_mb * MIB


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("mode", MODES)
def test_the_budget_of_other_types(mode, dtype):
    live, case = watch(mode, 250, 30_000, 2, chunk_memory_mb=24, dtype=dtype)
    # The head's gradient is summed in float32, a block of 16-bit products at a time, and then rounded.
    head = case.weight.numel() * (8 if dtype == torch.float64 else 4 + 2 + 6)
    assert live.peak - head - case.hidden.numel() * case.hidden.element_size() - 250 * 300 <= 24 * MIB


def test_a_foreign_divergence_keeps_the_budget_too():
    config = on("full", divergence="renyi")
    live, case = watch(
        "full",
        40,
        30_000,
        4,
        config=config,
        chunk_memory_mb=24,
        divergence=lambda student, teacher: (0.5 * student + 0.5 * teacher).logsumexp(-1).neg(),
    )
    assert live.peak - 4 * (case.weight.numel() + case.hidden.numel()) - 40 * 200 <= 24 * MIB
