"""Plain data as JSON and back: what may cross from a program to the tests and the other way, and nothing else.

Numbers (complex, infinite and NaN too), texts, bytes, None, truth values, lists, tuples, dictionaries, sets. An object
of a subclass arrives as its base: no method of the program's comes along.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["NotPlain", "from_plain", "to_plain"]

_LARGE = 1 << 63


class NotPlain(TypeError):
    """A value that cannot cross."""


def to_plain(value: Any, other: Callable[[Any], int]) -> Any:
    """Return what `json.dumps` takes.

    Args:
        value: Any object.
        other: Gives a number that stands for an object that is not plain data, or raises.

    Example:
        >>> to_plain((1, {"a"}), int)
        {'tuple': [1, {'set': ['a']}]}
    """
    if value is None or value is True or value is False:
        return value
    if isinstance(value, int):
        number = int.__index__(value)
        return number if -_LARGE < number < _LARGE else {"int": hex(number)}
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, complex):
        return {"complex": [complex.real.__get__(value), complex.imag.__get__(value)]}
    if isinstance(value, (bytes, bytearray)):
        return {"bytearray" if isinstance(value, bytearray) else "bytes": bytes(value).decode("latin-1")}
    if isinstance(value, list):
        return [to_plain(item, other) for item in list.__iter__(value)]
    if isinstance(value, tuple):
        return {"tuple": [to_plain(item, other) for item in tuple.__iter__(value)]}
    if isinstance(value, dict):
        return {"dict": [[to_plain(key, other), to_plain(item, other)] for key, item in dict.items(value)]}
    if isinstance(value, (set, frozenset)):
        name = "frozenset" if isinstance(value, frozenset) else "set"
        return {name: [to_plain(item, other) for item in list(value)]}
    return {"object": other(value)}


def from_plain(value: Any, other: Callable[[int], Any]) -> Any:
    """Return the value that `to_plain` was given.

    Args:
        value: As `json.loads` gave it; it may be anything that a program made up.
        other: Gives the object that a number stands for.

    Raises:
        ValueError: It is nothing that `to_plain` gives.

    Example:
        >>> from_plain({"tuple": [1, {"set": ["a"]}]}, int)
        (1, {'a'})
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, list):
        return [from_plain(item, other) for item in value]
    (name, body) = next(iter(value.items())) if isinstance(value, dict) and len(value) == 1 else ("", None)
    if name == "int" and isinstance(body, str):
        return int(body, 16)
    if name == "object" and type(body) is int:
        return other(body)
    if name in ("bytes", "bytearray") and isinstance(body, str):
        data = body.encode("latin-1")
        return data if name == "bytes" else bytearray(data)
    if isinstance(body, list):
        if name == "complex" and len(body) == 2 and all(isinstance(part, (int, float)) for part in body):
            return complex(body[0], body[1])
        if name == "dict" and all(isinstance(pair, list) and len(pair) == 2 for pair in body):
            return {from_plain(key, other): from_plain(item, other) for key, item in body}
        if name in ("tuple", "set", "frozenset"):
            items = [from_plain(item, other) for item in body]
            return tuple(items) if name == "tuple" else set(items) if name == "set" else frozenset(items)
    raise ValueError(f"this is no plain data: {str(value)[:100]}")
