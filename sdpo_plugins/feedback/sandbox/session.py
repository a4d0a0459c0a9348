"""A program's tests, from the first to the last, through as many runners as it takes."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from sdpo_plugins.errors import ConfigError, DataError
from sdpo_plugins.feedback.sandbox.processes import Died, OutOfTime
from sdpo_plugins.feedback.sandbox.types import Limits, Outcome, Program

__all__ = ["Launch", "run_tests"]

# Give a runner a job and inputs, and yield its outcomes; see `processes.talk` for what it may raise.
Launch = Callable[[Mapping[str, Any], Sequence[str], Limits, "float | None"], Iterator[Mapping[str, Any]]]

_KILLED = "The program's processes were killed from outside or by it."


def run_tests(
    launch: Launch,
    program: Program,
    inputs: Sequence[str],
    limits: Limits,
    stop_after: int | None,
    job: Mapping[str, Any],
) -> list[Outcome]:
    """Run a program on each input.

    A runner goes when a test has left something behind, and the next one has the tests that remain. One that dies gets
    a second chance, because that may be the machine's doing; a program that kills two has failed the test.

    Args:
        launch: Starts a runner.
        program: See `Sandbox.run`, as for the next three.
        inputs: One text for each test.
        limits: Of each test.
        stop_after: Failures after which no more tests are run.
        job: What the runner is told besides.

    Returns:
        One outcome for each input.
    """
    _check(program, inputs, stop_after)
    deadline = None if limits.total_seconds is None else time.monotonic() + limits.total_seconds
    outcomes: list[Outcome] = []
    died_at = -1
    while len(outcomes) < len(inputs):
        failures = sum(outcome.kind != "ok" for outcome in outcomes)
        if stop_after is not None and failures >= stop_after:
            break
        rest = inputs[len(outcomes) :]
        message = {
            **job,
            "code": program.code,
            "mode": program.mode,
            "function": program.function,
            "tests": len(rest),
            "stop_after": None if stop_after is None else stop_after - failures,
        }
        try:
            for told in launch(message, rest, limits, deadline):
                outcomes.append(_outcome(told))
        except OutOfTime:
            outcomes.append(Outcome("timeout"))
            if deadline is not None and time.monotonic() >= deadline:
                break
        except Died:
            if died_at == len(outcomes):
                outcomes.append(Outcome("error", report=_KILLED))
            died_at = len(outcomes)
    return outcomes + [Outcome("not run")] * (len(inputs) - len(outcomes))


def _outcome(told: Mapping[str, Any]) -> Outcome:
    return Outcome(told["kind"], str(told["output"]), str(told["report"]), float(told["seconds"]))


def _check(program: Program, inputs: Sequence[str], stop_after: int | None) -> None:
    if stop_after is not None and stop_after < 1:
        raise ConfigError(f"`stop_after` must be a number of failures, at least 1, or None; got {stop_after!r}")
    for number, text in enumerate(inputs):
        if not isinstance(text, str):
            raise DataError(f"the input of test {number + 1} must be a text, got {type(text).__name__}: {text!r:.100}")
        if program.mode != "functional":
            continue
        for line in text.split("\n"):
            try:
                if line.strip():
                    json.loads(line)
            except ValueError as error:
                raise DataError(
                    f"the input of test {number + 1} has a line that is no JSON: {line[:100]!r}: {error}. Each line "
                    "of a functional test is one argument."
                ) from error
