"""The runner: forks a process for each test, watches it, and tells the outcome. It runs no program itself.

It is told a job on its standard input (a frame with the program and its limits, then one frame for each test) and tells
on its standard output that it is ready, then one outcome for each test.
"""

from __future__ import annotations

import fcntl
import gc
import os
import signal
import time
from collections.abc import Callable
from typing import Any

from sdpo_plugins.feedback.sandbox.runner import confine, objects, programs, trials
from sdpo_plugins.feedback.sandbox.runner.frames import Closed, read_frame, write_all, write_frame
from sdpo_plugins.feedback.sandbox.runner.reports import LONGEST
from sdpo_plugins.feedback.sandbox.runner.scratch import files, is_untouched, remove, state
from sdpo_plugins.feedback.sandbox.runner.watch import Watched, kill, watch

__all__ = ["main"]

_JOB, _OUTCOMES = 0, 1

# Bytes of a report: its characters may have four each.
_REPORT_BYTES = 4 * LONGEST + 100

# A frame from outside: anything.
_ANY = 1 << 40


class _Runner:
    def __init__(self, job: dict[str, Any]) -> None:
        self.code: str = job["code"]
        self.mode: str = job["mode"]
        self.function: str | None = job["function"]
        self.limits: dict[str, Any] = job["limits"]
        self.nothing = os.open(os.devnull, os.O_RDWR)
        self.owner = _JOB if job["ends_with"] == "input" else None
        # Empty ones take the kernel's memory, not what /tmp may hold. On a disk, others have files, too.
        self.most_files = None if self.limits["files"] is None else files() + self.limits["files"]
        self.untold = False

    def try_out(self) -> None:
        """Confine a process that does nothing.

        Raises:
            OSError: It could not be done, so that no program may run here.
        """
        report, report_end = os.pipe()

        def confined() -> None:
            try:
                confine.confine(self.limits, os.getppid())
            except BaseException as error:
                write_all(report_end, f"{type(error).__name__}: {error}".encode())
                os._exit(_CONFINEMENT_FAILED)
            os._exit(0)

        process = os.fork()
        if not process:
            confined()
        os.close(report_end)
        found = watch(process, {report: _REPORT_BYTES}, time.monotonic() + 30)
        if found.status or found.ended:
            raise OSError(f"a process cannot be confined: {_text(found.written[report]) or _ending(found.status)}")

    def run(self) -> dict[str, Any]:
        """Run the next test and return its outcome."""
        if self.mode == "code":
            return self._told(*self._trial())
        text = read_frame(_JOB, _ANY)
        started = time.monotonic()
        given = _memory_file(text) if self.mode == "stdin" else self.nothing
        output, output_end = os.pipe()
        report, report_end = os.pipe()
        if self.mode == "stdin":
            files = [given, output_end, self.nothing, report_end]
            process = self._fork(files, lambda: programs.run_stdin(self.code))
        else:
            files = [given, self.nothing, self.nothing, report_end, output_end]
            function = self.function or ""
            process = self._fork(files, lambda: programs.run_functional(self.code, function, text))
        for file in {output_end, report_end, given} - {self.nothing}:
            os.close(file)
        pipes = {output: self.limits["output_bytes"], report: _REPORT_BYTES}
        found = self._watched(process, pipes, started)
        written = _text(found.written[output])
        told = _text(found.written[report])
        if self.mode == "functional" and not found.status and not found.ended and not written:
            told = told or "The program ended before its function had returned."
            return self._told(found, written, told, failed=True, started=started)
        return self._told(found, written, told, failed=bool(found.status), started=started)

    def _trial(self) -> tuple[Watched, str, str, bool, float]:
        """Run a test that is code: the program's process first, before anybody here has seen the test."""
        started = time.monotonic()
        orders, orders_end = os.pipe()
        answers, answers_end = os.pipe()
        verdict, verdict_end = os.pipe()
        longest = self.limits["output_bytes"]
        quiet = [self.nothing] * 3
        program = self._fork([*quiet, orders, answers_end], lambda: objects.serve(self.code, longest))
        os.close(orders)
        os.close(answers_end)
        files = [*quiet, _JOB, orders_end, answers, verdict_end]
        try:
            test = self._fork(files, lambda: trials.run_test(self.function, longest))
            for file in (orders_end, answers, verdict_end):
                os.close(file)
            found = self._watched(test, {verdict: _REPORT_BYTES}, started)
        finally:
            status = kill(program)
        text = bytes(found.written[verdict])
        # Otherwise a part of the test is still on its way, and nobody can tell where the next one begins.
        self.untold = not text.startswith(trials.RECEIVED)
        text = text[len(trials.RECEIVED) :]
        passed = text == trials.PASSED and not found.status and not found.ended
        told = "" if passed else _text(text) or _ending(found.status) or "The test ended before its end."
        if told.startswith("The program ended") and os.WIFSIGNALED(status) and os.WTERMSIG(status) != signal.SIGKILL:
            told = _ending(status)
        return found, "", told, not passed, started

    def _watched(self, process: int, pipes: dict[int, int], started: float) -> Watched:
        most = self.most_files
        too_much = None if most is None else lambda: files() > most
        return watch(process, pipes, started + self.limits["seconds"], self.owner, too_much)

    def _fork(self, files: list[int], work: Callable[[], None]) -> int:
        parent = os.getpid()
        process = os.fork()
        if process:
            return process
        try:
            confine.place(files)
            confine.confine(self.limits, parent)
            gc.enable()
            work()
        except BaseException:
            # Never without its limits, and never on into what is the runner's to do.
            os._exit(_CONFINEMENT_FAILED)
        raise AssertionError("what runs a program does not return")

    def _told(self, found: Watched, output: str, told: str, failed: bool, started: float) -> dict[str, Any]:
        kind, report = "ok", ""
        if found.ended == "timeout":
            kind = "timeout"
        elif found.ended == "output":
            kind, report = "output", f"The output is longer than {self.limits['output_bytes']} bytes."
        elif found.ended == "files":
            kind, report = "error", f"The program made more than {self.limits['files']} files."
        elif failed:
            report = (told or _ending(found.status))[:LONGEST]
            kind = "memory" if report.startswith("MemoryError") else "error"
        seconds = time.monotonic() - started
        shown = output if kind == "ok" else output[:LONGEST]
        return {"kind": kind, "output": shown, "report": report, "seconds": seconds}


_CONFINEMENT_FAILED = 97


def main() -> None:
    """Run a job and end."""
    parent = os.getppid()
    confine.close_inherited()
    programs.add_site_names()
    job = read_frame(_JOB, _ANY)
    confine.give_up_rights(job["user"])
    if job["ends_with"] == "parent":
        confine.die_with(parent)
    runner = _Runner(job)
    scratch = _own_scratch() if job["own_scratch"] else None
    given = state()
    if job["try_out"]:
        runner.try_out()
    write_frame(_OUTCOMES, {"ready": True})
    gc.freeze()  # what is collected in a forked process is copied there first
    failures = 0
    for _ in range(job["tests"]):
        try:
            outcome = runner.run()
        except Closed:
            return
        # Nobody finds here what another test left; whoever sent the job starts anew for the tests that are left.
        fresh = not runner.untold and is_untouched(given)
        failures += outcome["kind"] != "ok"
        last = not fresh or failures == job["stop_after"]
        write_frame(_OUTCOMES, {**outcome, "last": last})
        if last:
            break
    if scratch:
        os.chdir("/")
        remove(scratch)
    os._exit(0)  # at once: somebody waits for it


def _own_scratch() -> str:
    import tempfile  # costs as much as all else that is imported here

    os.chdir(tempfile.mkdtemp())
    return os.getcwd()


def _memory_file(text: str) -> int:
    file = os.memfd_create("input", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with open(file, "wb", closefd=False) as stream:
        stream.write(text.encode("utf-8", "surrogatepass"))
    os.lseek(file, 0, os.SEEK_SET)
    fcntl.fcntl(file, fcntl.F_ADD_SEALS, 0xF)  # nobody seals, shrinks, grows or writes it any more
    return file


def _text(data: bytes | bytearray) -> str:
    return bytes(data).decode("utf-8", "replace")


def _ending(status: int) -> str:
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        name = next((item.name for item in signal.Signals if item == number), str(number))
        return f"The program was ended by {name}."
    code = os.WEXITSTATUS(status)
    return f"The program ended with code {code}." if code else ""
