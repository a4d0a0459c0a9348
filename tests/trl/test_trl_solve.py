"""Test-time self-distillation on the real trainer: it solves what sampling does not, and no crash changes a run."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

import solve_lives
from sdpo_plugins.cli import app
from sdpo_plugins.embedded import checkpoint_path
from sdpo_plugins.embedded.stale import stale_question
from sdpo_plugins.errors import ConfigError
from sdpo_plugins.records import read_run
from sdpo_plugins.solve import AttemptLog, Question, RunFolder, SolveSettings
from sdpo_trl.solve import solve
from sdpo_trl.solve_arguments import training_arguments
from sdpo_trl.solve_scoring import ScoredAttempts
from sdpo_trl.solve_steps import sample_base

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
HARD = ["solve", "--scorer", "code", "--question-file", str(ROOT / "recipes" / "trl" / "stale_report.json")]
TINY = ["--max-completion-length", "24", "--learning-rate", "1e-3", "--set", "use_cpu=true"]


def live(folder: Path, stop_at: int = -1, sign: int = signal.SIGKILL) -> subprocess.CompletedProcess[str]:
    """Run in a process of its own: one that has computed other things before may add numbers in another order."""
    path = os.pathsep.join([str(ROOT / "tests" / "support"), *sys.path])
    return subprocess.run(
        [sys.executable, solve_lives.__file__, str(folder), str(stop_at), str(int(sign))],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    done = live(folder)
    assert done.returncode == 0, done.stderr
    found = results(folder)
    assert not found["solved"] and found["sdpo"]["attempts"] == found["baseline"]["attempts"] == 24
    return folder


def results(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))


def attempts(folder: Path) -> bytes:
    return (folder / "attempts.jsonl").read_bytes()


def assert_same_run(one: Path, other: Path) -> None:
    assert attempts(one) == attempts(other)
    states = [sorted((folder / "checkpoint-6").rglob("*.safetensors")) for folder in (one, other)]
    assert len(states[0]) >= 2, "the model's weights and the teacher's"
    for mine, theirs in zip(*states, strict=True):
        first, second = load_file(mine), load_file(theirs)
        assert first.keys() == second.keys()
        assert all(first[name].equal(second[name]) for name in first), mine.name


def test_sdpo_solves_what_as_many_answers_of_the_untrained_model_do_not(tmp_path: Path):
    """The study of docs/solve.md in small; the scorer, its sandbox and the command are the real ones."""
    words = [*HARD, *TINY, "--budget", "240", "--output", str(tmp_path / "run"), "--json"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["solved"] and found["sdpo"]["first_success"] <= 240
    assert found["baseline"]["attempts"] == found["sdpo"]["attempts"] and found["baseline"]["successes"] == 0
    assert found["sdpo"]["solution"] == (tmp_path / "run" / "solution.txt").read_text().rstrip("\n")
    assert "x + 3" in found["sdpo"]["solution"]
    logged = AttemptLog(tmp_path / "run" / "attempts.jsonl").read()
    assert [each.index for each in logged if each.method == "sdpo"] == list(range(1, found["sdpo"]["attempts"] + 1))
    assert not any("return" in (each.feedback or "") for each in logged), "feedback names inputs and outputs alone"
    # Solved already: nothing is sampled again.
    again = CliRunner().invoke(app, [*words[:-1]])
    assert again.exit_code == 0 and "Solved: answer" in again.stdout and "def sani(x):" in again.stdout
    assert AttemptLog(tmp_path / "run" / "attempts.jsonl").read() == logged


def test_not_solved_is_exit_code_1_and_a_larger_budget_goes_on(tmp_path: Path):
    words = [*HARD, *TINY, "--baseline", "none", "--output", str(tmp_path / "run")]
    result = CliRunner().invoke(app, [*words, "--budget", "16"])
    assert result.exit_code == 1, result.output
    assert "Not solved within 16 answers; best reward 0." in result.stdout
    before = AttemptLog(tmp_path / "run" / "attempts.jsonl").read()
    CliRunner().invoke(app, [*words, "--budget", "32"])
    after = AttemptLog(tmp_path / "run" / "attempts.jsonl").read()
    assert after[:16] == before and len(after) == 32
    other = CliRunner().invoke(app, [*words, "--budget", "32", "--seed", "1"])
    assert other.exit_code == 2 and "holds another run: seed is 0 there and 1 here" in other.stderr


def test_a_killed_run_goes_on_as_if_nothing_had_happened(tmp_path: Path, undisturbed: Path):
    folder = tmp_path / "run"
    killed = live(folder, stop_at=16)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    written = attempts(folder)
    assert written == attempts(undisturbed)[: len(written)] and written.count(b"\n") == 16
    assert sorted(path.name for path in folder.glob("checkpoint-*")) == ["checkpoint-2"]
    # As if the crash had come while it wrote: half a line, half a checkpoint.
    (folder / "attempts.jsonl").write_bytes(written[:-30])
    shutil.copytree(folder / "checkpoint-2", folder / "checkpoint-4")
    (folder / "checkpoint-4" / "trainer_state.json").unlink()
    resumed = live(folder)
    assert resumed.returncode == 0, resumed.stderr
    assert_same_run(folder, undisturbed)


def test_ctrl_c_leaves_a_run_that_goes_on(tmp_path: Path, undisturbed: Path):
    folder = tmp_path / "run"
    stopped = live(folder, stop_at=12, sign=signal.SIGINT)
    assert stopped.returncode == 0, stopped.stderr
    found = results(folder)
    assert found["interrupted"] and found["sdpo"]["attempts"] == 12 and found["baseline"]["attempts"] == 0
    assert (folder / "checkpoint-3").is_dir()
    resumed = live(folder)
    assert resumed.returncode == 0, resumed.stderr
    assert not results(folder)["interrupted"]
    assert_same_run(folder, undisturbed)


def test_the_model_sees_feedback_and_never_the_truth(undisturbed: Path):
    recorded = read_run(undisturbed)
    shown = json.dumps([rollout.__dict__ for rollout in recorded.rollouts], default=str)
    assert recorded.rollouts and "Wrong, not" in shown
    assert solve_lives.SECRET not in shown


def test_answers_in_several_passes_are_one_step_and_the_run_may_go_on_after_a_success(tmp_path: Path):
    seen: list[int] = []

    def third_is_right(completions, **_):
        seen.append(len(completions))
        return [1.0 if len(seen) == 2 and at == 2 else 0.0 for at in range(len(completions))]

    settings = solve_lives.settings(micro_batch=2, keep_going=True, budget=16, baseline="none", checkpoint_every=100)
    folder = tmp_path / "run"
    outcome = solve(solve_lives.QUESTION, third_is_right, settings, folder, place=str(checkpoint_path()))
    assert seen == [4, 4, 4, 4]
    assert outcome.sdpo.first_success == 7 and outcome.sdpo.successes == 1 and outcome.sdpo.attempts == 16
    assert outcome.curve == ((4, 0.0, None), (8, 1.0, None), (12, 1.0, None), (16, 1.0, None))
    assert outcome.sdpo.solution == AttemptLog(folder / "attempts.jsonl").read()[6].response


def test_the_untrained_model_is_sampled_as_the_trainer_samples(tmp_path: Path):
    """Options of the sampling and of the chat template reach it, and what its own files say of them does not."""
    place = checkpoint_path()
    tokenizer = AutoTokenizer.from_pretrained(place)
    tokenizer.chat_template = "{{ messages[0]['content'] }}{{ more | default('') }}"
    model = AutoModelForCausalLM.from_pretrained(place).eval()
    ids = tokenizer("12 + 30 = ", return_tensors="pt", add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        plain = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=6)
    likeliest = tokenizer.decode(plain[0, ids.size(1) :], skip_special_tokens=True)
    model.generation_config.repetition_penalty = 50.0
    options = {"use_cpu": True, "top_k": 1, "chat_template_kwargs": {"more": "30 = "}}
    settings = SolveSettings(samples=2, budget=2, max_completion_length=6, options=options)
    arguments = training_arguments(settings, tmp_path, steps=1)
    question = Question([{"role": "user", "content": "12 + "}])
    scored = ScoredAttempts(question, lambda completions, **_: [0.0] * len(completions), RunFolder(tmp_path), 0.5, 2)
    assert not sample_base(model, tokenizer, arguments, scored, settings, count=2)
    assert likeliest and [each.response for each in scored.attempts] == [likeliest] * 2


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"options": {"max_steps": 3}}, "use --budget"),
        ({"options": {"alhpa": 0.5}}, "alpha"),
        ({"options": {"alpha": 2.0}}, "`alpha` must"),
        ({"model": "no/such-model"}, "`model` cannot be loaded from 'no/such-model'"),
    ],
    ids=["decided", "misspelt", "range", "model"],
)
def test_mistakes_are_said_before_anything_is_sampled(tmp_path: Path, changes: dict, said: str):
    with pytest.raises(ConfigError, match=said):
        solve(solve_lives.QUESTION, solve_lives.never_right, solve_lives.settings(**changes), tmp_path / "run")
    assert not (tmp_path / "run" / "attempts.jsonl").exists()


def test_several_processes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="runs in one process"):
        solve(solve_lives.QUESTION, solve_lives.never_right, SolveSettings(), tmp_path / "run")


def test_the_example_is_the_hard_question_of_the_documentation():
    row = json.loads((ROOT / "recipes" / "trl" / "stale_report.json").read_text(encoding="utf-8"))
    question = stale_question("sani")
    assert row == {"prompt": question.messages, "ground_truth": question.truth}
