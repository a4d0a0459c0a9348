"""Runs of OpenRLHF's PPO trainer on a CPU, with an end in any case: no process of Ray or vLLM stays behind.

`python -m openrlhf_cpu.run --actor.model_name_or_path … …` takes the flags of `python -m sdpo_openrlhf.train`.
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
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

from openrlhf_cpu.data import write_jsonl
from sdpo_plugins.embedded import checkpoint_path, load_task
from sessions import RunFailed, end_session, interrupted_when_terminated

__all__ = ["HOST", "LAUNCHER", "RunFailed", "base_arguments", "environment", "main", "run"]

LAUNCHER = "sdpo_openrlhf.train"
"""The adapter's command."""

HOST = "openrlhf.cli.train_ppo_ray"
"""OpenRLHF's own command, which knows no SDPO and takes no feedback texts."""

_HERE = Path(__file__).resolve().parent
_SUPPORT = _HERE.parent
_ROOT = _SUPPORT.parents[1]

_PROMPT_TOKENS = 96
# What `main` shows of a step, and the seconds that it gives a run.
_SHOWN = ("rollout/reward_mean", "self_distillation/divergence")
_LONGEST = 24 * 3600.0

OnRecord = Callable[[int, dict[str, float]], None]


def base_arguments(
    task: str,
    folder: Path,
    *,
    steps: int = 2,
    questions: int = 16,
    rollouts: int = 4,
    ranks: int = 1,
    seed: int = 0,
    feedback: bool = True,
) -> list[str]:
    """Return flags that put OpenRLHF on a CPU with the embedded model and one of its tasks.

    The algorithm is the host's group-normalised policy gradient: one vLLM engine, DeepSpeed ZeRO-2, bf16 with fp32
    master weights. A step is one rollout batch, one micro-batch a rank and one optimizer step.

    Args:
        task: `"facts"` or `"sums"`.
        folder: For data files, checkpoints and the trained model.
        steps: Steps of the whole run, which is one episode.
        questions: Questions a step.
        rollouts: Answers to each.
        ranks: DeepSpeed ranks that share the model.
        seed: Of the order of the questions and of sampling.
        feedback: Whether the reward file returns feedback texts, which the unmodified host cannot take.

    Returns:
        Flags; later ones in a command win, so append your own.
    """
    questions_of = load_task(task)
    train, evaluation = write_jsonl(questions_of, folder, rows=steps * questions, seed=seed)
    rows = questions * rollouts
    return [
        *("--actor.model_name_or_path", str(checkpoint_path())),
        *("--data.prompt_dataset", str(train)),
        *("--eval.dataset", str(evaluation)),
        *("--eval.temperature", "1.0"),
        *("--data.input_key", "input"),
        *("--data.label_key", "label"),
        "--data.apply_chat_template",
        *("--data.max_len", str(_PROMPT_TOKENS + questions_of.max_completion_length)),
        *("--rollout.max_new_tokens", str(questions_of.max_completion_length)),
        *("--reward.remote_url", str(_HERE / ("reward.py" if feedback else "reward_without_feedback.py"))),
        *("--algo.advantage.estimator", "group_norm"),
        *("--algo.kl.init_coef", "0"),
        *("--rollout.batch_size", str(questions)),
        *("--rollout.n_samples_per_prompt", str(rollouts)),
        *("--rollout.micro_batch_size", str(rows // ranks)),
        *("--train.batch_size", str(rows)),
        *("--train.micro_batch_size", str(rows // ranks)),
        *("--train.seed", str(seed)),
        *("--actor.num_gpus_per_node", str(ranks)),
        *("--actor.adam.lr", "1e-4"),
        *("--actor.lr_scheduler", "constant"),
        *("--ds.attn_implementation", "sdpa"),
        *("--ds.zero_stage", "2"),
        *("--vllm.num_engines", "1"),
        "--vllm.enforce_eager",
        # Anything but NCCL: with it, models that share their devices with the engines would use CUDA's shared memory.
        *("--vllm.sync_backend", "gloo"),
        # Of the memory, which vLLM checks at its start although it takes only VLLM_CPU_KVCACHE_SPACE.
        *("--vllm.gpu_memory_utilization", "0.1"),
        *("--ckpt.output_dir", str(folder / "model")),
        *("--ckpt.path", str(folder / "checkpoints")),
        *("--ckpt.best_metric_key", "none"),
    ]


def run(
    arguments: Sequence[str],
    time_limit: float,
    *,
    module: str = LAUNCHER,
    environment: Mapping[str, str] | None = None,
    python: str = sys.executable,
    log: Path | None = None,
    on_step: OnRecord | None = None,
    stop: threading.Event | None = None,
) -> dict[int, dict[str, float]]:
    """Run an OpenRLHF trainer and return what it measured.

    Args:
        arguments: Flags of the command line, e.g. `base_arguments(...)` and more.
        time_limit: Seconds after which everything the run started is killed.
        module: What to run: `LAUNCHER`, or `HOST` without the adapter.
        environment: Variables on top of this process's and of those that a CPU run needs; see `openrlhf_cpu.patches`.
        python: Interpreter with OpenRLHF.
        log: File for what the run prints; None: a temporary one.
        on_step: Called with a step's number and metrics soon after they are there, in order; once more for the step's
            evaluation.
        stop: Once set, the run is ended as if its time were over.

    Returns:
        Metrics by step, named as in OpenRLHF's TensorBoard without `train/`; those of evaluations keep `eval/`, and
        one before training is at step 0.

    Raises:
        RunFailed: The run ended with an error, was stopped, or did not end within `time_limit`.
    """
    # A short path: Ray puts Unix sockets below it, whose names may have 107 bytes.
    with tempfile.TemporaryDirectory(prefix="rlhf") as made:
        scratch = Path(made)
        printed = log or scratch / "log.txt"
        command = [
            *(python, "-m", "openrlhf_cpu.driver", module),
            # In front, so that the caller's own win.
            *("--logger.tensorboard_dir", str(scratch / "tensorboard")),
            *("--ckpt.output_dir", str(scratch / "model")),
            *("--ckpt.path", str(scratch / "checkpoints")),
            *arguments,
        ]
        records = _Records(scratch / "records.jsonl")
        deadline = time.monotonic() + time_limit
        with printed.open("wb") as sink:
            process = subprocess.Popen(
                command,
                env=_environment(scratch, environment or {}),
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
                    records.read(on_step)
            finally:
                end_session(process)
        records.read(on_step)
        if ended != "code" or process.returncode != 0:
            text = printed.read_text(encoding="utf-8", errors="replace")
            why = {
                "code": f"ended with code {process.returncode}",
                "time": f"did not end within {time_limit:.0f} s",
                "stop": "was stopped",
            }[ended]
            raise RunFailed(
                f"the OpenRLHF run {why}, after step {max(records.metrics, default=None)}. Its last lines:\n"
                f"{text[-4000:]}",
                text,
                records.metrics,
                ended == "time",
            )
        return records.metrics


class _Records:
    """The metrics that `openrlhf_cpu.patches.records` writes.

    Args:
        path: The file, which need not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self.metrics: dict[int, dict[str, float]] = {}
        self._path = path
        self._file: IO[str] | None = None
        self._cut = ""

    def read(self, on_step: OnRecord | None) -> None:
        """Take what is new."""
        if self._file is None:
            if not self._path.is_file():
                return
            self._file = self._path.open(encoding="utf-8")
        while line := self._file.readline():
            self._cut += line
            if self._cut.endswith("\n"):  # The last line of a run that is being written, or was killed, may be cut.
                record, self._cut = json.loads(self._cut), ""
                self.metrics.setdefault(record["step"], {}).update(record["data"])
                if on_step is not None:
                    on_step(record["step"], record["data"])


def environment() -> dict[str, str]:
    """Return the variables that OpenRLHF's libraries need on a CPU, for a run or for a test's own process."""
    return {
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TORCHDYNAMO_DISABLE": "1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        # The model in the engine's own process, not in one more.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_HOST_IP": "127.0.0.1",
        "GLOO_SOCKET_IFNAME": "lo",
    }


def _environment(scratch: Path, more: Mapping[str, str]) -> dict[str, str]:
    paths = [str(_HERE / "site"), str(_SUPPORT), str(_ROOT), str(_ROOT / "adapters"), os.environ.get("PYTHONPATH", "")]
    # Ray guards even a local cluster with a token, and would keep it in the user's home.
    token = scratch / "token"
    token.write_text(secrets.token_hex(32), encoding="ascii")
    return {
        **os.environ,
        **environment(),
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "OPENRLHF_CPU_RECORDS": str(scratch / "records.jsonl"),
        "OPENRLHF_CPU_RAY_FOLDER": str(scratch / "ray"),
        "HF_DATASETS_CACHE": str(scratch / "datasets"),
        "VLLM_CACHE_ROOT": str(scratch / "vllm"),
        "TMPDIR": str(scratch),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_DEDUP_LOGS": "0",
        # A busy machine takes longer than the half minute that Ray gives itself to start.
        "RAY_raylet_start_wait_time_s": "300",
        # Ray would end this run for what other programs hold of the memory.
        "RAY_memory_monitor_refresh_ms": "0",
        # Ray would let every other process of the machine go first, and time limits would measure those.
        "RAY_worker_niceness": "0",
        # Ray replaces a given 127.0.0.1 by the machine's own address, except where it takes clusters for impossible.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        # Ray would start a Python process for each slot in advance, most of them for nothing.
        "RAY_prestart_worker_first_driver": "0",
        "RAY_enable_worker_prestart": "0",
        # What only Ray's dashboard would show, which does not run; each process would report it every second.
        "RAY_task_events_report_interval_ms": "0",
        "RAY_enable_metrics_collection": "0",
        **more,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the user's own flags on a CPU, and show rewards and accuracies.

    Returns:
        The exit code: 0, 1 if the run failed, 130 if it was interrupted.
    """
    parser = argparse.ArgumentParser(
        prog="python -m openrlhf_cpu.run",
        description="Run OpenRLHF's PPO trainer on a CPU. All other flags are those of the command that is run.",
        allow_abbrev=False,
    )
    parser.add_argument("--module", default=LAUNCHER, help=f"the command to run (default {LAUNCHER}; or {HOST})")
    parser.add_argument("--log", type=Path, help="file for all that the run prints")
    given, flags = parser.parse_known_args(arguments)

    def show(step: int, metrics: Mapping[str, float]) -> None:
        found = {name: value for name, value in metrics.items() if name in _SHOWN or name.endswith("_pass1")}
        if found:
            print(f"step {step}: " + ", ".join(f"{name} {value:.3f}" for name, value in found.items()), flush=True)

    try:
        with interrupted_when_terminated():
            run(flags, _LONGEST, module=given.module, on_step=show, log=given.log)
    except RunFailed as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("the OpenRLHF run was interrupted; nothing of it runs on.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
