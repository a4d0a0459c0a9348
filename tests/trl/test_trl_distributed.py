"""SDPOTrainer in two processes: nothing hangs, and what is learnt does not depend on the cut into ranks."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from fixed_run import train
from launch import run_ranks
from tiny_trl import questions, tiny_model

RATE = 0.25


def two_ranks(args: dict[str, Any], **options: Any) -> list[dict[str, Any]]:
    results = run_ranks("fixed_run:train", options={"args": {"per_device_train_batch_size": 4, **args}, **options})
    assert [result["rank"] for result in results] == [0, 1]
    return results


def steps(result: dict[str, Any]) -> list[dict[str, Any]]:
    return [row for row in result["logs"] if "loss" in row]


def assert_same_training(result: dict[str, Any], expected: dict[str, Any]) -> None:
    """Weights after each step, the teacher and the logged losses, to 1e-5 of what the step changed."""
    before = tiny_model().state_dict()
    assert len(result["weights_after"]) == len(expected["weights_after"]) > 0
    for got, wanted in zip(result["weights_after"], expected["weights_after"], strict=True):
        assert got.keys() == wanted.keys()
        for name, value in wanted.items():
            change = float((value - before[name]).abs().max())
            rounding = 4 * torch.finfo(value.dtype).eps * float(value.abs().max())
            assert float((got[name] - value).abs().max()) <= 1e-5 * change + rounding, name
    for name, value in expected["teacher"].items():
        torch.testing.assert_close(result["teacher"][name], value, rtol=1e-5, atol=1e-6)
    losses = [row["loss"] for row in steps(expected)]
    assert [row["loss"] for row in steps(result)] == pytest.approx(losses, rel=1e-5, abs=1e-9)


@pytest.fixture(scope="module")
def saved_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The tiny model on disk: TRL loads the reference model from where the model came from."""
    folder = str(tmp_path_factory.mktemp("model"))
    tiny_model().save_pretrained(folder)
    return folder


def active_rows(result: dict[str, Any]) -> list[int]:
    return [int(row["sdpo_active"].sum()) for row in result["seen"]]


@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_defect_1_no_deadlock_when_a_rank_has_nothing_active(beta: float, saved_model: str) -> None:
    args = {"max_steps": 6, "beta": beta}
    options = {"rule": "alternating", "model": saved_model}
    first, second = two_ranks(args, **options)
    # none, the first, the second, none, both, none
    assert [bool(count) for count in active_rows(first)] == [False, True, False, False, True, False]
    assert [bool(count) for count in active_rows(second)] == [False, False, True, False, True, False]
    alone = train(args, **options)
    assert sum(bool(row["loss"]) for row in steps(alone)) >= 3
    for result in (first, second):
        assert_same_training(result, alone)


def test_defect_1_no_deadlock_in_micro_batches_with_nothing_active() -> None:
    args = {"max_steps": 5, "loss_agg_mode": "seq-mean-token-mean"}
    cut = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}
    results = two_ranks({**args, **cut}, rule="alternating")
    alone = train(args, rule="alternating")
    for result in results:
        assert 0 in active_rows(result) and 1 in active_rows(result)
        assert_same_training(result, alone)


def test_defect_1_no_deadlock_when_nothing_is_active_anywhere() -> None:
    before = dict(tiny_model().named_parameters())
    for result in two_ranks({"max_steps": 3, "eval_strategy": "steps", "eval_steps": 1}, **EVALUATION, rule="nothing"):
        assert active_rows(result) and not any(active_rows(result))
        assert [row["loss"] for row in steps(result)] == [0.0] * 3
        for name, value in result["weights"].items():
            assert torch.equal(value, before[name]), name


EVALUATION: dict[str, Any] = {"eval_dataset": questions(4)}


def test_defect_1_no_deadlock_in_evaluation_with_one_rank_inactive() -> None:
    args = {"max_steps": 1, "per_device_eval_batch_size": 4}
    results = two_ranks(args, rule="alternating", evaluate=True, **EVALUATION)
    alone = train({**args, "per_device_eval_batch_size": 8}, rule="alternating", evaluate=True, **EVALUATION)
    for result in results:
        assert result["evaluation"]["eval_loss"] == pytest.approx(alone["evaluation"]["eval_loss"], rel=1e-5)
    assert alone["evaluation"]["eval_loss"] > 0


def test_defect_2_samples_differ_between_ranks_and_groups_share_demonstrations() -> None:
    """Two ranks hold two answers each of the same question, sampled by the model."""
    args = {"max_steps": 3, "per_device_train_batch_size": 2, "max_completion_length": 8}
    first, second = two_ranks(args, rule=None, reward="digits")
    for mine, theirs in zip(first["seen"], second["seen"], strict=True):
        answers = [
            {
                tuple(ids[mask.bool()].tolist())
                for ids, mask in zip(row["completion_ids"], row["completion_mask"], strict=True)
            }
            for row in (mine, theirs)
        ]
        prompts = {
            tuple(ids[mask.bool()].tolist())
            for row in (mine, theirs)
            for ids, mask in zip(row["prompt_ids"], row["prompt_mask"], strict=True)
        }
        assert len(prompts) == 1
        assert not answers[0] & answers[1]


CUTS = {
    "one process, four micro-batches": (1, 2, 4),
    "two processes": (2, 4, 1),
    "two processes, two micro-batches": (2, 2, 2),
}


@pytest.fixture(scope="module")
def uncut() -> dict[str, dict[str, Any]]:
    return {}


@pytest.mark.parametrize("mode", ["token-mean", "seq-mean-token-mean", "seq-mean-token-sum-norm"])
@pytest.mark.parametrize("cut", list(CUTS))
def test_defect_7_learning_is_independent_of_the_cut(
    cut: str, mode: str, uncut: dict[str, Any], saved_model: str
) -> None:
    args = {"max_steps": 2, "loss_agg_mode": mode, "beta": 0.05}
    if mode not in uncut:
        uncut[mode] = train(args, model=saved_model)
    processes, size, accumulate = CUTS[cut]
    args |= {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulate}
    results = two_ranks(args, model=saved_model) if processes == 2 else [train(args, model=saved_model)]
    # The cut is one that matters: rows, and with them tokens, are active in different numbers.
    assert len({count for result in results for count in active_rows(result)}) > 1
    for result in results:
        assert_same_training(result, uncut[mode])


def test_defect_7_the_hybrid_objective_is_independent_of_the_cut() -> None:
    """GRPO's part is cut by TRL, ours by us; "dapo" and "bnpo" divide by tokens, of all ranks and of one's own."""
    args = {"max_steps": 2, "grpo_weight": 0.5, "loss_type": "dapo"}
    alone = train(args)
    for result in two_ranks(args):
        assert_same_training(result, alone)


def test_a_group_that_straddles_ranks_shares_its_demonstration() -> None:
    args = {"max_steps": 2, "per_device_train_batch_size": 2}
    first, second = two_ranks(args, rule="one_demonstrates")
    # Answers 0 and 1 of a question lie on rank 0, 2 and 3 on rank 1; the last one succeeds.
    assert active_rows(first) == [2, 2] and active_rows(second) == [1, 1]
    for rank in (first, second):
        for prompts, demonstration in zip(rank["teacher_prompts"], second["succeeded"], strict=True):
            assert demonstration
            assert all(demonstration in prompt for prompt in prompts if prompt)


@pytest.mark.parametrize(
    ("unit", "every", "expected"),
    [
        # 2 ranks × 4 micro-batches of 1 row, each used twice, 2 to a step: a rollout batch serves 4 optimizer steps.
        ("rollout_batch", 1, [(1, 4), (2, 8)]),
        ("rollout_batch", 2, [(2, 8)]),
        ("optimizer_step", 3, [(0, 3), (1, 6)]),
    ],
)
def test_defect_8_the_teacher_moves_once_per_unit_and_alike_on_all_ranks(
    unit: str, every: int, expected: list[tuple[int, int]]
) -> None:
    args = {
        "max_steps": 8,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 2,
        "steps_per_generation": 4,
        "num_iterations": 2,
        "learning_rate": 0.1,
        "teacher_update_rate": RATE,
        "teacher_update_unit": unit,
        "teacher_update_every": every,
    }
    first, second = two_ranks(args)
    for result in (first, second):
        assert result["teacher_updates"] == expected
    teacher = {name: value.detach().clone() for name, value in tiny_model().named_parameters()}
    for _, step in expected:
        for name, value in first["weights_after"][step - 1].items():
            teacher[name].lerp_(value, RATE)
    for name, value in teacher.items():
        torch.testing.assert_close(first["teacher"][name], value, rtol=1e-6, atol=1e-7)
        assert torch.equal(first["teacher"][name], second["teacher"][name]), name
        assert torch.equal(first["weights"][name], second["weights"][name]), name
        assert not torch.equal(first["teacher"][name], first["weights"][name]), name


def test_metrics_are_those_of_all_ranks() -> None:
    """Rank 0 logs: what it logs must speak of all ranks, so every rank must know the same figures."""
    args = {"max_steps": 3, "max_reprompt_len": 44, "teacher_update_rate": RATE}
    first, second = two_ranks(args)
    alone = train(args)
    # Fewer prompts at a time have less in common.
    by_cut = ("time", "second", "runtime", "prefix_saved_fraction")
    for mine, theirs, whole in zip(steps(first), steps(second), steps(alone), strict=True):
        assert mine.keys() == theirs.keys() == whole.keys()
        for name, value in mine.items():
            if not any(word in name for word in by_cut):
                assert value == theirs[name] or (math.isnan(value) and math.isnan(theirs[name])), name
                assert value == pytest.approx(whole[name], rel=1e-4, abs=1e-6, nan_ok=True), name
    assert any(row["self_distillation/truncated_fraction"] not in (0.0, 1.0) for row in steps(alone))


@pytest.mark.parametrize("rank", [0, 1])
def test_a_feedback_column_on_one_rank_only(rank: int) -> None:
    results = two_ranks({"max_steps": 1}, rule="mixed", feedback_rank=rank)
    columns = [result["extra"]["feedback"] for result in results]
    assert columns[0] == columns[1] and len(columns[0]) == 8
    own, others = [columns[0][4 * one : 4 * one + 4] for one in (rank, 1 - rank)]
    assert any(own) and not any(others)
    assert any("Wrong" in prompt or "No:" in prompt for row in results[rank]["teacher_prompts"] for prompt in row)


def test_the_teacher_answers_on_all_ranks_although_one_has_nothing_active() -> None:
    args = {"max_steps": 2, "teacher_accuracy_every": 1}
    for result in two_ranks(args, rule="alternating"):
        rows = steps(result)
        # In the first batch no row is active, in the second only the first rank's; no rollout of this rule succeeds.
        assert "self_distillation/teacher_accuracy" not in rows[0]
        assert rows[1]["self_distillation/teacher_accuracy"] == 0.0


# FSDP2: weights and teacher are spread over the ranks, and every forward pass gathers them from all.
FSDP2 = [{"reshard_after_forward": True}, {"reshard_after_forward": False}]


LOSSES: dict[str, dict[str, Any]] = {
    "fused": {"loss_path": "fused"},
    "logits": {"loss_path": "logits"},
    "hybrid": {"loss_path": "fused", "grpo_weight": 0.5, "loss_type": "dapo"},
}


@pytest.mark.parametrize("loss", LOSSES, ids=str)
@pytest.mark.parametrize("fsdp2", FSDP2, ids=["reshard", "keep"])
@pytest.mark.parametrize("rule", ["mixed", "alternating"])
def test_fsdp2_learns_as_one_process_does(rule: str, fsdp2: dict[str, Any], loss: str) -> None:
    # Each generation twice: then a pass without gradient goes before the loss, and leaves weights gathered.
    args = {"max_steps": 6, "num_iterations": 2, "teacher_update_rate": RATE, **LOSSES[loss]}
    results = two_ranks(args, rule=rule, fsdp2=fsdp2)
    alone = train(args, rule=rule)
    for result in results:
        assert result["kind"] == "FSDP"
        assert result["held_elements"] <= 0.6 * alone["held_elements"]
        assert_same_training(result, alone)
        got, expected = (
            [row["teacher/distance"] for row in steps(run) if "teacher/distance" in row] for run in (result, alone)
        )
        assert len(got) == 3 and got == pytest.approx(expected, rel=1e-4)


def test_fsdp2_the_teacher_answers_although_ranks_stop_at_different_lengths() -> None:
    # With every second token an end, the ranks hardly ever stop together.
    ends = list(range(0, tiny_model().config.vocab_size, 2))
    args = {"max_steps": 5, "teacher_accuracy_every": 1, "max_completion_length": 16}
    for result in two_ranks({**args, "generation_kwargs": {"eos_token_id": ends}}, rule="mixed", fsdp2=FSDP2[0]):
        assert all(0.0 <= row["self_distillation/teacher_accuracy"] <= 1.0 for row in steps(result))


@pytest.mark.parametrize("fsdp2", [None, FSDP2[0]], ids=["ddp", "fsdp2"])
def test_resuming_on_two_ranks_is_never_having_stopped(fsdp2: dict[str, Any] | None, tmp_path: Path) -> None:
    args = {"teacher_update_rate": RATE, "optim": "adamw_torch", "learning_rate": 1e-2, "max_steps": 4}
    saving = {"output_dir": str(tmp_path / "out"), "save_strategy": "steps", "save_steps": 2}
    straight = two_ranks({**args, **saving}, fsdp2=fsdp2)
    parts = sorted(path.name for path in (tmp_path / "out/checkpoint-2/sdpo/teacher").iterdir())
    assert len(parts) == (2 if fsdp2 is None else 4)
    resumed = two_ranks(args, fsdp2=fsdp2, resume_from=str(tmp_path / "out/checkpoint-2"))
    for whole, rest in zip(straight, resumed, strict=True):
        assert len(rest["weights_after"]) == 2
        for part in ("weights", "teacher"):
            for name, value in whole[part].items():
                assert torch.equal(rest[part][name], value), (part, name)
