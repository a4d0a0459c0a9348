"""Nothing that was started is left: looked for in the table of processes."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_SECONDS = 10


@contextmanager
def descendants_gone() -> Iterator[None]:
    """Fail if a process begun within is alive some seconds later, whoever its parent is by then."""
    # Whatever loses its parent becomes a child of this process, and can be seen there.
    become_reaper = 36
    assert ctypes.CDLL(None).prctl(become_reaper, 1, 0, 0, 0) == 0
    before = _descendants()
    try:
        yield
        deadline = time.monotonic() + _SECONDS
        while left := _descendants() - before:
            assert time.monotonic() < deadline, {process: _shown(process) for process in left}
            time.sleep(0.01)
    finally:
        ctypes.CDLL(None).prctl(become_reaper, 0, 0, 0, 0)


@contextmanager
def nothing_to_reap() -> Iterator[None]:
    """Fail if a process begun within has lost its parent: alive or not, somebody else has to see to it."""
    become_reaper = 36
    assert ctypes.CDLL(None).prctl(become_reaper, 1, 0, 0, 0) == 0
    before = _children()
    try:
        yield
        time.sleep(0.2)  # what is about to end
        left = _children() - before
        assert not left, {process: _shown(process) for process in left}
    finally:
        for process in _children() - before:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
            with suppress(ChildProcessError):
                os.waitpid(process, 0)
        ctypes.CDLL(None).prctl(become_reaper, 0, 0, 0, 0)


def _children() -> set[int]:
    found = set()
    for task in os.listdir("/proc/self/task"):
        with suppress(OSError), open(f"/proc/self/task/{task}/children") as file:
            found |= {int(child) for child in file.read().split()}
    return found


def _descendants() -> set[int]:
    parents = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/stat") as file:
                state, parent = file.read().rpartition(")")[2].split()[:2]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if state == "Z" and int(parent) == os.getpid():
            _reap(int(name))
        elif state != "Z":
            parents[int(name)] = int(parent)
    found: set[int] = set()
    generation = {os.getpid()}
    while generation:
        generation = {process for process, parent in parents.items() if parent in generation} - found
        found |= generation
    return found


def _reap(process: int) -> None:
    # Children of `subprocess` are its own to wait for, and it has before this is called; these are adopted ones.
    with suppress(ChildProcessError):
        os.waitpid(process, os.WNOHANG)


def _shown(process: int) -> str:
    try:
        with open(f"/proc/{process}/cmdline", "rb") as file:
            return file.read(300).decode("utf-8", "replace")
    except OSError as error:
        return repr(error)
