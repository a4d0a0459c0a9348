"""Programs that start many processes, with an end in any case: the session of a process, as Linux keeps it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["RunFailed", "end_session", "interrupted_when_terminated", "members_of"]


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


@contextlib.contextmanager
def interrupted_when_terminated() -> Iterator[None]:
    """Take the polite request to end like Ctrl-C, so that no process of Ray stays behind."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def end_session(process: subprocess.Popen[bytes]) -> None:
    """Kill every process of the session that a run was started as the leader of.

    Ray gives its processes groups of their own, but leaves them in the session.

    Args:
        process: Started with `start_new_session=True`.

    Raises:
        RuntimeError: A process does not end within 20 s.
    """
    deadline = time.monotonic() + 20
    while members := members_of(process.pid):
        for pid in members:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        process.poll()
        if time.monotonic() > deadline:
            raise RuntimeError(f"processes {members} of a run do not end")
        time.sleep(0.05)
    process.wait()


def members_of(leader: int) -> list[int]:
    """Return the ids of a session's processes that still run.

    Args:
        leader: Id of the process that began the session.
    """
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
