"""One figure, one process: CPU time and the peak of memory above what was held before."""

from __future__ import annotations

import gc
import importlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

__all__ = ["Cost", "in_fresh_process", "measured", "medians", "with_cost"]

_MARK = "RESULT "
_ROOT = Path(__file__).parents[1]
_STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class Cost:
    """What a piece of work took.

    Args:
        cpu_seconds: CPU time of all threads of the process.
        wall_seconds: Time on the clock.
        peak_mb: Largest memory above what was held before, in MiB; on a GPU its memory, else that of the process.
            None where the system does not tell.
    """

    cpu_seconds: float
    wall_seconds: float
    peak_mb: float | None


def measured(work: Callable[[], Any], device: torch.device | None = None) -> tuple[Any, Cost]:
    """Run `work` and return what it gives, with its cost.

    Example:
        >>> result, cost = measured(lambda: 3)
        >>> result, cost.wall_seconds < 1.0
        (3, True)
    """
    gc.collect()
    on_gpu = device is not None and device.type == "cuda"
    if on_gpu:
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        held: float | None = float(torch.cuda.memory_allocated(device))
    else:
        held = _start_peak()
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    if on_gpu:
        torch.cuda.synchronize(device)
    cost = (time.process_time() - cpu, time.perf_counter() - wall)
    peak = float(torch.cuda.max_memory_allocated(device)) if on_gpu else _status("VmHWM")
    return result, Cost(*cost, None if peak is None or held is None else (peak - held) / (1 << 20))


def in_fresh_process(suite: str, function: str, **arguments: Any) -> dict[str, Any]:
    """Call `benchmarks.<suite>.<function>(**arguments)` in a process of its own and return the mapping it gives.

    Raises:
        RuntimeError: The process failed; the message ends with what it wrote last.
    """
    environment: Mapping[str, str] = {
        **os.environ,
        # Large blocks go back to the system when they are freed, so that the peak is what was really held at once.
        "MALLOC_MMAP_THRESHOLD_": str(1 << 20),
        "MALLOC_TRIM_THRESHOLD_": str(1 << 20),
        # Threads that wait for each other sleep: spinning would count a busy machine's neighbours as our CPU time.
        "OMP_WAIT_POLICY": "PASSIVE",
        "HF_HUB_OFFLINE": "1",
        "TRL_EXPERIMENTAL_SILENCE": "1",
        "PYTHONWARNINGS": "ignore",
        "PYTHONPATH": os.pathsep.join(
            [str(_ROOT), str(_ROOT / "adapters"), *filter(None, [os.environ.get("PYTHONPATH")])]
        ),
    }
    command = [sys.executable, "-m", "benchmarks.process", suite, function, json.dumps(arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=_ROOT, check=False)
    for line in done.stdout.splitlines():
        if line.startswith(_MARK):
            found: dict[str, Any] = json.loads(line.removeprefix(_MARK))
            return found
    last = "\n".join(done.stderr.splitlines()[-8:])
    raise RuntimeError(f"{suite}.{function}({arguments}) ended with status {done.returncode}:\n{last}")


def with_cost(values: Mapping[str, Any], cost: Cost) -> dict[str, Any]:
    """Return the values and the cost as one mapping that fits into JSON."""
    return {**values, **asdict(cost)}


def medians(values: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the median of each figure over repeats; what is no number is taken from the first.

    Example:
        >>> medians([{"s": 1.0, "who": "a"}, {"s": 5.0, "who": "a"}, {"s": 2.0, "who": "a"}])
        {'s': 2.0, 'who': 'a'}
    """
    found: dict[str, Any] = {}
    for name, first in values[0].items() if values else ():
        numbers = [one[name] for one in values]
        found[name] = statistics.median(numbers) if isinstance(first, (int, float)) else first
    return found


def _start_peak() -> float | None:
    clear = Path("/proc/self/clear_refs")
    if not clear.exists():
        return None
    try:
        clear.write_text("5")
    except OSError:
        return None
    return _status("VmRSS")


def _status(name: str) -> float | None:
    if not _STATUS.exists():
        return None
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{name}:"):
            return float(line.split()[1]) * 1024
    return None


def _main(suite: str, function: str, arguments: str) -> None:
    call = getattr(importlib.import_module(f"benchmarks.{suite}"), function)
    print(_MARK + json.dumps(call(**json.loads(arguments))), flush=True)


if __name__ == "__main__":
    _main(*sys.argv[1:])
