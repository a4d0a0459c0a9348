"""Ends: a program's, an interrupt, the trainer's own. Nothing is left, not even an entry in the table of processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from sandbox_leftovers import descendants_gone, nothing_to_reap
from sdpo_plugins.feedback.sandbox import Limits, Program, Sandbox, open_sandbox
from sdpo_plugins.feedback.sandbox.rlimits import Rlimits

ROOMY = Limits(seconds=10.0)
ENDLESS = {"stdin": Program("while True: pass", "stdin"), "code": Program("def f():\n    while True: pass", "code")}


@pytest.fixture(scope="module", params=["bubblewrap", pytest.param("rlimits", marks=pytest.mark.slow)])
def sandbox(request: pytest.FixtureRequest) -> Sandbox:
    return open_sandbox("bubblewrap") if request.param == "bubblewrap" else Rlimits()


def test_nothing_is_left_for_the_hosts_first_process_to_reap(sandbox: Sandbox) -> None:
    # In a container it often is the trainer, which never reaps what it has not started.
    program = Program("import os\nif input(): os.abort()\nopen('left', 'w').close()", "stdin")
    with nothing_to_reap():
        kinds = [one.kind for one in sandbox.run(program, ["\n", "x", "\n", "x", "x"], ROOMY, stop_after=2)]
        assert kinds == ["ok", "error", "ok", "error", "not run"]
        assert sandbox.run(ENDLESS["stdin"], [""], Limits(seconds=0.3))[0].kind == "timeout"
        assert sandbox.run(ENDLESS["code"], ["f()"], Limits(seconds=0.3))[0].kind == "timeout"


@pytest.mark.parametrize("mode", ENDLESS)
def test_an_interrupt_ends_everything(sandbox: Sandbox, mode: str) -> None:
    main = threading.main_thread().ident
    assert main is not None
    timer = threading.Timer(1.0, signal.pthread_kill, (main, signal.SIGINT))
    started = time.monotonic()
    with nothing_to_reap():
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            sandbox.run(ENDLESS[mode], ["f()"] * 9, Limits(seconds=60.0))
    timer.join(10)
    assert time.monotonic() - started < 20


_TRAINER = """
from sdpo_plugins.feedback.sandbox import Limits, Program, open_sandbox
from sdpo_plugins.feedback.sandbox.rlimits import Rlimits
sandbox = MAKE
print("ready", flush=True)
sandbox.run(Program(CODE, MODE), ["f()"] * 9, Limits(seconds=60.0))
"""


@pytest.mark.parametrize("mode", ENDLESS)
def test_the_trainers_end_is_the_end(sandbox: Sandbox, mode: str) -> None:
    make = "Rlimits()" if isinstance(sandbox, Rlimits) else "open_sandbox()"
    script = _TRAINER.replace("MAKE", make).replace("CODE", repr(ENDLESS[mode].code)).replace("MODE", repr(mode))
    with descendants_gone():
        trainer = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
        try:
            assert trainer.stdout and trainer.stdout.readline() == b"ready\n"
            deadline = time.monotonic() + 30
            while not _is_busy(trainer.pid):
                assert time.monotonic() < deadline
                time.sleep(0.05)
        finally:
            trainer.kill()
            trainer.communicate(timeout=10)


def _is_busy(process: int) -> bool:
    """Whether a descendant has used some time of the processor: the program runs."""
    tick = os.sysconf("SC_CLK_TCK")
    waiting, used = [process], []
    while waiting:
        one = waiting.pop()
        try:
            with open(f"/proc/{one}/task/{one}/children") as file:
                waiting += map(int, file.read().split())
            with open(f"/proc/{one}/stat") as file:
                used.append(int(file.read().rpartition(")")[2].split()[11]) / tick)
        except OSError:  # it has ended meanwhile
            continue
    return max(used[1:], default=0.0) > 0.5
