"""A runner in a process tree of this machine: it is given a job and tells outcomes, and nothing of it outlives that."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import IO, Any

from sdpo_plugins.feedback.sandbox.runner.frames import pack
from sdpo_plugins.feedback.sandbox.types import Limits, SandboxError

__all__ = ["Died", "OutOfTime", "Tree", "talk"]

# Seconds to start in, on a machine that has much else to do; for the outcome of a test beyond its own limit; to end in,
# first by itself, then killed.
_START, _LATE, _GOODBYE, _END = 60.0, 10.0, 1.0, 10.0


class Died(Exception):
    """The runner is gone though it has not said that it would go."""


class OutOfTime(Exception):
    """There is no time left."""


@dataclass(frozen=True)
class Tree:
    """How a runner is started.

    Args:
        command: Program and arguments.
        environment: All of its environment.
        folder: Where it is started, or None.
        user: User and group it is started as; None: as this process.
    """

    command: Sequence[str]
    environment: Mapping[str, str]
    folder: str | None = None
    user: int | None = None


def talk(
    tree: Tree, job: Mapping[str, Any], inputs: Sequence[str], limits: Limits, deadline: float | None
) -> Iterator[dict[str, Any]]:
    """Start a tree, give it a job, and yield the outcomes; however this is left, the tree is dead afterwards.

    Args:
        tree: What to start.
        job: The first message.
        inputs: One message each.
        limits: Of each test.
        deadline: On the monotonic clock, for all of it; None: none.

    Raises:
        SandboxError: It does not start.
        Died: It ended without having said so.
        OutOfTime: The deadline is past.
    """
    identity: dict[str, Any] = {}
    if tree.user is not None:
        identity = {"user": tree.user, "group": tree.user, "extra_groups": []}
    try:
        process = subprocess.Popen(
            tree.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=dict(tree.environment),
            cwd=tree.folder,
            start_new_session=True,
            **identity,
        )
    except OSError as error:
        raise SandboxError(f"the sandbox cannot be started: {tree.command[0]}: {error}") from error
    patience = 0.0
    try:
        yield from _converse(process, job, inputs, limits, deadline)
        patience = _GOODBYE
    finally:
        _end(process, patience)


def _converse(
    process: subprocess.Popen[bytes],
    job: Mapping[str, Any],
    inputs: Sequence[str],
    limits: Limits,
    deadline: float | None,
) -> Iterator[dict[str, Any]]:
    assert process.stdin and process.stdout
    # Every byte may become six characters of JSON.
    stream = _Stream(process.stdin, process.stdout, 8 * limits.output_bytes + (1 << 16))
    messages = iter([job, *inputs])
    first = stream.receive(time.monotonic() + _START, messages)
    if first != {"ready": True}:
        process.kill()
        raise SandboxError(f"the sandbox does not start: {_complaint(process, first)}")
    for _ in inputs:
        late = time.monotonic() + limits.seconds + _LATE
        until = late if deadline is None else min(late, deadline)
        outcome = stream.receive(until, messages)
        if outcome is None and time.monotonic() >= until:
            raise OutOfTime
        if not isinstance(outcome, dict) or "kind" not in outcome:
            raise Died
        yield outcome
        if outcome["last"]:
            return


class _Stream:
    """Both pipes at once, so that neither side ever waits for the other."""

    def __init__(self, to: IO[bytes], back: IO[bytes], longest: int) -> None:
        self._to, self._back, self._longest = to, back, longest
        self._unsent = memoryview(b"")
        self._received = bytearray()
        self._selector = selectors.DefaultSelector()
        os.set_blocking(to.fileno(), False)
        os.set_blocking(back.fileno(), False)
        self._selector.register(to, selectors.EVENT_WRITE, self._send)
        self._selector.register(back, selectors.EVENT_READ, self._take)
        self._open = True

    def receive(self, deadline: float, messages: Iterator[Any]) -> Any:
        """Return the next message, sending others meanwhile; None: the pipe has ended, or it took too long."""
        while True:
            found, message = self._message()
            if found or not self._open:
                return message
            left = deadline - time.monotonic()
            if left <= 0:
                return None
            for key, _ in self._selector.select(left):
                act: Callable[[Iterator[Any]], None] = key.data
                act(messages)

    def _send(self, messages: Iterator[Any]) -> None:
        try:
            if not self._unsent:
                self._unsent = memoryview(pack(next(messages)))
            self._unsent = self._unsent[os.write(self._to.fileno(), self._unsent) :]
        except StopIteration:
            self._selector.unregister(self._to)
        except BlockingIOError:
            pass
        except OSError:  # it reads no more; what it has to say of that is in the other pipe
            self._selector.unregister(self._to)

    def _take(self, _: Iterator[Any]) -> None:
        data = os.read(self._back.fileno(), 1 << 18)
        self._received += data
        if not data or len(self._received) > self._longest:
            self._open = False
            self._selector.unregister(self._back)

    def _message(self) -> tuple[bool, Any]:
        head, line, rest = self._received.partition(b"\n")
        if not line or not head.isdigit() or len(rest) < int(head):
            return False, None
        body, self._received = rest[: int(head)], rest[int(head) :]
        return True, json.loads(body)


def _complaint(process: subprocess.Popen[bytes], first: Any) -> str:
    """What the processes wrote to standard error."""
    assert process.stderr
    os.set_blocking(process.stderr.fileno(), False)
    text = (process.stderr.read(1 << 16) or b"").decode("utf-8", "replace").strip()
    return text[-1000:] or f"it answered {first!r} within {_START:g} s"


def _end(process: subprocess.Popen[bytes], patience: float) -> None:
    """Kill what is left: the first process, and what it started; all others go with that, see `runner`.

    The first process reaps what it started unless it is killed before. Then that is left to the host's own first
    process, which in a container may be one that never reaps.
    """
    for pipe in (process.stdin, process.stdout, process.stderr):
        assert pipe
        pipe.close()
    try:
        process.wait(patience)
        return
    except subprocess.TimeoutExpired:
        for child in _children(process.pid):
            with suppress(ProcessLookupError, PermissionError):
                os.kill(child, signal.SIGKILL)
    try:
        process.wait(_GOODBYE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(_END)


def _children(process: int) -> list[int]:
    try:
        with open(f"/proc/{process}/task/{process}/children") as file:
            return [int(child) for child in file.read().split()]
    except OSError:  # it is gone, or this kernel does not tell
        return []
