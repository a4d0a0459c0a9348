"""Feedback on programs in the authors' form: which cases are shown, how much of them, and what stays hidden."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from sdpo_plugins.errors import DataError
from sdpo_plugins.feedback.blocks import find_blocks
from sdpo_plugins.feedback.cases import judge, read_tests
from sdpo_plugins.feedback.sandbox import Outcome
from sdpo_plugins.feedback.texts import Case, Show, cases_text, clean
from sdpo_plugins.feedback.values import read_json, same_lines, same_value

# The program ---------------------------------------------------------------------------------------------------------

BLOCKS = {
    "plain": ("```python\na\n```", ["a\n"], False),
    "without a name": ("```\na\n```", ["a\n"], False),
    "other names": ("```py\na\n```\n```python3\nb\n```\n``` Python \nc\n```", ["a\n", "b\n", "c\n"], False),
    "behind a word": ("Try ```python\na\n```", ["a\n"], False),
    "text behind the fence": ("```python\na\n``` Done.", ["a\n"], False),
    "closed behind the code": ("```python\na```", ["a\n"], False),
    "a fence within a line": ("```python\nx = '```'\ny\n```", ["x = '```'\ny\n"], False),
    "a fence in a docstring": ("```python\ndef f():\n    '''\n    ```\n    '''\n```", None, False),
    "in a list": ("1. So:\n   ```python\n   a:\n     b\n   ```", ["a:\n  b\n"], False),
    "tildes": ("~~~python\na\n```\nb\n~~~", ["a\n```\nb\n"], False),
    "four backticks": ("````md\n```python\na\n```\n````", ["```python\na\n```\n"], False),
    "line ends of another system": ("```python\r\na\r\n```\r\n", ["a\r\n"], False),
    "form feeds are no line ends": ("```\na = '\f\x1e\u2028'\n```", ["a = '\f\x1e\u2028'\n"], False),
    "two": ("```\na\n```\n```\nb\n```", ["a\n", "b\n"], False),
    "cut off": ("```python\na", [], True),
    "cut off in the second": ("```\na\n```\n```python\nb", ["a\n"], True),
    "cut off behind the name": ("So:\n```python", [], True),
    "a stray fence at the end": ("print(1)\n```", [], False),
    "spans": ("Use ```print(1)``` or `a`.", [], False),
    "none": ("print(1)", [], False),
    "empty": ("", [], False),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_code_blocks(name: str) -> None:
    text, contents, unfinished = BLOCKS[name]
    contents = ["def f():\n    '''\n    ```\n    '''\n"] if contents is None else contents
    assert find_blocks(text) == (tuple(contents), unfinished)


@pytest.mark.parametrize(
    "piece", ["`", "```", "```a!", "```\n", "``` ", "~", "\n", " ", "```\n\t", "a", "\x00", "\ud800", "```python\n\\"]
)
def test_a_million_characters_take_a_moment(piece: str) -> None:
    text = piece * (1_000_000 // len(piece))
    start = time.monotonic()
    for response in (text, text + "!", "```python\n" + text, "```" + text + "!"):
        find_blocks(response)
    assert time.monotonic() - start < 10


# The shapes ----------------------------------------------------------------------------------------------------------


def test_the_shape_of_an_error() -> None:
    report = "ZeroDivisionError: division by zero\nLine 73 in f (Solution.py)"
    assert cases_text([Case("error", "[1, 2]\n0", report=report)], Show()) == (
        "Runtime Error\nZeroDivisionError: division by zero\nLine 73 in f (Solution.py)\n\n"
        "Last Executed Input\n[1, 2]\n0"
    )


def test_lines_of_the_program_are_shown_on_request() -> None:
    report = "E: a\n  b\n  return 1 / 0\nLine 2 in f (Solution.py)\n  f()\nLine 4 in <module> (Solution.py)"
    case = Case("error", "0", report=report)
    assert cases_text([case], Show(source_lines=True)) == f"Runtime Error\n{report}\n\nLast Executed Input\n0"
    plain = "E: a\n  b\nLine 2 in f (Solution.py)\nLine 4 in <module> (Solution.py)"
    assert cases_text([case], Show()) == f"Runtime Error\n{plain}\n\nLast Executed Input\n0"


@pytest.mark.parametrize(
    ("kind", "head"),
    [("timeout", "Time Limit Exceeded"), ("memory", "Memory Limit Exceeded"), ("output", "Output Limit Exceeded")],
)
def test_the_shape_of_a_limit(kind: Any, head: str) -> None:
    assert cases_text([Case("passed"), Case(kind, "5 6")], Show()) == f"{head}\n\nLast Executed Input\n5 6"


def test_the_shape_of_a_wrong_answer() -> None:
    cases = [Case("passed", "1", "1", "1"), Case("passed", "1", "1", "1"), Case("wrong", "1 2", "4", "3")]
    assert cases_text(cases, Show()) == "Test Case 3: Wrong Answer\n\nInput\n1 2\n\nOutput\n4\n\nExpected\n3"


def test_nothing_failed() -> None:
    assert cases_text([Case("passed", "1", "1", "1")], Show()) == ""


def test_the_two_shortest_wrong_answers() -> None:
    cases = [
        Case("wrong", "1" * 400, "x", "a"),
        Case("wrong", "22", "y", "b" * 300),
        Case("wrong", "3", "z", "c"),
        Case("passed", "4", "d", "d"),
    ]
    assert cases_text(cases, Show()) == (
        "Test Case 3: Wrong Answer\n\nInput\n3\n\nOutput\nz\n\nExpected\nc\n\n"
        f"Test Case 2: Wrong Answer\n\nInput\n22\n\nOutput\ny\n\nExpected\n{'b' * 250}..."
    )
    assert cases_text(cases, Show(cases=1)).count("Test Case") == 1
    assert cases_text(cases, Show(cases=9)).count("Test Case") == 3


def test_errors_come_first_then_limits_then_wrong_answers() -> None:
    lines = "\n".join(str(line) for line in range(20))
    cases = [
        Case("wrong", "1", "x", "a"),
        Case("timeout", "2"),
        Case("memory", "3"),
        Case("error", lines, report="E: e"),
    ]
    shown = "\n".join(str(line) for line in range(8))
    assert cases_text(cases, Show()) == f"Runtime Error\nE: e\n\nLast Executed Input\n{shown}\n... (12 more lines)"
    assert cases_text(cases[:3], Show()) == "Memory Limit Exceeded\n\nLast Executed Input\n3"
    assert cases_text(cases[:2], Show()) == "Time Limit Exceeded\n\nLast Executed Input\n2"


def test_a_test_that_was_not_run_is_none_to_show() -> None:
    cases = [Case("passed"), Case("wrong", "1", "2", "3"), Case("not run", "4")]
    assert cases_text(cases, Show()).count("Test Case") == 1
    late = [Case("passed"), Case("not run", "2"), Case("not run", "3", hidden=True)]
    assert cases_text(late, Show()) == "Time Limit Exceeded\n\nOnly 1 of 3 tests ran in the time for all of them."


# Lengths -------------------------------------------------------------------------------------------------------------


def test_a_long_report_gives_way_to_the_input() -> None:
    text = cases_text([Case("error", "1 2", report="ValueError: {solution} " + "é" * 5000)], Show())
    assert text.startswith("Runtime Error\nValueError: {solution} éé")
    assert text.endswith("é...\n\nLast Executed Input\n1 2")
    assert len(text) == 2000


def test_a_long_input_gives_way_to_what_was_wrong() -> None:
    text = cases_text([Case("wrong", "\n".join(["7" * 249] * 9), "mine", "right")], Show())
    assert len(text) == 2000 and text.endswith("7...\n\nOutput\nmine\n\nExpected\nright")


def test_a_second_case_is_shown_only_where_it_fits() -> None:
    cases = [Case("wrong", "1 " * 80, "o" * 300, "e" * 300) for _ in range(2)]
    assert cases_text(cases, Show()).count("Test Case") == 2
    text = cases_text(cases, Show(chars=900))
    assert text.count("Test Case") == 1 and text.endswith("Expected\n" + "e" * 250 + "...")


@pytest.mark.parametrize("chars", [100, 101, 500, 2000])
def test_no_text_is_longer_than_allowed(chars: int) -> None:
    kinds: list[Any] = ["wrong", "error", "timeout", "memory", "output"]
    for kind in kinds:
        for length in (0, 1, 90, 5000):
            case = Case(kind, "i" * length, "o" * length, "e" * length, "r" * length)
            for cases in ([case], [case, case], [case, Case(kind, hidden=True)]):
                assert 0 < len(cases_text(cases, Show(chars=chars))) <= chars


def test_texts_stay_as_they_are_but_for_what_nothing_takes() -> None:
    text = cases_text([Case("wrong", "{a} %s", "\x00\ud83d", "é😀")], Show())
    assert text == "Test Case 1: Wrong Answer\n\nInput\n{a} %s\n\nOutput\n\ufffd\ufffd\n\nExpected\né😀"
    assert clean(text) == text and text.encode()


# What is hidden ------------------------------------------------------------------------------------------------------

THREE = {"inputs": ["1", "2", "3"], "outputs": ["a", "b", "c"], "testtype": "stdin", "hidden": [False, True, True]}


def judged(truth: dict[str, Any], outcomes: list[Outcome], **options: Any) -> str:
    tests = read_tests(truth)
    return cases_text([judge(one, tests, place, **options) for place, one in enumerate(outcomes)], Show())


def test_hidden_tests_are_counted_and_not_shown() -> None:
    failures = [Outcome("ok", "x"), Outcome("error", report="ValueError: secret"), Outcome("ok", "secret")]
    assert judged(THREE, failures) == (
        "Test Case 1: Wrong Answer\n\nInput\n1\n\nOutput\nx\n\nExpected\na\n\n"
        "Hidden Tests: 2 of 2 failed (1 Runtime Error, 1 Wrong Answer)"
    )
    passed = [Outcome("ok", "a"), Outcome("timeout"), Outcome("ok", "c")]
    assert judged(THREE, passed) == "Hidden Tests: 1 of 2 failed (1 Time Limit Exceeded)"
    assert judged(THREE, [Outcome("ok", "a"), Outcome("not run"), Outcome("ok", "x")]) == (
        "Hidden Tests: 1 of 1 failed (1 Wrong Answer)"
    )
    shown = judged(THREE, failures, reveal_hidden=True)
    assert shown.startswith("Runtime Error\nValueError: secret") and "Hidden" not in shown


def test_right_outputs_are_shown_unless_they_are_not_to_be() -> None:
    outcomes = [Outcome("ok", "x"), Outcome("ok", "b"), Outcome("ok", "c")]
    assert judged(THREE, outcomes, reveal_expected=False) == "Test Case 1: Wrong Answer\n\nInput\n1\n\nOutput\nx"


def test_code_as_a_test() -> None:
    truth = {"inputs": ["assert f(2) == 4", "assert f(3) == 9"], "testtype": "code"}
    outcomes = [Outcome("ok"), Outcome("error", report="AssertionError")]
    assert judged(truth, outcomes) == "Test Case 2: Wrong Answer\n\nInput\nassert f(3) == 9"
    assert judged(truth, outcomes, reveal_expected=False) == "Test Case 2: Wrong Answer"
    outcomes = [
        Outcome("ok"),
        Outcome("error", report="AssertionError: got 6\n  assert f(3) == 9\nLine 1 in f (Test.py)"),
    ]
    shown = "Test Case 2: Wrong Answer\n\nInput\nassert f(3) == 9\n\nOutput\nAssertionError: got 6"
    assert judged(truth, outcomes) == shown
    assert judged(truth, outcomes, reveal_expected=False) == "Test Case 2: Wrong Answer"
    report = "TypeError: no\n  x = 1\nLine 1 in f (Solution.py)\n  assert f(3) == 9\nLine 1 in <module> (Test.py)"
    outcomes = [Outcome("ok"), Outcome("error", report=report)]
    told = "TypeError: no\nLine 1 in f (Solution.py)\nLine 1 in <module> (Test.py)"
    assert judged(truth, outcomes) == f"Runtime Error\n{told}\n\nLast Executed Input\nassert f(3) == 9"
    kept = "Runtime Error\nTypeError: no\nLine 1 in f (Solution.py)"
    assert judged(truth, outcomes, reveal_expected=False) == kept


# Equal outputs -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("output", "expected", "tolerance", "same"),
    [
        ("3 \n", "3", 0.0, True),
        ("\n4\n\n", "4", 0.0, True),
        ("a\r\nb\r\n", "a\nb", 0.0, True),
        ("  1\n", "1", 0.0, True),
        ("1  2", "1 2", 0.0, False),
        ("1\n\n2", "1\n2", 0.0, False),
        ("1.0", "1", 0.0, False),
        ("", "", 0.0, True),
        ("", "1", 0.0, False),
        ("yes", "YES", 0.0, False),
        ("0.3333333 x", "0.33333331 x", 1e-6, True),
        ("0.3333 x", "0.3334 x", 1e-6, False),
        ("1e6", "1000000", 1e-6, True),
        ("1  2", "1 2", 1e-6, True),
        ("1_0", "10", 1e-6, False),
        ("nan", "nan", 1e-6, True),
        ("inf", "nan", 1e-6, False),
        ("x", "1", 1e-6, False),
        ("1 2", "1", 1e-6, False),
        ("1\n2", "1", 1e-6, False),
        # A whole number that is nearly right is wrong, such as a remainder by 1000000007.
        ("1000000008", "1000000007", 1e-6, False),
        ("+5 007", "5 7", 1e-6, True),
        ("1000000007.0", "1000000007", 1e-6, True),
        ("1" * 5000, "1" * 4999 + "2", 1e-6, False),
    ],
)
def test_lines(output: str, expected: str, tolerance: float, same: bool) -> None:
    assert same_lines(output, expected, tolerance) is same


@pytest.mark.parametrize(
    ("output", "expected", "tolerance", "same"),
    [
        ("[1, 2]", "[1,2]", 0.0, True),
        ('{"b": 1, "a": 2}', '{"a": 2, "b": 1}', 0.0, True),
        ('{"a": 1}', '{"a": 1, "b": 2}', 0.0, False),
        ("1", "1.0", 0.0, False),
        ("1", "1.0", 1e-9, True),
        ("true", "1", 0.0, False),
        ("true", "1", 1e-9, False),
        ("[2, 1]", "[1, 2]", 0.0, False),
        ("[]", "{}", 0.0, False),
        ("null", "null", 0.0, True),
        ("NaN", "NaN", 0.0, True),
        ("0.30000000000000004", "0.3", 0.0, False),
        ("0.30000000000000004", "0.3", 1e-9, True),
        ("1" * 5000, "1" * 5000, 0.0, True),
        ("1" * 5000, "1" * 4999 + "2", 0.0, False),
        ("1" * 400, "1.5", 1e-9, False),
        ("[1000000008]", "[1000000007]", 1e-6, False),
        ("[1000000008.0]", "[1000000007]", 1e-6, True),
        ("1" * 300, "1" * 299 + "2", 1e-6, False),
        ('"' + "1" * 5000 + '"', "1" * 5000, 0.0, False),
    ],
)
def test_values(output: str, expected: str, tolerance: float, same: bool) -> None:
    assert same_value(read_json(output), read_json(expected), tolerance) is same


@pytest.mark.parametrize("output", ["", "not JSON", "[" * 100_000, "[" * 900 + "]" * 900, "\x00", "\ud800", "[1,]"])
def test_an_output_that_is_no_value_is_wrong(output: str) -> None:
    tests = read_tests({"inputs": ["1"], "outputs": ["[]"], "testtype": "functional", "fn_name": "f"})
    assert judge(Outcome("ok", output), tests, 0).kind == "wrong"


# Reading tests -------------------------------------------------------------------------------------------------------

GOOD: dict[str, Any] = {"inputs": ["1"], "outputs": ["1"], "testtype": "stdin"}


def test_tests_as_text_or_mapping_with_nulls_where_a_table_has_them() -> None:
    whole = {**GOOD, "fn_name": None, "time_limit": None, "context": None, "hidden": None}
    assert read_tests(json.dumps(GOOD)) == read_tests(whole) == read_tests({**GOOD, "question_id": "q0"})
    full = read_tests({**GOOD, "testtype": "functional", "fn_name": "f", "time_limit": 6, "context": "import math"})
    assert (full.function, full.seconds, full.context, full.hidden) == ("f", 6.0, "import math", (False,))


@pytest.mark.parametrize(
    ("truth", "problem"),
    [
        ("nonsense", "no JSON"),
        ("[]", "it is a list"),
        (b"\xff", "no JSON"),
        (3, "it is a int"),
        ({}, "`testtype` is None"),
        ({**GOOD, "testtype": "stdio"}, "`testtype` is 'stdio'"),
        ({**GOOD, "inputs": [], "outputs": []}, "it has no test"),
        ({**GOOD, "outputs": []}, "1 inputs and 0 outputs"),
        ({**GOOD, "outputs": None}, "`outputs` is missing"),
        ({**GOOD, "inputs": "1"}, "`inputs` is no list"),
        ({**GOOD, "inputs": [1]}, r"`inputs\[0\]` is 1 \(int\)"),
        ({**GOOD, "time_limit": 0}, "`time_limit` is 0"),
        ({**GOOD, "time_limit": "soon"}, "`time_limit` is 'soon'"),
        ({**GOOD, "time_limit": float("nan")}, "`time_limit` is nan"),
        ({**GOOD, "timelimit": 3}, "'timelimit' is none of .* Did you mean 'time_limit'"),
        ({**GOOD, "context": 3}, "`context` is 3"),
        ({**GOOD, "hidden": [True, False]}, "`hidden` has 2 entries for 1 tests"),
        ({**GOOD, "hidden": ["no"]}, "not only true and false"),
        ({**GOOD, "hidden": True}, "`hidden` is no list"),
        ({**GOOD, "testtype": "functional"}, "`fn_name` is None"),
        ({**GOOD, "testtype": "functional", "fn_name": "f()"}, r"`fn_name` is 'f\(\)'"),
        ({**GOOD, "testtype": "functional", "fn_name": "f", "outputs": ["no JSON"]}, r"`outputs\[0\]` is no JSON"),
        ({**GOOD, "testtype": "functional", "fn_name": "f", "inputs": ["1\n\nx"]}, r"`inputs\[0\]` is no JSON"),
    ],
)
def test_tests_that_cannot_be_used(truth: Any, problem: str) -> None:
    with pytest.raises(DataError, match=f"scorer 'code' cannot be used: .*{problem}.* It must be a mapping.*; got "):
        read_tests(truth)
