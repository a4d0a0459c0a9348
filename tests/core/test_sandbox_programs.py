"""The sandbox does what it is for: programs run, and what became of them is told."""

from __future__ import annotations

import random
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from sandbox_leftovers import descendants_gone
from sdpo_plugins.errors import ConfigError, DataError
from sdpo_plugins.feedback.sandbox import Limits, Outcome, Program, Sandbox, open_sandbox
from sdpo_plugins.feedback.sandbox.rlimits import WARNING, Rlimits, open_rlimits

# Time enough on a machine that has much else to do.
ROOMY = Limits(seconds=10.0)


@pytest.fixture(scope="module", params=["bubblewrap", pytest.param("rlimits", marks=pytest.mark.slow)])
def sandbox(request: pytest.FixtureRequest) -> Sandbox:
    return open_sandbox("bubblewrap") if request.param == "bubblewrap" else Rlimits()


@pytest.fixture(scope="module")
def strongest() -> Sandbox:
    # What runs inside is the same in both.
    return open_sandbox("bubblewrap")


def ran(sandbox: Sandbox, code: str, given: str = "", function: str | None = None, limits: Limits = ROOMY) -> Outcome:
    mode = "functional" if function else "stdin"
    (outcome,) = sandbox.run(Program(code, mode, function), [given], limits)
    return outcome


@pytest.mark.parametrize(
    ("code", "given", "output"),
    [
        ("print(sum(map(int, input().split())))", "1 2", "3\n"),
        ("import sys\nprint(len(sys.stdin.read()))", "é\n" * 300_000, "600000\n"),
        ("print(open(0).read().split()[-1])", "a b\nc", "c\n"),
        ("def main():\n    print(1)\n    exit()\nif __name__ == '__main__':\n    main()", "", "1\n"),
        ("print('''it's \"é\" {0} \\\\''')", "", 'it\'s "é" {0} \\\n'),
        ("print('a\\0b\\u2028\\x7f', end='')", "", "a\0b\u2028\x7f"),
        ("import sys\nsys.stdout.buffer.write(b'\\xff\\xfeA')", "", "\ufffd\ufffdA"),
        ("print('\\udcff', end='')", "", "\ufffd"),
        ("import threading\nthreading.Thread(target=lambda: print('late')).start()", "", "late\n"),
        ("import atexit\natexit.register(print, 'last')\nprint('first')", "", "first\nlast\n"),
        ("out = open(1, 'w', closefd=False)\nout.write('not closed')", "", "not closed"),
        ("import sys, io\nsys.stdout = io.StringIO()\nprint('hidden')", "", ""),
        ("x: List[int] = [1]\nprint(x)", "", "[1]\n"),
        ("import asyncio\nasync def f(): return 4\nprint(asyncio.run(f()))", "", "4\n"),
        ("from concurrent.futures import ThreadPoolExecutor as P\nprint(list(P(4).map(abs, [-1, 2])))", "", "[1, 2]\n"),
        ("import tempfile\nwith tempfile.TemporaryFile() as f: print(f.write(b'abc'))", "", "3\n"),
        ("print({'b', 'a', 'c', 'd', 'e'} == set('abcde'), hash('a') == hash('a'))", "", "True True\n"),
    ],
)
def test_programs_read_and_write(strongest: Sandbox, code: str, given: str, output: str) -> None:
    outcome = ran(strongest, code, given)
    assert (outcome.kind, outcome.output, outcome.report) == ("ok", output, "")
    assert 0 < outcome.seconds < 10


@pytest.mark.parametrize(
    ("code", "given", "output"),
    [
        ("def f(a, b):\n    print('noise')\n    return [a, b]", '"two words"\n\n2', '["two words", 2]'),
        ("class Solution:\n    def f(self, a: List[int]) -> Unknown:\n        return sum(a)", "[1, 2]", "3"),
        ("def f(a):\n    return (a, {1: None})", "1", '[1, {"1": null}]'),
        ("from dataclasses import dataclass\n@dataclass\nclass P:\n    x: int\ndef f(a):\n    return P(a).x", "5", "5"),
        ("def f(a):\n    return 1\nif __name__ == '__main__':\n    print(f(input()))", "1", "1"),
        ("def f():\n    return None", "", "null"),
        ("import atexit, time\natexit.register(time.sleep, 100)\ndef f():\n    return 1", "", "1"),
        ("def f():\n    return 'a\\0é\\ud800'", "", '"a\\u0000\\u00e9\\ud800"'),
        ("import os\ndef f():\n    os.write(1, b'noise')\n    return 1", "", "1"),
    ],
)  # fmt: skip
def test_functions_are_called(strongest: Sandbox, code: str, given: str, output: str) -> None:
    outcome = ran(strongest, code, given, "f")
    assert (outcome.kind, outcome.output, outcome.report) == ("ok", output, "")


@pytest.mark.parametrize(
    ("code", "function", "report"),
    [
        (
            "\n" * 70 + "def f(a):\n  # divide\n  return a / 0\n",
            "f",
            "ZeroDivisionError: division by zero\n  return a / 0\nLine 73 in f (Solution.py)",
        ),
        (
            "x = [1]\nprint(x[3])",
            None,
            "IndexError: list index out of range\n  print(x[3])\nLine 2 in <module> (Solution.py)",
        ),
        ("def f(a)\n    return a", "f", "SyntaxError: expected ':' (Solution.py, line 1)"),
        ("x = 'a\0b'", "f", "SyntaxError: source code string cannot contain null bytes"),
        ("def g(a):\n    return a", "f", "NameError: there is no function f"),
        ("def f(a):\n    return {1}", "f", "TypeError: Non-serializable result type: set"),
        ("exit(3)", None, "SystemExit: 3\n  exit(3)\nLine 1 in <module> (Solution.py)"),
        ("import os\ndef f(a):\n    os._exit(0)", "f", "The program ended before its function had returned."),
        ("def f(a):\n    raise SystemExit(0)", "f", "SystemExit: 0\n  raise SystemExit(0)\nLine 2 in f (Solution.py)"),
        ("import os\nos._exit(3)", None, "The program ended with code 3."),
        ("import os\nos.abort()", None, "The program was ended by SIGABRT."),
        ("raise KeyboardInterrupt", None, "KeyboardInterrupt\n  raise Key"),
        ("import numpy_that_is_missing", None, "ModuleNotFoundError: No module named 'numpy_that_is_missing'\n"),
    ],
)
def test_errors_are_reported_where_they_are(strongest: Sandbox, code: str, function: str | None, report: str) -> None:
    outcome = ran(strongest, code, "1", function)
    assert outcome.kind == "error" and outcome.report.startswith(report), outcome


def test_the_last_frames_are_shown_and_texts_are_cut(sandbox: Sandbox) -> None:
    code = "def f(n):\n    if not n:\n        raise ValueError('x' * 5000)\n    f(n - 1)" + " " * 300 + "# end\nf(50)"
    outcome = ran(sandbox, code)
    lines = outcome.report.splitlines()
    assert lines[0] == "ValueError: " + "x" * 1000
    assert [line for line in lines if line.startswith("Line")] == [f"Line {n} in f (Solution.py)" for n in (4, 4, 3)]
    assert len(outcome.report) <= 2000 and max(map(len, lines[1:])) <= 202


@pytest.mark.parametrize("function", ["f", None])
def test_an_output_has_a_limit(sandbox: Sandbox, function: str | None) -> None:
    code = "def f(n):\n    return 'x' * (n - 2)" if function else "print('x' * (int(input()) - 1))"
    fits, does_not = sandbox.run(
        Program(code, "functional" if function else "stdin", function),
        ["5000", "5001"],
        Limits(seconds=10.0, output_bytes=5000),
    )
    assert (fits.kind, len(fits.output)) == ("ok", 5000)
    assert (does_not.kind, does_not.report) == ("output", "The output is longer than 5000 bytes.")
    assert len(does_not.output) <= 5000


def test_memory_has_a_limit(sandbox: Sandbox) -> None:
    limits = Limits(seconds=10.0, memory_mb=256)
    program = Program("def f(n):\n    return len(bytearray(n << 20))", "functional", "f")
    fits, does_not = sandbox.run(program, ["100", "300"], limits)
    assert (fits.kind, fits.output) == ("ok", str(100 << 20))
    assert does_not.kind == "memory"
    assert does_not.report == (
        "MemoryError\n  return len(bytearray(n << 20))\nLine 2 in f (Solution.py)"
    )  # fmt: skip


def test_each_test_has_its_own_time(sandbox: Sandbox) -> None:
    program = Program("import time\ndef f(n):\n    time.sleep(n)\n    return n", "functional", "f")
    outcomes = sandbox.run(program, ["0", "30", "0"], Limits(seconds=1.5))
    assert [outcome.kind for outcome in outcomes] == ["ok", "timeout", "ok"]
    assert 1.5 <= outcomes[1].seconds < 5


@pytest.mark.slow
def test_all_tests_together_have_a_time(sandbox: Sandbox) -> None:
    started = time.monotonic()
    with descendants_gone():
        program = Program("import time\nprint('ok')\ntime.sleep(float(input()))", "stdin")
        outcomes = sandbox.run(program, ["0", "60", "0", "0"], Limits(seconds=60.0, total_seconds=3.0))
    assert [outcome.kind for outcome in outcomes] == ["ok", "timeout", "not run", "not run"]
    assert time.monotonic() - started < 12


def test_tests_stop_after_so_many_failures(sandbox: Sandbox) -> None:
    program = Program("print(1 / int(input()))", "stdin")
    inputs = ["1", "0", "1", "0", "1"]
    kinds = [[one.kind for one in sandbox.run(program, inputs, ROOMY, stop_after=most)] for most in (1, 2, 3)]
    assert kinds == [
        ["ok", "error", "not run", "not run", "not run"],
        ["ok", "error", "ok", "error", "not run"],
        ["ok", "error", "ok", "error", "ok"],
    ]


def test_no_test_sees_what_another_left(sandbox: Sandbox) -> None:
    code = "import os\nprint(os.listdir('.'), os.environ.get('LEFT'))\nos.environ['LEFT'] = '1'\n"
    code += "if input() == 'write': open('left', 'w').write('x')"
    outcomes = sandbox.run(Program(code, "stdin"), ["write", "read", "write", "write", "read"], ROOMY)
    assert [outcome.output for outcome in outcomes] == ["[] None\n"] * 5
    outcomes = sandbox.run(Program("print(0 / (input() != 'write' or open('left', 'w').write('x') - 1))", "stdin"),
                           ["write", "read", "write"], ROOMY, stop_after=2)  # fmt: skip
    assert [outcome.kind for outcome in outcomes] == ["error", "ok", "error"]


@pytest.mark.slow
def test_a_program_of_a_thousand_tests() -> None:
    sandbox = open_sandbox()
    program = Program("n = int(input())\nprint(n * n)", "stdin")
    with descendants_gone():
        outcomes = sandbox.run(program, [str(number) for number in range(1000)], ROOMY)
    assert [outcome.output for outcome in outcomes] == [f"{number * number}\n" for number in range(1000)]


@pytest.mark.slow
def test_from_many_threads(sandbox: Sandbox) -> None:
    def work(number: int) -> list[str]:
        kinds = {
            "ok": Program(f"print({number})", "stdin"),
            "error": Program("import os\nwhile True: os.fork()", "stdin"),
            "timeout": Program("while True: pass", "stdin"),
            "output": Program("while True: print('x' * 10000)", "stdin"),
        }
        kind = random.Random(number).choice(list(kinds))
        limits = Limits(seconds=0.5) if kind == "timeout" else ROOMY
        found = sandbox.run(kinds[kind], ["", ""], limits)
        assert kind != "ok" or found[0].output == f"{number}\n"
        return [kind, *(one.kind for one in found)]

    with descendants_gone(), ThreadPoolExecutor(8) as pool:
        for wanted, *found in pool.map(work, range(40)):
            assert found == [wanted, wanted]


def test_no_inputs_are_no_outcomes(sandbox: Sandbox) -> None:
    assert sandbox.run(Program("", "stdin"), []) == []


def test_what_cannot_be_run_is_refused(sandbox: Sandbox) -> None:
    program = Program("def f(a): return a", "functional", "f")
    with pytest.raises(DataError, match=r"test 2 has a line that is no JSON: 'x'.*one argument"):
        sandbox.run(program, ["1", "x"])
    with pytest.raises(DataError, match="test 1 must be a text, got int: 1"):
        sandbox.run(program, [1])  # type: ignore[list-item]
    with pytest.raises(ConfigError, match="stop_after"):
        sandbox.run(program, ["1"], stop_after=0)


@pytest.mark.parametrize(
    ("options", "piece"),
    [
        ({"mode": "stdio"}, "stdin, functional, code; got 'stdio'"),
        ({"mode": "functional"}, "needs the name of its function"),
    ],
)
def test_programs_that_are_none(options: dict[str, str], piece: str) -> None:
    with pytest.raises(ConfigError, match=piece):
        Program("", **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["seconds", "memory_mb", "output_bytes", "file_mb", "total_seconds"])
@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), "1"])
def test_limits_that_are_none(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"`{name}` must be a number above 0, got {value!r}"):
        Limits(**{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "piece"),
    [
        ({"isolation": "bubblwrap"}, "Did you mean 'bubblewrap'"),
        ({"isolation": "sandbox_fusion"}, "needs `url`"),
        ({"isolation": "sandbox_fusion", "url": "localhost:80/run_code"}, "is like http://"),
        ({"isolation": "sandbox_fusion", "url": "http://x/run_code", "attempts": 0}, "at least 1"),
        ({"isolation": "bubblewrap", "url": "http://x/run_code"}, "url: only isolation 'sandbox_fusion'"),
        ({"isolation": "rlimits", "max_concurrent": 3}, "max_concurrent: only"),
    ],
)
def test_sandboxes_that_are_none(options: dict[str, object], piece: str) -> None:
    with pytest.raises(ConfigError, match=piece):
        open_sandbox(**options)  # type: ignore[arg-type]


def test_limits_alone_come_with_one_warning() -> None:
    open_rlimits.cache_clear()
    with pytest.warns(UserWarning) as found:
        first = open_sandbox("rlimits")
        assert open_sandbox("rlimits") is first
    assert [str(one.message) for one in found] == [WARNING]
    assert found[0].filename == __file__
