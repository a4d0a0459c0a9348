"""The fused loss is the loss on logits: value, gradients and metrics, in every mode, type and cut."""

import pytest
import torch

from fused_cases import MODES, assert_same, draw, fused, gradients, on, plain, relative_error
from sdpo_plugins.losses import active_mask, fused_row_losses, loss_denominator, per_token_losses
from sdpo_plugins.losses import support as support_module
from sdpo_plugins.losses.fused import budget
from sdpo_plugins.losses.fused.budget import vocabulary_block

INF = float("inf")

# Of loss, metrics and each gradient's largest entry, against float64 on the same (rounded) inputs. Products of 16-bit
# types leave the CPU as 16-bit numbers: bfloat16 keeps 8 bits of a logit, float16 keeps 11.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
EVERY_MODE = {
    f"{mode}-{alpha}": on(mode, alpha) for mode in MODES for alpha in (0.0, 0.3, 0.5, 1.0) if mode != "sampled"
} | {"sampled": on("sampled")}
AGGREGATIONS = ["token-mean", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm"]


@pytest.fixture(autouse=True)
def _clamped_already(monkeypatch):
    monkeypatch.setattr(support_module, "_notices_given", {"clamped"})


@pytest.mark.parametrize("rows_per_chunk", [1, 3, 100])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("mode", EVERY_MODE)
def test_loss_gradients_and_metrics(mode, dtype, rows_per_chunk):
    case = draw(dtype=dtype, bias=True)
    config = EVERY_MODE[mode].replace(is_clip=1.1, per_token_loss_clip=0.6)
    exact = case.to(torch.float64)
    options = {**exact.per_token(), "self_distillation_mask": torch.tensor([1, 0, 1]), "temperature": 1.3}
    expected = plain(exact, config, **options)
    assert 0.0 < expected[2]["self_distillation/importance_clip_fraction"] < 1.0
    found = fused(case, config, rows_per_chunk=rows_per_chunk, **options)
    assert found[0].dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert all(gradient.dtype == dtype for gradient in found[1].values())
    assert_same(found, expected, TOLERANCE[dtype])
    left_out = {"teacher_student_gap", "teacher_student_gap_abs", "teacher_topk_mass", "student_topk_mass"}
    missing = {name.removeprefix("self_distillation/") for name in expected[2].keys() - found[2].keys()}
    assert missing <= (left_out if mode.startswith("renormalised") else set())


@pytest.mark.parametrize("mode", MODES)
def test_the_per_token_clip_decides_some_tokens(mode):
    """Without this, a clip above or below every token's loss would pass the comparison unseen."""
    case = draw(bias=True)
    config = MODES[mode].replace(per_token_loss_clip=0.05)
    expected = plain(case, config)
    assert 0.0 < expected[2]["self_distillation/loss_clip_fraction"] < 1.0
    assert_same(fused(case, config, rows_per_chunk=2), expected, 1e-9)


@pytest.mark.parametrize("denominator", [None, 17.0, torch.tensor(5.0)], ids=["own", "number", "tensor"])
@pytest.mark.parametrize(("aggregation", "scale"), [*((mode, None) for mode in AGGREGATIONS), (AGGREGATIONS[-1], 11)])
def test_aggregations(aggregation, scale, denominator):
    case = draw()
    options = {"denominator": denominator, "self_distillation_mask": torch.tensor([1, 1, 0])}
    for mode in ("tail", "renormalised", "full", "sampled"):
        config = on(mode, loss_agg_mode=aggregation, loss_scale_factor=scale)
        expected = plain(case, config, **options)
        assert_same(fused(case, config, **options), expected, 1e-9)
        if scale is None:
            assert_same(fused(case, MODES[mode], loss_agg_mode=aggregation, **options), expected, 1e-9)


@pytest.mark.parametrize("mode", ["tail", "tail-teacher", "renormalised", "renormalised-teacher"])
def test_a_top_k_above_the_vocabulary(mode):
    case = draw(size=7)
    config = MODES[mode].replace(distillation_topk=100)
    assert_same(fused(case, config, rows_per_chunk=4), plain(case, config), 1e-9)


@pytest.mark.parametrize("shape", [(1, 1, 2, 1), (1, 1, 101, 3), (1, 13, 31, 5), (5, 1, 97, 2)], ids=str)
@pytest.mark.parametrize("mode", MODES)
def test_weird_shapes(mode, shape):
    case = draw(*shape, bias=True)
    case = case.with_(mask=torch.ones(shape[:2]))
    assert_same(fused(case, MODES[mode], rows_per_chunk=2), plain(case, MODES[mode]), 1e-9)


@pytest.mark.parametrize("mode", MODES)
def test_vocabularies_of_several_blocks(mode, monkeypatch):
    """A large vocabulary is worked on in blocks of columns; one block would hide a seam."""
    rows, size = 40, 40_000
    monkeypatch.setitem(budget._PRODUCT_BYTES, "cpu", 1 << 20)
    assert vocabulary_block(rows, size, 8) < size
    case = draw(1, rows, size, 2).with_(mask=torch.ones(1, rows))
    assert_same(fused(case, MODES[mode]), plain(case, MODES[mode]), 1e-9)


@pytest.mark.parametrize("mode", MODES)
def test_padding_may_hold_anything(mode):
    """Masked tokens: any id, NaN hidden states and weights. The rest is as if they were not there."""
    case = draw()
    options = case.per_token()
    mask = case.mask.clone()
    mask[1] = 0
    off = mask == 0
    expected = plain(case.with_(mask=mask), MODES[mode], **options)
    dirty = case.with_(
        mask=mask,
        token_ids=case.token_ids.masked_fill(off, -100),
        hidden=case.hidden.detach().masked_fill(off.unsqueeze(-1), float("nan")).requires_grad_(),
        teacher_hidden=case.teacher_hidden.masked_fill(off.unsqueeze(-1), INF),
    )
    found = fused(dirty, MODES[mode], **{name: value.masked_fill(off, float("nan")) for name, value in options.items()})
    assert_same(found, expected, 1e-9)
    assert torch.equal(found[1]["hidden"][off], torch.zeros_like(found[1]["hidden"][off]))


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("mode", MODES)
def test_nothing_active_is_zero_with_a_graph(mode, aggregation):
    case = draw(bias=True)
    config = MODES[mode].replace(loss_agg_mode=aggregation)
    nobody = torch.zeros(3)
    usual = fused(case, config, entropies=True)[2].keys()
    for given, options in ((case.with_(mask=torch.zeros(3, 5)), {}), (case, {"self_distillation_mask": nobody})):
        found = fused(given, config, entropies=True, **options)
        assert found[0].item() == 0.0
        assert all(torch.equal(gradient, torch.zeros_like(gradient)) for gradient in found[1].values())
        assert found[2]["self_distillation/empty_target_batch"] == 1.0
        assert found[2].keys() == usual
        assert all(torch.isfinite(value) for value in found[2].values())
        entropy = found[2].pop("self_distillation/entropy")
        assert entropy == 0
        assert_same(found, plain(given, config, **options), 0.0)


# Rows that a host chooses itself


@pytest.mark.parametrize("mode", MODES)
def test_rows_with_weights_of_their_own(mode):
    case = draw()
    weights = torch.randn(15, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    options = case.per_token()
    expected = per_token_losses(
        case.head.logits(case.hidden),
        case.teacher_head.logits(case.teacher_hidden),
        case.token_ids,
        MODES[mode],
        temperature=0.9,
        **options,
    )
    found = fused_row_losses(
        case.hidden.flatten(0, 1),
        case.head,
        case.teacher_hidden.flatten(0, 1),
        case.teacher_head,
        case.token_ids.flatten(),
        weights,
        MODES[mode],
        temperature=0.9,
        rows_per_chunk=4,
        **{name: value.flatten() for name, value in options.items()},
    )
    total = (expected.per_token.flatten() * weights).sum()
    assert relative_error(found.loss.detach(), total.detach()) <= 1e-9
    wanted = gradients(total, case)
    for name, gradient in gradients(found.loss, case).items():
        assert relative_error(gradient, wanted[name]) <= 1e-9
    for name in ("per_token", "divergence", "student_log_probs", "importance_ratio", "student_mass"):
        ours, theirs = getattr(found.tokens, name), getattr(expected, name)
        assert (ours is None) == (theirs is None)
        if ours is not None:
            assert not ours.requires_grad and relative_error(ours, theirs.detach().flatten()) <= 1e-9


@pytest.mark.parametrize("mode", MODES)
def test_micro_batches_add_up(mode):
    """Two halves with a shared denominator give the gradients of the whole."""
    case = draw(4, 5, bias=True)
    everybody = torch.tensor([1, 1, 0, 1])
    whole = fused(case, MODES[mode], self_distillation_mask=everybody)
    count = loss_denominator(active_mask(case.mask, everybody), "token-mean")
    parts = []
    for half in (slice(0, 2), slice(2, 4)):
        part = case.with_(
            hidden=case.hidden[half].detach().requires_grad_(),
            teacher_hidden=case.teacher_hidden[half],
            token_ids=case.token_ids[half],
            mask=case.mask[half],
        )
        parts.append(fused(part, MODES[mode], self_distillation_mask=everybody[half], denominator=count))
    torch.testing.assert_close(parts[0][0] + parts[1][0], whole[0], rtol=1e-9, atol=0)
    assert relative_error(torch.cat([part[1]["hidden"] for part in parts]), whole[1]["hidden"]) <= 1e-9
    for name in ("weight", "bias"):
        assert relative_error(parts[0][1][name] + parts[1][1][name], whole[1][name]) <= 1e-9
