"""Limits alone, for machines without bubblewrap: programs cannot use up the machine, but can read and write files."""

from __future__ import annotations

import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from sdpo_plugins.feedback.sandbox.bundle import compiled_bundle
from sdpo_plugins.feedback.sandbox.interpreter import FLAGS, environment, find_interpreter
from sdpo_plugins.feedback.sandbox.processes import Tree, talk
from sdpo_plugins.feedback.sandbox.runner.scratch import remove
from sdpo_plugins.feedback.sandbox.session import run_tests
from sdpo_plugins.feedback.sandbox.types import DEFAULT_LIMITS, Limits, Outcome, Program, SandboxError

__all__ = ["WARNING", "Rlimits", "open_rlimits"]

WARNING = (
    "isolation='rlimits' lets programs that a model wrote read and write every file that this user can, and read what "
    "this user's processes hold in memory and environment. It limits time, memory, output and file size, and on "
    "x86_64 and aarch64 it denies new processes, signals and sockets. Use isolation='bubblewrap' wherever there is one."
)

# How often it is tried to remove what programs wrote.
_ATTEMPTS = 40


class Rlimits:
    """Runs programs as this user, under limits; see `Sandbox`."""

    def __init__(self) -> None:
        self._tried_out = False

    def run(
        self, program: Program, inputs: Sequence[str], limits: Limits = DEFAULT_LIMITS, *, stop_after: int | None = None
    ) -> list[Outcome]:
        """See `Sandbox.run`."""
        # This user's processes are many and none of them the program's: no limit of their number could be right.
        job = {
            "limits": {**vars(limits), "tasks": None, "files": None},
            "ends_with": "parent",
            "own_scratch": False,
            "try_out": not self._tried_out,
            "user": None,
        }
        found = run_tests(self._launch, program, inputs, limits, stop_after, job)
        self._tried_out = True
        return found

    def _launch(
        self, job: Mapping[str, Any], inputs: Sequence[str], limits: Limits, deadline: float | None
    ) -> Iterator[Mapping[str, Any]]:
        folder = tempfile.mkdtemp(prefix="sdpo-sandbox-")
        try:
            command = [find_interpreter().program, *FLAGS, "-c", compiled_bundle()]
            yield from talk(Tree(command, environment(folder), folder), job, inputs, limits, deadline)
        finally:
            _remove(folder)


@cache
def open_rlimits() -> Rlimits:
    """Return the sandbox, tried out, with a warning of what it does not protect.

    Raises:
        SandboxError: It does not work here.
    """
    if sys.platform != "linux":
        raise SandboxError(f"isolation='rlimits' needs Linux, this is {sys.platform}; use 'sandbox_fusion'")
    sandbox = Rlimits()
    outcome = sandbox.run(Program("print(6 * 7)", "stdin"), [""], Limits(seconds=30.0))[0]
    if (outcome.kind, outcome.output) != ("ok", "42\n"):
        raise SandboxError(f"a program that prints 42 ended so under limits: {outcome}")
    warnings.warn(WARNING, stacklevel=3)
    return sandbox


def _remove(folder: str) -> None:
    for _ in range(_ATTEMPTS):
        try:
            remove(folder)
            return
        except OSError:  # a process that has just been killed was still writing there
            time.sleep(0.05)
    remove(folder)
