"""Files that a run names: whether they are there, and hold what OpenRLHF will look for in them. None is executed."""

from __future__ import annotations

import ast
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from sdpo_plugins.errors import nearest

__all__ = ["agent_problems", "dataset_problems", "folder_problem", "reward_problems"]

# What OpenRLHF gives to `load_dataset` as a file, by its ending.
_DATA_ENDINGS = (".json", ".jsonl", ".csv", ".parquet", ".arrow")
_PATH_STARTS = ("/", "./", "../", "~")


def folder_problem(path: str, flag: str) -> str | None:
    """Say that a folder is missing, if its name can only be a path and not one on the hub.

    Args:
        path: As given.
        flag: Without dashes, for the message.

    Example:
        >>> folder_problem("./no/such/model", "actor.model_name_or_path")
        '`--actor.model_name_or_path ./no/such/model`: there is no such folder. Correct the path.'
        >>> folder_problem("Qwen/Qwen3-8B", "actor.model_name_or_path")
    """
    if not path.startswith(_PATH_STARTS) or Path(path).is_dir():
        return None
    home = Path(os.path.expanduser(path)).is_dir()
    hint = " Write the path without `~`: OpenRLHF does not open it." if home else " Correct the path."
    return f"`--{flag} {path}`: there is no such folder.{hint}"


def dataset_problems(given: str | None, flag: str, *, needed: bool = False) -> Iterator[str]:
    """Name the datasets that can only be files or folders and are not there.

    Args:
        given: Names and paths with commas between them, each perhaps with `@folder` behind it.
        flag: Without dashes, for the message.
        needed: Whether it must be given at all.
    """
    if not given:
        if needed:
            yield f"`--{flag}` is missing: set it to a file of prompts (.jsonl, .parquet …), or a name on the hub."
        return
    for part in given.split(","):
        name = part.partition("@")[0].strip()
        local = name.startswith(_PATH_STARTS) or name.endswith(_DATA_ENDINGS)
        if local and "://" not in name and not set("*?[") & set(name) and not Path(name).exists():
            yield f"`--{flag} {name}`: there is no such file or folder. Correct the path."


def reward_problems(endpoints: Sequence[str]) -> Iterator[str]:
    """Say what is wrong with `--reward.remote_url`: a Python file with `reward_func`, or addresses of servers.

    Args:
        endpoints: The parts between commas.
    """
    flag = "reward.remote_url"
    files = [name for name in endpoints if name.endswith(".py")]
    if files and len(endpoints) > 1:
        yield (
            f"`--{flag} {','.join(endpoints)}` names {len(endpoints)} sources, one of them a Python file: OpenRLHF "
            "would ask the first alone, or take the file for a server. Name one file, or servers."
        )
    for name in files:
        yield from _definition_problems(name, flag, "reward_func")
    for name in endpoints:
        if name not in files and not name.startswith(("http://", "https://")):
            yield (
                f"`--{flag} {name}` is neither a Python file (.py) with `reward_func` nor the address of a server "
                "(http://…). Correct it."
            )


def agent_problems(path: str) -> Iterator[str]:
    """Say what is wrong with `--train.agent_func_path`: a Python file with the class `AgentExecutor`.

    Args:
        path: As given.
    """
    flag = "train.agent_func_path"
    if not path.endswith(".py"):
        yield f"`--{flag} {path}` must be a Python file (.py) with the class `AgentExecutor`."
        return
    yield from _definition_problems(path, flag, "AgentExecutor")


def _definition_problems(path: str, flag: str, wanted: str) -> Iterator[str]:
    try:
        tree = ast.parse(Path(path).read_bytes(), path)
    except OSError as error:
        yield f"`--{flag} {path}` cannot be read: {error.strerror or error}. Correct the path."
        return
    except (SyntaxError, ValueError) as error:
        yield f"`--{flag} {path}` is no valid Python: {error}."
        return
    found = dict(_defined(tree.body))
    if wanted not in found:
        if "*" not in found:  # what `from … import *` brings is only known once it is run
            yield f"`--{flag} {path}` does not define `{wanted}` at its top level.{nearest(wanted, found)}"
    elif wanted == "reward_func" and isinstance(found[wanted], (ast.AsyncFunctionDef, ast.ClassDef)):
        yield (
            f"`--{flag} {path}`: `reward_func` must be a plain function, because OpenRLHF calls it in a thread and "
            "takes what it returns for the rewards. Define it with `def`."
        )
    elif wanted == "AgentExecutor" and isinstance(found[wanted], (ast.FunctionDef, ast.AsyncFunctionDef)):
        yield f"`--{flag} {path}`: `AgentExecutor` must be a class derived from OpenRLHF's `AgentExecutorBase`."


def _defined(body: Sequence[ast.stmt]) -> Iterator[tuple[str, ast.stmt]]:
    """Give the names that a module's statements bind, those within `if`, `try` and `with` included."""
    for node in body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield node.name, node
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            for alias in node.names:
                yield (alias.asname or alias.name).partition(".")[0], node
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets:
                yield from ((name.id, node) for name in ast.walk(target) if isinstance(name, ast.Name))
        for part in ("body", "orelse", "finalbody"):
            if isinstance(node, (ast.If, ast.Try, ast.With)):
                yield from _defined(getattr(node, part, []))
        if isinstance(node, ast.Try):
            for handler in node.handlers:
                yield from _defined(handler.body)
