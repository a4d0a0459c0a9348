"""Reading a file of options so that each value knows its line: YAML, JSON, and what a Python or shell script says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from sdpo_plugins.conversion.documents import Document, Given, with_numbers
from sdpo_plugins.conversion.scripts import read_python, read_shell
from sdpo_plugins.errors import ConfigError

__all__ = ["read_document", "yaml_problem"]


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
        return read_python(path, text)
    if suffix == ".sh":
        return read_shell(path, text)
    if suffix not in (".yaml", ".yml", ".json"):
        raise ConfigError(
            f"{path} must be a .yaml, .yml or .json file, or a script (.py, .sh) with the options, got the suffix "
            f"{path.suffix!r}."
        )
    return Document(path, _mapping_of(path, text, is_json=suffix == ".json"))


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
    return Given(value if quoted else with_numbers(value), line)
