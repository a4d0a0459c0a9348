"""Watching a process that is not trusted: what it writes, up to a limit, until it ends or its time is up."""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable, Iterable, Mapping

from sdpo_plugins.feedback.sandbox.runner.frames import Closed

__all__ = ["Watched", "kill", "watch"]

# Seconds between two looks at a process that writes nothing, and at one that has closed its files.
_LOOK, _CLOSED_LOOK = 0.05, 0.001


class Watched:
    """What became of a process.

    Args:
        pipes: What it could write to.
    """

    def __init__(self, pipes: Iterable[int]) -> None:
        self.written = {pipe: bytearray() for pipe in pipes}
        self.status = 0  # as `os.waitpid` gives it
        self.ended = ""  # or why it was killed: "timeout", "output" or "files"


def watch(
    process: int,
    pipes: Mapping[int, int],
    deadline: float,
    owner: int | None = None,
    too_much: Callable[[], bool] | None = None,
) -> Watched:
    """Read the pipes until the process has ended; it has when this returns.

    Args:
        process: Id of a child.
        pipes: Reading ends, which are closed here, and the bytes that may come out of each.
        deadline: On the monotonic clock.
        owner: Reading end of a pipe; when nobody can write to it any more, nobody wants to know what becomes of the
            process.
        too_much: Looked at now and then: whether it has taken too much of something that the kernel does not limit.

    Raises:
        Closed: The owner is gone, and the process killed.
    """
    found = Watched(pipes)
    poll = select.poll()
    for pipe in pipes:
        os.set_blocking(pipe, False)
        poll.register(pipe, select.POLLIN)
    if owner is not None:
        poll.register(owner, 0)  # its end is told, what it has to read is not
    unread = set(pipes)
    try:
        while not found.ended:
            left = deadline - time.monotonic()
            if left <= 0:
                found.ended = "timeout"
                break
            if too_much is not None and too_much():
                found.ended = "files"
                break
            ready = poll.poll(1000 * min(left, _LOOK if unread else _CLOSED_LOOK))
            for pipe, _ in ready:
                if pipe == owner:
                    kill(process)
                    raise Closed("nobody is there to be told")
                _read(pipe, pipes[pipe], found, unread, poll)
            if ready and unread:
                continue
            ended, status = os.waitpid(process, os.WNOHANG)
            if ended:
                found.status = status
                # What it wrote last may still lie in the pipes.
                for pipe in list(unread):
                    while pipe in unread and not found.ended and _read(pipe, pipes[pipe], found, unread, poll):
                        pass
                return found
        found.status = kill(process)
        return found
    finally:
        for pipe in pipes:
            os.close(pipe)


def kill(process: int) -> int:
    """Kill a child and its session, wait for its end, and return its status."""
    for target in (process, -process):
        try:
            os.kill(target, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            continue
    return os.waitpid(process, 0)[1]


def _read(pipe: int, limit: int, found: Watched, unread: set[int], poll: select.poll) -> bool:
    """Read once; False if nothing was there."""
    try:
        data = os.read(pipe, 1 << 16)
    except BlockingIOError:
        return False
    if not data:
        poll.unregister(pipe)
        unread.discard(pipe)
        return False
    found.written[pipe] += data
    if len(found.written[pipe]) > limit:
        del found.written[pipe][limit:]
        found.ended = "output"
    return True
