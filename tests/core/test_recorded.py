"""The recorded batch is what hosts' tests take it for, and what they compare with is right by other means."""

from __future__ import annotations

import dataclasses
import json
from itertools import groupby
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import recorded as module
from recorded import Expected, expected, record, recorded, write_student
from sdpo_plugins import SDPOConfig
from sdpo_plugins.embedded import checkpoint_path
from sdpo_plugins.reprompt import build_teacher_contexts

# Its loss is the integral of its gradient: no ratio that counts as a constant, no choice of tokens.
SMOOTH = SDPOConfig(distillation_topk=None, alpha=0.0, is_clip=None)


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_student(tmp_path_factory.mktemp("student"))


@pytest.fixture(scope="module")
def plain(student: str) -> Expected:
    """At the default options."""
    return expected(SDPOConfig(), student)


def test_the_file_is_what_record_samples() -> None:
    made, kept = json.loads(json.dumps(record())), json.loads(module.FILE.read_text(encoding="utf-8"))
    for row in (*made["rows"], *kept["rows"]):
        row["log_probs"] = pytest.approx(row["log_probs"], abs=1e-6)
    assert [made["temperature"], made["seed"]] == [kept["temperature"], kept["seed"]]
    for one, other in zip(made["rows"], kept["rows"], strict=True):
        log_probs = one.pop("log_probs"), other.pop("log_probs")
        assert one == other and log_probs[0].expected == log_probs[1]


def test_the_batch_has_every_kind_of_row() -> None:
    rows = recorded().rows
    groups = [list(group) for _, group in groupby(rows, key=lambda row: row.group)]
    assert [len(group) for group in groups] == [4, 4, 4, 3, 1]
    assert [sum(row.reward for row in group) for group in groups] == [2, 1, 0, 0, 0]
    assert [row.is_padding for row in rows] == [False] * 15 + [True]
    assert len({len(row.response_ids) for row in rows}) >= 4 and len({len(row.prompt_ids) for row in rows}) >= 4
    runs = [[value for value, _ in groupby(row.response_mask)] for row in rows]
    assert runs.count([1, 0, 1]) == 1 and runs.count([1]) == 14 and runs[-1] == [0]
    assert {message["role"] for row in rows for message in row.prompt} == {"system", "user", "assistant"}
    for row in rows:
        assert len(row.response_ids) == len(row.response_mask) == len(row.log_probs)
        assert all(
            (value < 0) == bool(sampled) for value, sampled in zip(row.log_probs, row.response_mask, strict=True)
        )
    active = build_teacher_contexts(recorded().rollouts, SDPOConfig()).self_distillation_mask
    assert [sum(active[:4]), sum(active[4:8]), sum(active[8:12]), sum(active[12:15]), active[15]] == [4, 3, 3, 2, 0]
    silent = build_teacher_contexts(recorded().rollouts, SDPOConfig(include_environment_feedback=False))
    assert 2 * sum(silent.self_distillation_mask) <= len(rows)


def test_advantages_are_rewards_less_the_mean_of_their_group() -> None:
    assert recorded().advantages == [*[0.5, 0.5, -0.5, -0.5], *[-0.25, -0.25, 0.75, -0.25], *[0.0] * 8]


def test_log_probs_are_those_of_the_checkpoint_that_sampled() -> None:
    ratios = expected(SDPOConfig(), checkpoint_path()).ratios
    torch.testing.assert_close(ratios, torch.ones_like(ratios), rtol=0, atol=1e-6)


def test_the_student_is_neither_the_sampler_nor_far_from_it(plain: Expected) -> None:
    found = plain
    assert float(found.ratios.max()) > 2.0 and float(found.ratios.min()) < 0.8
    # Where hosts clip such tokens once more (dual clip at 3), they would all differ from the plain hybrid.
    assert not bool(((found.ratios > 2.9) & (found.advantages < 0)).any())


@pytest.mark.parametrize(
    "change",
    [{"is_clip": None}, {"alpha": 1.0}, {"grpo_weight": 0.3}, {"include_environment_feedback": False}],
    ids=str,
)
def test_what_a_host_could_forget_shows_in_the_loss(student: str, plain: Expected, change: dict) -> None:
    assert expected(SDPOConfig(**change), student).loss != pytest.approx(plain.loss, rel=1e-3)


def test_another_teacher_and_the_temperature_show_in_the_loss(student: str, plain: Expected) -> None:
    assert expected(SDPOConfig(), student, checkpoint_path()).loss != pytest.approx(plain.loss, rel=1e-3)
    cooler = dataclasses.replace(recorded(), temperature=1.0)
    assert expected(SDPOConfig(), student, batch=cooler).loss != pytest.approx(plain.loss, rel=1e-2)


def test_padding_row_and_tool_turn_do_not_count(student: str) -> None:
    batch = recorded()
    whole = expected(SDPOConfig(grpo_weight=0.3), student)
    without = dataclasses.replace(batch, rows=batch.rows[:-1])
    assert expected(SDPOConfig(grpo_weight=0.3), student, batch=without).loss == pytest.approx(whole.loss, rel=1e-12)
    assert whole.active_tokens == sum(
        sum(row.response_mask)
        for row, active in zip(
            batch.rows, build_teacher_contexts(batch.rollouts, SDPOConfig()).self_distillation_mask, strict=True
        )
        if active
    )


@pytest.mark.parametrize("weight", [0.0, 0.3], ids=["SDPO", "hybrid"])
def test_gradient_is_the_slope_of_the_loss(student: str, weight: float, tmp_path: Path) -> None:
    config, far = SMOOTH.replace(grpo_weight=weight), 1e-4
    found = expected(config, student, checkpoint_path())
    losses = []
    for sign in (1, -1):
        weights = {name: value.double() for name, value in load_file(f"{student}/model.safetensors").items()}
        for name, gradient in found.gradients.items():
            weights[name] += sign * far * gradient / found.gradient_norm
        folder = Path(write_student(tmp_path / str(sign)))
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        losses.append(expected(config, folder, checkpoint_path()).loss)
    assert (losses[0] - losses[1]) / (2 * far) == pytest.approx(found.gradient_norm, rel=1e-4)
    squares = sum(float(value.square().sum()) for value in found.gradients.values())
    assert squares**0.5 == pytest.approx(found.gradient_norm, rel=1e-12)


def test_distance_of_gradients_is_relative_and_wants_the_same_names(plain: Expected) -> None:
    found = plain
    assert found.distance(found.gradients) == 0.0
    assert found.distance({n: 1.01 * g for n, g in found.gradients.items()}) == pytest.approx(0.01)
    with pytest.raises(AssertionError, match="lm_head"):
        found.distance({**found.gradients, "lm_head.weight": torch.zeros(1)})
