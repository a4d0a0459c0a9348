"""Reading a file of options so that each value knows its line: YAML, JSON, and what a Python or shell script says."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from sdpo_plugins.errors import ConfigError

__all__ = ["COMMAND_LINE", "Document", "Given", "opened", "parse_word", "read_document"]

COMMAND_LINE = "command line"

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


def read_document(path: Path) -> Document:
    """Read a file by its suffix: .yaml and .yml, .json, .py (read, never run), .sh (words `a.b=value`).

    Args:
        path: The file.

    Returns:
        Its entries.

    Raises:
        ConfigError: It cannot be read, has another suffix, or is no such file; the message says the line.
    """
    text = _text(path)
    suffix = path.suffix.lower()
    if suffix == ".py":
        from sdpo_plugins.conversion.scripts import read_python

        return read_python(path, text)
    if suffix == ".sh":
        from sdpo_plugins.conversion.scripts import read_shell

        return read_shell(path, text)
    if suffix not in (".yaml", ".yml", ".json"):
        raise ConfigError(
            f"{path} must be a .yaml, .yml or .json file, or a script (.py, .sh) with the options, got the suffix "
            f"{path.suffix!r}."
        )
    return Document(path, _mapping_of(path, text, is_json=suffix == ".json"))


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
    return _number(value)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is no text file: {error.reason} at byte {error.start}.") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}.") from error


def _mapping_of(path: Path, text: str, *, is_json: bool) -> dict[str, Given]:
    try:
        if is_json:
            json.loads(text)
            text = text.replace("\t", " ")  # which YAML forbids; inside of JSON's texts there are none
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return {}
        if not isinstance(node, yaml.MappingNode):
            raise ConfigError(
                f"{path} must hold a mapping of options, got {type(loader.construct_document(node)).__name__}."
            )
        return _inner(path, loader, node)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}, line {error.lineno}, is not JSON: {error.msg}.") from error
    except yaml.MarkedYAMLError as error:
        raise ConfigError(yaml_problem(path, error)) from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not a YAML file: {' '.join(str(error).split())}.") from error


def yaml_problem(path: Path, error: yaml.MarkedYAMLError) -> str:
    """Say in one sentence where a YAML file is wrong.

    Args:
        path: The file.
        error: The parser's.

    Returns:
        File, line, and what the parser met.
    """
    mark = error.problem_mark or error.context_mark
    where = f", line {mark.line + 1}," if mark is not None else ""
    context = f"{error.context}: " if error.context else ""
    return f"{path}{where} is not a YAML file: {context}{error.problem or error}."


def _inner(path: Path, loader: Any, node: yaml.MappingNode) -> dict[str, Given]:
    lines: dict[str, int] = {}
    for key, _ in node.value:
        if key.tag == "tag:yaml.org,2002:merge":
            continue
        name, line = str(loader.construct_object(key, deep=True)), key.start_mark.line + 1
        if name in lines:
            raise ConfigError(f"{path} gives `{name}` twice, in lines {lines[name]} and {line}; give it once.")
        lines[name] = line
    loader.flatten_mapping(node)  # `<<`
    return {
        str(loader.construct_object(key, deep=True)): _given(path, loader, value, key.start_mark.line + 1)
        for key, value in node.value
    }


def _given(path: Path, loader: Any, node: yaml.Node, line: int) -> Given:
    if isinstance(node, yaml.MappingNode):
        inner = _inner(path, loader, node)
        return Given({name: one.value for name, one in inner.items()}, line, inner)
    value = loader.construct_object(node, deep=True)
    quoted = isinstance(node, yaml.ScalarNode) and node.style is not None
    return Given(value if quoted else _number(value), line)


def _number(value: Any) -> Any:
    return float(value) if isinstance(value, str) and _NUMBER.fullmatch(value) else value
