"""Whole runs through the controllers: their metrics, their warnings over a resume, agents' feedback, and errors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from openrlhf_cpu.run import RunFailed, base_arguments, run
from sdpo_plugins.records import read_run

pytestmark = pytest.mark.slow

LIMIT = 600.0
STEPS, QUESTIONS, ROLLOUTS = 3, 4, 4
MODES = {"synchronous": [], "asynchronous": ["--train.async_enable"]}
BATCH = {
    "success_group_fraction",
    "success_sample_fraction",
    "feedback_available_fraction",
    "feedback_used_fraction",
    "reprompt_sample_fraction",
    "truncated_fraction",
    "teacher_prompt_length_mean",
}
NOTHING_SUCCEEDED = "SDPO: No rollout has succeeded for 5 rollout batches in a row"

SILENT = """
import torch

def reward_func(queries, prompts, labels):
    return {"rewards": torch.zeros(len(queries)), "scores": torch.zeros(len(queries)), "extra_logs": {}}
"""
FAILING = """
def reward_func(queries, prompts, labels):
    raise KeyError("truth")
"""
AGENT = '''
import torch
from openrlhf.utils.agent import AgentInstanceBase, MultiTurnAgentExecutor


AGAIN = "\\n<|im_start|>user\\nAgain.<|im_end|>\\n<|im_start|>assistant\\n"


class Instance(AgentInstanceBase):
    """Asks twice, and says of the second answer that it is wrong."""

    def __init__(self, *args, **kwargs):
        self.turn = 0

    async def step(self, states, **kwargs):
        self.turn += 1
        first = self.turn == 1
        return {
            "rewards": torch.tensor(0.0),
            "environment_feedback": AGAIN if first else "",
            "done": not first,
            "extra_logs": {"turns": torch.tensor(self.turn), "feedback": None if first else "Neither was right."},
        }


class AgentExecutor(MultiTurnAgentExecutor):
    def __init__(self):
        super().__init__(Instance)
'''


@dataclass(frozen=True)
class Run:
    """What a run measured, by step, and all that it printed."""

    metrics: dict[int, dict[str, float]]
    printed: str


def trained(folder: Path, *more: str, reward: str = "", name: str = "log") -> Run:
    """Run the launcher on a few questions.

    Args:
        folder: For data and checkpoints; a second run may go on from the first.
        more: Flags.
        reward: Source of a reward file; "": the embedded task's own, with feedback.
        name: Of the log.
    """
    own: list[str] = []
    if reward:
        path = folder / "reward.py"
        path.write_text(reward, encoding="utf-8")
        own = ["--reward.remote_url", str(path)]
    log = folder / f"{name}.txt"
    flags = base_arguments("facts", folder, steps=STEPS, questions=QUESTIONS, rollouts=ROLLOUTS)
    metrics = run([*flags, *own, *more], LIMIT, log=log)
    return Run(metrics, log.read_text(encoding="utf-8", errors="replace"))


@pytest.fixture(scope="module")
def resumed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Run, Run]:
    """A folder of checkpoints, the run that wrote them, and the one that went on: no answer of theirs is right.

    Asynchronous, as there more processes must know of it.
    """
    folder = tmp_path_factory.mktemp("resumed")
    flags = [*MODES["asynchronous"], "--ckpt.save_steps", str(STEPS), "--eval.steps", str(STEPS)]
    # Any evaluation is better than none.
    flags += ["--ckpt.best_metric_key", "eval_sdpo_facts_pass1"]
    first = trained(folder, *flags, reward=SILENT, name="first")
    more = ["--ckpt.load_enable", "--train.num_episodes", "2"]
    return folder, first, trained(folder, *flags, *more, reward=SILENT, name="second")


def test_a_run_goes_on_with_its_warnings_where_it_stopped(resumed: tuple[Path, Run, Run]) -> None:
    _, first, second = resumed
    assert max(first.metrics) == STEPS and max(second.metrics) == 2 * STEPS
    # The fifth batch is the second one of the second run, which would need five of its own to say so otherwise.
    assert first.printed.count(NOTHING_SUCCEEDED) == 0
    assert second.printed.count(NOTHING_SUCCEEDED) == 1


def test_checkpoints_hold_what_was_warned_of(resumed: tuple[Path, Run, Run]) -> None:
    folder = resumed[0]
    found = sorted(folder.glob("checkpoints/_actor/*/mp_rank_00_model_states.pt"))
    states = {path.parent.name: torch.load(path, weights_only=False) for path in found}
    assert {f"global_step{STEPS}", f"global_step{2 * STEPS}"} <= states.keys()
    assert any(tag.startswith("best_") for tag in states)
    for tag, state in states.items():
        step = state["global_step"]
        assert tag.startswith("best_") or tag == f"global_step{step}"
        health = state["sdpo_health"]
        assert health["streak"]["nothing_succeeded"] == step and health["first_length"] > 0
        assert ("nothing_succeeded" in health["told"]) is (step >= 5)


def test_every_step_has_the_metrics_of_both_sides(resumed: tuple[Path, Run, Run]) -> None:
    for part in resumed[1:]:
        for metrics in training_steps(part.metrics).values():
            assert {f"self_distillation/{name}" for name in BATCH} <= metrics.keys()
            assert metrics["self_distillation/success_group_fraction"] == 0.0
            assert metrics["self_distillation/active_tokens"] == 0.0
            assert metrics["rollout/num_samples"] == QUESTIONS * ROLLOUTS


def test_asynchronous_records_go_on_too(resumed: tuple[Path, Run, Run]) -> None:
    folder, first, second = resumed
    records = read_run(folder / "model")
    assert [header["step"] for header in records.headers] == [0, STEPS]
    assert records.end is not None and records.end["step"] == 2 * STEPS
    # Evaluations stand among the metrics of the step before them, which may have been the first run's last one.
    logged = {
        step: first.metrics.get(step, {}) | second.metrics.get(step, {}) for step in first.metrics | second.metrics
    }
    assert {step.step: dict(step.metrics) for step in records.steps} == logged
    assert records.series("eval/eval_sdpo_facts_pass1")[0]
    assert [(step, f"SDPO: {text}".startswith(NOTHING_SUCCEEDED)) for step, text in records.warnings] == [(5, True)]
    assert [rollout.step for rollout in records.rollouts] == [step for step in range(1, 2 * STEPS + 1) for _ in "four"]
    for rollout in records.rollouts:
        assert not rollout.line["active"] and rollout.line["teacher_prompt"] is None and rollout.tokens is None


def training_steps(metrics: Mapping[int, dict[str, float]]) -> dict[int, dict[str, float]]:
    """Return the steps without evaluations."""
    return {step: found for step, found in metrics.items() if "policy_loss" in found}


@pytest.mark.parametrize("mode", MODES)
def test_an_agents_feedback_reaches_the_teacher(mode: str, tmp_path: Path) -> None:
    path = tmp_path / "agent.py"
    path.write_text(AGENT, encoding="utf-8")
    found = trained(tmp_path, *MODES[mode], "--train.agent_func_path", str(path))
    steps = training_steps(found.metrics)
    assert sorted(steps) == list(range(1, STEPS + 1))
    for metrics in steps.values():
        assert metrics["turns"] == 2.0
        assert metrics["self_distillation/feedback_used_fraction"] == 1.0
        assert metrics["self_distillation/reprompt_sample_fraction"] == 1.0
        # The environment's turn is read by both models, and learnt by none.
        assert 0 < metrics["self_distillation/active_tokens"] < 16 * metrics["response_length"]
    assert "are not what the dataset's question is rendered to" not in found.printed


def test_without_sdpo_the_hosts_algorithm_takes_the_same_reward_file(tmp_path: Path) -> None:
    found = trained(tmp_path, "--sdpo.enabled", "false")
    for metrics in training_steps(found.metrics).values():
        assert not [name for name in metrics if name.startswith(("self_distillation/", "teacher/"))]
        assert metrics["rollout/num_samples"] == QUESTIONS * ROLLOUTS
    assert "SDPO:" not in found.printed
    records = read_run(tmp_path / "model")
    assert records.headers[0]["method"] == "grpo"
    assert [rollout.step for rollout in records.rollouts] == [step for step in (1, 2, 3) for _ in "four"]
    for rollout in records.rollouts:
        assert rollout.line["prompt"].startswith("<|im_start|>user")
        # Of a right answer there is nothing to say.
        assert bool(rollout.line["feedback"]) is (rollout.line["reward"] < 1.0)
        assert not rollout.line["active"] and rollout.tokens is None
        assert rollout.line["rewards"]["acc"] == rollout.line["reward"]
    assert {step.step: dict(step.metrics) for step in records.steps} == found.metrics


def test_a_reward_function_that_fails_ends_the_run_and_says_so(tmp_path: Path) -> None:
    # Where the trainer waits for rollouts that will never come.
    with pytest.raises(RunFailed) as caught:
        trained(tmp_path, *MODES["asynchronous"], reward=FAILING)
    assert not caught.value.timed_out
    last = caught.value.log[-3000:]
    assert "There is no reward for the prompt" in last and "Failed to fetch reward" in last
    records = read_run(tmp_path / "model")
    assert records.end is None and records.steps == ()
