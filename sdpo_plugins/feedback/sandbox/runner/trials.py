"""The process of the tests, for tests that are code: here the program's names are stand-ins without its code."""

from __future__ import annotations

import builtins
import importlib
import os
import sys
import types
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, NoReturn

from sdpo_plugins.feedback.sandbox.runner.frames import Closed, TooLong, read_frame, write_all, write_frame
from sdpo_plugins.feedback.sandbox.runner.objects import BUILTIN_ERRORS
from sdpo_plugins.feedback.sandbox.runner.plain import NotPlain, from_plain, to_plain
from sdpo_plugins.feedback.sandbox.runner.reports import report_of

__all__ = ["PASSED", "RECEIVED", "run_test"]

FILE = "Test.py"

# The numbers of files in this process, beyond the standard streams.
TESTS, ORDERS, ANSWERS, VERDICT = 3, 4, 5, 6

# Written as soon as the test has been read whole, and when it has come to its end.
RECEIVED, PASSED = b"+", b"."


class _Gone(BaseException):
    """The program's process is gone or talks nonsense. No `except Exception` of a test takes it for something else."""


class _ProgramError(Exception):
    """An error of the program's that has no builtin class."""


class _Program:
    """The other end of the two pipes."""

    def __init__(self, longest: int) -> None:
        self.longest = longest
        self.failed = ""
        self.handles: dict[int, _Handle] = {}
        self.errors: dict[str, type[Exception]] = {}
        self.last_error: BaseException | None = None
        self.last_report = ""

    def start(self, function: str | None) -> dict[str, Any]:
        """Wait for the program to be loaded and return its names, as a test may see them."""
        found = self._receive("load")
        names = found.get("names")
        if not isinstance(names, dict):
            self._fail("no names")
        return {
            name: value
            for name, told in names.items()
            if isinstance(name, str) and name.isidentifier() and not name.startswith("_")
            for value in self._name(name, told, name == function)
        }

    def order(self, operation: str, target: int, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        """Have something done with an object and return the result, or raise what was raised."""
        message = {
            "operation": operation,
            "target": target,
            "arguments": [to_plain(value, _number) for value in arguments],
            "named": {name: to_plain(value, _number) for name, value in named.items()},
        }
        if self.failed:
            raise _Gone(self.failed)
        try:
            write_frame(ORDERS, message)
        except OSError:
            self._fail("The program ended while the test was running.")
        found = self._receive(operation)
        try:
            after = from_plain(found["after"], self._handle)
            for value, changed in zip((*arguments, *named.values()), after, strict=True):
                _change(value, changed)
            return from_plain(found["value"], self._handle)
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            self._fail(f"The program's answer is no plain data: {type(error).__name__}.")

    def _receive(self, operation: str) -> dict[str, Any]:
        try:
            found = read_frame(ANSWERS, self.longest)
            if isinstance(found, dict) and "raised" not in found:
                return found
            raised = found["raised"]
            self.last_report = str(raised["report"])
            self.last_error = self._error([str(name) for name in raised["bases"]], str(raised["text"]), operation)
        except (Closed, OSError):
            self._fail("The program ended while the test was running.")
        except (TooLong, KeyError, TypeError, ValueError, RecursionError) as problem:
            self._fail(f"The program's answer is no plain data: {type(problem).__name__}.")
        raise self.last_error

    def _error(self, bases: list[str], text: str, operation: str) -> Exception:
        kind = next((self.errors[name] for name in bases if name in self.errors), None)
        kind = kind or next((BUILTIN_ERRORS[name] for name in bases if name in BUILTIN_ERRORS), _ProgramError)
        if issubclass(kind, StopIteration) and operation != "next":
            # As from a generator: in `all(map(check, cases))` it would be the end of the cases, and all were right.
            kind = RuntimeError
        try:
            return kind(text.partition(": ")[2] if kind is not _ProgramError else text)
        except TypeError:  # UnicodeDecodeError and the like want more than a text
            return _ProgramError(text)

    def _name(self, name: str, told: Any, wanted: bool) -> Iterator[Any]:
        # Neither `abs` nor `math` of a test is the program's, whatever it defines: they judge its results.
        if hasattr(builtins, name) and not wanted:
            return
        if name in sys.stdlib_module_names and not wanted:
            with suppress(ImportError):
                yield importlib.import_module(name)
            return
        try:
            if "error" in told:
                kind = next((BUILTIN_ERRORS[base] for base in told["error"] if base in BUILTIN_ERRORS), Exception)
                self.errors[name] = type(name, (kind,), {})
                yield self.errors[name]
            else:
                yield from_plain(told["value"], self._handle)
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            self._fail(f"The program's answer is no plain data: {type(error).__name__}.")

    def _handle(self, number: int) -> _Handle:
        if number not in self.handles:
            self.handles[number] = _Handle(self, number)
        return self.handles[number]

    def _fail(self, what: str) -> NoReturn:
        self.failed = what
        raise _Gone(what)


class _Handle:
    """Stands for an object of the program's; equal to nothing but itself."""

    __slots__ = ("_number", "_program")

    def __init__(self, program: _Program, number: int) -> None:
        self._program = program
        self._number = number

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self._program.order("call", self._number, arguments, named)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._program.order("getattr", self._number, (name,), {})

    def __iter__(self) -> Any:
        return self._program.order("iter", self._number, (), {})

    def __next__(self) -> Any:
        return self._program.order("next", self._number, (), {})

    def __len__(self) -> Any:
        return self._program.order("len", self._number, (), {})

    def __bool__(self) -> Any:
        return self._program.order("bool", self._number, (), {})

    def __str__(self) -> Any:
        return self._program.order("str", self._number, (), {})

    def __getitem__(self, key: Any) -> Any:
        return self._program.order("getitem", self._number, (key,), {})

    def __setitem__(self, key: Any, value: Any) -> None:
        self._program.order("setitem", self._number, (key, value), {})

    def __contains__(self, item: Any) -> Any:
        return self._program.order("contains", self._number, (item,), {})

    def __repr__(self) -> str:
        return f"<object {self._number} of the program>"


def run_test(function: str | None, longest: int) -> None:
    """Read a test, run it against the program, and write the verdict; does not return.

    Args:
        function: The one name that may stand for the program's though it is a builtin's.
        longest: Bytes of a message.
    """
    source = read_frame(TESTS, 1 << 40)
    write_all(VERDICT, RECEIVED)
    program = _Program(longest)
    try:
        module = sys.modules["__main__"] = types.ModuleType("__main__")
        names = module.__dict__
        names.update(program.start(function))
        try:
            exec(compile(source, FILE, "exec", dont_inherit=True), names)
        except SystemExit as end:  # unittest.main ends so
            if end.code not in (None, 0, False):
                raise
        verdict = PASSED if not program.failed else program.failed.encode()
    except _Gone:
        verdict = program.failed.encode()
    except BaseException as error:
        # The place in the program is worth more than that of the call in the test.
        report = program.last_report if error is program.last_error else report_of(error, source, FILE)
        verdict = report.encode("utf-8", "replace")
    write_all(VERDICT, verdict)
    os._exit(0)


def _number(value: Any) -> int:
    if isinstance(value, _Handle):
        return value._number
    raise NotPlain(f"a test cannot pass an object of type {type(value).__name__} to a program in another process")


def _change(value: Any, changed: Any) -> None:
    """Make an argument what the program has made of it."""
    if type(value) is not type(changed) or value == changed:
        return
    if isinstance(value, (list, bytearray)):
        value[:] = changed
    elif isinstance(value, (dict, set)):
        value.clear()
        value.update(changed)
