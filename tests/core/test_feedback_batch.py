"""Batches in worker processes: what a response does to its worker, and what becomes of the others."""

from __future__ import annotations

import logging
import os
import pickle
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sdpo_plugins import ConfigError, DataError, PluginError, RewardError, SDPOError
from sdpo_plugins.feedback import BatchScorer, for_trl
from sdpo_plugins.feedback.batch import default_workers

ODD = {"plugins": ["odd_scorer"], "workers": 2, "progress": False}
TRUTH = {"ground_truth": "x"}


@pytest.fixture(scope="module")
def scorer() -> Iterator[BatchScorer]:
    with BatchScorer("odd", timeout=60, **ODD) as made:
        yield made


def rewards(scorer: BatchScorer, *responses: str) -> list[float]:
    return [score.reward for score in scorer(responses, [TRUTH] * len(responses))]


def workers_of(scorer: BatchScorer) -> set[int]:
    """Return the ids of both workers, once both have started."""
    found: set[int] = set()
    deadline = time.monotonic() + 30
    while len(found) < 2:
        assert time.monotonic() < deadline, "there is one worker alone"
        found |= {score.details["pid"] for score in scorer(["sleep 0.05"] * 8, [TRUTH] * 8)}
    return found


def test_scores_come_in_order_from_several_workers_that_stay(scorer: BatchScorer) -> None:
    workers = workers_of(scorer)
    found = scorer(["x", "y"] * 200, [TRUTH] * 400)
    assert [score.reward for score in found] == [1.0, 0.0] * 200
    assert found[1].feedback == "'y' is wrong." and found[0].feedback is None
    assert os.getpid() not in workers and len(workers) == 2
    assert {score.details["pid"] for score in found} <= workers == workers_of(scorer)
    assert not any(score.details["torch"] for score in found), "a worker has imported torch"


def test_options_reach_the_workers() -> None:
    with BatchScorer("odd", {"bonus": 0.25}, **ODD) as scorer:
        assert rewards(scorer, "x", "y") == [1.25, 0.25]


def test_an_empty_batch_needs_no_worker() -> None:
    assert BatchScorer("odd", **ODD)([], []) == []


@pytest.mark.parametrize(
    ("deed", "why"),
    [
        ("exit 3", "its worker ended with code 3"),
        ("kill", "its worker ended with code -9"),
        ("raise boom", "the scorer raised ValueError: boom"),
        ("own", "the scorer raised RuntimeError: OwnError: this and that"),
        ("recurse", "the scorer raised RecursionError"),
    ],
)
def test_a_response_that_crashes_fails_alone(
    scorer: BatchScorer, caplog: pytest.LogCaptureFixture, deed: str, why: str
) -> None:
    with caplog.at_level(logging.WARNING, "sdpo_plugins.feedback"):
        found = scorer(["x", deed, "y", "x"], [TRUTH] * 4)
    assert [score.reward for score in found] == [1.0, 0.0, 0.0, 1.0]
    assert found[1].feedback is None
    assert {key: found[1].details[key] for key in ("scoring_crashed", "scoring_timed_out", "acc", "pred")} == {
        "scoring_crashed": 1.0,
        "scoring_timed_out": 0.0,
        "acc": 0.0,
        "pred": "",
    }
    assert found[0].details["scoring_crashed"] == 0.0 and found[0].details.keys() == found[1].details.keys()
    (record,) = caplog.records
    assert "1 response(s)" in record.getMessage() and why in record.getMessage()


@pytest.mark.parametrize("deed", ["sleep 600", "hold"])
def test_a_response_that_takes_too_long_fails_alone(caplog: pytest.LogCaptureFixture, deed: str) -> None:
    with BatchScorer("odd", timeout=1.0, **ODD) as scorer:
        rewards(scorer, "x")
        begin = time.monotonic()
        found = scorer(["x", deed, "x", "x", "y"], [TRUTH] * 5)
        # A worker that does not hear the request to end gets three seconds.
        assert time.monotonic() - begin < 15
        assert [score.reward for score in found] == [1.0, 0.0, 1.0, 1.0, 0.0]
        assert (found[1].details["scoring_timed_out"], found[1].details["scoring_crashed"]) == (1.0, 0.0)
        assert "timeout=1 s" in caplog.text
        assert rewards(scorer, "x", "x", "x") == [1.0] * 3


def test_what_a_scorer_started_ends_with_its_worker(tmp_path: Path) -> None:
    with BatchScorer("odd", timeout=2.0, **ODD) as scorer:
        assert rewards(scorer, f"child {tmp_path / 'ids'}", "x") == [0.0, 1.0]
    gone([int(line) for line in (tmp_path / "ids").read_text().split()])


def gone(pids: list[int]) -> None:
    """Wait until processes have ended."""
    assert pids
    deadline = time.monotonic() + 20
    while left := [pid for pid in pids if running(pid)]:
        assert time.monotonic() < deadline, f"{left} still run"
        time.sleep(0.05)


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_if_nothing_could_be_scored_the_details_are_the_same() -> None:
    with BatchScorer("odd", **ODD) as scorer:
        (lost,) = scorer(["exit 1"], [TRUTH])
        (fine,) = scorer(["x"], [TRUTH])
    assert lost.details.keys() == fine.details.keys() and lost.details["pred"] == ""


@pytest.mark.parametrize(
    ("deed", "error", "message"),
    [
        ("data 7", DataError, "The row is bad: 7."),
        ("sandbox", SDPOError, "The sandbox is gone; start it again."),
        ("nothing", PluginError, "'odd' must return a `Score`, got 'no score'"),
        ("nan", PluginError, "finite number as reward, got nan"),
    ],
)
def test_what_concerns_all_is_raised(scorer: BatchScorer, deed: str, error: type, message: str) -> None:
    with pytest.raises(error, match=message.replace("(", r"\(")) as caught:
        scorer(["x", deed, *["sleep 600"] * 8], [TRUTH] * 10)
    assert any("odd_scorer.py" in note or "_worker.py" in note for note in caught.value.__notes__)
    # What was under way is taken back, and the workers work again.
    begin = time.monotonic()
    assert rewards(scorer, *["x"] * 10) == [1.0] * 10
    assert time.monotonic() - begin < 20


@pytest.mark.parametrize(
    ("broken", "error", "message"),
    [
        ("SDPOError", SDPOError, "It is not there; install it"),
        ("ImportError", PluginError, "The scorer 'odd' cannot be built: ImportError: It is not there; install it"),
    ],
)
def test_a_scorer_that_cannot_be_built_says_so(broken: str, error: type, message: str) -> None:
    with BatchScorer("odd", {"broken": broken}, **ODD) as scorer, pytest.raises(error, match=message):
        scorer(["x"], [TRUTH])


def test_what_is_missing_is_said_before_the_first_batch(scorer: BatchScorer) -> None:
    scorer.check()
    with BatchScorer("odd", {"broken": "SDPOError"}, **ODD) as broken, pytest.raises(SDPOError, match="install it"):
        broken.check()
    with pytest.raises(SDPOError, match="It is not there; install it"):
        for_trl("odd", broken="SDPOError", **ODD)


def test_a_scorer_that_always_crashes_ends_the_run() -> None:
    with (
        BatchScorer("odd", **ODD) as scorer,
        pytest.raises(PluginError, match=r"failed for 32 responses in a row.*ValueError: at once"),
    ):
        scorer(["raise at once"] * 100, [TRUTH] * 100)


def test_a_worker_that_dies_between_batches_is_replaced(scorer: BatchScorer) -> None:
    first = workers_of(scorer)
    for pid in first:
        os.kill(pid, signal.SIGKILL)
    gone(list(first))
    time.sleep(0.3)
    found = scorer(["x", "y"] * 25, [TRUTH] * 50)
    assert [score.reward for score in found] == [1.0, 0.0] * 25
    assert not first & {score.details["pid"] for score in found}


def test_several_threads_share_the_workers(scorer: BatchScorer) -> None:
    found: dict[int, list[float]] = {}

    def ask(number: int) -> None:
        found[number] = rewards(scorer, "x", "exit 1" if number == 3 else "x", "y")

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == {number: [1.0, 0.0 if number == 3 else 1.0, 0.0] for number in range(12)}


def test_closing_while_another_thread_scores(scorer: BatchScorer) -> None:
    with BatchScorer("odd", **ODD) as mine:
        found: list[list[float]] = []
        thread = threading.Thread(target=lambda: found.append(rewards(mine, *["sleep 0.2"] * 10)))
        thread.start()
        time.sleep(0.8)
        mine.close()
        thread.join(60)
        assert found == [[0.0] * 10]


def test_progress_is_reported(scorer: BatchScorer, capfd: pytest.CaptureFixture[str]) -> None:
    seen: list[tuple[int, int]] = []
    with BatchScorer("odd", **{**ODD, "progress": lambda done, total: seen.append((done, total))}) as told:
        rewards(told, "x", "y", "exit 1")
    assert seen == [(0, 3), (1, 3), (2, 3), (3, 3)]
    # The default shows nothing where standard error is no terminal; what a worker prints goes there.
    with BatchScorer("odd", **{**ODD, "progress": True}) as quiet:
        rewards(quiet, "sleep 1.2", "say hello", "x")
    out, err = capfd.readouterr()
    assert (out, "hello" in err, "Scoring" in err) == ("", True, False)


def test_a_scorer_travels_to_another_process_as_what_it_was_made_from(scorer: BatchScorer) -> None:
    rewards(scorer, "x")
    with pickle.loads(pickle.dumps(scorer)) as again:
        assert (again.name, again.workers, again.timeout) == ("odd", 2, 60.0)
        assert rewards(again, "x") == [1.0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "cod"}, "`scorer` must be one of"),
        ({"options": {"bonos": 1}}, r"`scorer_options.bonos` is no option of the scorer 'odd'.*Did you mean 'bonus'"),
        ({"workers": 0}, "`workers` must be a whole number of at least 1"),
        ({"workers": True}, "`workers` must be"),
        ({"timeout": 0}, "`timeout` must be a finite number of seconds above 0, got 0"),
        ({"timeout": float("inf")}, "`timeout` must be"),
        ({"progress": "bar"}, "`progress` must be a function"),
        ({"plugins": "odd_scorer"}, "`plugins` must be a list of names"),
        ({"plugins": ["no_such_plugin"]}, "which is not installed"),
    ],
)
def test_wrong_settings_are_refused_before_any_process(changes: dict[str, Any], message: str) -> None:
    settings = {"name": "odd", **ODD, **changes}
    with pytest.raises(ConfigError, match=message):
        BatchScorer(**settings)


def test_wrong_batches_are_refused(scorer: BatchScorer) -> None:
    with pytest.raises(RewardError, match="2 responses and 1 samples"):
        scorer(["x", "y"], [TRUTH])
    with pytest.raises(RewardError, match="Response 0 must be a text, got 3"):
        scorer([3], [TRUTH])  # type: ignore[list-item]
    with pytest.raises(DataError, match="Sample 0 must be a mapping"):
        scorer(["x"], ["x"])  # type: ignore[list-item]
    with pytest.raises(DataError, match=r"Sample 1 cannot be given to a worker process .* ground_truth, lock"):
        scorer(["x", "x"], [TRUTH, {**TRUTH, "lock": threading.Lock()}])


def test_default_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(96)))
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert default_workers() == 32
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert default_workers() == 12
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    assert default_workers() == 1
