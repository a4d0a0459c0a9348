"""Arithmetic by name: orientation of the average, precision, refusal of what does not fit, distances."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from sdpo_plugins.errors import TeacherError
from sdpo_plugins.teacher import Distance, check_same_names, copy_named, distance, lerp_named_


@pytest.mark.parametrize("rate", [0.0, 0.05, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_average_moves_the_teacher_by_the_rate_towards_the_student(rate: float, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    student = {name: torch.randn(5, 3, generator=generator).to(dtype) for name in "ab"}
    before = {name: torch.randn(5, 3, generator=generator) for name in "ab"}
    teacher = {name: value.clone() for name, value in before.items()}
    lerp_named_(teacher, student, rate)
    for name, value in teacher.items():
        expected = (1.0 - rate) * before[name].double() + rate * student[name].double()
        torch.testing.assert_close(value.double(), expected, rtol=1e-6, atol=1e-7)
        assert value.dtype == torch.float32


def test_rates_at_the_ends_are_exact() -> None:
    student = {"w": torch.tensor([0.1, 1e8, -3.0])}
    teacher = {"w": torch.tensor([7.7, 1.0, 2.0])}
    kept = teacher["w"].clone()
    lerp_named_(teacher, student, 0.0)
    assert torch.equal(teacher["w"], kept)
    lerp_named_(teacher, student, 1.0)
    assert torch.equal(teacher["w"], student["w"])


def test_mixed_dtypes_and_whole_numbers_in_one_call() -> None:
    student = {
        "wide": torch.ones(2, dtype=torch.float64),
        "plain": torch.ones(2),
        "narrow": torch.ones(2, dtype=torch.bfloat16),
        "steps": torch.tensor(7),
    }
    teacher = {
        "wide": torch.zeros(2, dtype=torch.float64),
        "plain": torch.zeros(2),
        "narrow": torch.zeros(2),
        "steps": torch.tensor(3),
    }
    lerp_named_(teacher, student, 0.25)
    assert [teacher[name].tolist() for name in ("wide", "plain", "narrow")] == [[0.25, 0.25]] * 3
    assert teacher["steps"].item() == 7


def test_float32_keeps_the_drift_that_bfloat16_loses(record_property: pytest.RecordProperty) -> None:
    # A bf16 student that drifts by 1 % of its weights, followed at rate 0.01 for 100 updates.
    torch.manual_seed(0)
    start = torch.randn(4096).bfloat16()
    student = (start.float() * 1.01).bfloat16()
    exact = (start.double() + (1 - 0.99**100) * (student.double() - start.double())) - start.double()
    kept_in_float32 = {"w": start.float()}
    kept_in_bfloat16 = start.clone()
    for _ in range(100):
        lerp_named_(kept_in_float32, {"w": student}, 0.01)
        kept_in_bfloat16.lerp_(student, 0.01)
    share_float32 = ((kept_in_float32["w"].double() - start.double()).norm() / exact.norm()).item()
    share_bfloat16 = ((kept_in_bfloat16.double() - start.double()).norm() / exact.norm()).item()
    record_property("drift kept in float32", share_float32)
    record_property("drift kept in bfloat16", share_bfloat16)
    print(f"drift kept: float32 {share_float32:.4f}, bfloat16 {share_bfloat16:.4f}")
    assert share_float32 == pytest.approx(1.0, abs=1e-3)
    assert share_bfloat16 < 0.5


def test_an_average_in_a_narrow_dtype_is_refused() -> None:
    with pytest.raises(TeacherError, match=r"float32, but layers\.w is torch\.bfloat16"):
        lerp_named_({"layers.w": torch.zeros(2).bfloat16()}, {"layers.w": torch.ones(2).bfloat16()}, 0.1)


@pytest.mark.parametrize("rate", [-0.1, 1.5, math.nan])
def test_a_rate_out_of_range_is_refused(rate: float) -> None:
    with pytest.raises(TeacherError, match=r"\[0, 1\]"):
        lerp_named_({"w": torch.zeros(1)}, {"w": torch.ones(1)}, rate)


def test_mismatches_are_listed_by_name() -> None:
    teacher = {"same": torch.zeros(2), "old.weight": torch.zeros(1), "head": torch.zeros(3, 2)}
    student = {"same": torch.zeros(2), "new.weight": torch.zeros(1), "head": torch.zeros(4, 2)}
    with pytest.raises(TeacherError) as caught:
        check_same_names(teacher, student)
    message = str(caught.value)
    assert "1 missing from the teacher: new.weight" in message
    assert "1 unexpected, not in the student: old.weight" in message
    assert "head (teacher [3, 2], student [4, 2])" in message
    assert "same" not in message.split("do not fit")[1].splitlines()[1]


def test_long_lists_of_mismatches_are_cut_and_counted() -> None:
    student = {f"w{index:03d}": torch.zeros(1) for index in range(25)}
    with pytest.raises(TeacherError, match=r"25 missing from the teacher: w000, .* w009 and 15 more"):
        check_same_names({}, student)


@pytest.mark.parametrize("call", [copy_named, lambda a, b: lerp_named_(a, b, 0.5), distance])
def test_every_operation_pairs_by_name_and_refuses_others(call) -> None:
    first, second = nn.Linear(2, 2), nn.Linear(2, 2, bias=False)
    with pytest.raises(TeacherError, match="unexpected, not in the student: bias"):
        call(dict(first.state_dict()), dict(second.state_dict()))


def test_copy_casts_to_the_target() -> None:
    target = {"w": torch.zeros(3, dtype=torch.bfloat16)}
    copy_named(target, {"w": torch.tensor([1.0, 2.0, 1.001])})
    assert target["w"].tolist() == [1.0, 2.0, 1.0]


def test_distance_equals_the_formula_and_its_sums_add_over_shards() -> None:
    torch.manual_seed(1)
    teacher = {"a": torch.randn(6, 4), "b": torch.randn(3), "n": torch.tensor(3)}
    student = {"a": torch.randn(6, 4), "b": torch.randn(3), "n": torch.tensor(5)}
    flat_teacher = torch.cat([teacher["a"].flatten(), teacher["b"]]).double()
    flat_student = torch.cat([student["a"].flatten(), student["b"]]).double()
    whole = distance(teacher, student)
    assert whole.rms == pytest.approx((flat_teacher - flat_student).square().mean().sqrt().item(), rel=1e-6)
    assert whole.relative == pytest.approx(
        ((flat_teacher - flat_student).norm() / flat_student.norm()).item(), rel=1e-6
    )
    parts = [distance({"a": teacher["a"][rows]}, {"a": student["a"][rows]}) for rows in (slice(0, 4), slice(4, 6))]
    parts.append(distance({"b": teacher["b"]}, {"b": student["b"]}))
    added = Distance(*(sum(numbers) for numbers in zip(*(part.sums for part in parts), strict=True)))
    assert added.rms == pytest.approx(whole.rms, rel=1e-6)
    assert added.relative == pytest.approx(whole.relative, rel=1e-6)


def test_distance_of_equal_empty_and_zero_tensors() -> None:
    same = {"w": torch.randn(3)}
    assert (distance(same, same).rms, distance(same, same).relative) == (0.0, 0.0)
    assert (distance({}, {}).rms, distance({}, {}).relative) == (0.0, 0.0)
    assert distance({"w": torch.ones(1)}, {"w": torch.zeros(1)}).relative == math.inf


def test_distance_of_bfloat16_is_taken_in_float32() -> None:
    teacher = {"w": torch.full((100_000,), 1.0078125).bfloat16()}
    student = {"w": torch.ones(100_000).bfloat16()}
    assert distance(teacher, student).rms == pytest.approx(0.0078125, rel=1e-5)
