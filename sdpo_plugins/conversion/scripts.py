"""Options that stand in a script: keyword arguments of `SDPOConfig(…)` and `GRPOConfig(…)`, or words `a.b=value`.

A script is read, never run: what only running it would tell is named instead.
"""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sdpo_plugins.conversion.documents import Document, Given, parse_word
from sdpo_plugins.errors import ConfigError

__all__ = ["OF_HOST", "OF_SDPO", "read_python", "read_shell"]

OF_SDPO = ("SDPOConfig",)
OF_HOST = ("GRPOConfig", "TrainingArguments", "SDPOTrainingArguments")
_WORD = re.compile(r"\+{0,2}(?P<name>[A-Za-z_]\w*(?:\.\w+)+)=(?P<value>.*)", re.DOTALL)


def read_python(path: Path, text: str) -> Document:
    """Read the keyword arguments of the configurations that a Python script makes.

    Args:
        path: The script.
        text: What stands in it.

    Returns:
        The arguments, and `model_name_or_path` where a `from_pretrained` has a literal name.

    Raises:
        ConfigError: It is no Python, makes no such configuration, or gives one argument twice.
    """
    try:
        tree = ast.parse(text)
    except SyntaxError as error:
        raise ConfigError(f"{path}, line {error.lineno}, is not Python: {error.msg}.") from error
    constants = dict(_constants(tree))
    entries: dict[str, Given] = {}
    sections: dict[str, list[str]] = {}
    unread: list[str] = []
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        name = _name_of(call.func)
        if name == "from_pretrained" and "model_name_or_path" not in entries:
            first = _literal(call.args[0], constants) if call.args else None
            if isinstance(first, str):
                entries["model_name_or_path"] = Given(first, call.lineno)
        if name not in (*OF_SDPO, *OF_HOST):
            continue
        said = sections.setdefault(name, [])
        for argument in call.keywords:
            if argument.arg is None:
                unread.append(f"{path}, line {argument.value.lineno}: `**{ast.unparse(argument.value)}` of {name}")
                continue
            value = _literal(argument.value, constants)
            if value is _UNKNOWN:
                shown = ast.unparse(argument.value)
                unread.append(f"{path}, line {argument.value.lineno}: `{argument.arg}={shown}` of {name}")
                continue
            line = argument.value.lineno
            if argument.arg in entries and argument.arg in {one for names in sections.values() for one in names}:
                raise ConfigError(
                    f"{path} gives `{argument.arg}` twice, in lines {entries[argument.arg].line} and {line}; keep one "
                    "configuration in a copy of the script."
                )
            entries[argument.arg] = Given(value, line)
            said.append(argument.arg)
    if not sections:
        raise ConfigError(
            f"{path} calls none of {', '.join(f'{name}(…)' for name in (*OF_SDPO, *OF_HOST))}; give the script that "
            "does, or a YAML or JSON file with the options."
        )
    return Document(path, entries, {name: tuple(names) for name, names in sections.items()}, tuple(unread))


def read_shell(path: Path, text: str) -> Document:
    """Read the Hydra overrides of a launch script: words of the form `a.b=value`.

    Args:
        path: The script.
        text: What stands in it.

    Returns:
        The overrides; a later one wins, as in Hydra. Those with a variable of the shell are named as unread.

    Raises:
        ConfigError: Its quotes do not end, or it holds no override.
    """
    entries: dict[str, Given] = {}
    unread: list[str] = []
    for line, words in _lines_of(path, text):
        for word in words:
            found = _WORD.fullmatch(word)
            if not found:
                continue
            if "$" in found["value"]:
                unread.append(f"{path}, line {line}: `{word}`")
            else:
                entries[found["name"]] = Given(parse_word(found["value"]), line)
    if not entries:
        raise ConfigError(f"{path} holds no words of the form `actor_rollout_ref.actor.optim.lr=1e-6`.")
    return Document(path, entries, unread=tuple(unread))


def _lines_of(path: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    lexer = shlex.shlex(text, posix=True, punctuation_chars=False)
    lexer.whitespace_split = True
    try:
        while True:
            line = lexer.lineno
            word = lexer.get_token()
            if word is None:
                return
            yield line, [word]
    except ValueError as error:
        raise ConfigError(f"{path} is no shell script that can be read: {error}.") from error


_UNKNOWN = object()


def _literal(node: ast.expr, constants: Mapping[str, Any]) -> Any:
    if isinstance(node, ast.Name) and node.id in constants:
        return constants[node.id]
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError):
        return _UNKNOWN


def _constants(tree: ast.Module) -> Iterator[tuple[str, Any]]:
    """Names of the module that are set once, to a literal."""
    names: dict[str, list[ast.expr | None]] = {}
    for node in ast.walk(tree):
        if isinstance(node, (ast.Assign, ast.AnnAssign)):
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                if isinstance(target, ast.Name):
                    names.setdefault(target.id, []).append(node.value)
    for name, values in names.items():
        if len(values) == 1 and values[0] is not None:
            value = _literal(values[0], {})
            if value is not _UNKNOWN:
                yield name, value


def _name_of(function: ast.expr) -> str:
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
