"""What a file of options says, value by value, whatever kind of file it is."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

__all__ = ["Document", "Given", "opened", "parse_word", "with_numbers"]

# YAML 1.1 reads 1e-5 as a text; every host reads it as a number.
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")


@dataclass(frozen=True)
class Given:
    """A value that somebody wrote down.

    Args:
        value: Plain; a mapping's own values are plain too.
        line: Of the file; None: the command line, or not known.
        inner: What stands inside of a mapping, each with its line; None if the value is none.
    """

    value: Any
    line: int | None = None
    inner: Mapping[str, Given] | None = None


@dataclass(frozen=True)
class Document:
    """What a file says.

    Args:
        path: The file.
        entries: By name; nested as in the file.
        sections: Of a script: what was said to which class, "SDPOConfig" or another. Empty for other files.
        unread: Places of a script whose value only running it would tell, as sentences.
    """

    path: Path
    entries: Mapping[str, Given]
    sections: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    unread: tuple[str, ...] = ()


def opened(entries: Mapping[str, Given], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Given]]:
    """Give every value that is no mapping, or an empty one, with the names that lead to it; dots in a name count.

    Example:
        >>> [(name, one.value) for name, one in opened({"a.b": Given(1), "c": Given({}, inner={})})]
        [(('a', 'b'), 1), (('c',), {})]
    """
    for name, given in entries.items():
        here = (*path, *name.split("."))
        if given.inner:
            yield from opened(given.inner, here)
        else:
            yield here, given


def parse_word(text: str) -> Any:
    """Read a value of a command line as YAML does, with 1e-5 for a number.

    Args:
        text: The word.

    Returns:
        The value; the text itself if it is no YAML.

    Example:
        >>> parse_word("1e-5"), parse_word("null"), parse_word("ema"), parse_word("{prompt} {x")
        (1e-05, None, 'ema', '{prompt} {x')
    """
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    return with_numbers(value)


def with_numbers(value: Any) -> Any:
    """Return a text such as 1e-5 as the number that everybody but YAML 1.1 takes it for, else the value.

    Example:
        >>> with_numbers("1e-5"), with_numbers("e5")
        (1e-05, 'e5')
    """
    return float(value) if isinstance(value, str) and _NUMBER.fullmatch(value) else value
