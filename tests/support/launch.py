"""Run one function in several processes, as `torchrun` would: gloo over the loopback, on the CPU, with a time limit.

The processes are forked from a server that has imported the heavy libraries once, so that a job costs no imports.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

__all__ = ["RanksFailed", "run_ranks"]

PRELOADED = ("sdpo_trl", "tiny_trl")
_GRACE_S = 5.0


class RanksFailed(AssertionError):
    """A rank raised, died, or the time limit was reached: a deadlock, for example. Holds what every rank printed."""


def run_ranks(
    job: str,
    world: int = 2,
    *,
    options: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] | None = None,
    time_limit: float = 120.0,
) -> list[Any]:
    """Call a function in `world` processes and return what each of them returned.

    Args:
        job: "module:function"; it is called with `options` as keywords in every process.
        world: Number of processes.
        options: Keywords, must be picklable.
        environment: Further environment variables.
        time_limit: Seconds after which everything is killed.

    Returns:
        One result for each rank; anything that `torch.save` can write.

    Raises:
        RanksFailed: A rank failed or time ran out. No process is left behind.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        port = _free_port()
        processes = []
        # The server looks for what it preloads along PYTHONPATH; it starts with the first job.
        path, os.environ["PYTHONPATH"] = os.environ.get("PYTHONPATH"), os.pathsep.join(filter(None, sys.path))
        threads, os.environ["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS"), "1"
        try:
            for rank in range(world):
                variables = {**_rank_environment(rank, world, port), **(environment or {})}
                arguments = (job, dict(options or {}), variables, str(folder / str(rank)))
                process = context.Process(target=_rank, args=arguments, daemon=True)
                process.start()
                processes.append(process)
            problem = _wait(processes, time_limit)
        finally:
            for process in processes:
                _kill(process)
            _restore("PYTHONPATH", path)
            _restore("OMP_NUM_THREADS", threads)
        if problem:
            raise RanksFailed(f"{job}: {problem}\n{_printed(folder, world)}")
        return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(world)]


def _rank_environment(rank: int, world: int, port: int) -> dict[str, str]:
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "GLOO_SOCKET_IFNAME": "lo",
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _rank(job: str, options: dict[str, Any], variables: dict[str, str], stem: str) -> None:
    os.setsid()
    os.environ.update(variables)
    printed = os.open(stem + ".txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(printed, 1)
    os.dup2(printed, 2)
    torch.set_num_threads(1)
    try:
        module, function = job.split(":")
        result = getattr(importlib.import_module(module), function)(**options)
        torch.save(result, stem + ".pt")
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        # Threads of a process group that waits for the others must not keep this process alive.
        os._exit(1)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _wait(processes: list[Any], time_limit: float) -> str | None:
    end = time.monotonic() + time_limit
    failed_since = None
    while any(process.exitcode is None for process in processes):
        now = time.monotonic()
        failed = [process.exitcode for process in processes if process.exitcode not in (None, 0)]
        failed_since = failed_since or (now if failed else None)
        if failed_since is not None and now > failed_since + _GRACE_S:
            break
        if now > end:
            waiting = [rank for rank, process in enumerate(processes) if process.exitcode is None]
            return f"rank(s) {waiting} did not finish within {time_limit:.0f} s"
        time.sleep(0.02)
    codes = [process.exitcode for process in processes]
    return None if codes == [0] * len(codes) else f"exit codes {codes}"


def _kill(process: Any) -> None:
    if process.pid is not None and process.exitcode is None:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            process.kill()
    process.join(10)


def _printed(folder: Path, world: int) -> str:
    parts = []
    for rank in range(world):
        path = folder / f"{rank}.txt"
        text = path.read_text(errors="replace")[-4000:] if path.exists() else "(nothing)"
        parts.append(f"--- rank {rank} printed ---\n{text}")
    return "\n".join(parts)


def _restore(name: str, value: str | None) -> None:
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value
