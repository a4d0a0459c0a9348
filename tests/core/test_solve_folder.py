"""The log of attempts after a crash at any byte, and folders that hold another run."""

from __future__ import annotations

import json

import pytest

from sdpo_plugins.errors import ConfigError, DataError
from sdpo_plugins.solve import Attempt, AttemptLog, RunFolder, outcome_of
from sdpo_plugins.solve.results import write_results


def batch(step: int, method: str = "sdpo", reward: float = 0.0) -> list[Attempt]:
    return [Attempt(step * 2 + at, method, step, f"ä\n{step}.{at}", reward, "no") for at in (1, 2)]


def test_a_log_cut_at_any_byte_gives_the_attempts_that_are_whole(tmp_path):
    log = AttemptLog(tmp_path / "attempts.jsonl")
    log.append(batch(0))
    log.append(batch(1))
    whole = log.path.read_bytes()
    assert log.read() == [*batch(0), *batch(1)]
    ends = [at + 1 for at, byte in enumerate(whole) if byte == ord("\n")]
    for length in range(len(whole) + 1):
        log.path.write_bytes(whole[:length])
        assert len(log.read()) == sum(end <= length for end in ends)


def test_a_torn_line_is_gone_before_the_next_batch_is_written(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.begin({"seed": 0})
    folder.log.append(batch(0))
    folder.log.append(batch(1))
    folder.log.path.write_bytes(folder.log.path.read_bytes()[:-9])
    assert folder.attempts_to_resume(step=1, samples=2) == batch(0)
    folder.log.append(batch(1))
    assert folder.log.read() == [*batch(0), *batch(1)]


def test_attempts_after_the_checkpoint_are_made_again_and_the_other_method_s_stay(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.begin({"seed": 0})
    for step in range(3):
        folder.log.append(batch(step))
    folder.log.append(batch(0, "best-of-k"))
    assert folder.attempts_to_resume(step=2, samples=2) == [*batch(0), *batch(1), *batch(0, "best-of-k")]
    assert folder.log.read() == [*batch(0), *batch(1), *batch(0, "best-of-k")]
    with pytest.raises(DataError, match="holds 4 attempts of the first 3 steps, 6 were made"):
        folder.attempts_to_resume(step=3, samples=2)


def test_a_line_that_is_no_attempt_is_named(tmp_path):
    log = AttemptLog(tmp_path / "attempts.jsonl")
    log.append(batch(0))
    log.path.write_bytes(b'{"index": 1}\n' + log.path.read_bytes())
    with pytest.raises(DataError, match=r"Line 1 of .*attempts\.jsonl is no attempt"):
        log.read()


def test_a_folder_belongs_to_one_run(tmp_path):
    RunFolder(tmp_path / "run").begin({"seed": 0, "question": "ä"})
    RunFolder(tmp_path / "run").begin({"seed": 0, "question": "ä"})
    with pytest.raises(ConfigError, match="holds another run: seed is 0 there and 1 here"):
        RunFolder(tmp_path / "run").begin({"seed": 1, "question": "ä"})
    folder = RunFolder(tmp_path / "run")
    folder.log.append(batch(0))
    (folder.path / "checkpoint-4").mkdir()
    (folder.path / "notes.txt").write_text("mine")
    folder.begin({"seed": 1, "question": "ä"}, overwrite=True)
    assert sorted(path.name for path in folder.path.iterdir()) == ["notes.txt", "run.json"]
    (folder.path / "run.json").write_text("{", encoding="utf-8")
    with pytest.raises(DataError, match=r"run\.json cannot be read.*--overwrite"):
        folder.begin({"seed": 1, "question": "ä"})
    folder.begin({"seed": 2, "question": "ä"}, overwrite=True)
    folder.begin({"seed": 2, "question": "ä"})


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_of_something_else_is_left_alone(tmp_path, overwrite):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(ConfigError, match="holds no run of `sdpo solve`"):
        RunFolder(tmp_path).begin({"seed": 0}, overwrite)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_results_say_what_the_attempts_say(tmp_path):
    made = [*batch(0), *batch(1, reward=1.0), *batch(0, "best-of-k"), *batch(1, "best-of-k")]
    outcome = outcome_of(made, threshold=0.5, baseline=True, samples=2)
    write_results(tmp_path / "results.json", outcome, seed=3)
    found = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert found["solved"] is True and found["seed"] == 3
    assert found["sdpo"] == {
        "attempts": 4,
        "successes": 2,
        "first_success": 3,
        "best_reward": 1.0,
        "solution": "ä\n1.1",
    }
    assert found["baseline"]["first_success"] is None
    assert found["curve"] == [[2, 0.0, 0.0], [4, 1.0, 0.0]]
    assert found["baseline_rate"] == pytest.approx([0.0, 1 - 0.025 ** (1 / 4)])
    assert outcome.sentences()[0].startswith("Solved: answer 3 of 4")
