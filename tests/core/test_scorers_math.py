"""The scorer `math`: equal as mathematics, within a time limit that holds wherever it is called from."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from sdpo_plugins import SDPOConfig
from sdpo_plugins.errors import ConfigError, DataError, SDPOError
from sdpo_plugins.feedback import _math_process
from sdpo_plugins.feedback.equations import number_in, wrong_equations
from sdpo_plugins.feedback.math_answer import last_box
from sdpo_plugins.plugins import build_scorer, catalogue
from sdpo_plugins.testing import check_scorer
from sdpo_plugins.types import Score

FORMAT = "Incorrect Format: Put your final answer in \\boxed{}, as in \\boxed{42}."
TOWER = "\\boxed{10^{10^{10^{10}}}}"


@pytest.fixture(autouse=True, scope="module")
def no_process_is_left() -> Iterator[None]:
    yield
    _math_process.close_processes()
    assert not _math_process._processes._all


def scored(response: str, truth: Any, row: dict[str, Any] | None = None, **options: Any) -> Score:
    found = build_scorer(SDPOConfig(), "math", options)(response, {"ground_truth": truth, **(row or {})})
    assert isinstance(found, Score)
    return found


# Equal or not --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "truth", "right"),
    [
        ("84", "84", True),
        ("84", 84, True),
        ("84", "83", False),
        ("84.", "84", True),
        ("084.0", "84", True),
        ("\\$1,250.50", "1250.5", True),
        ("1250", "1,250", True),
        ("12", "1,2", False),
        ("18\\text{ dollars}", "18", True),
        ("18 apples", "18", True),
        ("18 and 19", "18", False),
        ("17 or 18", "18", False),
        ("50\\%", "0.5", True),
        ("-3", "3", False),
        ("0.5", "\\frac{1}{2}", True),
        ("\\frac12", "$\\frac{1}{2}$", True),
        ("\\dfrac{2}{4}", "\\boxed{1/2}", True),
        ("0.3333", "\\frac{1}{3}", False),
        ("2\\sqrt{2}", "\\sqrt{8}", True),
        ("x^2+2x+1", "(x+1)^2", True),
        ("x^2+2x", "(x+1)^2", False),
        ("2, 1", "\\{1, 2\\}", True),
        ("\\{1, 2, 3\\}", "\\{1, 2\\}", False),
        ("(1, 2)", "(1, 2)", True),
        ("[1, 2)", "(1, 2)", False),
        ("x = 42", "42", True),
        ("\\begin{bmatrix}1\\\\2\\end{bmatrix}", "\\begin{pmatrix}1\\\\2\\end{pmatrix}", True),
        ("10^{-7}", 1e-7, True),
        ("0.0000001", "1e-7", True),
        ("\\text{east}", "east", True),
        ("East", "east", True),
        ("seat", "east", False),
        ("\\text{seat}", "east", False),
        ("[0, 100]", "42", False),
        ("\\mathbb{R}", "42", False),
        ("42 = 43", "42", False),
    ],
)
def test_answers(answer: str, truth: Any, right: bool) -> None:
    found = scored(f"So it is $\\boxed{{{answer}}}$.", truth)
    assert found == Score(
        float(right),
        None,
        {"acc": float(right), "incorrect_format": 0, "truncated": 0, "timed_out": 0, "pred": answer},
    )


@pytest.mark.parametrize(
    ("text", "box", "unfinished"),
    [
        ("\\boxed{1}, no: \\boxed{2}", "2", False),
        ("\\boxed{\\frac{1}{2}}", "\\frac{1}{2}", False),
        ("\\boxed{\\left\\{ 1 \\right.}", "\\left\\{ 1 \\right.", False),
        ("\\boxed{\\boxed{5}}", "5", False),
        ("\\boxed {5}", "5", False),
        ("\\boxed{5} \\boxedeq", "5", False),
        ("\\boxed{5}, so \\boxed{6", None, True),
        ("\\boxed{", None, True),
        ("\\boxed{ }", None, False),
        ("\\boxed 5", None, False),
        ("5", None, False),
        ("\\boxed{5}\\", "5", False),
    ],
)
def test_the_last_box(text: str, box: str | None, unfinished: bool) -> None:
    assert last_box(text) == (box, unfinished)


def test_without_a_box_only_if_asked_for() -> None:
    assert scored("It is 84.", "84") == Score(
        0.0, FORMAT, {"acc": 0.0, "incorrect_format": 1, "truncated": 0, "timed_out": 0, "pred": ""}
    )
    assert scored("So it is $\\frac{1}{2}$.", "0.5", require_boxed=False).reward == 1.0
    loose = scored("It is 85.", "84", require_boxed=False)
    assert (loose.reward, loose.feedback, loose.details["incorrect_format"]) == (0.0, None, 0)
    assert scored("It is 85. \\boxed{84}", "84", require_boxed=False).reward == 1.0


@pytest.mark.parametrize(
    ("truth", "problem"),
    [
        ("", "it is empty"),
        (" $$ ", "it is empty"),
        ("\\boxed{1", "its box is not closed"),
        (True, "it is a bool"),
        (["1"], "it is a list"),
        (float("nan"), "no finite number"),
    ],
)
def test_a_truth_that_is_none(truth: Any, problem: str) -> None:
    with pytest.raises(DataError, match=f"scorer 'math' cannot be used: .*{problem}.* It must be the right answer"):
        scored("\\boxed{1}", truth)


# What is said --------------------------------------------------------------------------------------------------------


def test_truncated_answers() -> None:
    for response, row in (("Well, \\boxed{1", {}), ("Well", {"truncated": True}), ("\\boxed{1}", {"truncated": True})):
        found = scored(response, "84", row)
        assert str(found.feedback).startswith("Truncated Attempt: ") and found.details["truncated"] == 1
    assert scored("\\boxed{84}", "84", {"truncated": True}).feedback is None


def test_the_right_answer_is_named_only_if_asked_for() -> None:
    for response in ("\\boxed{1}", "1", "\\boxed{1"):
        assert "8421" not in str(scored(response, "8421").feedback)
        assert str(scored(response, "8421", reveal_truth=True).feedback).endswith("The right answer is 8421.")
    assert scored("\\boxed{1}", "2", reveal_truth=True).feedback == "The answer 1 is wrong. The right answer is 2."


EQUATIONS = {
    "right": ("12 * 7 = 84\n\\boxed{84}", "84", None),
    "right, with a wrong equation": ("12 * 7 = 94\n\\boxed{84}", "84", None),
    "the last box counts": (
        "\\boxed{84}, no: \\boxed{85}",
        "84",
        "The answer 85 is wrong. No wrong equation was found: look at what is calculated, and whether a step is "
        "missing.",
    ),
    "a wrong equation": (
        "5 × 4 = 20, then 1,000 / 8 = 120 and 20 + 1.5 = 21.5: \\boxed{120}",
        "125",
        "The answer 120 is wrong. These equations do not hold: 1000 / 8 = 120 (it is 125).",
    ),
    "several": (
        "1 + 1 = 3; 2 + 2 = 5; 1 + 1 = 3; 3 + 3 = 7; 4 + 4 = 9 \\boxed{9}",
        "8",
        "The answer 9 is wrong. These equations do not hold: 1 + 1 = 3 (it is 2); 2 + 2 = 5 (it is 4); "
        "3 + 3 = 7 (it is 6).",
    ),
    "no box": ("12 * 7 = 94", "84", f"{FORMAT} These equations do not hold: 12 * 7 = 94 (it is 84)."),
}


@pytest.mark.parametrize("name", EQUATIONS)
def test_wrong_equations_are_named_if_asked_for(name: str) -> None:
    response, truth, text = EQUATIONS[name]
    assert scored(response, truth, check_equations=True).feedback == text


@pytest.mark.parametrize(
    "text",
    [
        "7 / 3 = 2.3",
        "10 / 3 = 3",
        "1 / 3 = 0.3333",
        "0.1 + 0.2 = 0.3",
        "3 + 4 = 7 * 1 + 5",  # the right side goes on
        "2x + 3 * 4 = 11",
        "(1 + 2) * 3 + 4 = 13",
        "5 * 2^3 + 1 = 41",
        "1 / 4 = 25%",
        "2 + 2 = 5x",
        "8 - 3 - 2 = 3",
        "2 + 3 * 4 - 6 / 2 = 11",
        "1 / 0 = 0",
        "1" * 60 + " + 1 = 2",
        "1 + " * 50 + "1 = 3",
    ],
)
def test_what_is_right_or_unclear_is_never_called_wrong(text: str) -> None:
    assert wrong_equations(text) == []


def test_values_of_any_size_are_shown() -> None:
    many, small = " * ".join(["9" * 50] * 30), "1 / " + " / ".join(["9" * 50] * 30)
    first, second = wrong_equations(f"{many} = 1, {small} = 3")
    assert len(first) + len(second) < 500 and "(it is 9999" in first and second.endswith("= 3 (it is 0)")
    (large,) = wrong_equations(f"{many} / 7.5 = 1")
    assert large.endswith("(it is beyond 10^308)")


def test_numbers() -> None:
    assert [number_in(text) for text in ("7 / 3", "x", "1.5.2", "", "9" * 300, "1e400000")] == [None] * 6


# A limit that holds --------------------------------------------------------------------------------------------------

LATE = "Your answer could not be checked in time: write it in a simpler form."


@pytest.mark.parametrize("answer", ["10^{10^{10^{10}}}", "99999999999!", "((" * 400 + "1" + "))" * 400])
def test_a_comparison_without_end_ends(answer: str) -> None:
    start = time.monotonic()
    found = scored(f"\\boxed{{{answer}}}", "5", seconds=0.5)
    assert time.monotonic() - start < 10
    assert (found.reward, found.feedback, found.details["timed_out"]) == (0.0, LATE, 1)
    assert scored("\\boxed{2 + 3}", "5").reward == 1.0, "and the next one is scored"


@pytest.mark.slow
def test_in_threads() -> None:
    score = build_scorer(SDPOConfig(), "math", {"seconds": 0.5})

    def one(number: int) -> float:
        response = TOWER if number % 8 == 0 else f"\\boxed{{{number} + x}}"
        return float(score(response, {"ground_truth": f"x + {number}"}).reward)

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(one, range(32))) == [float(number % 8 != 0) for number in range(32)]
    assert len(_math_process._processes._all) <= (os.cpu_count() or 1)


def _pids() -> set[int]:
    return {process._popen.pid for process in _math_process._processes._all}


def _answers(shift: int, results: Any) -> None:
    rewards = [scored(f"\\boxed{{{number} + x}}", f"x + {number + (number + shift) % 2}").reward for number in range(6)]
    results.put((rewards, _pids()))


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_in_a_worker_process_of_a_parent_that_scored(method: str) -> None:
    """Workers of a pool are daemons, which may have no children of `multiprocessing`."""
    assert scored("\\boxed{1 + x}", "x + 1").reward == 1.0
    context: Any = multiprocessing.get_context(method)
    results = context.Queue()
    workers = [context.Process(target=_answers, args=(shift, results), daemon=True) for shift in range(2)]
    with ExitStack() as all_are_busy:  # as other threads of the parent may keep them when it forks
        for _ in range(os.cpu_count() or 1):
            all_are_busy.enter_context(_math_process._processes.one())
        for worker in workers:
            worker.start()
        (first, one), (second, other) = sorted((results.get(timeout=60) for _ in workers), key=lambda pair: pair[0])
    assert scored("\\boxed{2 + x}", "x + 2").reward == 1.0
    assert (first, second) == ([0.0, 1.0] * 3, [1.0, 0.0] * 3)
    assert len(one) == len(other) == 1 and not one & other and not (one | other) & _pids()
    for worker in workers:
        worker.join(30)
        assert worker.exitcode == 0
    assert all(gone(pid, 20) for pid in one | other)


SCRIPT = """
import os, sys, time
from sdpo_plugins.feedback import _math_process
print("imported", flush=True)  # once: the child imports no __main__
_math_process.same_in_process("5", "\\\\boxed{x + 1}", 10.0)
(process,) = _math_process._processes._all
print(process._popen.pid, flush=True)
if len(sys.argv) > 1:
    import threading
    tower = ("5", "\\\\boxed{9^{9^{9^9}}}", 2.0)
    threading.Thread(target=_math_process.same_in_process, args=tower, daemon=True).start()
    time.sleep(0.5)
    os.kill(os.getpid(), int(sys.argv[1]))
"""


def gone(pid: int, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2][:3]:
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


@pytest.mark.parametrize("ending", [[], pytest.param([str(int(signal.SIGKILL))], marks=pytest.mark.slow)])
def test_no_process_outlives_its_parent(tmp_path: Path, ending: list[str]) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, str(script), *ending], capture_output=True, text=True, timeout=60, check=False
    )
    first, pid = done.stdout.split()
    assert first == "imported" and done.returncode == (-9 if ending else 0)
    assert gone(int(pid), 20), "also one that is computing when its parent is killed"


def test_a_process_that_was_killed_is_replaced() -> None:
    assert scored("\\boxed{1 + x}", "x + 1").reward == 1.0
    for process in _math_process._processes._all:
        os.kill(process._popen.pid, signal.SIGKILL)
        process._popen.wait(10)
    assert scored("\\boxed{1 + x}", "x + 1").reward == 1.0


def test_a_library_that_does_not_work(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "math_verify.py").write_text("raise ImportError('no antlr here')")
    _math_process.close_processes()
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(SDPOError, match=r"ImportError: no antlr here.*pip install 'sdpo-plugins\[math\]'"):
        scored("\\boxed{x}", "y")
    monkeypatch.undo()
    assert scored("\\boxed{x + 1}", "1 + x").reward == 1.0


def test_a_library_that_is_missing() -> None:
    code = (
        "import sys; sys.modules['math_verify'] = None\n"
        "from sdpo_plugins import SDPOConfig\nfrom sdpo_plugins.plugins import build_scorer, catalogue\n"
        "assert 'math' in catalogue('scorer')\nassert not {'torch', 'sympy', 'openai'} & set(sys.modules)\n"
        "build_scorer(SDPOConfig(), 'math')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert "ConfigError: the scorer 'math' needs the library math-verify" in done.stderr
    assert "pip install 'sdpo-plugins[math]'" in done.stderr


def test_a_limit_that_is_none() -> None:
    with pytest.raises(ConfigError, match=r"`scorer_options\.seconds` must be greater than 0"):
        scored("", "1", seconds=0)


# Anything ------------------------------------------------------------------------------------------------------------

PIECES = (
    "\\boxed{",
    "\\boxed ",
    "{",
    "}",
    "\\",
    "1",
    "1+",
    "1 ",
    "1+1=3 ",
    ",000",
    "$",
    "x",
    "\\text{",
    "\x00",
    "\ud800",
)


@pytest.mark.parametrize("piece", PIECES)
def test_anything_is_scored_in_a_moment(piece: str) -> None:
    score = build_scorer(SDPOConfig(), "math", {"check_equations": True, "seconds": 0.2})
    text = piece * (1_000_000 // len(piece))
    start = time.monotonic()
    # What is long enough to stop math-verify, and short enough to be asked for.
    asked = [f"\\boxed{{{text[:1500]}}}"] if piece in ("1+", "x", "\\text{") else []
    for response in (piece, text, f"\\boxed{{{piece}}}", f"\\boxed{{{text}}}", *asked):
        found = score(response, {"ground_truth": "5"})
        assert found.reward == 0.0 and len(found.feedback or "") <= 2000
        json.dumps(found.details).encode()
        (found.feedback or "").encode()
    assert time.monotonic() - start < 20


def test_math_keeps_the_contract() -> None:
    rows = [{"ground_truth": "84"}, {"ground_truth": "\\frac{1}{2}"}, {"ground_truth": "x + 1"}]
    right = ["\\boxed{84}", "\\boxed{0.5}", "\\boxed{1 + x}"]
    for options in ({}, {"require_boxed": False}, {"check_equations": True, "reveal_truth": True}):
        check_scorer(catalogue("scorer")["math"], rows, correct=right, options=options)


def test_no_thread_waits_for_what_is_done() -> None:
    before = threading.active_count()
    for _ in range(20):
        scored("\\boxed{1 + x}", "x + 1")
    assert threading.active_count() <= before + 1
