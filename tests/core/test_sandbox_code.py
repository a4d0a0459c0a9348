"""Tests that are code: they run where the program is not, and nothing that the program does makes them pass."""

from __future__ import annotations

import pytest

from sandbox_leftovers import descendants_gone
from sdpo_plugins.feedback.sandbox import Limits, Outcome, Program, Sandbox, open_sandbox
from sdpo_plugins.feedback.sandbox.rlimits import Rlimits

ROOMY = Limits(seconds=10.0)


@pytest.fixture(scope="module", params=["bubblewrap", pytest.param("rlimits", marks=pytest.mark.slow)])
def sandbox(request: pytest.FixtureRequest) -> Sandbox:
    return open_sandbox("bubblewrap") if request.param == "bubblewrap" else Rlimits()


@pytest.fixture(scope="module")
def strongest() -> Sandbox:
    # What runs inside is the same in both.
    return open_sandbox("bubblewrap")


def tried(sandbox: Sandbox, code: str, test: str, function: str | None = None, limits: Limits = ROOMY) -> Outcome:
    (outcome,) = sandbox.run(Program(code, "code", function), [test], limits)
    assert outcome.output == ""
    return outcome


STACK = """
class Stack:
    def __init__(self, items=()):
        self.items = list(items)
    def push(self, item):
        self.items.append(item)
        return self
    def pop(self):
        return self.items.pop()
    def __len__(self):
        return len(self.items)
    def __getitem__(self, index):
        return self.items[index]
    def __contains__(self, item):
        return item in self.items
    def __str__(self):
        return f"Stack({self.items})"
class Empty(LookupError):
    pass
"""


@pytest.mark.parametrize(
    ("code", "test"),
    [
        ("def f(a, b=1, *c, **d):\n    return [a, b, c, d]", "assert f(1, 2, 3, x=4) == [1, 2, (3,), {'x': 4}]"),
        ("def f(x):\n    return x", """
for value in (0, -1, 2**200, -2**63, 1.5, 1e400, -1e400, 1 + 2j, True, False, None, '', 'é\\0\\ud800',
              b'\\xff\\0', bytearray(b'a'),
              [], (), {}, set(), frozenset(), [1, [2, (3, {4: {5}})]], {(1, 2): 'a', None: frozenset([1])}):
    assert f(value) == value and type(f(value)) is type(value), value
nan = f(float('nan'))
assert nan != nan
"""),
        ("def f(x): return 1",
         "import unittest\nclass T(unittest.TestCase):\n    def test(self):\n"
        "        self.assertEqual(f(2), 1)\nunittest.main()"),
        ("from collections import Counter, OrderedDict, namedtuple, defaultdict\nP = namedtuple('P', 'a b')\n"
         "def f(x): return [Counter(x), OrderedDict(a=1), P(1, 2), defaultdict(int, b=2)]",
         "assert f('aab') == [{'a': 2, 'b': 1}, {'a': 1}, (1, 2), {'b': 2}]"),
        ("import enum\nclass E(enum.IntEnum):\n    A = 3\ndef f(): return E.A", "assert f() == 3 and type(f()) is int"),
        ("def f(x):\n    x.sort()\n    x.append(9)", "x = [3, 1]\nassert f(x) is None and x == [1, 3, 9]"),
        ("def f(x):\n    x.clear()", "x = {1: 2}\nf(x)\ny = {3}\nf(x=y)\nassert x == {} and y == set()"),
        ("import math\nLIMIT = 5\ndef f(x): return math.sqrt(x)",
         "assert math.isclose(f(4), 2) and LIMIT == 5 and abs(f(4) - 2) < 1e-9"),
        ("def f(x):\n    raise ValueError('no')",
         "try:\n    f(1)\nexcept ValueError as error:\n    assert str(error) == 'no'\nelse:\n    assert False"),
        ("def f(x):\n    return {}[x]", "try:\n    f('a')\n    raise SystemExit(3)\nexcept KeyError:\n    pass"),
        (STACK,
         "s = Stack([1])\n"
        "assert s.push(2).pop() == 2 and len(s) == 1 and s[0] == 1 and 1 in s and str(s) == 'Stack([1])'"),
        (STACK, "s = Stack()\nassert not s and s.push(1) is s and s == s and s != Stack()"),
        (STACK + "def f(s): return s.pop()", "assert f(Stack([7])) == 7"),
        (STACK + "def f():\n    raise Empty('x')",
         "try:\n    f()\n    raise SystemExit(3)\nexcept Empty as error:\n    assert isinstance(error, LookupError)"),
        ("def f(n):\n    for i in range(n):\n        yield i",
         "assert list(f(3)) == [0, 1, 2] and next(f(1)) == 0 and sum(f(4)) == 6"),
        ("def f(): return range(3), map(abs, [-1])", "r, m = f()\nassert list(r) == [0, 1, 2] and list(m) == [1]"),
        ("print('noise')\ndef f():\n    print('more')\n    return 1", "print('test')\nassert f() == 1"),
        ("def f(x): return x", "import sys, time\nassert f(1)\nsys.exit()"),
        ("", "assert 1 + 1 == 2"),
        ("x = list(range(10**6))\ndef f(): return len(x)", "assert f() == 10**6 and len(x) == 10**6"),
        ("import asyncio\nasync def f(): return 3", "assert f"),
    ],
)  # fmt: skip
def test_right_programs_pass(strongest: Sandbox, code: str, test: str) -> None:
    outcome = tried(strongest, code, test)
    assert (outcome.kind, outcome.report) == ("ok", "")


@pytest.mark.parametrize(
    ("code", "test", "report"),
    [
        ("def f(x): return 1",
         "x = 2\nassert f(x) == 2, 'wrong'",
         "AssertionError: wrong\n  assert f(x) == 2, 'wrong'\nLine 2 in <module> (Test.py)"),
        ("def f(x):\n    return 1 / x",
         "assert f(0) == 1", "ZeroDivisionError: division by zero\n  return 1 / x\nLine 2 in f (Solution.py)"),
        ("def g(x): return 1", "assert f(0) == 1", "NameError: name 'f' is not defined\n"),
        ("1 / 0", "assert True", "ZeroDivisionError: division by zero\n  1 / 0\nLine 1 in <module> (Solution.py)"),
        ("def f(", "assert True", "SyntaxError: '(' was never closed (Solution.py, line 1)"),
        ("def f(x): return object()", "assert f(0) == 1", "AssertionError\n"),
        ("def f(x): return [object()]", "assert f(0) == [1]", "AssertionError\n"),
        ("def f(x):\n    y = []\n    y.append(y)\n    return y", "assert f(0) == 1", "RecursionError: "),
        ("def f(x): return x",
         "assert f(lambda: 1)",
         "NotPlain: a test cannot pass an object of type function to a program in another process"),
        ("import os\nos._exit(0)", "assert True", "The program ended while the test was running."),
        ("import os\ndef f(x): os._exit(0)", "assert f(1) is None", "The program ended while the test was running."),
        ("import os\ndef f(x): os.abort()", "assert f(1) is None", "The program was ended by SIGABRT."),
        ("import sys\ndef f(x): sys.exit(0)",
         "f(1)", "SystemExit: 0\n  def f(x): sys.exit(0)\nLine 2 in f (Solution.py)"),
        ("def f(x): raise KeyboardInterrupt",
         "try:\n    f(1)\nexcept Exception as e:\n    raise ValueError(str(e)) from e",
         "ValueError: KeyboardInterrupt"),
        ("class E(Exception): pass\ndef f(x): raise E('x')",
         "f(1)", "E: x\n  def f(x): raise E('x')\nLine 2 in f (Solution.py)"),
    ],
)  # fmt: skip
def test_wrong_programs_fail(strongest: Sandbox, code: str, test: str, report: str) -> None:
    outcome = tried(strongest, code, test)
    assert outcome.kind == "error" and outcome.report.startswith(report), outcome


EVIL_VALUE = """
class Evil(int):
    def _yes(self, *others): return True
    __eq__ = __ne__ = __lt__ = __gt__ = __le__ = __ge__ = __bool__ = __contains__ = _yes
    def __sub__(self, other): return self
    __rsub__ = __abs__ = __sub__
    def __hash__(self): return 0
    def __repr__(self): return '4'
    __str__ = __json__ = __repr__
    def __reduce__(self): return (print, ())
"""

# Each makes the test pass where the program and its test share an interpreter, or tries to where they do not.
FORGERIES = {
    "always equal": EVIL_VALUE + "def f(x): return Evil(5)",
    "always equal object": "class E:\n    def __eq__(self, other): return True\ndef f(x): return E()",
    "always equal in a list": EVIL_VALUE + "def f(x): return [Evil(5)]",
    "exit before the checks": "import os\ndef f(x): os._exit(0)",
    "exit on import": "import os\nos._exit(0)",
    "system exit": "import sys\ndef f(x): sys.exit(0)",
    "verdict on every file": "import os\nfor n in range(64):\n    for t in (b'+.', b'.', b'21\\n{\"kind\": \"ok\"}'):\n"
    "        try: os.write(n, t)\n        except OSError: pass\ndef f(x): return 5",
    "verdict on standard output":
    "print('{\"kind\": \"ok\"}', flush=True)\nprint('+.', flush=True)\ndef f(x): return 5",
    "patched assertion":
        "import builtins\nclass A(BaseException):\n    pass\nbuiltins.AssertionError = A\n"
        "def f(x): return 5",
    "patched builtins": "import builtins\nbuiltins.abs = builtins.len = builtins.int = lambda *x: 0\n"
    "builtins.compile = lambda *x: ''\nbuiltins.exec = lambda *x: None\ndef f(x): return 5",
    "patched json": "import json\njson.dumps = lambda *a, **k: '4'\njson.loads = lambda *a, **k: 4\ndef f(x): return 5",
    "own names for builtins": "def abs(x): return 0\ndef len(x): return 0\ndef all(x): return True\ndef f(x): return 5",
    "own math": "class math:\n    isclose = lambda *x, **k: True\ndef f(x): return 5",
    "own assertion error": "class AssertionError(Exception): pass\ndef f(x): return 5",
    "assertion raised": "def f(x): raise AssertionError('')",
    "debugger":
        "import sys\nsys.settrace(lambda *a: None)\nsys.setprofile(lambda *a: None)\n"
        "def f(x):\n    import inspect\n"
    "    for frame in inspect.stack():\n        frame.frame.f_locals['found'] = 4\n"
        "        frame.frame.f_globals['PASSED'] = b''\n    return 5",
    "garbage search":
        "import gc\ndef f(x):\n    for o in gc.get_objects():\n"
        "        if type(o) is str and 'assert' in o and 'UNTOLD' in o: return 4\n    return 5",
    "answers without a question":
        "import os\nfor n in range(3, 20):\n    try: os.write(n, b'10\\n{\"names\":{}' )\n"
        "    except OSError: pass\ndef f(x): return 5",
    "killing the test":
        "import os, signal\nfor p in [-1, 0, os.getppid(), *range(1, 50)]:\n"
        "    if p != os.getpid():\n        try: os.kill(p, 9)\n"
    "        except OSError: pass\ndef f(x): return 5",
    "endless result": "class E(list):\n    def __iter__(self):\n        while True: yield 4\ndef f(x): return E([5])",
    "huge result": "def f(x): return 'x' * (1 << 28)",
    "deep result": "def f(x):\n    y = []\n    for _ in range(10**6): y = [y]\n    return y",
    "an error with a will":
        "class V(ValueError):\n    def __init__(self, *a): pass\n"
        "    def __eq__(self, o): return True\n"
    "    def __str__(self): return '.'\ndef f(x): raise V()",
    "an end of the cases": "def f(x): raise StopIteration",
    "an end of the cases by another name": "class E(StopIteration): pass\nclass O:\n"
    "    def __eq__(self, o): raise E\n    def __getattr__(self, name): raise E\n    __iter__ = __getattr__\n"
    "def f(x): raise E",
    "an error named so": "ValueError = type('AssertionError', (BaseException,), {})\ndef f(x): raise ValueError('+.')",
}  # fmt: skip

TESTS = (
    "assert f(2) == 4  # UNTOLD",
    "import math\nassert abs(f(2) - 4) < 1e-6 and len([f(2)]) == 1  # UNTOLD",
    "assert math.isclose(f(2), 4)  # UNTOLD",
    "found = f(2)\nif not (found == 4 and isinstance(found, int)):\n    raise AssertionError  # UNTOLD",
    "assert f(2) in (4, 4.0) and not f(2) != 4 and [f(2)] == [4]  # UNTOLD",
    "try:\n    found = f(2)\nexcept Exception:\n    found = None\nassert found == 4  # UNTOLD",
    "assert all(map(lambda case: f(case[0]) == case[1], [(2, 4)]))  # UNTOLD",
)


LONG = ("huge result", "endless result", "deep result")


@pytest.mark.parametrize(
    "name", [pytest.param(one, marks=pytest.mark.slow) if one in LONG else one for one in FORGERIES]
)
def test_no_forgery_passes(sandbox: Sandbox, name: str) -> None:
    # Results without end take all the time there is.
    limits = Limits(seconds=1.0 if name in LONG else 10.0)
    with descendants_gone():
        outcomes = sandbox.run(Program(FORGERIES[name], "code"), TESTS[:2] if name in LONG else TESTS, limits)
    assert {outcome.kind for outcome in outcomes} <= {"error", "memory", "timeout"}, outcomes
    assert all(outcome.report for outcome in outcomes if outcome.kind != "timeout")


def test_a_test_that_swallows_everything_still_needs_the_program(sandbox: Sandbox) -> None:
    test = "try:\n    f(2)\nexcept BaseException:\n    pass"
    assert tried(sandbox, "import os\ndef f(x): os._exit(0)", test).kind == "error"
    assert tried(sandbox, "def f(x): raise ValueError", test).kind == "ok"


def test_a_function_may_have_the_name_of_a_builtin(sandbox: Sandbox) -> None:
    assert tried(sandbox, "def sum(a, b): return a + b", "assert sum(1, 2) == 3", "sum").kind == "ok"
    assert tried(sandbox, "def sum(a, b): return a + b", "assert sum([1, 2]) == 3").kind == "ok"
    assert tried(sandbox, "def copy(a): return a * 2", "assert copy(1) == 2", "copy").kind == "ok"


@pytest.mark.parametrize(
    "code", ["while True: pass", "def f(x):\n    while True: pass", "import time\ntime.sleep(100)"]
)
def test_endless_programs_run_out_of_time(sandbox: Sandbox, code: str) -> None:
    with descendants_gone():
        outcomes = sandbox.run(Program(code, "code"), ["f(1)", "f(1)"], Limits(seconds=0.5))
    assert [outcome.kind for outcome in outcomes] == ["timeout", "timeout"]


def test_memory_has_a_limit(sandbox: Sandbox) -> None:
    outcome = tried(sandbox, "def f(x): return len(bytearray(x << 20))", "f(500)", limits=Limits(10.0, memory_mb=256))
    assert outcome.kind == "memory" and "Line 1 in f (Solution.py)" in outcome.report


def test_tests_stop_after_so_many_failures(sandbox: Sandbox) -> None:
    program = Program("def f(x): return x", "code")
    inputs = ["assert f(1)", "assert f(0)", "assert f(1)", "assert f(0)", "assert f(1)"]
    kinds = [outcome.kind for outcome in sandbox.run(program, inputs, ROOMY, stop_after=2)]
    assert kinds == ["ok", "error", "ok", "error", "not run"]
