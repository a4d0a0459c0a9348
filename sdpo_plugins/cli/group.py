"""The top of the command line: what ends a command becomes one message and an exit code."""

from __future__ import annotations

import sys
from typing import Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from sdpo_plugins.errors import SDPOError

__all__ = ["FAILED", "INTERRUPTED", "USAGE_ERROR", "SDPOGroup"]

FAILED = 1
USAGE_ERROR = 2
INTERRUPTED = 130

# Typer carries a click of its own in some releases; what its errors have in common is found from one that it shows.
_COMMAND_LINE_ERROR: Any = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")


class SDPOGroup(TyperGroup):
    """Prints one message for a mistake of the user, exit code 2; any other exception is a bug and shows itself."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was asked for."""
        try:
            return super().invoke(ctx)
        except SDPOError as error:
            if ctx.params.get("debug"):
                raise
            _say(str(error))
            raise typer.Exit(USAGE_ERROR) from error

    def main(self, *args: Any, **extra: Any) -> Any:
        """Parse the command line, run the command, and leave with its exit code."""
        alone = extra.get("standalone_mode", True)
        extra["standalone_mode"] = False
        if not alone:
            return super().main(*args, **extra)
        try:
            code = super().main(*args, **extra)
        except _COMMAND_LINE_ERROR as error:
            if type(error).__name__ == "NoArgsIsHelpError":
                error.show()
            else:
                given = extra.get("args") or (args[0] if args else None) or sys.argv[1:]
                _say(_words(error, list(given)))
            code = error.exit_code
        except typer.Abort:
            code = INTERRUPTED
        if code == INTERRUPTED:
            Console(stderr=True).print("Interrupted.")
        sys.exit(code if isinstance(code, int) else 0)


def _say(message: str) -> None:
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    console.print("[bold red]error:[/]", end=" ")
    console.print(message, markup=False)


def _words(error: Any, given: list[str]) -> str:
    """One paragraph: what is wrong with the command line, what was given, and which help says more."""
    said = " ".join(error.format_message().split())
    value = _value_of(getattr(error, "param", None), given)
    if value is not None and repr(value) not in said:
        said = f"{said.rstrip('.')}, got {value!r}."
    said = said if said.endswith((".", "?", "!")) else f"{said}."
    context = getattr(error, "ctx", None)
    return f"{said} `{context.command_path} --help` says more." if context is not None else said


def _value_of(parameter: Any, given: list[str]) -> str | None:
    """The word behind an option; what checks its type does not tell it."""
    for place, word in enumerate(given):
        for option in getattr(parameter, "opts", ()):
            if word == option and place + 1 < len(given):
                return given[place + 1]
            if word.startswith(option + "="):
                return word.partition("=")[2]
    return None
