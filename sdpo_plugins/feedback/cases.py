"""Tests of programs: reading them out of a row, and judging what the sandbox saw. Right answers never go there."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, NoReturn, get_args

from sdpo_plugins.errors import nearest
from sdpo_plugins.feedback.rows import bad_truth, decoded
from sdpo_plugins.feedback.texts import Case
from sdpo_plugins.feedback.values import read_json, same_lines, same_value

if TYPE_CHECKING:
    from sdpo_plugins.feedback.sandbox import Outcome

__all__ = ["CodeTests", "judge", "read_tests"]

TestType = Literal["functional", "stdin", "code"]

# A line of the test's own code in a report, with its place.
_IN_TEST = re.compile(r"(?:^  .*\n)?^Line \d+ in .* \(Test\.py\)\n?", re.MULTILINE)
_FIELDS = ("inputs", "outputs", "testtype", "fn_name", "time_limit", "context", "hidden")
# Characters of an output that are kept to be shown: of a thousand tests, each may write a million.
_KEPT = 10_000
_VALID = (
    "a mapping, or its JSON, with `inputs` and as many `outputs` (lists of texts, at least one; `outputs` may be left "
    "out for code), `testtype` (functional, stdin or code), for functional tests `fn_name`, and optionally "
    "`time_limit` (seconds above 0), `context` (a text) and `hidden` (a list of true and false, one for each test)"
)


@dataclass(frozen=True)
class CodeTests:
    """The tests of one question.

    Args:
        testtype: "stdin": a program reads and writes text. "functional": a function takes JSON values, one in each
            line of the input, and returns one. "code": Python that uses what the program defines, and fails by
            raising, as `assert f(2) == 4`.
        inputs: One for each test.
        outputs: The right outputs; empty texts for "code".
        function: The function of "functional" tests, or the method of a class `Solution`; for "code", one that the
            program may define under a builtin's name.
        seconds: Limit for one test; None: the sandbox's.
        context: Code that is put before the program, such as imports that the question promises.
        hidden: Whether a test may not be shown to the model.
    """

    testtype: TestType
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    function: str | None = None
    seconds: float | None = None
    context: str = ""
    hidden: tuple[bool, ...] = ()

    def first(self, count: int | None) -> CodeTests:
        """Return the first tests only; all if `count` is None."""
        parts = {name: getattr(self, name)[:count] for name in ("inputs", "outputs", "hidden")}
        return CodeTests(self.testtype, **parts, function=self.function, seconds=self.seconds, context=self.context)


def read_tests(truth: Any) -> CodeTests:
    """Read a question's tests.

    Args:
        truth: A mapping or JSON text with `inputs`, `outputs`, `testtype`, `fn_name`, `time_limit`, `context`,
            `hidden`; the last four may be missing or null.

    Raises:
        DataError: It is something else, so no program could ever be right.

    Example:
        >>> read_tests({"inputs": ["1 2"], "outputs": ["3"], "testtype": "stdin"}).outputs
        ('3',)
    """
    return _read_text(truth) if isinstance(truth, str) else _read(truth)


def judge(
    outcome: Outcome,
    tests: CodeTests,
    index: int,
    *,
    tolerance: float = 0.0,
    reveal_hidden: bool = False,
    reveal_expected: bool = True,
) -> Case:
    """Say whether one test passed, with as much of it as may be shown.

    Args:
        outcome: What the sandbox saw.
        tests: All of them.
        index: Which test it is.
        tolerance: As for `same_value` and `same_lines`.
        reveal_hidden: Whether hidden tests are shown as all others.
        reveal_expected: Whether the right output is shown; for "code", whether the test is.

    Example:
        >>> from sdpo_plugins.feedback.sandbox import Outcome
        >>> tests = read_tests({"inputs": ["2"], "outputs": ["4"], "testtype": "functional", "fn_name": "f"})
        >>> judge(Outcome("ok", "4.0"), tests, 0).kind
        'wrong'
    """
    code = tests.testtype == "code"
    report, output = outcome.report, None if code else outcome.output.strip()[:_KEPT]
    verdict: Any = outcome.kind
    if verdict == "ok":
        verdict = "passed" if code or _right(outcome.output, tests, index, tolerance) else "wrong"
    elif verdict == "error" and code and report.startswith("AssertionError"):
        # The program did run; what it gave is not what the test asks for.
        verdict = "wrong"
        message = report.partition("\n")[0]
        output = message if reveal_expected and ":" in message else None
    if tests.hidden[index] and not reveal_hidden:
        return Case(verdict, hidden=True)
    return Case(
        verdict,
        None if code and not reveal_expected else tests.inputs[index],
        output,
        None if code or not reveal_expected else tests.outputs[index],
        report if reveal_expected else _IN_TEST.sub("", report),
    )


# The responses to one question come together, and its tests may be megabytes.
@lru_cache(maxsize=8)
def _read_text(truth: str) -> CodeTests:
    return _read(truth)


def _read(truth: Any) -> CodeTests:
    given = decoded(truth, "code", _VALID)
    if not isinstance(given, Mapping):
        _refuse(truth, f"it is a {type(given).__name__}")
    fields = {name: value for name, value in given.items() if value is not None}
    for name in fields.keys() - set(_FIELDS):
        # Other fields may be there, but a misspelt `hidden` would show what is not to be shown.
        if hint := nearest(str(name), _FIELDS):
            _refuse(truth, f"field {name!r} is none of {', '.join(_FIELDS)}.{hint}")
    kind: Any = fields.get("testtype")
    if kind not in get_args(TestType):
        _refuse(truth, f"`testtype` is {kind!r}")
    inputs = _texts(truth, fields, "inputs")
    if not inputs:
        _refuse(truth, "it has no test")
    outputs = ("",) * len(inputs) if kind == "code" else _texts(truth, fields, "outputs")
    if len(outputs) != len(inputs):
        _refuse(truth, f"it has {len(inputs)} inputs and {len(outputs)} outputs")
    if kind == "functional":
        _check_values(truth, "outputs", [[text] for text in outputs])
        _check_values(truth, "inputs", [text.split("\n") for text in inputs])
    return CodeTests(
        kind,
        inputs,
        outputs,
        _function(truth, fields, kind),
        _seconds(truth, fields.get("time_limit")),
        _context(truth, fields.get("context", "")),
        _hidden(truth, fields.get("hidden"), len(inputs)),
    )


def _right(output: str, tests: CodeTests, index: int, tolerance: float) -> bool:
    expected = tests.outputs[index]
    if tests.testtype == "stdin":
        return same_lines(output, expected, tolerance)
    try:
        return same_value(read_json(output), read_json(expected), tolerance)
    except (ValueError, RecursionError):  # of the output alone: the right one was read before
        return False


def _refuse(truth: Any, problem: str, cause: BaseException | None = None) -> NoReturn:
    bad_truth("code", _VALID, truth, problem, cause)


def _texts(truth: Any, fields: Mapping[str, Any], name: str) -> tuple[str, ...]:
    value = fields.get(name)
    if value is None or isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable):
        _refuse(truth, f"`{name}` is {'missing' if value is None else 'no list'}")
    texts = tuple(value)
    for place, text in enumerate(texts):
        if not isinstance(text, str):
            _refuse(truth, f"`{name}[{place}]` is {text!r} ({type(text).__name__}), no text")
    return texts


def _function(truth: Any, fields: Mapping[str, Any], kind: TestType) -> str | None:
    name = fields.get("fn_name")
    if kind == "stdin" or (kind == "code" and name is None):
        return None
    if not isinstance(name, str) or not name.isidentifier():
        _refuse(truth, f"`fn_name` is {name!r}, no name of a function")
    return name


def _check_values(truth: Any, name: str, values: Iterable[Iterable[str]]) -> None:
    for place, texts in enumerate(values):
        for text in texts:
            try:
                read_json(text if name == "outputs" or text.strip() else "null")
            except (ValueError, RecursionError) as error:
                _refuse(truth, f"`{name}[{place}]` is no JSON ({error})", error)


def _seconds(truth: Any, value: Any) -> float | None:
    if value is None:
        return None
    try:
        seconds = float(value)
    except (TypeError, ValueError) as error:
        _refuse(truth, f"`time_limit` is {value!r}, no number", error)
    if not 0 < seconds < float("inf"):
        _refuse(truth, f"`time_limit` is {value!r}, not above 0")
    return seconds


def _context(truth: Any, value: Any) -> str:
    if not isinstance(value, str):
        _refuse(truth, f"`context` is {value!r}, no text")
    return value


def _hidden(truth: Any, value: Any, count: int) -> tuple[bool, ...]:
    if value is None:
        return (False,) * count
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable):
        _refuse(truth, "`hidden` is no list")
    marks = tuple(value)
    if len(marks) != count or any(isinstance(mark, str) or mark not in (False, True) for mark in marks):
        _refuse(truth, f"`hidden` has {len(marks)} entries for {count} tests, or not only true and false")
    return tuple(bool(mark) for mark in marks)
