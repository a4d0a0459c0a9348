"""What a sandbox is given and what it answers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

from sdpo_plugins.errors import ConfigError, SDPOError

__all__ = ["DEFAULT_LIMITS", "Isolation", "Kind", "Limits", "Mode", "Outcome", "Program", "Sandbox", "SandboxError"]

Isolation = Literal["bubblewrap", "rlimits", "sandbox_fusion"]
Mode = Literal["stdin", "functional", "code"]
Kind = Literal["ok", "error", "timeout", "memory", "output", "not run"]


class SandboxError(SDPOError):
    """The sandbox itself failed, so that the program is neither right nor wrong; the message says what to do."""


@dataclass(frozen=True)
class Program:
    """A program that a model wrote, and how it is to be run.

    Args:
        code: Its source.
        mode: What an input is and what the output is.

            - "stdin": the program runs as `__main__` for each test; the input is its standard input, the output is
              what it wrote to its standard output.
            - "functional": `function` is called once for each test; every line of the input that is not blank is one
              argument, as JSON; the output is its result as JSON. What the program prints is dropped.
            - "code": the input is trusted Python code that uses the names which the program defines, such as
              `assert f(2) == 4`. It runs in a process of its own, and the outcome is "ok" if it came to its end.
        function: Name of the function, or of a method of a class `Solution`. Needed by "functional"; in "code" only
            for a function that has the name of a builtin.

    Raises:
        ConfigError: An unknown mode, or a functional program without the name of its function.

    Example:
        >>> Program("def double(x):\\n    return 2 * x", "functional", "double").mode
        'functional'
    """

    code: str
    mode: Mode
    function: str | None = None

    def __post_init__(self) -> None:
        if self.mode not in get_args(Mode):
            raise ConfigError(f"a program's mode is one of {', '.join(get_args(Mode))}; got {self.mode!r}")
        if self.mode == "functional" and not self.function:
            raise ConfigError(f"a functional program needs the name of its function; got {self.function!r}")


@dataclass(frozen=True)
class Limits:
    """What a program may use.

    Args:
        seconds: Wall time of one test.
        memory_mb: Address space of its process, in MiB.
        output_bytes: What it may write to its standard output, or return, in one test.
        file_mb: What its private /tmp holds, in MiB.
        total_seconds: Wall time of all tests of a program; None: no limit but that of each test.

    Raises:
        ConfigError: One of them is not above 0.

    Example:
        >>> Limits(seconds=4.0).memory_mb
        1024
    """

    seconds: float = 1.0
    memory_mb: int = 1024
    output_bytes: int = 1 << 20
    file_mb: int = 16
    total_seconds: float | None = None

    def __post_init__(self) -> None:
        problems = [
            f"`{name}` must be a number above 0, got {value!r}."
            for name, value in vars(self).items()
            if not (name == "total_seconds" and value is None)
            and not (isinstance(value, (int, float)) and math.isfinite(value) and value > 0)
        ]
        if problems:
            raise ConfigError(problems)


DEFAULT_LIMITS = Limits()


@dataclass(frozen=True)
class Outcome:
    """What became of one test. Whether an output is right is for the caller to say: the sandbox does not know.

    Args:
        kind: "ok": it ran to its end. "error": it raised or was ended by a signal; "timeout", "memory", "output": it
            went beyond that limit. "not run": an earlier test used up the total time, or `stop_after` was reached.
        output: See `Program.mode`; of a test that is not "ok", the beginning of what it wrote.
        report: For people and models: the error and where in the program it arose; empty if "ok".
        seconds: Wall time.
    """

    kind: Kind
    output: str = ""
    report: str = ""
    seconds: float = 0.0


class Sandbox(Protocol):
    """Runs programs that nobody has read. Its methods may be called from several threads at once."""

    def run(
        self, program: Program, inputs: Sequence[str], limits: Limits = DEFAULT_LIMITS, *, stop_after: int | None = None
    ) -> list[Outcome]:
        """Run a program on each input.

        Args:
            program: What to run.
            inputs: One text for each test; see `Program.mode`.
            limits: What each test may use.
            stop_after: Run no more tests once so many were not "ok"; None: run them all.

        Returns:
            One outcome for each input, in order.

        Raises:
            SandboxError: The sandbox failed. Never because of what the program does.
        """
        ...
