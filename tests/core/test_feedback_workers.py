"""Worker processes and the programs they belong to: unguarded scripts, forks, threads that end, sudden death."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

SUPPORT = Path(__file__).parents[1] / "support"
# A training script as many are: no `if __name__ == "__main__"`, threads and a model's library from the start.
SCRIPT = """
import os, threading
print("main", __name__, flush=True)
threading.Thread(target=threading.Event().wait, daemon=True).start()
from sdpo_plugins.feedback import BatchScorer
scorer = BatchScorer("odd", plugins=["odd_scorer"], workers=2, timeout=600, progress=False)
def score(*responses):
    return scorer(responses, [{"ground_truth": "x"}] * len(responses))
def pids():
    found = set()
    while len(found) < 2:
        found |= {s.details["pid"] for s in score(*["sleep 0.05"] * 8)}
    return found
"""


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(SUPPORT), "PYTHONDONTWRITEBYTECODE": "1"}


def run(code: str, folder: Path, *how: str, given: str | None = None) -> str:
    """Run a program to its end and return what it printed."""
    (folder / "train.py").write_text(SCRIPT + code)
    command = [sys.executable, *(how or ("train.py",))]
    done = subprocess.run(
        command, cwd=folder, env=environment(), input=given, capture_output=True, text=True, timeout=90, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr and "leaked" not in done.stderr, done.stderr
    return done.stdout


@contextlib.contextmanager
def program(code: str, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Start a program in a session of its own; whatever is left of it is killed."""
    (folder / "train.py").write_text(SCRIPT + code)
    process = subprocess.Popen(
        [sys.executable, "train.py"],
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        for pid in [process.pid, *workers_of(process.pid)]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait(20)
        assert process.stdout is not None
        process.stdout.close()


def workers_of(session: int) -> list[int]:
    """Return the processes of a session beside its leader: workers, and the tracker of their semaphores."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(fields[3]) == session and int(entry.name) != session and fields[0] not in "ZX":
                found.append(int(entry.name))
    return found


def until_gone(session: int) -> None:
    deadline = time.monotonic() + 20
    while left := workers_of(session):
        assert time.monotonic() < deadline, f"{left} outlive the program"
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("how", "given"),
    [
        (("train.py",), None),
        (("-m", "train"), None),
        (("-c", "import train"), None),
        (("-c", "exec(open('train.py').read())"), None),
        (("-",), "exec(open('train.py').read())"),
        (("-i", "-q", "-c", "pass"), "exec(open('train.py').read())\n"),
    ],
)
def test_a_script_without_a_guard_runs_once(tmp_path: Path, how: tuple[str, ...], given: str | None) -> None:
    out = run('print([s.reward for s in score("x", "y", "exit 2", "x")])\n', tmp_path, *how, given=given)
    assert out.splitlines()[-1] == "[1.0, 0.0, 0.0, 1.0]"
    assert out.count("main ") == 1


def test_a_program_that_trains_at_import_of_its_own_package(tmp_path: Path) -> None:
    package = tmp_path / "mine"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "__main__.py").write_text(SCRIPT + 'print([s.reward for s in score("x", "y")])\n')
    out = run("", tmp_path, "-m", "mine")
    assert out == "main __main__\n[1.0, 0.0]\n"


def test_the_end_does_not_wait(tmp_path: Path) -> None:
    begin = time.monotonic()
    out = run(
        """
score("x")
threading.Thread(target=lambda: score(*["hold"] * 4), daemon=True).start()
import time; time.sleep(1)
print("end", flush=True)
""",
        tmp_path,
    )
    assert out.endswith("end\n") and time.monotonic() - begin < 15


@pytest.mark.parametrize("busy", ["", "sleep 600", "hold"])
def test_workers_die_with_their_program(tmp_path: Path, busy: str) -> None:
    code = f"""
print(*pids(), flush=True)
score(*[{busy!r}] * 4) if {busy!r} else threading.Event().wait(600)
"""
    with program(code, tmp_path) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "main __main__\n"
        workers = [int(word) for word in process.stdout.readline().split()]
        assert len(workers) == 2 and set(workers) <= set(workers_of(process.pid))
        time.sleep(0.5)
        process.kill()
        process.wait(20)
        until_gone(process.pid)


def test_a_worker_that_is_replaced_dies_with_the_program_too(tmp_path: Path) -> None:
    code = """
score("x", "exit 1", "exit 1")
print(*pids(), flush=True)
score(*["hold"] * 4)
"""
    with program(code, tmp_path) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert len(process.stdout.readline().split()) == 2
        time.sleep(0.5)
        process.kill()
        process.wait(20)
        until_gone(process.pid)


def test_interrupt_is_the_programs_business(tmp_path: Path) -> None:
    code = """
print(*pids(), flush=True)
try:
    score(*["sleep 600"] * 4)
except KeyboardInterrupt:
    print([s.reward for s in score("x", "y")], flush=True)
"""
    with program(code, tmp_path) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.readline()
        time.sleep(0.5)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        assert process.stdout.readline() == "[1.0, 0.0]\n"
        assert process.wait(20) == 0
        until_gone(process.pid)


def test_workers_outlive_the_thread_that_asked_first(tmp_path: Path) -> None:
    out = run(
        """
first = []
thread = threading.Thread(target=lambda: first.append(pids()))
thread.start(); thread.join()
import time; time.sleep(0.5)
print(pids() == first[0], len(first[0]))
""",
        tmp_path,
    )
    assert out.endswith("True 2\n")


def test_a_forked_child_has_workers_of_its_own(tmp_path: Path) -> None:
    out = run(
        """
import multiprocessing, sys
before = pids()
child = os.fork()
if child == 0:
    print("child", before & pids(), [s.reward for s in score("x", "y")], flush=True)
    sys.exit(0)   # with all that runs at exit
assert os.waitpid(child, 0)[1] == 0
process = multiprocessing.get_context("fork").Process(target=lambda: print("process", len(before & pids()), flush=True))
process.start(); process.join()
assert multiprocessing.active_children() == []
print("parent", before == pids(), [s.reward for s in score("x", "y")])
""",
        tmp_path,
    )
    assert out.splitlines()[1:] == ["child set() [1.0, 0.0]", "process 0", "parent True [1.0, 0.0]"]


def test_a_daemonic_process_is_told_that_it_cannot(tmp_path: Path) -> None:
    out = run(
        """
import multiprocessing
def work():
    try:
        score("x")
    except Exception as error:
        print(type(error).__name__, error, flush=True)
process = multiprocessing.get_context("fork").Process(target=work, daemon=True)
process.start(); process.join()
""",
        tmp_path,
    )
    assert "SDPOError The scorer 'odd' needs worker processes, which a daemonic process" in out


def test_on_a_terminal_a_long_batch_has_a_bar(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(SCRIPT + 'scorer.progress = True\nscore(*["sleep 0.3"] * 12)\n')
    reader, writer = os.openpty()
    process = subprocess.Popen(
        [sys.executable, "train.py"],
        cwd=tmp_path,
        env={**environment(), "TERM": "xterm", "COLUMNS": "100"},
        stdout=subprocess.DEVNULL,
        stderr=writer,
    )
    os.close(writer)
    shown = b""
    try:
        with contextlib.suppress(OSError):  # how Linux says that nobody writes any more
            while piece := os.read(reader, 4096):
                shown += piece
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait(20)
        os.close(reader)
    assert b"Scoring (odd)" in shown and b"/12" in shown


def test_neither_the_program_nor_its_workers_load_what_is_heavy(tmp_path: Path) -> None:
    out = run(
        """
import sys
from sdpo_plugins import feedback
made = [feedback.for_trl("math"), feedback.for_verl("code"), feedback.for_openrlhf("llm_judge", model="judge")]
heavy = ["torch", "transformers", "datasets", "openai", "math_verify", "trl", "verl", "openrlhf"]
print([name for name in heavy if name in sys.modules])
print([s.details["torch"] for s in score("x", "y")])
""",
        tmp_path,
    )
    assert out.splitlines()[1:] == ["[]", "[False, False]"]
