"""Worker processes that start from a fresh interpreter, know nothing of the main program, and die with it.

A plain `fork` would copy threads' locks and a CUDA context that is of no use in the copy; multiprocessing's `spawn`
would import the main program again, and most training scripts have no `if __name__ == "__main__"` to stop that.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import multiprocessing.context
import multiprocessing.process
import multiprocessing.spawn
import os
import signal
import sys
import threading
import time
import types
import weakref
from collections.abc import Callable
from typing import Any

__all__ = ["WorkerContext", "die_with"]

_MAIN_KEYS = ("init_main_from_name", "init_main_from_path")
_PR_SET_PDEATHSIG = 1


def _preparation_without_main(name: str) -> dict[str, Any]:
    data: dict[str, Any] = multiprocessing.spawn.get_preparation_data(name)
    return {key: value for key, value in data.items() if key not in _MAIN_KEYS}


if sys.platform == "win32":
    _Process: Any = multiprocessing.get_context("spawn").Process
else:
    from multiprocessing import popen_spawn_posix

    # Python's own `_launch`, with another answer to the one question of what to tell the child about the main program.
    # A changed `multiprocessing.spawn` would change it for everyone in this process.
    _WITHOUT_MAIN = types.SimpleNamespace(
        get_preparation_data=_preparation_without_main,
        get_command_line=multiprocessing.spawn.get_command_line,
        get_executable=multiprocessing.spawn.get_executable,
    )

    class _Popen(popen_spawn_posix.Popen):
        _launch: Any = types.FunctionType(
            popen_spawn_posix.Popen._launch.__code__,  # type: ignore[attr-defined]
            {**vars(popen_spawn_posix), "spawn": _WITHOUT_MAIN},
        )

    class _Process(multiprocessing.context.SpawnProcess):
        """A spawned process that only its pool looks after: neither multiprocessing nor Pebble ends it at exit."""

        @staticmethod
        def _Popen(process: Any) -> Any:
            return _Popen(process)

        def start(self) -> None:
            context = _CONTEXTS[self]
            with context.starting:
                if context.closed:
                    raise OSError("the pool is closed")
                super().start()
            # A forked child of this process would otherwise take the workers for its own when it ends, and wait for
            # them or end them.
            multiprocessing.process._children.discard(self)  # type: ignore[attr-defined]

        def terminate(self) -> None:
            """End it at once, with what its scorer started: nothing that it could still do is wanted.

            Asking first would take seconds with code that never returns to the interpreter, and Pebble waits for them.
            """
            if self.pid is None or self.exitcode is not None:
                return
            try:
                os.killpg(self.pid, signal.SIGKILL)
            except OSError:  # it has no group of its own yet
                self.kill()


class WorkerContext(multiprocessing.context.SpawnContext):
    """A context of multiprocessing whose processes do not import the main program; it keeps those that it started."""

    def __init__(self) -> None:
        super().__init__()
        self.started: list[Any] = []
        self.starting = threading.Lock()
        self.closed = False

    def close(self) -> None:
        """End all processes at once, and start no more: one that is half started would complain of its parent's end."""
        with self.starting:
            self.closed = True
        for process in self.started:
            if process.pid is not None:
                process.terminate()

    def Process(self, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        """Return a process that has not started yet."""
        self.started = [process for process in self.started if process.exitcode is None or process.pid is None]
        process = _Process(*args, **kwargs)
        _CONTEXTS[process] = self
        self.started = [*self.started, process]
        return process


# Not in the process object, which is pickled.
_CONTEXTS: weakref.WeakKeyDictionary[Any, WorkerContext] = weakref.WeakKeyDictionary()


def die_with(parent: int) -> None:
    """End this process, whatever it is doing, when the process that started it is gone.

    On Linux by the kernel, so that code which never returns to the interpreter ends too. There the *thread* that
    started this process counts, so it must live as long as the pool. Elsewhere a thread looks once a second.

    Args:
        parent: Id of the process that started this one.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # it ended before the kernel was asked
            os._exit(1)
        return

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    _daemon(watch)


def _daemon(target: Callable[[], None]) -> None:
    threading.Thread(target=target, daemon=True, name="sdpo-parent-watch").start()
