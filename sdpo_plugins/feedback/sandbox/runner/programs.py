"""The process of the program: run it, with standard input or by calling its function."""

from __future__ import annotations
import __future__

import _sitebuiltins
import atexit
import builtins
import json
import os
import sys
import threading
import types
import typing
from collections.abc import Callable
from typing import Any

from sdpo_plugins.feedback.sandbox.runner.frames import write_all
from sdpo_plugins.feedback.sandbox.runner.reports import report_of

__all__ = ["FILE", "add_site_names", "execute", "new_module", "run_functional", "run_stdin", "tell"]

FILE = "Solution.py"

# The numbers of files in this process, beyond the standard streams.
REPORT, RESULT = 3, 4

# Programs are written for a judge that has these names already.
_TYPING = {name: getattr(typing, name) for name in typing.__all__}


def new_module(name: str) -> dict[str, Any]:
    """Return the names of a new module, `typing`'s and no others."""
    module = types.ModuleType(name)
    sys.modules[name] = module
    names = module.__dict__
    names.update(_TYPING)
    return names


def execute(source: str, names: dict[str, Any]) -> None:
    """Execute a program as the module that has these names; annotations stay texts unless it is `__main__`."""
    name = names["__name__"]
    flags = 0 if name == "__main__" else __future__.annotations.compiler_flag
    exec(compile(source, FILE, "exec", flags, dont_inherit=True), names)


def add_site_names() -> None:
    """Give programs what `site` gives them elsewhere; it is not run here."""
    for name in ("exit", "quit"):
        setattr(builtins, name, _sitebuiltins.Quitter(name, "Ctrl-D"))


def run_stdin(source: str) -> None:
    """Run a program as `__main__`, to the end that the interpreter would give it; does not return.

    Args:
        source: The program.
    """
    try:
        names = new_module("__main__")
        try:
            execute(source, names)
        except SystemExit as end:
            if end.code not in (None, 0):
                raise
        # What the interpreter does at its end, short of taking itself apart, which takes longer than most programs.
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
        names.clear()  # files that were not closed are written out
    except BaseException as error:
        _fail(error, source)
    os._exit(0)


def run_functional(source: str, function: str, text: str) -> None:
    """Call a program's function and write its result; does not return.

    Args:
        source: The program.
        function: Name of the function, or of a method of its class `Solution`.
        text: The arguments, each as JSON on a line of its own.
    """
    arguments = [json.loads(line) for line in text.split("\n") if line.strip()]
    try:
        names = new_module("Solution")
        execute(source, names)
        found = _function(names, function)
        result = json.dumps(found(*arguments), default=_no_json)
        write_all(RESULT, result.encode())
    except BaseException as error:
        _fail(error, source)
    os._exit(0)


def tell(error: BaseException, source: str) -> str:
    """Return the report of an error of the program; never raises."""
    try:
        return report_of(error, source, FILE)
    except MemoryError:
        return "MemoryError"
    except BaseException:
        return "Error: (it cannot be described)"


def _fail(error: BaseException, source: str) -> typing.NoReturn:
    try:
        write_all(REPORT, tell(error, source).encode("utf-8", "replace"))
    finally:
        os._exit(1)


def _function(names: dict[str, Any], name: str) -> Callable[..., Any]:
    found = names.get(name)
    if found is None and "Solution" in names:
        found = getattr(names["Solution"](), name, None)
    if not callable(found):
        raise NameError(f"there is no function {name}")
    return found


def _no_json(value: object) -> typing.NoReturn:
    raise TypeError("Non-serializable result type: " + type(value).__name__)
