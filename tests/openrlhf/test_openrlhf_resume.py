"""A run that was ended between checkpoints goes on from the last one as if nothing had happened."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import seeded_agent
import torch
from safetensors.torch import load_file

from openrlhf_cpu.run import RunFailed, base_arguments, run
from sdpo_plugins.records import RunRecords, read_run

pytestmark = pytest.mark.slow

LIMIT = 900.0
STEPS, SAVED, ENDED = 6, 4, 5
QUESTIONS, ROLLOUTS, RANKS = 8, seeded_agent.ROLLOUTS, 2


@dataclass(frozen=True)
class Story:
    """One run from beginning to end, and one that was ended and taken up again; metrics by step, saved models."""

    straight: dict[int, dict[str, float]]
    ended: dict[int, dict[str, float]]
    resumed: dict[int, dict[str, float]]
    models: tuple[Path, Path]
    checkpoints: Path

    @property
    def records(self) -> tuple[RunRecords, RunRecords]:
        """What the first one recorded, and the ended and resumed one."""
        return read_run(self.models[0]), read_run(self.models[1])


def arguments(folder: Path) -> list[str]:
    return [
        *base_arguments("facts", folder, steps=STEPS, questions=QUESTIONS, rollouts=ROLLOUTS, ranks=RANKS),
        *("--train.agent_func_path", str(seeded_agent.__file__)),
        *("--ds.zero_stage", "3"),
        # Two optimizer steps a rollout batch: which rows go into which is drawn by chance.
        *("--train.batch_size", str(QUESTIONS * ROLLOUTS // 2), "--train.micro_batch_size", "4"),
        *("--actor.adam.lr", "1e-3", "--actor.lr_scheduler", "linear"),
        *("--sdpo.alpha", "0", "--sdpo.teacher", "ema", "--sdpo.teacher_update_rate", "0.2"),
        *("--sdpo.grpo_weight", "0.1"),
        *("--ckpt.save_steps", str(SAVED), "--ckpt.load_enable"),
    ]


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    straight, other = tmp_path_factory.mktemp("straight"), tmp_path_factory.mktemp("ended")
    whole = run(arguments(straight), LIMIT, log=straight / "log.txt")
    stop = threading.Event()
    with pytest.raises(RunFailed) as caught:
        run(
            arguments(other),
            LIMIT,
            log=other / "first.txt",
            stop=stop,
            on_step=lambda step, _: stop.set() if step == ENDED else None,
        )
    assert not caught.value.timed_out
    resumed = run(arguments(other), LIMIT, log=other / "second.txt")
    models = straight / "model", other / "model"
    yield Story(whole, caught.value.metrics, resumed, models, other / "checkpoints")


def comparable(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if not name.startswith("timing/")}


def test_the_ended_run_was_the_same_run(story: Story) -> None:
    for step in range(1, ENDED + 1):
        assert comparable(story.ended[step]) == pytest.approx(comparable(story.straight[step]), abs=1e-6), step


def test_the_resumed_run_is_the_run_that_never_stopped(story: Story) -> None:
    assert sorted(story.resumed) == list(range(SAVED + 1, STEPS + 1))
    for step, found in story.resumed.items():
        assert comparable(found) == pytest.approx(comparable(story.straight[step]), abs=1e-6), step
    assert story.resumed[STEPS]["teacher/updates"] == STEPS
    first, second = (load_file(folder / "model.safetensors") for folder in story.models)
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(second[name], value), name


def test_the_policy_moved_and_the_teacher_lagged(story: Story) -> None:
    assert story.straight[STEPS]["teacher/distance"] > 0
    values = [story.straight[step]["self_distillation/divergence"] for step in (1, STEPS)]
    assert values[0] != values[1]
    assert all(found["self_distillation/active_tokens"] > 0 for found in story.straight.values())


def test_records_hold_what_the_host_logged(story: Story) -> None:
    records, _ = story.records
    assert records.problems == ()
    (header,) = records.headers
    assert (header["host"], header["ranks"], header["step"], header["method"]) == ("openrlhf", RANKS, 0, "sdpo")
    assert header["config"]["grpo_weight"] == 0.1
    assert records.end is not None and (records.end["step"], records.end["reason"]) == (STEPS, "finished")
    assert {step.step: dict(step.metrics) for step in records.steps} == story.straight


def test_records_join_rollouts_and_token_values_of_all_ranks(story: Story) -> None:
    records, _ = story.records
    rollouts = records.rollouts
    assert [rollout.step for rollout in rollouts] == [step for step in range(1, STEPS + 1) for _ in range(4)]
    active = [rollout for rollout in rollouts if rollout.line["active"]]
    assert len(active) > STEPS
    for rollout in rollouts:
        assert (rollout.tokens is not None) is rollout.line["active"]
        assert rollout.id >> 20 == rollout.step - 1 and rollout.id & 0xFFFFF == rollout.line["row"]
    for rollout in active:
        assert rollout.tokens is not None
        sampled = [rollout.tokens["pieces"][str(token)] for token in rollout.tokens["ids"]]
        assert rollout.line["response"].strip() in "".join(sampled)
        assert rollout.tokens["length"] == rollout.line["response_tokens"] == len(sampled)
        kinds = [part["kind"] for turn in rollout.line["teacher_prompt"] for part in turn["parts"]]
        assert "question" in kinds and {"feedback", "demonstration"} & set(kinds)
        assert all(value is None or value <= 0 for value in rollout.tokens["teacher"])


def test_records_of_the_resumed_run_are_those_of_one_that_never_stopped(story: Story) -> None:
    straight, other = story.records
    assert [header["step"] for header in other.headers] == [0, SAVED]
    assert other.problems == () and other.end is not None
    assert [step.step for step in other.steps] == list(range(1, STEPS + 1))
    for one, two in zip(straight.steps, other.steps, strict=True):
        assert comparable(dict(two.metrics)) == pytest.approx(comparable(dict(one.metrics)), abs=1e-6)
    assert len(straight.rollouts) == len(other.rollouts)
    for one, two in zip(straight.rollouts, other.rollouts, strict=True):
        assert one.line == two.line
        assert (one.tokens or {}).get("ids") == (two.tokens or {}).get("ids")
        if one.tokens is not None and two.tokens is not None:
            for name in ("student", "teacher", "divergence"):
                assert two.tokens[name] == pytest.approx(one.tokens[name], abs=1e-4), name
