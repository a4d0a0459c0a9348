"""Code as a reward function of verl: 1 if a program passes every test, and feedback on what it fails.

Programs are run by a SandboxFusion server (https://github.com/bytedance/SandboxFusion), one request for each test, and
nowhere else: nothing that a model wrote is executed, compiled or imported in this process.
"""

from __future__ import annotations

import json
import re
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any, NamedTuple

__all__ = ["Outcome", "SandboxFailed", "compute_score", "extract_code", "feedback_on", "program_of", "read_tests"]

TRUNCATED = (
    "Truncated Attempt: Your previous response was too long and truncated because it reached the maximum response "
    "length. Try again with a shorter response."
)
WRONG_FORMAT = "Incorrect Format: Put your code inside a ```python ... ``` block."

# Behind it, in what a program writes to stderr, is our report of its error.
_REPORT = "\x1e"


class Outcome(NamedTuple):
    """What became of one test.

    Args:
        kind: "passed", "wrong", "error" or "timeout".
        text: The program's output, or the report of its error.
    """

    kind: str
    text: str = ""


class SandboxFailed(RuntimeError):
    """The sandbox did not answer, or said that it failed itself: the program can be neither right nor wrong."""


# Reading --------------------------------------------------------------------------------------------------------------


def extract_code(response: str) -> str | None:
    """Return the longest code block of a response; None if there is none.

    Example:
        >>> extract_code("So:\\n```python\\nprint(1)\\n```")
        'print(1)\\n'
    """
    blocks: list[str] = re.findall(r"```\w*\n(.*?)```", response, re.DOTALL)
    return max(blocks, key=len) if blocks else None


def read_tests(ground_truth: str) -> dict[str, Any]:
    """Read a question's tests.

    Args:
        ground_truth: JSON with `inputs` and `outputs` (texts, one for each test), `testtype` ("stdin" or
            "functional"), `fn_name` and `time_limit` in seconds.

    Raises:
        ValueError: It is something else, so no program could ever be right.
    """
    try:
        tests = json.loads(ground_truth)
        whole = (
            len(tests["inputs"]) == len(tests["outputs"]) > 0
            and tests["testtype"] in ("stdin", "functional")
            and all(isinstance(text, str) for text in [*tests["inputs"], *tests["outputs"]])
            and float(tests["time_limit"]) > 0
        )
        if tests["testtype"] == "functional":
            whole = whole and isinstance(tests["fn_name"], str) and tests["fn_name"].isidentifier()
            for text in tests["outputs"]:
                json.loads(text)
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"the tests cannot be read: {ground_truth[:200]!r}: {error!r}") from error
    if not whole:
        raise ValueError(
            "tests need as many texts `inputs` as `outputs`, at least one, `testtype` stdin or functional, a "
            f"`time_limit` above 0, and for functional tests a function's name, `fn_name`; got {ground_truth[:200]!r}"
        )
    return dict(tests)


def program_of(code: str, tests: Mapping[str, Any]) -> str:
    """Return what the sandbox is to run: the code, called as the tests want it, its errors reported in our form.

    Args:
        code: The model's. It stands in the program as a text.
        tests: As from `read_tests`.
    """
    function = tests["fn_name"] if tests["testtype"] == "functional" else None
    return f"CODE, FUNCTION = {(code, function)!a}\n{_PROGRAM}"


# Judging --------------------------------------------------------------------------------------------------------------


def outcome_of(answer: Mapping[str, Any], expected: str, functional: bool) -> Outcome:
    """Judge one test from the sandbox's answer.

    Args:
        answer: Its JSON.
        expected: The right output.
        functional: Whether outputs are JSON, equal as values with their types; otherwise they are texts, equal line by
            line up to blanks at the ends.

    Raises:
        SandboxFailed: The answer says nothing of the program.
    """
    run = answer.get("run_result")
    if answer.get("status") not in ("Success", "Failed") or not isinstance(run, Mapping):
        raise SandboxFailed(f"status {answer.get('status')!r}, message {str(answer.get('message'))[:500]!r}")
    if run.get("status") == "TimeLimitExceeded":
        return Outcome("timeout")
    if run.get("status") != "Finished" or run.get("return_code") != 0:
        report = str(run.get("stderr") or "").rpartition(_REPORT)[2].strip()
        return Outcome("error", report or f"The program ended with code {run.get('return_code')}.")
    output = str(run.get("stdout") or "").strip()
    same = _same_value(output, expected) if functional else _lines(output) == _lines(expected)
    return Outcome("passed" if same else "wrong", output)


def feedback_on(outcomes: Sequence[Outcome], inputs: Sequence[str], expected: Sequence[str]) -> str:
    """Say in the authors' form what failed: the first error, else the first time-out, else the two shortest cases.

    Args:
        outcomes: Of each test.
        inputs: Of each test.
        expected: The right outputs.

    Returns:
        At most 2000 characters; empty if every test passed.
    """
    failed = [index for index, outcome in enumerate(outcomes) if outcome.kind != "passed"]
    for kind, head in (("error", "Runtime Error\n{}"), ("timeout", "Time Limit Exceeded")):
        for index in failed:
            if outcomes[index].kind == kind:
                shown = [head.replace("{}", outcomes[index].text), "", "Last Executed Input", *_input(inputs[index])]
                return "\n".join(shown)[:2000].rstrip()
    failed.sort(key=lambda index: len(inputs[index]) + len(outcomes[index].text))
    cases = []
    for index in failed[:2]:
        lines = [f"Test Case {index + 1}: Wrong Answer", "", "Input", *_input(inputs[index])]
        lines += ["", "Output", _short(outcomes[index].text), "", "Expected", _short(expected[index])]
        cases.append("\n".join(lines))
    return "\n\n".join(cases)[:2000].rstrip()


# Scoring --------------------------------------------------------------------------------------------------------------


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: str,
    extra_info: Mapping[str, Any] | None = None,
    *,
    sandbox_url: str | None = None,
    memory_limit_mb: int = 1024,
    max_concurrent: int = 64,
    workers: int = 1,
    attempts: int = 4,
    **_: Any,
) -> dict[str, Any]:
    """Score one response; what `reward.custom_reward_function` names. All but the first four are `reward_kwargs`.

    Args:
        data_source: Of the row; not needed.
        solution_str: The decoded response.
        ground_truth: The tests, as for `read_tests`.
        extra_info: Of the row; a true `truncated` says that the response was cut off.
        sandbox_url: SandboxFusion's address, with `/run_code`.
        memory_limit_mb: Of each run, in MiB.
        max_concurrent: Requests under way at once, from all reward workers.
        workers: Number of reward workers, which share these.
        attempts: How often a request is made before the sandbox counts as failed.

    Returns:
        `score` and `acc` (1 only if every test passes), `passed_fraction` (of the tests), `incorrect_format`,
        `error_in_test_cases`, `timed_out`, `truncated` (each 0 or 1), `feedback` (empty if every test passes).

    Raises:
        SandboxFailed: The sandbox did not judge the program; the run ends, and does not learn from a false failure.
        ValueError: No address, or tests that cannot be read.
    """
    if not sandbox_url:
        raise ValueError(
            "no sandbox to run programs in: start SandboxFusion and set `reward.sandbox_fusion.url`, for example "
            "http://localhost:8080/run_code. Programs that a model wrote are never run on this machine itself."
        )
    tests = read_tests(ground_truth)
    code = extract_code(solution_str)
    if code is None:
        # A block that was begun and not ended: stock verl does not tell a reward function that an answer was cut off.
        truncated = bool((extra_info or {}).get("truncated")) or "```" in solution_str
        return _result([], TRUNCATED if truncated else WRONG_FORMAT, wrong_format=True, truncated=truncated)
    program = program_of(code, tests)
    pool = _pool(max(1, max_concurrent // workers))
    jobs = [
        pool.submit(
            _run, sandbox_url, program, given, float(tests["time_limit"]), memory_limit_mb, attempts, len(right)
        )
        for given, right in zip(tests["inputs"], tests["outputs"], strict=True)
    ]
    functional = tests["testtype"] == "functional"
    try:
        outcomes = [
            answer if isinstance(answer, Outcome) else outcome_of(answer, right, functional)
            for answer, right in zip([job.result() for job in jobs], tests["outputs"], strict=True)
        ]
    finally:
        for job in jobs:
            job.cancel()
    truncated = bool((extra_info or {}).get("truncated"))
    return _result(outcomes, feedback_on(outcomes, tests["inputs"], tests["outputs"]), truncated=truncated)


# Inside ---------------------------------------------------------------------------------------------------------------


def _result(
    outcomes: Sequence[Outcome], feedback: str, wrong_format: bool = False, truncated: bool = False
) -> dict[str, Any]:
    passed = sum(outcome.kind == "passed" for outcome in outcomes)
    score = float(bool(outcomes) and passed == len(outcomes))
    return {
        "score": score,
        "acc": score,
        "passed_fraction": passed / len(outcomes) if outcomes else 0.0,
        "incorrect_format": int(wrong_format),
        "error_in_test_cases": int(any(outcome.kind == "error" for outcome in outcomes)),
        "timed_out": int(any(outcome.kind == "timeout" for outcome in outcomes)),
        "truncated": int(truncated),
        "feedback": feedback,
    }


@cache
def _pool(size: int) -> ThreadPoolExecutor:
    # One for the whole process: its size is the limit of requests under way.
    return ThreadPoolExecutor(size, thread_name_prefix="sandbox")


def _run(
    url: str, program: str, given: str, seconds: float, memory: int, attempts: int, expected: int
) -> Outcome | Mapping[str, Any]:
    """Return the sandbox's answer on one test; an outcome where it is too long to be right."""
    body = {
        "code": program,
        "stdin": given,
        "language": "python",
        "compile_timeout": seconds,
        "run_timeout": seconds,
        "memory_limit_MB": memory,
        "files": {},
        "fetch_files": [],
    }
    request = urllib.request.Request(
        url, json.dumps(body).encode(), {"Content-Type": "application/json", "Accept": "application/json"}
    )
    longest = 2**20 + 8 * expected
    problem = ""
    for attempt in range(attempts):
        if attempt:
            time.sleep(min(8.0, 0.5 * 2**attempt))
        try:
            with urllib.request.urlopen(request, timeout=2 * seconds + 10) as response:
                text = response.read(longest + 1)
            if len(text) > longest:
                return Outcome("wrong", f"(output longer than {longest} bytes)")
            answer = json.loads(text)
            if isinstance(answer, dict) and answer.get("status") in ("Success", "Failed"):
                return answer
            problem = f"it answered {text[:300]!r}"
        except urllib.error.HTTPError as error:
            problem = f"it answered with code {error.code}: {error.read(300)!r}"
            if error.code < 500 and error.code != 429:
                break
        except (OSError, ValueError) as error:
            problem = repr(error)
    raise SandboxFailed(
        f"the sandbox at {url} did not run a program ({problem}). Is SandboxFusion running, and does "
        "`reward.sandbox_fusion.url` end in /run_code? Fewer requests at once: `reward.sandbox_fusion.max_concurrent`."
    )


def _same_value(output: str, expected: str) -> bool:
    right = json.dumps(json.loads(expected), sort_keys=True)
    try:
        return json.dumps(json.loads(output), sort_keys=True) == right
    except (ValueError, RecursionError):
        return False


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.strip().splitlines()]


def _input(text: str) -> list[str]:
    lines = text.splitlines()
    more = [f"... ({len(lines) - 8} more lines)"] if len(lines) > 8 else []
    return [_short(line) for line in lines[:8]] + more


def _short(text: str) -> str:
    return text if len(text) <= 250 else text[:250] + "..."


# Runs in the sandbox only, behind a line that sets CODE and FUNCTION. Code of functional tests finds one argument in
# each line of its input, as JSON, and what it prints goes to stderr: its result alone is its output.
_PROGRAM = r"""
import __future__, json, linecache, sys, traceback, types, typing

def report(error):
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == "Solution.py"][-3:]
    lines = [type(error).__name__ + ": " + str(error)]
    for f in frames:
        lines += ["  " + f.line] if f.line else []
        lines.append("Line %d in %s (Solution.py)" % (f.lineno, f.name))
    sys.stdout.flush()
    sys.stderr.write("\x1e" + "\n".join(lines))
    sys.stderr.flush()
    sys.exit(1)

def refuse(value):
    raise TypeError("Non-serializable result type: " + type(value).__name__)

def call(names, output):
    function = names.get(FUNCTION)
    if function is None and "Solution" in names:
        function = getattr(names["Solution"](), FUNCTION, None)
    if not callable(function):
        raise NameError("there is no function " + FUNCTION)
    arguments = [json.loads(line) for line in sys.stdin.read().splitlines() if line.strip()]
    output.write(json.dumps(function(*arguments), default=refuse))
    output.flush()

linecache.cache["Solution.py"] = (len(CODE), None, CODE.splitlines(True), "Solution.py")
module = types.ModuleType("Solution" if FUNCTION else "__main__")
sys.modules.setdefault(module.__name__, module)
names = module.__dict__
names.update((name, getattr(typing, name)) for name in typing.__all__)
flags = __future__.annotations.compiler_flag if FUNCTION else 0
output = sys.stdout
if FUNCTION:
    sys.stdout = sys.stderr
try:
    exec(compile(CODE, "Solution.py", "exec", flags, True), names)
    if FUNCTION:
        call(names, output)
except SystemExit as end:
    if FUNCTION or end.code not in (None, 0):
        report(end)
except BaseException as error:
    report(error)
"""
