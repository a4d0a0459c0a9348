"""The reference of what has a signature: hooks, the command line, the public names of packages."""

from __future__ import annotations

import ast
import importlib
import inspect
import itertools
import re
import sys
import textwrap
import types
import typing
from collections.abc import Callable, Iterator
from enum import Enum
from pathlib import Path
from typing import Any

from sdpo_plugins import hookspecs
from sdpo_plugins._markdown import shown, table

__all__ = ["PACKAGES", "api_block", "command_block", "commands", "hook_block", "hooks", "public_names"]

# The packages whose `__all__` is the Python interface. A name that several have is described with the first.
PACKAGES = (
    "sdpo_plugins",
    "sdpo_plugins.losses",
    "sdpo_plugins.reprompt",
    "sdpo_plugins.teacher",
    "sdpo_plugins.feedback",
    "sdpo_plugins.records",
    "sdpo_plugins.report",
    "sdpo_plugins.data",
    "sdpo_plugins.estimate",
    "sdpo_plugins.testing",
    "sdpo_trl",
)

# Hooks --------------------------------------------------------------------------------------------------------------


def hooks() -> dict[str, Callable[..., Any]]:
    """Return the specification of every hook, in the order of `sdpo_plugins.hookspecs`."""
    marker = f"{hookspecs.PROJECT_NAME}_spec"
    return {name: value for name, value in vars(hookspecs).items() if hasattr(value, marker)}


def hook_block() -> str:
    """Every hook: signature, contract, example."""
    found = hooks()
    needed = sorted(
        {name for name in _ENTRIES if any(re.search(rf"\b{name}\(", h.__doc__ or "") for h in found.values())}
    )
    imports = "".join(f"    {name},\n" for name in [*needed, "hookimpl"])
    head = f"```python\nfrom sdpo_plugins import (\n{imports})\n```"
    return "\n\n".join([head, *(_hook(name, hook) for name, hook in found.items())])


_ENTRIES = (
    *("Divergence", "Host", "Reprompter", "Score", "Scorer", "Selector"),
    *("TeacherContext", "TeacherContexts", "TeacherStrategy"),
)


def _hook(name: str, hook: Callable[..., Any]) -> str:
    signature = inspect.signature(hook)
    first = getattr(hook, f"{hookspecs.PROJECT_NAME}_spec")["firstresult"]
    asked = "The first plug-in that answers is taken." if first else "Every plug-in is asked, and all answers count."
    summary, sections = _docstring(hook.__doc__ or "")
    parts = [f"## `{name}`", f"{summary} {asked}"]
    unquoted = str(signature).replace("'", "")  # annotations are texts in that module
    parts.append(f"```text\n{name}{unquoted}\n```")
    if "Args" in sections:
        rows = [(f"`{item}`", text) for item, text in _entries(sections["Args"])]
        parts.append(table(("argument", "meaning"), rows))
    parts.append("**Returns.** " + " ".join(sections["Returns"].split()))
    code = "\n".join(line[4:] for line in sections["Example"].splitlines())
    parts.append(f"```python continuation\n{code}\n```")
    return "\n\n".join(parts)


def _docstring(text: str) -> tuple[str, dict[str, str]]:
    """Cut a docstring in Google's style into its first paragraph and its sections."""
    head, *rest = re.split(r"^(Args|Returns|Raises|Example):\n", inspect.cleandoc(text), flags=re.MULTILINE)
    sections = {name: textwrap.dedent(body).strip("\n") for name, body in zip(rest[::2], rest[1::2], strict=True)}
    return " ".join(head.split()), sections


def _entries(section: str) -> Iterator[tuple[str, str]]:
    for entry in re.split(r"\n(?=\S)", section):
        name, _, text = entry.partition(":")
        yield name, " ".join(text.split())


# The command line ---------------------------------------------------------------------------------------------------


def commands() -> dict[str, Any]:
    """Return every command of `sdpo` by its full name; the group itself first, as `sdpo`."""
    import typer.main

    from sdpo_plugins.cli import app

    return dict(_commands("sdpo", typer.main.get_command(app)))


def _commands(name: str, command: Any) -> Iterator[tuple[str, Any]]:
    if not command.hidden:
        yield name, command
        for own, child in getattr(command, "commands", {}).items():
            yield from _commands(f"{name} {own}", child)


def command_block() -> str:
    """Every command: what it does, its arguments and options, its examples."""
    return "\n\n".join(_command(name, command) for name, command in commands().items())


def _command(name: str, command: Any) -> str:
    parts = [f"## `{name}`", inspect.cleandoc(command.help or "")]
    kinds = {item.name: item.annotation for item in _parameters(command.callback)}
    rows = [_parameter(item, kinds.get(item.name)) for item in command.params if _is_shown(item)]
    if rows:
        parts.append(table(("argument or option", "value", "default", "meaning"), rows))
    if children := getattr(command, "commands", None):
        parts.append("Commands: " + ", ".join(f"`{name} {child}`" for child in children) + ".")
    if command.epilog:
        parts.append(inspect.cleandoc(command.epilog))
    return "\n\n".join(parts)


def _is_shown(item: Any) -> bool:
    # The words on shell completion are Typer's, and change with its versions.
    return not getattr(item, "hidden", False) and item.name not in ("install_completion", "show_completion")


def _parameters(callback: Callable[..., Any] | None) -> list[inspect.Parameter]:
    return [] if callback is None else list(inspect.signature(callback, eval_str=True).parameters.values())


def _parameter(item: Any, annotation: Any) -> tuple[str, str, str, str]:
    option = item.param_type_name == "option"
    names = [*item.opts, *item.secondary_opts] if option else [item.metavar or str(item.name).upper()]
    kind, several = _kind(annotation)
    default = item.default.value if isinstance(item.default, Enum) else item.default
    if getattr(item, "is_flag", False):
        kind, default = "", {True: "on", False: "off"}.get(default, "–")
    elif item.required:
        default = "required"
    else:
        default = "–" if default is None or default == () else shown(str(default))
    return ", ".join(f"`{name}`" for name in names), kind + several, default, " ".join((item.help or "").split())


_KINDS = {int: "whole number", float: "number", str: "text", Path: "path", bool: "true or false"}


def _kind(annotation: Any) -> tuple[str, str]:
    if typing.get_origin(annotation) is typing.Annotated:
        annotation = typing.get_args(annotation)[0]
    if typing.get_origin(annotation) in (types.UnionType, typing.Union):
        annotation = next(part for part in typing.get_args(annotation) if part is not type(None))
    if typing.get_origin(annotation) is list:
        return _kind(typing.get_args(annotation)[0])[0], ", several times"
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return ", ".join(f"`{member.value}`" for member in annotation), ""
    return _KINDS.get(annotation, ""), ""


# Python -------------------------------------------------------------------------------------------------------------


def public_names(package: str) -> dict[str, Any]:
    """Return what a package's `__all__` names."""
    module = importlib.import_module(package)
    return {name: getattr(module, name) for name in module.__all__}


def api_block() -> str:
    """A directive of Sphinx's autodoc for every public name."""
    described: dict[int, str] = {}
    parts = []
    for package in PACKAGES:
        module = importlib.import_module(package)
        summary = inspect.cleandoc(module.__doc__ or "").partition("\n\n")[0]
        parts.append(f"## `{package}`\n\n{' '.join(summary.split())}")
        for name, value in public_names(package).items():
            full = f"{package}.{name}"
            first = described.setdefault(id(value), full) if callable(value) else full
            parts.append(f"`{full}`: see {{py:obj}}`{first}`." if first != full else _directive(full, value))
    return "\n\n".join(parts)


def _directive(full: str, value: Any) -> str:
    if inspect.isclass(value):
        lines = [f".. auto{'exception' if issubclass(value, Exception) else 'class'}:: {full}", "   :members:"]
    elif callable(value) and hasattr(value, "__name__"):
        lines = [f".. autofunction:: {full}"]
    else:
        # autodoc knows what is said of a constant only in the module that assigns it.
        said = _said_of(full.rpartition(".")[2], value)
        shown_value = [f"   :value: {value!r}"] if isinstance(value, (str, int)) and "version" not in full else []
        lines = [f".. py:data:: {full}", *shown_value, "", *(f"   {line}" for line in said.splitlines())]
    return "```{eval-rst}\n" + "\n".join(lines).rstrip() + "\n```"


def _said_of(name: str, value: Any) -> str:
    """Return the text that stands below the assignment of a constant of this package; "" if there is none."""
    for module in [module for key, module in sorted(sys.modules.items()) if key.startswith(__name__.partition(".")[0])]:
        if getattr(module, "__file__", None) and vars(module).get(name) is value:
            for before, after in itertools.pairwise(ast.parse(inspect.getsource(module)).body):
                targets = before.targets if isinstance(before, ast.Assign) else [getattr(before, "target", None)]
                named = any(isinstance(target, ast.Name) and target.id == name for target in targets)
                if named and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
                    return inspect.cleandoc(str(after.value.value))
    return ""
