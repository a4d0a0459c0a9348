"""Runs of `python -m verl.trainer.main_ppo` on a CPU, with an end in any case: no process of Ray stays behind."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from sdpo_plugins.embedded import checkpoint_path, load_task
from verl_cpu.data import write_parquet

__all__ = ["RunFailed", "base_overrides", "run"]

_SUPPORT = Path(__file__).resolve().parents[1]
_ROOT = _SUPPORT.parents[1]

_QUESTIONS, _ROLLOUTS = 16, 4


class RunFailed(RuntimeError):
    """A run that ended with an error or ran out of time.

    Attributes:
        log: All that the run printed.
        metrics: Metrics by step, as far as it came.
        timed_out: Whether the time limit ended it.
    """

    def __init__(self, message: str, log: str, metrics: dict[int, dict[str, float]], timed_out: bool) -> None:
        super().__init__(message)
        self.log, self.metrics, self.timed_out = log, metrics, timed_out


def base_overrides(task: str, folder: Path, *, ranks: int = 1) -> list[str]:
    """Return Hydra overrides that put stock verl on a CPU with the embedded model and one of its tasks.

    Args:
        task: `"facts"` or `"sums"`.
        folder: For the task's parquet files and checkpoints.
        ranks: Number of FSDP2 ranks.

    Returns:
        Overrides; later ones in a command win, so append your own.
    """
    questions = load_task(task)
    train, evaluation = write_parquet(questions, folder)
    actor, rollout = "actor_rollout_ref.actor", "actor_rollout_ref.rollout"
    # verl wants each rank's share of a batch to be a whole number of micro-batches: here, one.
    micro = _QUESTIONS * _ROLLOUTS // ranks
    full = "mixed_precision={param_dtype:fp32,reduce_dtype:fp32,buffer_dtype:fp32}"
    return [
        "trainer.device=cpu",
        "trainer.v1.trainer_mode=sync",
        f"trainer.n_gpus_per_node={ranks}",
        "trainer.nnodes=1",
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
        "data.dataloader_num_workers=0",
        "data.seed=0",
        f"actor_rollout_ref.model.path={checkpoint_path()}",
        "actor_rollout_ref.model.use_remove_padding=False",
        "actor_rollout_ref.model.enable_gradient_checkpointing=False",
        "+actor_rollout_ref.model.override_config.attn_implementation=sdpa",
        f"{actor}.strategy=fsdp2",
        f"{actor}.fsdp_config.strategy=fsdp2",
        f"{actor}.fsdp_config.model_dtype=fp32",
        f"+{actor}.fsdp_config.{full}",
        f"{actor}.fsdp_config.use_torch_compile=False",
        f"{actor}.use_torch_compile=False",
        f"{actor}.ppo_mini_batch_size={_QUESTIONS}",
        f"{actor}.ppo_micro_batch_size_per_gpu={micro}",
        f"{actor}.optim.lr=1e-4",
        f"{actor}.optim.weight_decay=0",
        "actor_rollout_ref.ref.strategy=fsdp2",
        "actor_rollout_ref.ref.fsdp_config.strategy=fsdp2",
        "actor_rollout_ref.ref.fsdp_config.model_dtype=fp32",
        f"+actor_rollout_ref.ref.fsdp_config.{full}",
        "actor_rollout_ref.ref.fsdp_config.use_torch_compile=False",
        f"actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu={micro}",
        f"{rollout}.name=hf_cpu",
        f"{rollout}.n={_ROLLOUTS}",
        # One server for all ranks, so that what is sampled does not depend on their number.
        f"{rollout}.tensor_model_parallel_size={ranks}",
        f"{rollout}.n_gpus_per_node={ranks}",
        f"{rollout}.agent.num_workers=1",
        f"{rollout}.log_prob_micro_batch_size_per_gpu={micro}",
        f"{rollout}.val_kwargs.do_sample=True",
        f"{rollout}.val_kwargs.temperature=1.0",
        f"{rollout}.val_kwargs.n=4",
        f"reward.custom_reward_function.path={_SUPPORT / 'verl_cpu' / 'reward.py'}",
        "reward.num_workers=1",
        "transfer_queue.backend.SimpleStorage.num_data_storage_units=1",
        # Slots, not processors: Ray hands out as many places as it is told there are.
        f"ray_kwargs.ray_init.num_cpus={4 + 4 * ranks}",
        f"+ray_kwargs.ray_init.num_gpus={ranks}",
        "+ray_kwargs.ray_init.include_dashboard=False",
        f"+ray_kwargs.ray_init.object_store_memory={128 * 2**20}",
    ]


def run(
    overrides: Sequence[str],
    time_limit: float,
    *,
    modules: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    python: str = sys.executable,
    log: Path | None = None,
) -> dict[int, dict[str, float]]:
    """Run verl's `main_ppo` and return what it measured.

    Args:
        overrides: Hydra overrides, e.g. `base_overrides(...)` and more.
        time_limit: Seconds after which everything the run started is killed.
        modules: More modules for verl to import in every process, e.g. one that registers an agent loop.
        environment: Variables on top of this process's and of those that a CPU run needs.
        python: Interpreter with verl.
        log: File for what the run prints; None: a temporary one.

    Returns:
        Metrics by step. Those of a validation before training are at step 0.

    Raises:
        RunFailed: The run ended with an error, or not within `time_limit`.
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
            'trainer.logger=["console","file"]',
            f"+ray_kwargs.ray_init._temp_dir={scratch}/ray",
            "hydra.output_subdir=null",
            "hydra.job.chdir=False",
            "hydra/job_logging=none",
            "hydra/hydra_logging=none",
            *overrides,
        ]
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
            timed_out = False
            try:
                process.wait(time_limit)
            except subprocess.TimeoutExpired:
                timed_out = True
            finally:
                _end_session(process)
        metrics = _read(records)
        if timed_out or process.returncode != 0:
            text = printed.read_text(encoding="utf-8", errors="replace")
            why = f"did not end within {time_limit:.0f} s" if timed_out else f"ended with code {process.returncode}"
            raise RunFailed(
                f"the verl run {why}, after step {max(metrics, default=None)}. Its last lines:\n{text[-4000:]}",
                text,
                metrics,
                timed_out,
            )
        return metrics


def _environment(modules: Sequence[str], records: Path, token: Path, more: Mapping[str, str]) -> dict[str, str]:
    paths = [str(_ROOT), str(_ROOT / "adapters"), str(_SUPPORT), os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "VERL_PLATFORM": "cpu",
        "VERL_USE_EXTERNAL_MODULES": ",".join(["verl_cpu.platform", "verl_cpu.hooks", *modules]),
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


def _end_session(process: subprocess.Popen[bytes]) -> None:
    """Kill every process of the session that a run was started as the leader of.

    Ray gives its processes groups of their own, but leaves them in the session.
    """
    deadline = time.monotonic() + 20
    while members := _session(process.pid):
        for pid in members:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        process.poll()
        if time.monotonic() > deadline:
            raise RuntimeError(f"processes {members} of a verl run do not end")
        time.sleep(0.05)
    process.wait()


def _session(leader: int) -> list[int]:
    members = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            # After the name: state, parent, group, session.
            if int(fields[3]) == leader and fields[0] not in "ZX":
                members.append(int(entry.name))
    return members
