"""Runs of `python -m verl.trainer.main_ppo` on a CPU, with an end in any case: no process of Ray stays behind.

`python -m verl_cpu.run --config-path … --config-name …` runs a configuration file.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from sdpo_plugins.embedded import checkpoint_path, load_task
from sessions import RunFailed, end_session, interrupted_when_terminated
from verl_cpu.data import write_parquet

__all__ = ["RunFailed", "base_overrides", "interrupted_when_terminated", "main", "run"]

_SUPPORT = Path(__file__).resolve().parents[1]
_ROOT = _SUPPORT.parents[1]
_CPU = _SUPPORT / "verl_cpu" / "conf" / "cpu.yaml"

_QUESTIONS, _ROLLOUTS = 16, 4

# What `main` shows of a step, and the seconds that it gives a run.
_SHOWN = ("critic/score/mean", "self_distillation/divergence")
_LONGEST = 24 * 3600.0


def base_overrides(task: str, folder: Path, *, ranks: int = 1) -> list[str]:
    """Return Hydra overrides that put stock verl on a CPU with the embedded model and one of its tasks.

    Args:
        task: `"facts"` or `"sums"`.
        folder: For the task's parquet files and checkpoints.
        ranks: Number of FSDP2 ranks.

    Returns:
        Overrides, among them all of `conf/cpu.yaml`; later ones in a command win, so append your own.
    """
    questions = load_task(task)
    train, evaluation = write_parquet(questions, folder)
    actor, rollout = "actor_rollout_ref.actor", "actor_rollout_ref.rollout"
    # verl wants each rank's share of a batch to be a whole number of micro-batches: here, one.
    micro = _QUESTIONS * _ROLLOUTS // ranks
    return [
        *_overrides(yaml.safe_load(_CPU.read_text(encoding="utf-8"))),
        "trainer.v1.trainer_mode=sync",
        f"trainer.n_gpus_per_node={ranks}",
        "trainer.total_epochs=100000",
        "trainer.save_freq=-1",
        "trainer.test_freq=-1",
        "trainer.resume_mode=disable",
        f"trainer.default_local_dir={folder / 'checkpoints'}",
        "algorithm.adv_estimator=grpo",
        f"data.train_files={train}",
        f"data.val_files={evaluation}",
        f"data.train_batch_size={_QUESTIONS}",
        f"data.val_batch_size={len(questions.evaluation)}",
        "data.max_prompt_length=96",
        f"data.max_response_length={questions.max_completion_length}",
        "data.seed=0",
        f"actor_rollout_ref.model.path={checkpoint_path()}",
        f"{actor}.ppo_mini_batch_size={_QUESTIONS}",
        f"{actor}.ppo_micro_batch_size_per_gpu={micro}",
        f"{actor}.optim.lr=1e-4",
        f"{actor}.optim.weight_decay=0",
        f"actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu={micro}",
        f"{rollout}.n={_ROLLOUTS}",
        f"{rollout}.log_prob_micro_batch_size_per_gpu={micro}",
        f"{rollout}.val_kwargs.do_sample=True",
        f"{rollout}.val_kwargs.temperature=1.0",
        f"{rollout}.val_kwargs.n=4",
        f"reward.custom_reward_function.path={_SUPPORT / 'verl_cpu' / 'reward.py'}",
    ]


def _overrides(settings: Mapping[str, Any], above: str = "") -> Iterator[str]:
    """Say the same as a YAML file that stands behind verl's own."""
    for name, value in settings.items():
        path = above + name
        if isinstance(value, Mapping):
            yield from _overrides(value, path + ".")
        else:
            yield f"++{path}={value if isinstance(value, str) else json.dumps(value)}"


def run(
    overrides: Sequence[str],
    time_limit: float,
    *,
    options: Sequence[str] = (),
    modules: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    python: str = sys.executable,
    log: Path | None = None,
    on_step: Callable[[int, dict[str, float]], None] | None = None,
    stop: threading.Event | None = None,
) -> dict[int, dict[str, float]]:
    """Run verl's `main_ppo` and return what it measured.

    Args:
        overrides: Hydra overrides, e.g. `base_overrides(...)` and more.
        time_limit: Seconds after which everything the run started is killed.
        options: Of the command line, in front of the overrides, e.g. `["--config-name", "sdpo"]`.
        modules: More modules for verl to import in every process, e.g. one that registers an agent loop.
        environment: Variables on top of this process's and of those that a CPU run needs.
        python: Interpreter with verl.
        log: File for what the run prints; None: a temporary one.
        on_step: Called with a step's number and metrics soon after they are there, in order.
        stop: Once set, the run is ended as if its time were over.

    Returns:
        Metrics by step. Those of a validation before training are at step 0.

    Raises:
        RunFailed: The run ended with an error, was stopped, or did not end within `time_limit`.
    """
    # A short path: Ray puts Unix sockets below it, whose names may have 107 bytes.
    with tempfile.TemporaryDirectory(prefix="verl") as scratch:
        records = Path(scratch) / "metrics.jsonl"
        # Ray guards even a local cluster with a token, and would keep it in the user's home.
        token = Path(scratch) / "token"
        token.write_text(secrets.token_hex(32), encoding="ascii")
        printed = log or Path(scratch) / "log.txt"
        command = [
            python,
            "-m",
            "verl.trainer.main_ppo",
            *options,
            'trainer.logger=["console","file"]',
            f"+ray_kwargs.ray_init._temp_dir={scratch}/ray",
            "hydra.output_subdir=null",
            "hydra.job.chdir=False",
            "hydra/job_logging=none",
            "hydra/hydra_logging=none",
            *overrides,
        ]
        deadline = time.monotonic() + time_limit
        told: set[int] = set()
        with printed.open("wb") as sink:
            process = subprocess.Popen(
                command,
                cwd=scratch,
                env=_environment(modules, records, token, environment or {}),
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            ended = "code"
            try:
                while ended == "code":
                    try:
                        process.wait(0.5)
                        break
                    except subprocess.TimeoutExpired:
                        if stop is not None and stop.is_set():
                            ended = "stop"
                        elif time.monotonic() > deadline:
                            ended = "time"
                    if on_step is not None:
                        _tell(_read(records), told, on_step)
            finally:
                end_session(process)
        metrics = _read(records)
        if ended != "code" or process.returncode != 0:
            text = printed.read_text(encoding="utf-8", errors="replace")
            why = {
                "code": f"ended with code {process.returncode}",
                "time": f"did not end within {time_limit:.0f} s",
                "stop": "was stopped",
            }[ended]
            raise RunFailed(
                f"the verl run {why}, after step {max(metrics, default=None)}. Its last lines:\n{text[-4000:]}",
                text,
                metrics,
                ended == "time",
            )
        if on_step is not None:
            _tell(metrics, told, on_step)
        return metrics


def _tell(
    metrics: Mapping[int, dict[str, float]], told: set[int], on_step: Callable[[int, dict[str, float]], None]
) -> None:
    for step in sorted(metrics.keys() - told):
        told.add(step)
        on_step(step, metrics[step])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a configuration file of the user's on a CPU, and show the rewards and accuracies.

    Returns:
        The exit code: 0, 1 if the run failed, 130 if it was interrupted.
    """
    parser = argparse.ArgumentParser(prog="python -m verl_cpu.run", description="Run verl's main_ppo on a CPU.")
    parser.add_argument("--config-path", type=Path, required=True, help="folder of the configuration file")
    parser.add_argument("--config-name", required=True, help="its name, without .yaml")
    parser.add_argument("--log", type=Path, help="file for all that the run prints")
    parser.add_argument("overrides", nargs="*", help="Hydra overrides")
    given = parser.parse_intermixed_args(arguments)
    options = ["--config-path", str(given.config_path.absolute()), "--config-name", given.config_name]

    def show(step: int, metrics: Mapping[str, float]) -> None:
        found = {name: value for name, value in metrics.items() if name in _SHOWN or "/acc/mean@" in name}
        if found:
            print(f"step {step}: " + ", ".join(f"{name} {value:.3f}" for name, value in found.items()), flush=True)

    try:
        with interrupted_when_terminated():
            run(given.overrides, _LONGEST, options=options, on_step=show, log=given.log)
    except RunFailed as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("the verl run was interrupted; nothing of it runs on.", file=sys.stderr)
        return 130
    return 0


def _environment(modules: Sequence[str], records: Path, token: Path, more: Mapping[str, str]) -> dict[str, str]:
    paths = [str(_ROOT), str(_ROOT / "adapters"), str(_SUPPORT), os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "VERL_PLATFORM": "cpu",
        "VERL_USE_EXTERNAL_MODULES": ",".join(["verl_cpu.cpu_platform", "verl_cpu.hooks", *modules]),
        "VERL_FILE_LOGGER_PATH": str(records),
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_DEDUP_LOGS": "0",
        # Ray would let every other process of the machine go first, and time limits would measure those.
        "RAY_worker_niceness": "0",
        # Ray replaces a given 127.0.0.1 by the machine's own address, except where it takes clusters for impossible.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "GLOO_SOCKET_IFNAME": "lo",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        # TransferQueue would warn at every call that there are not so many processors as it takes by itself.
        "TQ_NUM_THREADS": "1",
        "TQ_CLIENT_ZMQ_IO_THREADS": "1",
        "HYDRA_FULL_ERROR": "1",
        # Ray would start a Python process for each slot in advance, most of them for nothing.
        "RAY_prestart_worker_first_driver": "0",
        "RAY_enable_worker_prestart": "0",
        # What only Ray's dashboard would show, which does not run; each process would report it every second.
        "RAY_task_events_report_interval_ms": "0",
        "RAY_enable_metrics_collection": "0",
        **more,
    }


def _read(records: Path) -> dict[int, dict[str, float]]:
    metrics: dict[int, dict[str, float]] = {}
    if records.is_file():
        for line in records.read_text(encoding="utf-8").splitlines(keepends=True):
            if line.endswith("\n"):  # The last line of a killed run may be cut.
                record = json.loads(line)
                metrics.setdefault(record["step"], {}).update(record["data"])
    return metrics


if __name__ == "__main__":
    sys.exit(main())
