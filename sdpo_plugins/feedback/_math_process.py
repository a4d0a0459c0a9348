"""Processes that compare answers with math-verify, each comparison within a time limit that holds.

math-verify's own limit works in the main thread alone, and not while sympy is inside of C code. Here a comparison runs
in a process that is started once, reused, and ended when it takes too long. A plain child and not one of
`multiprocessing`: those may not be started by a pool's workers, and import the user's `__main__` again.
"""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sdpo_plugins.errors import SDPOError

__all__ = ["close_processes", "same_in_process"]

_CHILD = Path(__file__).with_name("_math_child.py")
# Importing sympy on a machine that is busy.
_START_SECONDS = 120.0
# The process ends itself at its limit, which is one of processor time; so many times as much by the clock, on a machine
# that is busy, and it is ended from here.
_BUSY = 4


def same_in_process(truth: str, answer: str, seconds: float) -> bool | None:
    r"""Return whether math-verify finds an answer to be equal to the truth; None if that took too long.

    Safe in threads, in workers of a pool and after a fork.

    Args:
        truth: LaTeX.
        answer: A text that holds LaTeX in a box, or an expression.
        seconds: The limit of this comparison, in time of the processor; by the clock, it is four times as much.

    Raises:
        SDPOError: math-verify does not work in the process.

    Example:
        >>> same_in_process(r"\frac{1}{2}", r"\boxed{0.5}", 10.0)
        True
    """
    with _processes.one() as process:
        found = process.ask({"truth": truth, "answer": answer, "seconds": seconds}, _BUSY * seconds)
    return None if found is None else bool(found["equal"])


def close_processes() -> None:
    """End the processes that wait for work; the next comparison starts one again."""
    _processes.close()


class _Process:
    """One child with its pipes. They have no buffers: after a fork, nothing is written twice."""

    def __init__(self) -> None:
        self._popen = subprocess.Popen(
            [sys.executable, "-P", str(_CHILD)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
        )
        started = self.ask(sys.path, _START_SECONDS)
        if started is None or "error" in started:
            self.close()
            problem = started["error"] if started else f"its process ended, with code {self._popen.returncode}"
            raise SDPOError(
                f"the scorer 'math' cannot use math-verify: {problem}. Install it with "
                "`pip install 'sdpo-plugins[math]'`, and see that `python -c 'import math_verify'` works."
            )

    @property
    def alive(self) -> bool:
        return self._popen.poll() is None

    def ask(self, message: Any, seconds: float) -> dict[str, Any] | None:
        """Return the answer; None, and the process is gone, if there was none in time."""
        assert self._popen.stdin is not None and self._popen.stdout is not None
        timer = threading.Timer(seconds, self._popen.kill)
        timer.daemon = True
        timer.start()
        line = b""
        try:
            data = memoryview(json.dumps(message).encode() + b"\n")
            while data:
                data = data[self._popen.stdin.write(data) :]
            line = self._popen.stdout.readline()
        except BrokenPipeError:
            pass  # it is gone, which is said below
        finally:
            timer.cancel()
            if not line.endswith(b"\n"):
                self.close()
        return json.loads(line) if line.endswith(b"\n") else None

    def close(self) -> None:
        self._popen.kill()
        self._popen.wait()
        self.forget()

    def forget(self) -> None:
        """Close our ends of the pipes; in a forked process, whose child this is not, that is all that can be done."""
        for pipe in (self._popen.stdin, self._popen.stdout):
            if pipe is not None:
                pipe.close()
        self._popen.returncode = self._popen.returncode or 0


class _Processes:
    """As many processes as are needed at once, up to the number of processors."""

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self._idle: list[_Process] = []
        self._all: set[_Process] = set()
        self._lock = threading.Lock()
        self._free = threading.BoundedSemaphore(max(1, os.cpu_count() or 1))

    @contextmanager
    def one(self) -> Iterator[_Process]:
        with self._free:
            process = self._take()
            try:
                yield process
            finally:
                with self._lock:
                    if process.alive:
                        self._idle.append(process)
                    else:
                        self._all.discard(process)

    def _take(self) -> _Process:
        while True:
            with self._lock:
                process = self._idle.pop() if self._idle else None
            if process is None:
                process = _Process()
                with self._lock:
                    self._all.add(process)
                return process
            if process.alive:
                return process
            with self._lock:
                self._all.discard(process)

    def close(self) -> None:
        with self._lock:
            idle, self._idle = self._idle, []
            self._all.difference_update(idle)
        for process in idle:
            process.close()

    def after_fork(self) -> None:
        # The parent's children answer the parent: two that ask the same one would read each other's answers.
        for process in self._all:
            process.forget()
        self._reset()


_processes = _Processes()
atexit.register(close_processes)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_processes.after_fork)
