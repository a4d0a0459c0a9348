"""The scorer `code` with the sandbox of this machine: programs that pass, that fail in every way, that are none."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from sdpo_plugins import SDPOConfig
from sdpo_plugins.errors import ConfigError, DataError
from sdpo_plugins.plugins import build_scorer, catalogue
from sdpo_plugins.testing import check_scorer
from sdpo_plugins.types import Score

Scoring = Callable[[str, Mapping[str, Any]], Score]

KEYS = {"acc", "passed_fraction", "incorrect_format", "error_in_test_cases", "timed_out", "truncated"}


def scoring(**options: Any) -> Scoring:
    found: Scoring = build_scorer(SDPOConfig(), "code", options)
    return found


@pytest.fixture(scope="module")
def score() -> Scoring:
    return scoring()


def answer(code: str) -> str:
    return f"Plan.\n```python\n{code}\n```\n"


def row(kind: str, cases: list[tuple[str, str]], **fields: Any) -> dict[str, Any]:
    tests = {"inputs": [one for one, _ in cases], "outputs": [two for _, two in cases], "testtype": kind, **fields}
    return {"ground_truth": json.dumps(tests)}


SUMS = row("stdin", [("1 2", "3\n"), ("2 2", "4")])
ADD = "print(sum(map(int, input().split())))"


def test_a_program_that_passes(score: Scoring) -> None:
    details = {
        "acc": 1.0,
        "passed_fraction": 1.0,
        "incorrect_format": 0,
        "error_in_test_cases": 0,
        "timed_out": 0,
        "truncated": 0,
    }
    assert score(answer(ADD), SUMS) == Score(1.0, None, details)
    as_mapping = {"ground_truth": json.loads(SUMS["ground_truth"])}
    assert score(answer(ADD), as_mapping) == Score(1.0, None, details)
    cut = score(answer(ADD) + "It is", {**SUMS, "truncated": True})
    assert cut == Score(1.0, None, {**details, "truncated": 1})


SQUARE = row("code", [("assert square(2) == 4", ""), ("assert square(-3) == 9", "")])


def call(given: str, right: str) -> dict[str, Any]:
    return row("functional", [(given, right)], fn_name="f")


@pytest.mark.parametrize(
    ("code", "sample", "reward"),
    [
        ("def f(a, b):\n    print('noise')\n    return [a, b]", call('"x y"\n2', '["x y", 2]'), 1),
        ("class Solution:\n    def f(self, a: List[int]) -> int:\n        return sum(a)", call("[1, 2]", "3"), 1),
        ("def f(a):\n    return (a, {'k': None})", call("1", '[1, {"k": null}]'), 1),
        ("def f(a):\n    return float(a)", call("1", "1"), 0),
        ("def f(a):\n    return a == 1", call("1", "1"), 0),
        ("def square(n):\n    return n * n", SQUARE, 1),
        ("def square(n):\n    return n + n", SQUARE, 0),
        ("print(math.factorial(int(input())))", row("stdin", [("3", "6")], context="import math"), 1),
        ("print(1 / 3)", row("stdin", [("", "0.3333")]), 0),
    ],
)
def test_types_of_tests(score: Scoring, code: str, sample: dict[str, Any], reward: float) -> None:
    found = score(answer(code), sample)
    assert found.reward == reward and (found.feedback is None) == bool(reward)


def test_numbers_with_a_tolerance() -> None:
    score = scoring(float_tolerance=1e-3)
    assert score(answer("print(1 / 3, 'x')"), row("stdin", [("", "0.3333 x")])).reward == 1.0
    assert score(answer("print(1 / 3, 'x')"), row("stdin", [("", "0.3333 y")])).reward == 0.0
    assert score(answer("def f(a):\n    return a / 3"), row("functional", [("1", "0.3333")], fn_name="f")).reward == 1.0


def test_a_right_output_may_be_longer_than_what_a_program_may_write_otherwise(score: Scoring) -> None:
    long = row("stdin", [("3000000", "x" * 3_000_000)])
    assert score(answer("print('x' * int(input()))"), long).reward == 1.0
    short = row("stdin", [("3000000", "x")])
    assert "Output Limit Exceeded" in (score(answer("print('x' * int(input()))"), short).feedback or "")


def test_line_separators_in_a_value_are_no_line_ends(score: Scoring) -> None:
    tests = call('"a\u2028\x85b"\r\n', '"a\u2028\x85b"')
    assert "\u2028" in json.loads(tests["ground_truth"])["inputs"][0]
    assert score(answer("def f(a):\n    return a"), tests).reward == 1.0


def test_imports_from_the_future_come_before_the_context(score: Scoring) -> None:
    code = "from __future__ import annotations\ndef f(a: Missing) -> None:\n    print(math.isqrt(a))\nf(9)\n1 / 0"
    found = score(answer(code), row("stdin", [("", "3")], context="import math"))
    assert (found.feedback or "").startswith("Runtime Error\nZeroDivisionError: division by zero\nLine 7 ")
    assert score(answer(code[:-6]), row("stdin", [("", "3")], context="import math")).reward == 1.0


@pytest.mark.parametrize("options", [{}, {"stop_after": 100}])
def test_all_tests_together_have_a_time(options: dict[str, int]) -> None:
    score = scoring(total_seconds=1.5, **options)
    code = "import time\ntime.sleep(0.1)\nprint(input())"
    started = time.monotonic()
    found = score(answer(code), row("stdin", [("1", "1")] * 130))
    assert time.monotonic() - started < 10 and 0 < found.details["passed_fraction"] < 0.3
    assert found.details["timed_out"] == 1


def test_wrong_answers(score: Scoring) -> None:
    found = score(answer("print(5)"), row("stdin", [("1 2", "3"), ("2 3", "5"), ("1", "1")]))
    assert found.reward == 0.0 and found.details["passed_fraction"] == pytest.approx(1 / 3)
    assert found.feedback == (
        "Test Case 3: Wrong Answer\n\nInput\n1\n\nOutput\n5\n\nExpected\n1\n\n"
        "Test Case 1: Wrong Answer\n\nInput\n1 2\n\nOutput\n5\n\nExpected\n3"
    )


def test_an_error(score: Scoring) -> None:
    code = "def f(a, b):\n    return a / b"
    found = score(answer(code), row("functional", [("1\n1", "1.0"), ("1\n0", "0.0"), ("2\n1", "3.0")], fn_name="f"))
    text = found.feedback or ""
    assert text.startswith("Runtime Error\nZeroDivisionError: division by zero\n")
    assert "Line 2 in f (Solution.py)" in text and text.endswith("\n\nLast Executed Input\n1\n0")
    assert (found.reward, found.details["error_in_test_cases"], found.details["timed_out"]) == (0.0, 1, 0)


def test_code_as_a_test_may_stay_unseen() -> None:
    sample = row("code", [("x = square(2)\nassert x + 1 == 5", "")])
    none = answer("def square(n):\n    return None")
    for code in (none, none.replace("square", "sq"), none.replace("None", "n"), "```\n(\n```"):
        assert "+ 1" in str(scoring()(code, sample).feedback)
        found = scoring(reveal_expected=False)(code, sample)
        assert found.feedback and "+ 1" not in found.feedback and "square(2)" not in found.feedback


def test_limits() -> None:
    sample = row("stdin", [("1", "1")], time_limit=0.5)
    for code, head, key in (
        ("while True: pass", "Time Limit Exceeded", "timed_out"),
        ("x = bytearray(10**11)", "Memory Limit Exceeded", "error_in_test_cases"),
        ("while True: print('x' * 10**5)", "Output Limit Exceeded", "error_in_test_cases"),
    ):
        start = time.monotonic()
        found = scoring()(answer(code), sample)
        assert time.monotonic() - start < 10
        assert found.feedback == f"{head}\n\nLast Executed Input\n1"
        assert found.reward == 0.0 and found.details[key] == 1


def test_the_limit_of_time_comes_from_the_option_the_row_or_the_sandbox() -> None:
    code = answer("import time; time.sleep(1.6); print(1)")
    assert scoring()(code, row("stdin", [("", "1")])).details["timed_out"] == 1
    assert scoring()(code, row("stdin", [("", "1")], time_limit=20)).reward == 1.0
    assert scoring(time_limit=0.3)(code, row("stdin", [("", "1")], time_limit=20)).details["timed_out"] == 1


def test_a_limit_of_memory() -> None:
    code, sample = answer("x = b'1' * (300 << 20); print(len(x) > 0)"), row("stdin", [("", "True")], time_limit=20)
    assert scoring()(code, sample).reward == 1.0
    assert str(scoring(memory_mb=200)(code, sample).feedback).startswith("Memory Limit Exceeded")


def test_stopping_early() -> None:
    """A program that writes the time: what ran later has a greater number, what did not run has none."""
    cases = [(str(number), str(number % 2)) for number in range(30)]
    sample = row("stdin", cases)
    assert scoring()(answer("print(0)"), sample).details["passed_fraction"] == 0.5
    few = scoring(stop_after=2)(answer("print(0)"), sample)
    assert few.reward == 0.0 and 2 / 30 <= few.details["passed_fraction"] <= 6 / 30
    assert few.feedback == scoring()(answer("print(0)"), row("stdin", cases[:4])).feedback
    assert scoring(stop_after=1)(answer("print(int(input()) % 2)"), sample).reward == 1.0
    late = row("stdin", [(str(number), "") for number in range(30)], time_limit=0.5)
    start = time.monotonic()
    found = scoring(stop_after=1)(answer("while True: pass"), late)
    assert time.monotonic() - start < 10 and found.details["timed_out"] == 1


def test_only_the_first_tests() -> None:
    sample = row("stdin", [("1", "1"), ("2", "2")], hidden=[False, False])
    assert scoring(max_tests=1)(answer("print(1)"), sample).reward == 1.0
    assert scoring(max_tests=5)(answer("print(1)"), sample).reward == 0.0


def test_the_time_for_all_tests() -> None:
    sample = row("stdin", [("", "1")] * 8, time_limit=5)
    found = scoring(total_seconds=2.0)(answer("import time; time.sleep(0.6); print(1)"), sample)
    assert found.reward == 0.0 and found.details["timed_out"] == 1 and 0 < found.details["passed_fraction"] < 1
    assert str(found.feedback).startswith("Time Limit Exceeded")


def test_hidden_tests_stay_hidden() -> None:
    sample = row("stdin", [("1", "1"), ("7351", "8462")], hidden=[False, True])
    code = answer("n = input()\nassert n == '1', n\nprint(n)")
    found = scoring()(code, sample)
    assert found.feedback == "Hidden Tests: 1 of 1 failed (1 Runtime Error)"
    assert "7351" in str(scoring(reveal_hidden=True)(code, sample).feedback)
    assert "Expected" not in str(
        scoring(reveal_expected=False)(answer("print(1)"), row("stdin", [("1", "2")])).feedback
    )


@pytest.mark.parametrize(
    ("response", "more", "truncated", "piece"),
    [
        ("print(1)", {}, 0, "Incorrect Format: Put your code inside a ```python ... ``` block."),
        ("", {}, 0, "Incorrect Format"),
        ("```python\n```", {}, 0, "Incorrect Format"),
        ("Use ```print(1)```.", {}, 0, "Incorrect Format"),
        ("```python\nprint(1", {}, 1, "Truncated Attempt: "),
        ("print(1)", {"truncated": True}, 1, "Truncated Attempt: "),
    ],
)
def test_responses_without_a_program(
    score: Scoring, response: str, more: dict[str, Any], truncated: int, piece: str
) -> None:
    found = score(response, {**SUMS, **more})
    assert (found.reward, found.details["incorrect_format"], found.details["truncated"]) == (0.0, 1, truncated)
    assert str(found.feedback).startswith(piece) and set(found.details) == KEYS


def test_the_longest_block_or_the_last() -> None:
    response = f"{answer(ADD)}\nFor example:\n```\n1 2\n```"
    assert scoring()(response, SUMS).reward == 1.0
    assert scoring(block="last")(response, SUMS).reward == 0.0


def test_a_program_of_anything(score: Scoring) -> None:
    pieces = (
        "\x00",
        "\ud800",
        "print(",
        "(" * 5000,
        "'''",
        "\n\n",
        "x = 1\n" * 20_000,
        "é = '😀'\nprint(é)",
        "\r",
        "\f",
        "\t x",
    )
    for piece in pieces:
        found = score(answer(piece), SUMS)
        assert found.reward == 0.0 and set(found.details) == KEYS
        assert found.feedback is not None and found.feedback.encode() and len(found.feedback) <= 2000


def test_rows_that_cannot_be_used(score: Scoring) -> None:
    with pytest.raises(DataError, match="field 'ground_truth' is missing"):
        score(answer(ADD), {"tests": []})
    with pytest.raises(DataError, match="scorer 'code' cannot be used: it is no JSON"):
        score("no program at all", {"ground_truth": "nonsense"})


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"isolation": "none"}, "`scorer_options.isolation` must be one of 'bubblewrap', 'rlimits', 'sandbox_fusion'"),
        ({"isolation": "sandbox_fusion"}, "`isolation: sandbox_fusion` and `sandbox_url` belong together"),
        ({"sandbox_url": "http://x/run_code"}, "`isolation: sandbox_fusion` and `sandbox_url` belong together"),
        ({"attempts": 2, "max_concurrent": 3}, "`max_concurrent` and `attempts` only count with `isolation: sandbox_f"),
        ({"time_limit": 0}, "`scorer_options.time_limit` must be greater than 0"),
        ({"stop_after": 0}, "`scorer_options.stop_after` must be at least 1"),
        ({"max_case": 1}, "Did you mean 'max_cases'"),
    ],
)
def test_options_that_cannot_be_used(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        scoring(**options)
    assert problem in str(caught.value)


def test_code_keeps_the_contract() -> None:
    square = row("code", [("assert square(2) == 4", "")])
    rows = [SUMS, row("functional", [("1", "2")], fn_name="f"), square]
    right = [answer(ADD), answer("def f(a):\n    return a + 1"), answer("def square(n):\n    return n * n")]
    check_scorer(catalogue("scorer")["code"], rows, correct=right)
