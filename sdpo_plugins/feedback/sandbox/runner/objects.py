"""The process of the program, for tests that are code: it keeps the objects and does with them what it is told."""

from __future__ import annotations

import builtins
import json
import operator
import os
from collections.abc import Callable
from typing import Any

from sdpo_plugins.feedback.sandbox.runner.frames import Closed, TooLong, pack, read_frame, write_all
from sdpo_plugins.feedback.sandbox.runner.plain import NotPlain, from_plain, to_plain
from sdpo_plugins.feedback.sandbox.runner.programs import execute, new_module, tell

__all__ = ["BUILTIN_ERRORS", "OPERATIONS", "serve"]

# The numbers of files in this process, beyond the standard streams.
ORDERS, ANSWERS = 3, 4

BUILTIN_ERRORS = {
    name: kind for name, kind in vars(builtins).items() if isinstance(kind, type) and issubclass(kind, Exception)
}

# Characters of a module's constant that a test is given as a value; larger ones are objects.
_LONGEST_CONSTANT = 10_000

OPERATIONS: dict[str, Callable[..., Any]] = {
    "call": lambda target, *arguments, **named: target(*arguments, **named),
    "getattr": getattr,
    "iter": iter,
    "next": next,
    "len": len,
    "bool": bool,
    "str": str,
    "getitem": operator.getitem,
    "setitem": operator.setitem,
    "contains": operator.contains,
}


def serve(source: str, longest: int) -> None:
    """Load a program, tell its names, and follow orders until there are no more; does not return.

    Args:
        source: The program.
        longest: Bytes of an answer.
    """
    kept: list[Any] = []
    numbers: dict[int, int] = {}

    def keep(value: Any) -> int:
        if id(value) not in numbers:
            numbers[id(value)] = len(kept)
            kept.append(value)
        return numbers[id(value)]

    def answer(message: Any) -> None:
        text = pack(message)
        if len(text) > longest:
            text = pack(_failure(NotPlain(f"a result of {len(text)} bytes, of at most {longest}"), source))
        write_all(ANSWERS, text)

    try:
        names = new_module("Solution")
        before = dict(names)
        execute(source, names)
        answer({"names": {name: _described(names[name], keep) for name in _new(before, names)}})
    except BaseException as error:
        answer(_failure(error, source))
        os._exit(1)
    while True:
        try:
            order = read_frame(ORDERS, longest)
        except (Closed, TooLong, ValueError):
            os._exit(1)
        try:
            arguments = [from_plain(value, kept.__getitem__) for value in order["arguments"]]
            named = {name: from_plain(value, kept.__getitem__) for name, value in order["named"].items()}
            result = OPERATIONS[order["operation"]](kept[order["target"]], *arguments, **named)
            # A list that the program has changed is to be seen changed by the test, too.
            after = [*arguments, *named.values()]
            message = {"value": to_plain(result, keep), "after": [to_plain(value, keep) for value in after]}
            json.dumps(message)
        except BaseException as error:
            message = _failure(error, source)
        answer(message)


def _new(before: dict[str, Any], names: dict[str, Any]) -> list[str]:
    return [
        name
        for name, value in names.items()
        if not name.startswith("_") and (name not in before or value is not before[name])
    ]


def _described(value: Any, keep: Callable[[Any], int]) -> dict[str, Any]:
    if isinstance(value, type) and issubclass(value, Exception):
        return {"error": _bases(value), "object": keep(value)}
    try:
        told = to_plain(value, keep)
        if len(json.dumps(told)) <= _LONGEST_CONSTANT:
            return {"value": told}
    except RecursionError:
        pass
    return {"value": {"object": keep(value)}}


def _failure(error: BaseException, source: str) -> dict[str, Any]:
    report = tell(error, source)
    return {"raised": {"bases": _bases(type(error)), "text": report.partition("\n")[0], "report": report}}


def _bases(kind: type[BaseException]) -> list[str]:
    """Names of an error's classes down to the first that is builtin."""
    found = []
    for base in kind.__mro__:
        found.append(base.__name__)
        if BUILTIN_ERRORS.get(base.__name__) is base:
            break
    return found
