"""A killed run goes on from its checkpoint as if nothing had happened: two ranks, batches that do not divide evenly."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import QUESTIONS, ROLLOUTS, Run, agent_loop, checkpoint_tensors, decode, killed, overrides, trained

pytestmark = pytest.mark.slow

STEPS, SAVED, KILLED = 8, 4, 6
# The first session of a question has two trajectories; a mini-batch is 4 questions × 4 rollouts.
REAL, MINI_BATCH = QUESTIONS * (ROLLOUTS + 1), 16
ROWS = 48


@dataclass(frozen=True)
class Story:
    """One run from beginning to end, and one that was killed and taken up again."""

    straight: Run
    killed: Run
    report: dict[str, Any]
    latest: str
    saved: list[str]
    resumed: Run


def arguments(folder: Path) -> list[str]:
    actor, rollout = "actor_rollout_ref.actor", "actor_rollout_ref.rollout"
    return overrides(
        folder,
        STEPS,
        *agent_loop(folder, "SecondThoughts"),
        "actor_rollout_ref.model.use_remove_padding=True",
        f"{actor}.use_dynamic_bsz=True",
        f"{actor}.ppo_max_token_len_per_gpu=160",
        f"{actor}.ppo_mini_batch_size={MINI_BATCH // ROLLOUTS}",
        f"{actor}.optim.lr_scheduler_type=cosine",
        f"{rollout}.log_prob_use_dynamic_bsz=True",
        f"{rollout}.log_prob_max_token_len_per_gpu=256",
        f"trainer.save_freq={SAVED}",
        f"trainer.test_freq={SAVED}",
        "trainer.resume_mode=auto",
        ranks=2,
        teacher="ema",
        teacher_update_rate=0.2,
    )


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Story:
    straight = tmp_path_factory.mktemp("straight")
    whole = trained(straight, arguments(straight))
    folder = tmp_path_factory.mktemp("killed")
    with killed(folder, arguments(folder), KILLED) as ended:
        checkpoints = folder / "checkpoints"
        latest = (checkpoints / "latest_checkpointed_iteration.txt").read_text(encoding="utf-8")
        saved = sorted(entry.name for entry in checkpoints.glob("global_step_*"))
        resumed = trained(folder, arguments(folder))
        broken, report = ended()
    return Story(whole, broken, report, latest, saved, resumed)


# Clocks and the machine; and the rounding of the rollout server, which depends on what requests come in together and
# enters nothing but these diagnostics.
_OTHER_EACH_TIME = ("timing", "perf/", "actor/perf", "rollout_corr/", "training/rollout_")


def comparable(metrics: dict[str, float]) -> dict[str, float]:
    """Return what two runs of one seed have in common."""
    return {name: value for name, value in metrics.items() if not name.startswith(_OTHER_EACH_TIME)}


def content(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Leave out the names that verl draws by chance."""
    return [{name: value for name, value in row.items() if name not in ("key", "uid")} for row in rows]


def test_a_killed_driver_leaves_no_process_behind(story: Story) -> None:
    assert {"ray::WorkerDict", "ray::HFServer"} <= set(story.report["before"])
    assert story.report["workers"]["left"] == []
    assert story.report["workers"]["seconds"] < 30
    # Ray's agents wait for its control server for a minute.
    assert story.report["all"]["left"] == []


def test_the_killed_run_was_the_same_run_up_to_its_death(story: Story) -> None:
    assert KILLED <= max(story.killed.metrics) < STEPS
    for step in range(1, KILLED + 1):
        assert comparable(story.killed.metrics[step]) == pytest.approx(
            comparable(story.straight.metrics[step]), abs=1e-6
        )
    assert story.latest == str(SAVED)
    assert story.saved == [f"global_step_{SAVED}"]


def test_metrics_after_resuming_are_those_of_the_whole_run(story: Story) -> None:
    assert sorted(story.resumed.metrics) == list(range(SAVED + 1, STEPS + 1))
    for step, metrics in story.resumed.metrics.items():
        expected = comparable(story.straight.metrics[step])
        assert expected["self_distillation/divergence"] > 1e-3
        assert comparable(metrics) == pytest.approx(expected, abs=1e-6)
    assert [story.resumed.metrics[step]["actor/lr"] for step in (5, 8)] == pytest.approx([3.0866e-4, 0.0], abs=1e-8)
    assert story.resumed.metrics[STEPS]["teacher/updates"] == STEPS


def test_batches_after_resuming_are_those_of_the_whole_run(story: Story) -> None:
    for step in range(SAVED + 1, STEPS + 1):
        expected, found = content(story.straight.rows(step)), content(story.resumed.rows(step))
        for one, other in zip(expected, found, strict=True):
            assert other.pop("old_log_probs") == pytest.approx(one.pop("old_log_probs"), abs=1e-6)
            assert other == one


def test_weights_optimizer_and_teacher_are_those_of_the_whole_run(story: Story) -> None:
    # verl's workers begin with random states of their own, and nothing here draws from them.
    expected, found = (
        {name: value for name, value in checkpoint_tensors(run.checkpoint(STEPS)).items() if "/rng/" not in name}
        for run in (story.straight, story.resumed)
    )
    assert found.keys() == expected.keys()
    for part in ("/model_world_size_2_rank_1.pt/", "/optim_world_size_2_rank_0.pt/", "/sdpo/teacher-00001-of-00002."):
        assert any(part in f"/{name}" for name in expected), part
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")
    states = [(run.checkpoint(STEPS) / "actor/sdpo/state.json") for run in (story.straight, story.resumed)]
    state, resumed = (json.loads(path.read_text(encoding="utf-8")) for path in states)
    assert resumed == state
    assert state["counters"] == {"rollout_batches": STEPS, "optimizer_steps": STEPS * ROWS // MINI_BATCH}


def test_the_teacher_is_no_copy_of_the_student(story: Story) -> None:
    tensors = checkpoint_tensors(story.straight.checkpoint(STEPS) / "actor")
    name = "model.layers.1.mlp.up_proj.weight"
    teacher = tensors[f"sdpo/teacher-00000-of-00002.safetensors/{name}"]
    student = tensors[f"model_world_size_2_rank_0.pt/{name}"]
    assert teacher.shape == student.shape
    assert float((teacher - student).abs().max()) > 1e-4


def test_rows_that_fill_a_batch_up_neither_teach_nor_count(story: Story) -> None:
    for step in range(1, STEPS + 1):
        rows, metrics = story.straight.rows(step), story.straight.metrics[step]
        real = [row for row in rows if not row["is_padding"]]
        padding = [row for row in rows if row["is_padding"]]
        assert (len(real), len(padding)) == (REAL, ROWS - REAL)
        assert not any(row["sdpo_active"] or row["sdpo_success"] or any(row["response_mask"]) for row in padding)
        # The first session's first output is a row, but the session's answer is its last.
        answers = [row for row in real if row["key"].rsplit("_", 2)[1:] != ["0", "0"]]
        assert len(answers) == QUESTIONS * ROLLOUTS
        active = [row for row in real if row["sdpo_active"]]
        assert all(row in answers for row in active)
        successes = [sum(row["rm_scores"]) >= 1.0 for row in answers]
        assert {name: metrics[f"self_distillation/{name}"] for name in ("group_count", "active_tokens")} == {
            "group_count": QUESTIONS,
            "active_tokens": sum(sum(row["response_mask"]) for row in active),
        }
        assert metrics["self_distillation/success_rollout_fraction"] == pytest.approx(sum(successes) / len(answers))
        assert metrics["self_distillation/reprompt_sample_fraction"] == pytest.approx(len(active) / len(answers))
        assert metrics["training/rollout_probs_diff_max"] < 1e-4
        for row in active:
            context = row["teacher_input_ids"][: -len(row["responses"])]
            assert row["teacher_input_ids"][len(context) :] == row["responses"]
            question = decode(row["prompts"]).split("?")[0].split("What is ")[1]
            assert question in decode(context)


def test_what_sdpo_cannot_follow_is_said_once(story: Story) -> None:
    said = story.straight.log
    assert said.count(f"SDPO: {QUESTIONS} rows of this batch are earlier outputs of a session.") == 1
    # The agent loop writes into the question, behind what is kept as `raw_prompt`.
    assert said.count(f"SDPO: {QUESTIONS * ROLLOUTS} of {QUESTIONS * ROLLOUTS} prompts are not what the chat") == 1


def test_validation_runs_beside_training(story: Story) -> None:
    names = ["val-core/sdpo_facts/acc/mean@4", "val-aux/num_turns/mean"]
    assert [step for step, found in story.straight.metrics.items() if names[0] in found] == [SAVED, STEPS]
    assert 0.0 <= story.straight.metrics[STEPS][names[0]] <= 1.0
    assert story.straight.metrics[STEPS][names[1]] == 2


def test_records_after_resuming_are_those_of_the_whole_run(story: Story) -> None:
    straight, resumed = story.straight.records(), story.resumed.records()
    assert [[header["step"] for header in records.headers] for records in (straight, resumed)] == [[0], [0, SAVED]]
    for records in (straight, resumed):
        assert {header["ranks"] for header in records.headers} == {2}
        assert records.end is not None and records.end["step"] == STEPS
        assert [step.step for step in records.steps] == list(range(1, STEPS + 1))
        rows = QUESTIONS * ROLLOUTS
        assert any(text.startswith(f"{rows} of {rows} prompts are not what") for _, text in records.warnings)
    for step, other in zip(straight.steps, resumed.steps, strict=True):
        assert step.metrics == pytest.approx(story.straight.metrics[step.step])
        assert comparable(dict(other.metrics)) == pytest.approx(comparable(dict(step.metrics)), abs=1e-6)
    assert len(straight.rollouts) == STEPS * 4
    for one, other in zip(straight.rollouts, resumed.rollouts, strict=True):
        assert other.line == one.line
        assert (other.tokens is None) == (one.tokens is None)
        if one.tokens is not None and other.tokens is not None:
            assert (other.tokens["ids"], other.tokens["mask"]) == (one.tokens["ids"], one.tokens["mask"])
            for name in ("student", "teacher", "divergence", "entropy"):
                assert other.tokens[name] == pytest.approx(one.tokens[name], abs=3e-5)


def test_recorded_rollouts_are_answers_of_both_ranks(story: Story) -> None:
    halves = set()
    for rollout in story.straight.records().rollouts:
        at = rollout.line["row"]
        row = story.straight.rows(rollout.step)[at]
        assert not row["is_padding"] and row["key"].rsplit("_", 2)[1:] != ["0", "0"]
        assert rollout.line["active"] == bool(row["sdpo_active"])
        if rollout.tokens is not None:
            assert rollout.tokens["ids"] == row["responses"]
            halves.add(at // (ROWS // 2))
        index = rollout.line["demonstration_index"]
        if index is not None:
            demonstration = story.straight.rows(rollout.step)[index]
            assert demonstration["uid"] == row["uid"] and demonstration["sdpo_success"]
    assert halves == {0, 1}
