"""Runs that must fail: they end by themselves, say why, and leave no process behind."""

from __future__ import annotations

import re
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from sessions import end_session, members_of
from verl_cpu.run import _environment, base_overrides

pytestmark = pytest.mark.slow

SECTION = "+actor_rollout_ref.actor.self_distillation"
# On a machine that has nothing else to do, a run takes a tenth of it.
TIME_LIMIT = 400.0
# Ray's last processes end a moment after the one that started them.
GRACE = 20.0


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short path: Ray puts Unix sockets below it, whose names may have 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="verl") as made:
        yield Path(made)


def failed_run(folder: Path, overrides: Sequence[str], **variables: str) -> str:
    """Run `main_ppo` with SDPO; return what it printed, after checking how it ended."""
    token, log = folder / "token", folder / "log.txt"
    token.write_text(secrets.token_hex(32), encoding="ascii")
    command = [sys.executable, "-m", "verl.trainer.main_ppo", "+sdpo=default", "hydra.output_subdir=null"]
    command += ["hydra/job_logging=none", "hydra/hydra_logging=none", f"+ray_kwargs.ray_init._temp_dir={folder}/ray"]
    with log.open("wb") as sink:
        process = subprocess.Popen(
            [*command, *overrides],
            cwd=folder,
            env=_environment((), folder / "metrics.jsonl", token, variables),
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        code = process.wait(TIME_LIMIT)
        deadline = time.monotonic() + GRACE
        while (left := members_of(process.pid)) and time.monotonic() < deadline:
            time.sleep(0.2)
    finally:
        end_session(process)
    printed = log.read_text(encoding="utf-8", errors="replace")
    assert code not in (0, None), printed[-3000:]
    assert not left, f"processes {left} outlived the run:\n{printed[-3000:]}"
    return printed


def training(folder: Path, *more: str) -> list[str]:
    short = ["trainer.v1.trainer_mode=sdpo", "trainer.total_training_steps=1", "trainer.val_before_train=False"]
    short.append("trainer.logger=console")
    return [*base_overrides("facts", folder), *short, *more]


def reward(folder: Path, returned: str) -> str:
    path = folder / "reward_of_a_user.py"
    path.write_text(f"def compute_score(*arguments, **named):\n    return {returned}\n", encoding="utf-8")
    return f"reward.custom_reward_function.path={path}"


# Before Ray -----------------------------------------------------------------------------------------------------------


def assert_ray_was_not_asked(printed: str) -> None:
    assert "Traceback" not in printed and "ray init kwargs" not in printed, printed[-3000:]


def test_every_wrong_setting_is_told_once_before_ray_starts(folder):
    printed = failed_run(
        folder,
        [
            *training(folder),
            f"{SECTION}.alhpa=1",
            "algorithm.adv_estimator=gae",
            "actor_rollout_ref.model.path=/no/such/model",
            "trainer.n_gpus_per_node=4",
            "++ray_kwargs.ray_init.num_gpus=1",
        ],
    )
    assert_ray_was_not_asked(printed)
    for piece in (
        "Unknown option `alhpa`",
        "Did you mean 'alpha'?",
        "`algorithm.adv_estimator=gae` trains a critic",
        "`actor_rollout_ref.model.path=/no/such/model`: there is no such folder.",
        "asks for 4 ranks, but `ray_kwargs.ray_init.num_gpus=1` gives Ray 1 places.",
    ):
        assert printed.count(piece) == 1, piece


@pytest.mark.parametrize(
    ("policy", "piece"),
    [
        ("none", "VERL_USE_EXTERNAL_PLUGINS=none turns plug-ins off"),
        ("another", "VERL_USE_EXTERNAL_PLUGINS=another leaves 'sdpo_verl' out"),
    ],
)
def test_a_plugin_that_verl_did_not_load(folder, policy, piece):
    printed = failed_run(folder, training(folder), VERL_USE_EXTERNAL_PLUGINS=policy)
    assert_ray_was_not_asked(printed)
    assert printed.count("SDPO: verl did not load the plug-in 'sdpo_verl'") == 1
    assert piece in printed


# With Ray -------------------------------------------------------------------------------------------------------------


def test_feedback_that_is_no_text(folder):
    printed = failed_run(folder, training(folder, reward(folder, "{'score': 0.0, 'feedback': ['Wrong.']}")))
    assert "`feedback` of a reward function must be a text or None, got ['Wrong.'] (list)" in last_lines(printed)


def test_a_reward_without_score(folder):
    printed = failed_run(folder, training(folder, reward(folder, "{'feedback': 'Wrong.'}")))
    assert "A reward function returns a number, or a mapping with the number `score` and" in last_lines(printed)
    assert "KeyError: 'score'" in printed


def test_more_ranks_than_ray_finds_places(folder):
    overrides = [text for text in training(folder) if not text.startswith("++ray_kwargs.ray_init.num_gpus=")]
    printed = failed_run(folder, [*overrides, "trainer.n_gpus_per_node=4"], CUDA_VISIBLE_DEVICES="")
    assert len(overrides) < len(training(folder))
    assert re.search(r"Total available GPUs 0(\.0)? is less than total desired GPUs 4", last_lines(printed))


def last_lines(printed: str) -> str:
    """Return what somebody sees who looks at the end of a terminal."""
    return "\n".join(printed.splitlines()[-10:])
