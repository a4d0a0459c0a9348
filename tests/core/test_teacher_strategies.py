"""The five teachers: start, follow, take effect, count, and what they refuse."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sdpo_plugins.config import SDPOConfig
from sdpo_plugins.errors import TeacherError
from sdpo_plugins.teacher import Ema, Frozen, Live, LoraEma, Teacher, TrustRegion, local_tensors, mix_passes
from sdpo_plugins.teacher import strategies as built

HOLDING = [Ema, Frozen, TrustRegion]
EVERY = [*HOLDING, Live]
INPUTS = torch.randn(6, 3, generator=torch.Generator().manual_seed(5))


def make(kind: type[Teacher], rate: float = 0.25, unit: str = "rollout_batch", every: int = 1) -> Teacher:
    return kind(rate, unit, every)


def network(dtype: torch.dtype = torch.float32, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).to(dtype).eval()


@torch.no_grad()
def train(model: nn.Module, seed: int = 1) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter.dtype))
    for buffer in model.buffers():
        buffer.add_(1)


def values(teacher: Teacher) -> dict[str, Tensor]:
    return teacher.state_dict()["tensors"]


@pytest.mark.parametrize("kind", HOLDING)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_starts_as_an_exact_copy_of_the_student_in_memory(kind: type[Teacher], dtype: torch.dtype) -> None:
    model = network(dtype)
    train(model)  # not what any hub or file holds
    tensors = local_tensors(model)
    teacher = make(kind)
    teacher.start(tensors)
    assert teacher.started and teacher.updates == 0
    for name, value in values(teacher).items():
        assert torch.equal(value.to(tensors[name].dtype), tensors[name])
        assert value.data_ptr() != tensors[name].data_ptr()
        assert not value.requires_grad
    inputs = INPUTS.to(dtype)
    expected = model(inputs)
    scored = teacher.score(lambda: model(inputs), tensors)
    if kind is TrustRegion:
        torch.testing.assert_close(scored, expected.float())
    else:
        assert torch.equal(scored, expected)
    assert not scored.requires_grad


def test_the_averages_dtype_is_float32_and_the_references_the_weights_own() -> None:
    model = network(torch.bfloat16)
    tensors = local_tensors(model)
    dtypes = {}
    for kind in HOLDING:
        teacher = make(kind)
        teacher.start(tensors)
        dtypes[kind] = {name: value.dtype for name, value in values(teacher).items()}
    assert {dtypes[Ema][name] for name, _ in model.named_parameters()} == {torch.float32}
    assert dtypes[Ema]["1.num_batches_tracked"] == torch.int64
    assert dtypes[Frozen] == dtypes[TrustRegion] == {name: live.dtype for name, live in tensors.items()}
    wide = network(torch.float64)
    teacher = make(Ema)
    teacher.start(local_tensors(wide))
    assert values(teacher)["0.weight"].dtype == torch.float64


def test_ema_averages_parameters_and_copies_buffers() -> None:
    model = network()
    tensors = local_tensors(model)
    teacher = make(Ema, rate=0.25)
    teacher.start(tensors)
    first = {name: live.clone() for name, live in tensors.items()}
    train(model)
    metrics = teacher.update(tensors)
    difference, norm, count = 0.0, 0.0, 0
    for name, value in values(teacher).items():
        if name in tensors.buffers:
            assert torch.equal(value, tensors[name]), name
        else:
            torch.testing.assert_close(value, 0.75 * first[name] + 0.25 * tensors[name])
            difference += (value - tensors[name]).double().square().sum().item()
            norm += tensors[name].double().square().sum().item()
            count += value.numel()
    assert metrics["teacher/updates"] == 1.0
    assert metrics["teacher/distance"] == pytest.approx((difference / count) ** 0.5, rel=1e-5)
    assert metrics["teacher/relative_distance"] == pytest.approx((difference / norm) ** 0.5, rel=1e-5)


def test_ema_of_bfloat16_weights_keeps_small_steps() -> None:
    model = nn.Linear(64, 64, bias=False).bfloat16()
    tensors = local_tensors(model)
    teacher = make(Ema, rate=0.01)
    teacher.start(tensors)
    first = model.weight.detach().double()
    with torch.no_grad():
        model.weight.mul_(1.01)
    for _ in range(50):
        teacher.update(tensors)
    drift = (1 - 0.99**50) * (model.weight.detach().double() - first)
    torch.testing.assert_close(values(teacher)["weight"].double() - first, drift, rtol=1e-2, atol=1e-6)


def test_the_cast_working_copy_follows_every_update() -> None:
    model = network(torch.bfloat16)
    tensors = local_tensors(model)
    teacher = make(Ema, rate=0.5)
    teacher.start(tensors)
    dtypes = {name: live.dtype for name, live in tensors.items()}
    for seed in range(3):
        train(model, seed)
        teacher.update(tensors)
        with teacher.applied(tensors):
            for name, live in tensors.items():
                assert torch.equal(live, values(teacher)[name].to(live.dtype)), name
                assert live.dtype == dtypes[name]


def test_a_student_moved_to_another_dtype_gets_a_fresh_working_copy() -> None:
    model = network(torch.bfloat16)
    teacher = make(Ema)
    teacher.start(local_tensors(model))
    with teacher.applied(local_tensors(model)):
        pass
    model.half()
    tensors = local_tensors(model)
    with teacher.applied(tensors):
        assert tensors["0.weight"].dtype == torch.float16
    assert tensors["0.weight"].dtype == torch.float16


@pytest.mark.parametrize("kind", HOLDING)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("raises", [False, True])
def test_in_effect_and_gone_again(kind: type[Teacher], dtype: torch.dtype, raises: bool) -> None:
    model = network(dtype)
    model.train()
    tensors = local_tensors(model)
    teacher = make(kind)
    teacher.start(tensors)
    train(model)
    before = {name: (live.data_ptr(), live.clone()) for name, live in tensors.items()}
    held = {name: value.clone() for name, value in values(teacher).items()}
    try:
        with teacher.applied(tensors):
            assert not torch.equal(model[0].weight, before["0.weight"][1])
            model(INPUTS.to(dtype))  # in train mode: changes the norm's statistics
            if raises:
                raise ZeroDivisionError
    except ZeroDivisionError:
        assert raises
    for name, (pointer, value) in before.items():
        assert tensors[name].data_ptr() == pointer
        assert torch.equal(tensors[name], value)
    for name, value in values(teacher).items():
        assert torch.equal(value, held[name]), name
    with teacher.applied(tensors):  # usable again, after an exception too
        pass


def test_frozen_stays_the_initial_student() -> None:
    model = network()
    tensors = local_tensors(model)
    teacher = make(Frozen, rate=1.0)
    initial = model(INPUTS).detach()
    teacher.start(tensors)
    train(model)
    metrics = teacher.update(tensors)
    assert torch.equal(teacher.score(lambda: model(INPUTS), tensors), initial)
    assert metrics["teacher/distance"] > 0.1
    assert metrics["teacher/updates"] == 0.0


def test_live_is_the_student_of_this_step_and_holds_nothing() -> None:
    model = network()
    tensors = local_tensors(model)
    teacher = make(Live)
    teacher.start(tensors)
    assert values(teacher) == {}
    for seed in range(2):
        train(model, seed)
        scored = teacher.score(lambda: model(INPUTS), tensors)
        assert torch.equal(scored, model(INPUTS).detach())
        assert not scored.requires_grad
        assert teacher.update(tensors) == {}


@pytest.mark.parametrize("rate", [0.0, 0.05, 0.5, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_trust_region_equals_the_formula(rate: float, dtype: torch.dtype) -> None:
    model = network(dtype)
    inputs = INPUTS.to(dtype)
    tensors = local_tensors(model)
    teacher = make(TrustRegion, rate=rate)
    teacher.start(tensors)
    reference = model(inputs).detach().float()
    train(model)
    student = model(inputs).detach().float()
    calls = []

    def forward() -> Tensor:
        calls.append(model[0].weight.detach().clone())
        return model(inputs)

    scored = teacher.score(forward, tensors).float()
    torch.testing.assert_close(scored, torch.lerp(reference, student, rate))
    # q ∝ ref^(1−r) · student^r
    product = reference.softmax(-1) ** (1 - rate) * student.softmax(-1) ** rate
    torch.testing.assert_close(scored.softmax(-1), product / product.sum(-1, keepdim=True))
    assert len(calls) == len(teacher.passes) == (1 if rate in (0.0, 1.0) else 2)


def test_mixing_keeps_minus_infinity_and_float32() -> None:
    teacher = make(TrustRegion, rate=0.25)
    reference = torch.tensor([0.0, -torch.inf, 1.0]).bfloat16()
    student = torch.tensor([4.0, -torch.inf, -torch.inf]).bfloat16()
    mixed = teacher.mix([reference, student])
    assert mixed.tolist() == [1.0, -torch.inf, -torch.inf]
    assert mixed.dtype == torch.float32
    assert reference.tolist() == [0.0, -torch.inf, 1.0]


def test_passes_can_be_run_one_by_one() -> None:
    model = network()
    tensors = local_tensors(model)
    teacher = make(TrustRegion)
    teacher.start(tensors)
    train(model)
    outputs = []
    for item in teacher.passes:
        with teacher.in_effect(item, tensors):
            outputs.append(model(INPUTS))
    assert [item.name for item in teacher.passes] == ["reference", "student"]
    assert torch.equal(mix_passes(teacher.passes, outputs), teacher.score(lambda: model(INPUTS), tensors))


def test_outputs_that_cannot_be_mixed_are_refused() -> None:
    teacher = make(TrustRegion)
    with pytest.raises(TeacherError, match=r"reference, student.*got 1 outputs"):
        teacher.mix([INPUTS])
    with pytest.raises(TeacherError, match="'reference' gave tuple"):
        teacher.mix([(INPUTS,), (INPUTS,)])


@pytest.mark.parametrize("kind", HOLDING)
def test_before_start_it_equals_the_student_and_holds_nothing(kind: type[Teacher]) -> None:
    model = network()
    tensors = local_tensors(model)
    teacher = make(kind)
    for seed in range(2):  # evaluation before training, of whatever is in memory then
        train(model, seed)
        torch.testing.assert_close(teacher.score(lambda: model(INPUTS), tensors), model(INPUTS).detach())
    assert not teacher.started
    for verb, call in (("update", lambda: teacher.update(tensors)), ("save", teacher.state_dict)):
        with pytest.raises(TeacherError, match=rf"cannot {verb} the teacher '{teacher.name}' before.*start"):
            call()
    teacher.start(tensors)
    assert torch.equal(values(teacher)["0.weight"], model[0].weight)


def test_it_does_not_nest_and_nothing_else_happens_meanwhile() -> None:
    model = network()
    tensors = local_tensors(model)
    teacher = make(Ema)
    teacher.start(tensors)
    state = teacher.state_dict()
    with teacher.applied(tensors):
        for call in (
            lambda: teacher.score(lambda: model(INPUTS), tensors),
            lambda: teacher.start(tensors),
            lambda: teacher.update(tensors),
            lambda: teacher.load_state_dict(state, tensors),
        ):
            with pytest.raises(TeacherError, match="while its weights are in the student's module"):
                call()
    teacher.update(tensors)


def test_weights_are_only_exchanged_in_live_tensors() -> None:
    teacher = make(Ema)
    with pytest.raises(TeacherError, match=r"local_tensors\(model\)`, got dict"), teacher.applied({}):
        pass


def test_a_student_that_changed_shape_or_names_is_refused() -> None:
    teacher = make(Ema)
    teacher.start(local_tensors(network()))
    other = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 9))
    with pytest.raises(TeacherError, match=r"2\.weight \(teacher \[2, 4\], student \[9, 4\]\)"):
        teacher.update(local_tensors(other))
    with (
        pytest.raises(TeacherError, match=r"missing from the teacher: 3"),
        teacher.applied(local_tensors(nn.Sequential(*other, nn.Linear(9, 9)))),
    ):
        pass
    assert teacher.updates == 0


def test_updates_from_plain_mappings_of_shards() -> None:
    """What an adapter uses whose student is another engine: local tensors by name, no module."""
    teacher = make(Ema, rate=0.5)
    student = {"w": torch.zeros(2).bfloat16(), "seen": torch.tensor(1)}
    teacher.start(student)
    student = {"w": torch.ones(2).bfloat16(), "seen": torch.tensor(4)}
    ranks = 3
    metrics = teacher.update(student, reduce=lambda sums: [ranks * value for value in sums])
    assert values(teacher)["w"].tolist() == [0.5, 0.5]
    assert values(teacher)["seen"].item() == 4
    assert metrics == {"teacher/distance": 0.5, "teacher/relative_distance": 0.5, "teacher/updates": 1.0}


def test_reduce_adds_the_ranks_sums_before_the_distance_is_taken() -> None:
    teacher = make(Ema, rate=0.0)
    teacher.start({"w": torch.tensor([0.0, 0.0])})
    other_rank = [10.0, 3.0, 6.0]
    metrics = teacher.update(
        {"w": torch.tensor([1.0, 1.0])}, reduce=lambda sums: [a + b for a, b in zip(sums, other_rank, strict=True)]
    )
    assert metrics["teacher/distance"] == pytest.approx((12 / 8) ** 0.5)
    assert metrics["teacher/relative_distance"] == pytest.approx((12 / 5) ** 0.5)


def follow(teacher: Teacher, counts: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Ask after each (rollout batches, optimizer steps) and update when due; return when it was."""
    done = []
    for count in counts:
        if teacher.due(*count):
            teacher.update({"w": torch.zeros(1)})
            done.append(count)
    return done


# four optimizer steps to a rollout batch, asked after every step
FOUR_PER_BATCH = [(step // 4, step) for step in range(1, 17)]


@pytest.mark.parametrize(
    ("unit", "every", "expected"),
    [
        ("rollout_batch", 1, [(1, 4), (2, 8), (3, 12), (4, 16)]),
        ("rollout_batch", 3, [(3, 12)]),
        ("optimizer_step", 1, FOUR_PER_BATCH),
        ("optimizer_step", 5, [(1, 5), (2, 10), (3, 15)]),
    ],
)
def test_cadence(unit: str, every: int, expected: list[tuple[int, int]]) -> None:
    teacher = make(Ema, unit=unit, every=every)
    teacher.start({"w": torch.zeros(1)})
    assert follow(teacher, FOUR_PER_BATCH) == expected
    assert teacher.updates == len(expected)


def test_no_update_for_a_rollout_batch_without_a_step() -> None:
    teacher = make(Ema)
    teacher.start({"w": torch.zeros(1)})
    assert follow(teacher, [(1, 0), (2, 0), (3, 4), (4, 4), (5, 8)]) == [(3, 4), (5, 8)]


def test_asking_is_free_and_the_cadence_survives_a_checkpoint() -> None:
    student = {"w": torch.zeros(1)}
    whole, first, second = (make(Ema, every=3) for _ in range(3))
    for teacher in (whole, first):
        teacher.start(student)
    assert [whole.due(3, 12), whole.due(3, 12)] == [True, True]
    uninterrupted = follow(whole, FOUR_PER_BATCH + [(step // 4, step) for step in range(17, 33)])
    before = follow(first, FOUR_PER_BATCH)
    second.load_state_dict(first.state_dict(), student)
    after = follow(second, [(step // 4, step) for step in range(17, 33)])
    assert before + after == uninterrupted == [(3, 12), (6, 24)]


def test_a_resumed_run_may_change_the_interval() -> None:
    student = {"w": torch.zeros(1)}
    first, second = make(Ema, every=1), make(Ema, every=2)
    first.start(student)
    follow(first, [(batch, batch) for batch in range(1, 6)])
    second.load_state_dict(first.state_dict(), student)
    assert follow(second, [(batch, batch) for batch in range(6, 11)]) == [(6, 6), (8, 8), (10, 10)]


def test_a_model_without_anything_to_train_is_refused() -> None:
    model = network().requires_grad_(False)
    for kind in EVERY:
        with pytest.raises(TeacherError, match="nothing to follow"):
            make(kind).check_model(model)
        make(kind).check_model(network())


def test_built_from_the_configuration() -> None:
    config = SDPOConfig(teacher_update_rate=0.125, teacher_update_unit="optimizer_step", teacher_update_every=7)
    kinds = {"ema": Ema, "frozen": Frozen, "live": Live, "trust_region": TrustRegion, "lora_ema": LoraEma}
    for name, kind in kinds.items():
        teacher = getattr(built, f"build_{name}")(config, None)
        assert type(teacher) is kind
        assert (teacher.name, teacher.rate, teacher.unit, teacher.every) == (name, 0.125, "optimizer_step", 7)
    assert [item.share for item in built.build_trust_region(config, None).passes] == [0.875, 0.125]


@pytest.mark.parametrize("kind", HOLDING)
def test_weights_can_wait_on_another_device(kind: type[Teacher]) -> None:
    model = network(torch.bfloat16)
    tensors, teacher = local_tensors(model), make(kind)
    with pytest.raises(TeacherError, match="cannot move the teacher"):
        teacher.move("cpu")
    teacher.start(tensors)
    train(model)
    teacher.update(tensors)
    inputs = INPUTS.bfloat16()
    before, held = teacher.score(lambda: model(inputs), tensors), values(teacher)
    with teacher.applied(tensors), pytest.raises(TeacherError, match="while its weights are in the student's module"):
        teacher.move("cpu")
    teacher.move("meta")
    assert all(value.device.type == "meta" for value in values(teacher).values())
    teacher.load_state_dict({**teacher.state_dict(), "tensors": held}, tensors)
    teacher.move("cpu")
    assert torch.equal(teacher.score(lambda: model(inputs), tensors), before)


def test_a_teacher_without_weights_has_nothing_to_move() -> None:
    model = network()
    tensors, teacher = local_tensors(model), make(Live)
    teacher.start(tensors)
    teacher.move("meta")
    assert torch.equal(teacher.score(lambda: model(INPUTS), tensors), model(INPUTS))
