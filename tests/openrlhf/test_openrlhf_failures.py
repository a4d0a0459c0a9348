"""Runs that must fail: they end by themselves, say why, and leave no process behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from openrlhf_cpu.run import LAUNCHER, _environment, base_arguments
from sessions import end_session, members_of

pytestmark = pytest.mark.slow

# On a machine that has nothing else to do, a run takes a tenth of it.
TIME_LIMIT = 600.0
# Ray's last processes end a moment after the one that started them.
GRACE = 30.0


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short path: Ray puts Unix sockets below it, whose names may have 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="rlhf") as made:
        yield Path(made)


def failed_run(folder: Path, arguments: Sequence[str], kill: str = "") -> str:
    """Run the launcher and return what it printed, after checking how it ended.

    Args:
        folder: Of the run.
        arguments: Flags.
        kill: Begin of the title of a process to kill after the first step; "": none.
    """
    log, records = folder / "log.txt", folder / "records.jsonl"
    command = [sys.executable, "-m", "openrlhf_cpu.driver", LAUNCHER]
    with log.open("wb") as sink:
        process = subprocess.Popen(
            [*command, "--logger.tensorboard_dir", str(folder / "tensorboard"), *arguments],
            env=_environment(folder, {}),
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    left: list[int] = []
    code: int | None = None
    try:
        deadline = time.monotonic() + TIME_LIMIT
        if kill:
            while not records.is_file() or not records.stat().st_size:
                assert process.poll() is None and time.monotonic() < deadline, printed_by(log)[-3000:]
                time.sleep(0.2)
            os.kill(titled(process.pid, kill), signal.SIGKILL)
        code = process.wait(max(1.0, deadline - time.monotonic()))
        deadline = time.monotonic() + GRACE
        while (left := members_of(process.pid)) and time.monotonic() < deadline:
            time.sleep(0.2)
    finally:
        end_session(process)
    printed = printed_by(log)
    assert code == 1, printed[-3000:]
    assert not left, f"processes {left} outlived the run:\n{printed[-3000:]}"
    return printed


def titled(leader: int, begin: str) -> int:
    """Return the first process of a session whose title begins so; what it forked has the same."""
    titles = {pid: Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace") for pid in members_of(leader)}
    return min(pid for pid, title in titles.items() if title.startswith(begin))


def printed_by(log: Path) -> str:
    return log.read_text(encoding="utf-8", errors="replace")


def last_line(printed: str) -> str:
    """Return what somebody sees first who looks at the end of a terminal."""
    return printed.rstrip().splitlines()[-1]


def training(folder: Path, *more: str, steps: int = 1) -> list[str]:
    return [*base_arguments("facts", folder, steps=steps, questions=4, rollouts=4), *more]


def reward(folder: Path, returned: str) -> list[str]:
    path = folder / "reward_of_a_user.py"
    path.write_text(
        f"import torch\n\n\ndef reward_func(queries, prompts, labels):\n    return {returned}\n", encoding="utf-8"
    )
    return ["--reward.remote_url", str(path)]


def test_a_killed_engine_ends_the_run(folder: Path) -> None:
    printed = failed_run(folder, training(folder, steps=400), kill="ray::RolloutRayActor")
    said = "SDPO: A vLLM engine (RolloutRayActor) died, so the run ended."
    assert last_line(printed).startswith(said), printed[-6000:]


def test_a_killed_policy_rank_ends_the_run(folder: Path) -> None:
    printed = failed_run(folder, training(folder, steps=400), kill="ray::SDPOPolicyModelActor")
    assert last_line(printed).startswith("SDPO: A policy rank (SDPOPolicyModelActor) died, so the run ended.")


def test_a_reward_file_without_rewards(folder: Path) -> None:
    printed = failed_run(folder, training(folder, *reward(folder, "{'scores': torch.tensor([1.0])}")))
    assert last_line(printed).startswith("SDPO: There is no reward for the prompt")
    assert "`rewards`" in last_line(printed)


@pytest.mark.parametrize(
    ("feedback", "said"),
    [("['Wrong.', 'Again.']", "['Wrong.', 'Again.']"), ("7", "7")],
    ids=["of wrong length", "of wrong type"],
)
def test_feedback(folder: Path, feedback: str, said: str) -> None:
    returned = f"{{'rewards': torch.tensor([0.0]), 'extra_logs': {{'feedback': {feedback}}}}}"
    printed = failed_run(folder, training(folder, *reward(folder, returned)))
    assert last_line(printed).startswith("SDPO: ") and "feedback" in last_line(printed) and said in last_line(printed)
