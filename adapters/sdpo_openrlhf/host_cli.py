"""OpenRLHF's program `train_ppo_ray`, read as source: its parser, its checks and its `train`, with our classes in it.

Its parser stands under `if __name__ == "__main__"`, where nothing can import it, and its `train` names the classes that
SDPO extends. So the file is read as a syntax tree and run in parts: parser and checks first, which start and import
nothing heavy, and `train` with our names in the place of the host's once all is known to be right.
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdpo_plugins.errors import HostError

__all__ = ["REPLACED", "Checked", "HostProgram"]

MODULE = "openrlhf.cli.train_ppo_ray"

REPLACED = {
    ("openrlhf.trainer.ray.ppo_actor", "PolicyModelActor"): ("sdpo_openrlhf.actor", "SDPOPolicyModelActor"),
    ("openrlhf.trainer.ppo_trainer", "PPOTrainer"): ("sdpo_openrlhf.controllers", "SDPOPPOTrainer"),
    ("openrlhf.trainer.ppo_trainer_async", "PPOTrainerAsync"): ("sdpo_openrlhf.controllers", "SDPOPPOTrainerAsync"),
}
"""Module and name in the host's program → ours."""


@dataclass(frozen=True)
class Checked:
    """What the host's own checks gave.

    Args:
        args: The arguments, nested as the host nests them, with what its checks fill in.
        problems: What its assertions said.
        crash: What else ended the checks; for example a comparison with a flag that was not given.
    """

    args: Any
    problems: tuple[str, ...]
    crash: Exception | None = None


@dataclass(frozen=True)
class HostProgram:
    """The host's program in parts.

    Args:
        path: Its file.
        definitions: Everything outside of the main block, with our names in it.
        parser: Statements of the main block that make the parser.
        checks: Statements of the main block between parsing and `train`.
        parser_name: The parser's variable.
        args_name: The arguments' variable.
        train_name: The function that trains.
    """

    path: Path
    definitions: tuple[ast.stmt, ...]
    parser: tuple[ast.stmt, ...]
    checks: tuple[ast.stmt, ...]
    parser_name: str
    args_name: str
    train_name: str

    @staticmethod
    def find() -> HostProgram:
        """Read the installed host's program, without importing anything of it.

        Raises:
            HostError: There is none, or it is not laid out as in the supported releases.
        """
        package, *inner = MODULE.split(".")
        spec = importlib.util.find_spec(package)
        folders = (spec.submodule_search_locations if spec else None) or []
        for folder in folders:
            path = Path(folder).joinpath(*inner).with_suffix(".py")
            if path.is_file():
                return HostProgram.read(path)
        raise HostError(f"The program {MODULE} was not found below {', '.join(folders) or 'any folder of Python'}.")

    @staticmethod
    def read(path: Path) -> HostProgram:
        """Read a program from its file.

        Args:
            path: The file `train_ppo_ray.py` of a supported release.

        Raises:
            HostError: Names what was expected in it and not found.
        """
        tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
        blocks = [node for node in tree.body if _is_main_block(node)]
        block = _only(blocks, path, 'the block `if __name__ == "__main__":`')
        assert isinstance(block, ast.If)
        parsing = _only([node for node in block.body if _is_parsing(node)], path, "`args = parser.parse_args()`")
        assert isinstance(parsing, ast.Assign) and isinstance(parsing.targets[0], ast.Name)
        assert isinstance(parsing.value, ast.Call) and isinstance(parsing.value.func, ast.Attribute)
        assert isinstance(parsing.value.func.value, ast.Name)
        args_name = parsing.targets[0].id
        training = _only([node for node in block.body if _is_call_with(node, args_name)], path, "`train(args)`")
        assert isinstance(training, ast.Expr) and isinstance(training.value, ast.Call)
        assert isinstance(training.value.func, ast.Name)
        at, end = block.body.index(parsing), block.body.index(training)
        if not at < end == len(block.body) - 1:
            raise HostError(_moved(path, "`train(args)` as the last statement"))
        replacing = _Replacing()
        definitions = [replacing.visit(node) for node in tree.body if node is not block]
        for (module, name), count in replacing.found.items():
            if count != 1:
                raise HostError(_moved(path, f"one `from {module} import {name}` (found: {count})"))
        return HostProgram(
            path,
            tuple(ast.fix_missing_locations(node) for node in _flat(definitions)),
            tuple(block.body[:at]),
            tuple(block.body[at + 1 : end]),
            parsing.value.func.value.id,
            args_name,
            training.value.func.id,
        )

    def build_parser(self) -> argparse.ArgumentParser:
        """Return the host's parser, fresh, made by the host's code."""
        names = self._names()
        self._run(self.parser, names)
        found = names.get(self.parser_name)
        if not isinstance(found, argparse.ArgumentParser):
            raise HostError(_moved(self.path, f"an ArgumentParser in `{self.parser_name}`"))
        return found

    def check(self, flat: argparse.Namespace) -> Checked:
        """Run the host's checks, which also nest the arguments and fill some in.

        Args:
            flat: What the parser gave.

        Returns:
            The nested arguments and all that the checks found.

        Raises:
            HostError: The checks ended before the arguments were nested.
        """
        names = {**self._names(), self.args_name: flat}
        problems: list[str] = []
        crash: Exception | None = None
        for statement in self.checks:
            try:
                self._run([statement], names)
            except AssertionError as error:
                problems.append(str(error) or f"`{ast.unparse(statement)}` does not hold ({self.path}).")
            except Exception as error:  # a check that stumbles over what another would have refused
                crash = error
                break
        args = names[self.args_name]
        if args is flat:
            raise HostError(_moved(self.path, "arguments nested by their dots")) from crash
        return Checked(args, tuple(problems), crash)

    def load_train(self) -> Callable[[Any], None]:
        """Import what the host's program imports, ours included, and return its `train`.

        Raises:
            HostError: Something cannot be imported.
        """
        names: dict[str, Any] = {"__name__": MODULE, "__file__": str(self.path)}
        try:
            self._run(self.definitions, names)
        except ImportError as error:
            raise HostError(
                f"What OpenRLHF needs cannot be imported ({type(error).__name__}: {error}). Repair the installation; "
                "`sdpo doctor` shows what is there."
            ) from error
        train: Callable[[Any], None] = names[self.train_name]
        return train

    def _names(self) -> dict[str, Any]:
        """Import what the main block uses of the module's imports, and nothing else: those are ray and vLLM."""
        used = {
            node.id
            for statement in (*self.parser, *self.checks)
            for node in ast.walk(statement)
            if isinstance(node, ast.Name)
        }
        names: dict[str, Any] = {"__name__": MODULE, "__file__": str(self.path)}
        for node in self.definitions:
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                bound = {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
                if bound & used:
                    self._run([node], names)
        return names

    def _run(self, statements: Iterable[ast.stmt], names: dict[str, Any]) -> None:
        code = compile(ast.Module(list(statements), type_ignores=[]), str(self.path), "exec")
        exec(code, names)  # the host's own program, as `python -m` would run it


class _Replacing(ast.NodeTransformer):
    """Puts our names in the place of the host's, in imports anywhere in the file, and counts them."""

    def __init__(self) -> None:
        self.found = dict.fromkeys(REPLACED, 0)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.stmt | list[ast.stmt]:
        taken = [alias for alias in node.names if (node.module, alias.name) in REPLACED]
        if not taken or node.level:
            return node
        rest = [alias for alias in node.names if alias not in taken]
        made: list[ast.stmt] = [ast.ImportFrom(node.module, rest, 0)] if rest else []
        for alias in taken:
            assert node.module is not None
            self.found[(node.module, alias.name)] += 1
            module, name = REPLACED[(node.module, alias.name)]
            made.append(ast.ImportFrom(module, [ast.alias(name, alias.asname or alias.name)], 0))
        return [ast.copy_location(item, node) for item in made]


def _flat(nodes: Sequence[Any]) -> list[Any]:
    return [inner for node in nodes for inner in (node if isinstance(node, list) else [node])]


def _only(found: Sequence[ast.stmt], path: Path, what: str) -> ast.stmt:
    if len(found) != 1:
        raise HostError(_moved(path, f"{what} once (found: {len(found)})"))
    return found[0]


def _moved(path: Path, what: str) -> str:
    return (
        f"{path} does not have {what}: this OpenRLHF is laid out in a way that is not known here. Install a supported "
        "release; `sdpo doctor` names them."
    )


def _is_main_block(node: ast.stmt) -> bool:
    return (
        isinstance(node, ast.If)
        and isinstance(node.test, ast.Compare)
        and isinstance(node.test.left, ast.Name)
        and node.test.left.id == "__name__"
    )


def _is_parsing(node: ast.stmt) -> bool:
    return (
        isinstance(node, ast.Assign)
        and len(node.targets) == 1
        and isinstance(node.targets[0], ast.Name)
        and isinstance(node.value, ast.Call)
        and isinstance(node.value.func, ast.Attribute)
        and node.value.func.attr == "parse_args"
        and isinstance(node.value.func.value, ast.Name)
        and not node.value.args
    )


def _is_call_with(node: ast.stmt, name: str) -> bool:
    """Whether a statement only calls a function with this one variable."""
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Call)
        and isinstance(node.value.func, ast.Name)
        and [ast.unparse(argument) for argument in node.value.args] == [name]
    )
