"""Declaring an option of a dataclass with its help and range, and checking a value against the declaration."""

from __future__ import annotations

import copy
import dataclasses
import math
import types
import typing
from collections.abc import Mapping, Sequence
from string import Formatter
from typing import Any, Literal

from sdpo_plugins.errors import nearest

__all__ = ["LOSS_AGG_MODES", "option", "problems_of", "to_plain"]

LOSS_AGG_MODES = ("token-mean", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm")

_TYPE_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", type(None): "null"}


def option(
    default: Any,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    exclusive: bool = False,
    choices: Sequence[str] = (),
    placeholders: Sequence[str] = (),
) -> Any:
    """Declare a dataclass field with its documentation and its valid values.

    Args:
        default: The default; mappings are copied for each instance.
        help: One sentence for users.
        low: Smallest valid number.
        high: Largest valid number.
        exclusive: True if `low` itself is not valid.
        choices: Valid texts.
        placeholders: Names that must stand in a template text as `{name}`.

    Returns:
        A dataclass field.

    Example:
        >>> @dataclasses.dataclass(frozen=True)
        ... class Options:
        ...     order: float = option(0.5, "Order of the divergence.", low=0.0, exclusive=True)
        >>> Options().order
        0.5
    """
    metadata = {
        "help": help,
        "low": low,
        "high": high,
        "exclusive": exclusive,
        "choices": tuple(choices),
        "placeholders": tuple(placeholders),
    }
    if isinstance(default, dict):
        return dataclasses.field(default_factory=lambda: dict(default), metadata=metadata, hash=False)
    return dataclasses.field(default=default, metadata=metadata)


def problems_of(
    item: dataclasses.Field[Any], value: Any, owner: type | None = None, label: str | None = None
) -> tuple[Any, list[str]]:
    """Check one value against its field's type and declared range.

    Args:
        item: The dataclass field.
        value: The value given.
        owner: The dataclass, for annotations that only resolve in its module.
        label: What messages call the option; by default the field's name.

    Returns:
        The value (whole numbers become floats where a float is wanted, sequences tuples, mappings copies) and the
        problems found.

    Example:
        >>> @dataclasses.dataclass(frozen=True)
        ... class Options:
        ...     order: float = option(0.5, "Order of the divergence.", low=0.0, exclusive=True)
        >>> problems_of(dataclasses.fields(Options)[0], -1, Options)
        (-1.0, ['`order` must be greater than 0, got -1.'])
    """
    name = label or item.name
    expected = _annotation(item, owner)
    converted, fits = _fit(value, expected)
    meta = item.metadata
    if not fits:
        return value, [_type_problem(name, value, expected, meta.get("choices", ()))]
    problems: list[str] = []
    if converted is None:
        return converted, problems
    choices = meta.get("choices")
    if choices and converted not in choices:
        listing = ", ".join(map(repr, choices))
        problems.append(f"`{name}` must be one of {listing}, got {value!r}.{nearest(str(value), choices)}")
    if isinstance(converted, (int, float)) and not isinstance(converted, bool):
        problems += _range_problems(name, converted, value, meta)
    problems += _template_problems(name, converted, meta.get("placeholders", ()))
    return converted, problems


def describe_type(expected: Any) -> str:
    """Say in words which values a type annotation admits.

    Example:
        >>> describe_type(int | None)
        'a whole number or null'
    """
    return " or ".join(_describe_part(part) for part in _parts(expected))


def to_plain(value: Any) -> Any:
    """Turn tuples and mappings into lists and dicts, recursively."""
    if isinstance(value, Mapping):
        return {key: to_plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(inner) for inner in value]
    return value


def _describe_part(part: Any) -> str:
    origin = typing.get_origin(part) or part
    if origin is Literal:
        return "one of " + ", ".join(map(repr, typing.get_args(part)))
    if origin in (tuple, list) or (isinstance(origin, type) and issubclass(origin, Sequence) and origin is not str):
        return "a list of texts" if typing.get_args(part)[:1] == (str,) else "a list"
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return "a mapping"
    return _TYPE_WORDS.get(origin) or str(getattr(origin, "__name__", origin))


def _type_problem(name: str, value: Any, expected: Any, choices: Sequence[str]) -> str:
    valid = f"one of {', '.join(map(repr, choices))}" if choices else describe_type(expected)
    return f"`{name}` must be {valid}, got {value!r} ({type(value).__name__}).{_number_hint(value, expected)}"


def _number_hint(value: Any, expected: Any) -> str:
    # YAML 1.1 reads 1e-5 as a text, and it shows as a number in every editor.
    if not isinstance(value, str) or not {int, float} & set(_parts(expected)):
        return ""
    try:
        number = float(value)
    except ValueError:
        return ""
    return f" Write the number without quotes; in YAML with a point, as in {number!r}, or 1.0e-5 for 1e-5."


def _annotation(item: dataclasses.Field[Any], owner: type | None) -> Any:
    if not isinstance(item.type, str):
        return item.type
    if owner is not None:
        return typing.get_type_hints(owner)[item.name]
    return eval(item.type, {"Mapping": Mapping, "Any": Any, "Sequence": Sequence})  # noqa: S307  our own annotations


def _parts(expected: Any) -> tuple[Any, ...]:
    if isinstance(expected, types.UnionType) or typing.get_origin(expected) is typing.Union:
        return typing.get_args(expected)
    return (expected,)


def _fit(value: Any, expected: Any) -> tuple[Any, bool]:
    for part in _parts(expected):
        converted, fits = _fit_part(value, part)
        if fits:
            return converted, True
    return value, False


def _fit_part(value: Any, part: Any) -> tuple[Any, bool]:
    origin = typing.get_origin(part) or part
    if origin is Any:
        return value, True
    if origin is Literal:
        # 1 == True == 1.0 in Python; an option that lists 1 does not mean true.
        return value, any(value == choice and type(value) is type(choice) for choice in typing.get_args(part))
    if origin is None or origin is type(None):
        return None, value is None
    if origin is int:
        return value, isinstance(value, int) and not isinstance(value, bool)
    if origin is float:
        fits = isinstance(value, (int, float)) and not isinstance(value, bool)
        return (_as_float(value), True) if fits else (value, False)
    if origin is not str and isinstance(origin, type) and issubclass(origin, Sequence):
        return _fit_sequence(value, part)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        fits = isinstance(value, Mapping) and all(isinstance(key, str) for key in value)
        # A deep copy: a list inside of the user's mapping must not change the configuration later on.
        return (copy.deepcopy(dict(value)), True) if fits else (value, False)
    return value, isinstance(origin, type) and isinstance(value, origin)


def _as_float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:  # a whole number beyond every float: the range check then says that it is not finite
        return math.inf if value > 0 else -math.inf


def _fit_sequence(value: Any, part: Any) -> tuple[Any, bool]:
    if not isinstance(value, (list, tuple)):
        return value, False
    inner = next((word for word in typing.get_args(part) if word is not ...), Any)
    fitted = [_fit(word, inner) for word in value]
    if not all(fits for _, fits in fitted):
        return value, False
    return tuple(word for word, _ in fitted), True


def _range_problems(name: str, converted: float, value: Any, meta: Mapping[str, Any]) -> list[str]:
    low, high, exclusive = meta.get("low"), meta.get("high"), meta.get("exclusive")
    if isinstance(converted, float) and not math.isfinite(converted):
        return [f"`{name}` must be a finite number, got {value!r}."]
    too_low = low is not None and (converted <= low if exclusive else converted < low)
    too_high = high is not None and converted > high
    if not (too_low or too_high):
        return []
    if low is not None and high is not None:
        valid = f"lie in {'(' if exclusive else '['}{low:g}, {high:g}]"
    elif low is not None:
        valid = f"be {'greater than' if exclusive else 'at least'} {low:g}"
    else:
        valid = f"be at most {high:g}"
    return [f"`{name}` must {valid}, got {value!r}."]


def _template_problems(name: str, value: Any, placeholders: Sequence[str]) -> list[str]:
    if not placeholders:
        return []
    wanted = ", ".join("{" + word + "}" for word in placeholders)
    try:
        parsed = [part for part in Formatter().parse(value) if part[1] is not None]
    except ValueError as error:
        return [f"`{name}` is no valid template ({error}); write a literal brace twice: '{{{{' or '}}}}'."]
    fields = [part[1] for part in parsed]
    problems = []
    missing = [word for word in placeholders if word not in fields]
    if missing:
        lost = ", ".join("{" + word + "}" for word in missing)
        problems.append(f"`{name}` must contain {wanted}; {lost} is missing from {value!r}.")
    unknown = [str(field) for field in fields if field not in placeholders]
    if unknown:
        strange = ", ".join("{" + word + "}" for word in unknown)
        problems.append(f"`{name}` has the unknown placeholder {strange}; valid are {wanted}.")
    formatted = [str(field) for _, field, spec, conversion in parsed if spec or conversion]
    if formatted:
        listing = ", ".join("{" + word + "}" for word in formatted)
        problems.append(f"`{name}` formats a placeholder; write it plainly as {listing}.")
    return problems
