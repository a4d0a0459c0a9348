"""Runs of verl's `main_ppo` with SDPO that tests start, kill and look into."""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from row_records import VARIABLE

from sdpo_plugins.embedded import checkpoint_path
from sdpo_plugins.records import RunRecords, read_run
from verl_cpu.run import base_overrides, run

__all__ = [
    "QUESTIONS",
    "ROLLOUTS",
    "Run",
    "agent_loop",
    "checkpoint_tensors",
    "decode",
    "killed",
    "overrides",
    "trained",
]

HERE = Path(__file__).parent
QUESTIONS, ROLLOUTS = 8, 4
# Only against a run that hangs: on an idle machine one takes a minute, beside many others ten times that.
TIME_LIMIT = 900.0
_SECTION = "+actor_rollout_ref.actor.self_distillation"


@dataclass(frozen=True)
class Run:
    """What a run left behind.

    Args:
        folder: Of checkpoints, records of rows and the log.
        metrics: By step.
        log: All that was printed.
    """

    folder: Path
    metrics: dict[int, dict[str, float]]
    log: str

    def rows(self, step: int) -> list[dict[str, Any]]:
        """Return the rows of a training batch, as `row_records` wrote them."""
        rows: list[dict[str, Any]] = json.loads((self.folder / "rows" / f"{step}.json").read_text(encoding="utf-8"))
        return rows

    def checkpoint(self, step: int) -> Path:
        """Return the folder of a checkpoint."""
        return self.folder / "checkpoints" / f"global_step_{step}"

    def records(self) -> RunRecords:
        """Return the run's records, which must hold together by themselves."""
        records = read_run(self.folder / "checkpoints")
        assert records.problems == ()
        for rollout in records.rollouts:
            # Whatever is learnt from has its values, and nothing else has.
            assert (rollout.tokens is not None) is rollout.line["active"], rollout.line
        return records


def overrides(folder: Path, steps: int, *more: str, ranks: int = 1, **options: Any) -> list[str]:
    """Return the command line of an SDPO run on the task `facts`: 8 questions a batch, 4 rollouts each.

    Args:
        folder: Of the run.
        steps: To train in all.
        more: Hydra overrides behind the others.
        ranks: Of FSDP2.
        options: Of SDPO.
    """
    rows = QUESTIONS * ROLLOUTS // ranks
    actor, rollout = "actor_rollout_ref.actor", "actor_rollout_ref.rollout"
    return [
        *base_overrides("facts", folder, ranks=ranks),
        "trainer.v1.trainer_mode=sdpo",
        f"trainer.total_training_steps={steps}",
        "trainer.val_before_train=False",
        f"{actor}._target_=sdpo_verl.config.SDPOActorConfig",
        f"data.train_batch_size={QUESTIONS}",
        f"{rollout}.n={ROLLOUTS}",
        f"{rollout}.calculate_log_probs=True",
        f"{actor}.ppo_mini_batch_size={QUESTIONS}",
        f"{actor}.ppo_micro_batch_size_per_gpu={rows}",
        f"{rollout}.log_prob_micro_batch_size_per_gpu={rows}",
        f"actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu={rows}",
        f"{actor}.optim.lr=1e-3",
        f"{_SECTION}.include_environment_feedback=true",
        *(f"{_SECTION}.{name}={_text(value)}" for name, value in options.items()),
        *more,
    ]


def trained(folder: Path, arguments: Sequence[str], modules: Sequence[str] = (), python: str = sys.executable) -> Run:
    """Run to the end.

    Args:
        folder: Of the run.
        arguments: From `overrides`.
        modules: More modules for verl to import in every process.
        python: Interpreter.

    Raises:
        RunFailed: The run ended with an error, or not in time.
    """
    log = folder / f"log_{time.time_ns()}.txt"
    modules = ["row_records", *modules]
    metrics = run(arguments, TIME_LIMIT, modules=modules, environment=_environment(folder), python=python, log=log)
    return Run(folder, metrics, log.read_text(encoding="utf-8", errors="replace"))


@contextmanager
def killed(folder: Path, arguments: Sequence[str], step: int) -> Iterator[Callable[[], tuple[Run, dict[str, Any]]]]:
    """Run until a step was recorded, then kill the driver, and only it, with SIGKILL.

    The body is entered once every process that worked for the run has ended.

    Args:
        folder: Of the run.
        arguments: From `overrides`.
        step: After which one.

    Yields:
        What waits for the end of the others, and returns what the run left behind and the report of `kill_driver`.
    """
    report, python = folder / "killed.json", folder / "python"
    words = [sys.executable, str(HERE / "kill_driver.py"), str(step), str(report)]
    python.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n', encoding="utf-8")
    python.chmod(0o755)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(trained, folder, arguments, python=str(python))
        while not report.exists() and not running.done():
            time.sleep(0.1)
        if running.done():
            running.result()
        yield lambda: (running.result(), json.loads(report.read_text(encoding="utf-8")))


def checkpoint_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Return every tensor and number that a rank's files of a checkpoint hold, by file and path within.

    Args:
        folder: A checkpoint, or a part of it.
    """
    found: dict[str, torch.Tensor] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix == ".pt":
            _collect(torch.load(path, weights_only=False, map_location="cpu"), str(path.relative_to(folder)), found)
        elif path.suffix == ".safetensors":
            from safetensors.torch import load_file

            _collect(load_file(path), str(path.relative_to(folder)), found)
    return found


def agent_loop(folder: Path, name: str) -> list[str]:
    """Return the overrides that make a class of `agents` the agent loop, registered as verl's documents say.

    Args:
        folder: For the registry's file.
        name: Of the class.
    """
    registry = folder / "agent_loops.yaml"
    registry.write_text(f"- name: {name}\n  _target_: agents.{name}\n", encoding="utf-8")
    agent = "actor_rollout_ref.rollout.agent"
    return [f"{agent}.agent_loop_config_path={registry}", f"{agent}.default_agent_loop={name}"]


@cache
def _tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(checkpoint_path())


def decode(ids: Sequence[int]) -> str:
    """Return the text of token ids, special tokens included."""
    text: str = _tokenizer().decode(list(ids))
    return text


def _collect(value: Any, name: str, found: dict[str, torch.Tensor]) -> None:
    if isinstance(value, torch.Tensor):
        found[name] = getattr(value, "_local_tensor", value).detach()
    elif isinstance(value, dict):
        for key, item in value.items():
            _collect(item, f"{name}/{key}", found)
    elif isinstance(value, list | tuple):
        for at, item in enumerate(value):
            _collect(item, f"{name}/{at}", found)
    elif isinstance(value, int | float):
        found[name] = torch.tensor(value, dtype=torch.float64)


def _environment(folder: Path) -> dict[str, str]:
    root = HERE.parents[1]
    paths = [str(root), str(root / "adapters"), str(HERE.parent / "support"), str(HERE)]
    return {
        VARIABLE: str(folder / "rows"),
        "TENSORBOARD_DIR": str(folder / "tensorboard"),
        "PYTHONPATH": os.pathsep.join(filter(None, [*paths, os.environ.get("PYTHONPATH", "")])),
    }


def _text(value: Any) -> str:
    return {True: "true", False: "false", None: "null"}.get(value, str(value)) if not isinstance(value, str) else value
