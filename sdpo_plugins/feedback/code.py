"""The scorer `code`: 1 if a program passes every test, and feedback in the authors' form on what it fails.

Programs run in the sandbox and nowhere else; right outputs never go there, and are compared outside.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from sdpo_plugins._options import option
from sdpo_plugins.errors import ConfigError
from sdpo_plugins.feedback.blocks import find_blocks
from sdpo_plugins.feedback.cases import CodeTests, judge, read_tests
from sdpo_plugins.feedback.rows import truth_in, was_truncated
from sdpo_plugins.feedback.texts import TRUNCATED, WRONG_CODE_FORMAT, Case, Show, cases_text
from sdpo_plugins.types import Score

if TYPE_CHECKING:
    from sdpo_plugins.config import SDPOConfig
    from sdpo_plugins.feedback.sandbox import Limits, Outcome, Sandbox

__all__ = ["CodeOptions", "build_code", "program_in", "score_code"]

# With `stop_after`, so many tests run before the first look at the answers; then twice as many, and so on, up to the
# number whose outputs may be held at once.
_FIRST_TESTS, _MOST_TESTS = 4, 64
# A right output takes at most so much more room than the expected one is written in: blanks, and \u escapes in JSON.
_ROOM = 4
_FUTURE = re.compile(r"^from __future__ import .*", re.MULTILINE)


@dataclass(frozen=True)
class CodeOptions:
    """Options of the scorer `code`."""

    truth_field: str = option("ground_truth", "Field of the row that holds the tests.")
    isolation: str = option(
        "bubblewrap",
        "How programs are kept from the machine; `rlimits` alone does not keep them from files and the network.",
        choices=("bubblewrap", "rlimits", "sandbox_fusion"),
    )
    sandbox_url: str | None = option(
        None, "Address of a SandboxFusion server with `/run_code`, for `isolation: sandbox_fusion`."
    )
    max_concurrent: int | None = option(
        None,
        "Requests to a SandboxFusion server under way at once, of each process that scores; null: the sandbox's.",
        low=1,
    )
    attempts: int | None = option(
        None, "How often a request to the SandboxFusion server is made; null: as the sandbox does.", low=1
    )
    time_limit: float | None = option(
        None,
        "Seconds for one test, whatever the row says; null: the row's `time_limit`, or 1 if it has none.",
        low=0,
        exclusive=True,
    )
    total_seconds: float | None = option(
        None, "Seconds for all tests of a program; the rest is not run and counts as failed.", low=0, exclusive=True
    )
    memory_mb: int | None = option(None, "Memory of a program in MiB; null: the sandbox's, 1024.", low=16)
    block: str = option("longest", "Which code block of a response is the program.", choices=("longest", "last"))
    max_tests: int | None = option(None, "Only the first tests of a row are run; null: all.", low=1)
    stop_after: int | None = option(
        None, "No further tests are run after so many failures, and count as failed; null: all are run.", low=1
    )
    float_tolerance: float = option(
        0.0,
        "Numbers count as equal if they differ by no more, absolutely or relatively; 0: exact texts and types.",
        low=0,
    )
    reveal_hidden: bool = option(False, "Show tests that the row marks as hidden; otherwise they are only counted.")
    reveal_expected: bool = option(
        True, "Show the right output of a failed test; for test type `code`, the test itself."
    )
    source_lines: bool = option(
        False, "Show the program's own line at each place of an error; the teacher does not see the program otherwise."
    )
    max_cases: int = option(2, "Wrong answers shown at most.", low=1)
    max_chars: int = option(2000, "Characters of the whole feedback at most.", low=100)
    max_field_chars: int = option(
        250, "Characters shown of an input's line, of an output and of a right output at most.", low=10
    )

    def __post_init__(self) -> None:
        if (self.isolation == "sandbox_fusion") != (self.sandbox_url is not None):
            raise ConfigError(
                f"`isolation: sandbox_fusion` and `sandbox_url` belong together; got isolation {self.isolation!r} and "
                f"sandbox_url {self.sandbox_url!r}. Give the server's address, such as http://localhost:8080/run_code, "
                "or leave both out."
            )
        given = [name for name in ("max_concurrent", "attempts") if getattr(self, name) is not None]
        if given and self.isolation != "sandbox_fusion":
            raise ConfigError(
                f"{' and '.join(f'`{name}`' for name in given)} only count with `isolation: sandbox_fusion`; "
                f"got isolation {self.isolation!r}."
            )


def build_code(config: SDPOConfig, options: CodeOptions) -> Callable[[str, Mapping[str, Any]], Score]:
    """Return score(response, sample) → `Score`, with a sandbox opened for it.

    Args:
        config: Not needed.
        options: Of the scorer.

    Raises:
        SandboxError: There is no sandbox of the kind asked for on this machine.
    """
    from sdpo_plugins.feedback.sandbox import open_sandbox

    isolation: Any = options.isolation
    sandbox = open_sandbox(
        isolation, url=options.sandbox_url, max_concurrent=options.max_concurrent, attempts=options.attempts
    )

    def score(response: str, sample: Mapping[str, Any]) -> Score:
        return score_code(response, sample, options, sandbox)

    return score


def score_code(response: str, sample: Mapping[str, Any], options: CodeOptions, sandbox: Sandbox) -> Score:
    """Score one response.

    Args:
        response: What the model wrote.
        sample: The row, with tests as for `read_tests`.
        options: Of the scorer.
        sandbox: Runs the program.

    Returns:
        Reward 1 only if every test passes. Details: `acc` (the reward), `passed_fraction` of the tests, and
        `incorrect_format`, `error_in_test_cases`, `timed_out`, `truncated`, each 0 or 1.

    Raises:
        DataError: The row's tests cannot be used.
        SandboxError: The sandbox failed; the program is neither right nor wrong.
    """
    tests = read_tests(truth_in(sample, options.truth_field, "code")).first(options.max_tests)
    code, unfinished = program_in(response, options.block)
    truncated = was_truncated(sample)
    if code is None:
        # A block that was begun and not ended: not every host says that an answer was cut off.
        truncated = truncated or unfinished
        return _score([], TRUNCATED if truncated else WRONG_CODE_FORMAT, wrong_format=True, truncated=truncated)
    cases = _run(code, tests, options, sandbox)
    show = Show(options.max_cases, options.max_chars, options.max_field_chars, options.source_lines)
    return _score(cases, cases_text(cases, show) or None, truncated=truncated)


def program_in(response: str, block: str = "longest") -> tuple[str | None, bool]:
    r"""Return the program of a response and whether a code block was begun and not ended.

    Args:
        response: What the model wrote.
        block: "longest" or "last".

    Example:
        >>> program_in("```python\nprint(1)\n```\nIt prints\n```\n1\n```")
        ('print(1)\n', False)
        >>> program_in("It is 1.")
        (None, False)
    """
    found = find_blocks(response)
    programs = [content for content in found.contents if content.strip()]
    if not programs:
        return None, found.unfinished
    return (max(programs, key=len) if block == "longest" else programs[-1]), found.unfinished


def _run(code: str, tests: CodeTests, options: CodeOptions, sandbox: Sandbox) -> list[Case]:
    from sdpo_plugins.feedback.sandbox import Limits, Outcome, Program

    program = Program(_joined(tests.context, code), tests.testtype, tests.function)
    limits = _limits(Limits(), tests, options)
    started = time.monotonic()
    cases: list[Case] = []
    count = _MOST_TESTS if options.stop_after is None else _FIRST_TESTS
    while len(cases) < len(tests.inputs):
        inputs = tests.inputs[len(cases) : len(cases) + count]
        failures = sum(case.kind != "passed" for case in cases)
        left = None if options.total_seconds is None else options.total_seconds - (time.monotonic() - started)
        if (options.stop_after is not None and failures >= options.stop_after) or (left is not None and left <= 0):
            outcomes: Sequence[Outcome] = [Outcome("not run")] * len(inputs)
        else:
            stop_after = None if options.stop_after is None else options.stop_after - failures
            outcomes = sandbox.run(program, inputs, replace(limits, total_seconds=left), stop_after=stop_after)
        cases += [
            judge(
                outcome,
                tests,
                len(cases) + place,
                tolerance=options.float_tolerance,
                reveal_hidden=options.reveal_hidden,
                reveal_expected=options.reveal_expected,
            )
            for place, outcome in enumerate(outcomes)
        ]
        count = min(2 * count, _MOST_TESTS)
    return cases


def _joined(context: str, code: str) -> str:
    if not context:
        return code
    # These must come first. Lines keep their numbers but for those of the context.
    future = "; ".join(_FUTURE.findall(code))
    return f"{future}\n{context}\n{_FUTURE.sub('', code)}" if future else f"{context}\n{code}"


def _limits(limits: Limits, tests: CodeTests, options: CodeOptions) -> Limits:
    seconds = options.time_limit if options.time_limit is not None else tests.seconds
    if seconds is not None:
        limits = replace(limits, seconds=seconds)
    if options.memory_mb is not None:
        limits = replace(limits, memory_mb=options.memory_mb)
    longest = max(len(output.encode("utf-8", "surrogatepass")) for output in tests.outputs)
    return replace(limits, output_bytes=max(limits.output_bytes, _ROOM * longest))


def _score(cases: Sequence[Case], feedback: str | None, wrong_format: bool = False, truncated: bool = False) -> Score:
    kinds = [case.kind for case in cases]
    passed = kinds.count("passed")
    # Without any other failure, it was the time for all tests that ran out.
    late = "timeout" in kinds or ("not run" in kinds and set(kinds) <= {"passed", "not run"})
    reward = float(bool(kinds) and passed == len(kinds))
    details = {
        "acc": reward,
        "passed_fraction": passed / len(kinds) if kinds else 0.0,
        "incorrect_format": int(wrong_format),
        "error_in_test_cases": int(any(kind in ("error", "memory", "output") for kind in kinds)),
        "timed_out": int(late),
        "truncated": int(truncated),
    }
    return Score(reward, feedback, details)
