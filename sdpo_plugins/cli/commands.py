"""The command line: `sdpo list`, `sdpo doctor`, `sdpo data`, `sdpo estimate`, `sdpo train`, `sdpo demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from sdpo_plugins._version import __version__
from sdpo_plugins.cli.data import data_app
from sdpo_plugins.cli.estimate import estimate_command
from sdpo_plugins.errors import SDPOError

__all__ = ["app", "main"]

USAGE_ERROR = 2


class _Group(TyperGroup):
    """Turns the package's own errors into a message and exit code 2; any other exception is a bug and shows itself."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except SDPOError as error:
            if ctx.params.get("debug"):
                raise
            console = Console(stderr=True, soft_wrap=True, highlight=False)
            console.print("[bold red]error:[/]", end=" ")
            console.print(str(error), markup=False)
            raise typer.Exit(USAGE_ERROR) from error


app = typer.Typer(
    name="sdpo",
    cls=_Group,
    help="Self-Distilled Policy Optimization for the frameworks that train language models.",
    epilog="Start with `sdpo doctor`, then `sdpo demo`. Tab completion: `sdpo --install-completion`.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_Json = Annotated[bool, typer.Option("--json", help="Print JSON for other programs.")]


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"sdpo-plugins {__version__}")
        raise typer.Exit


def _complete_task(incomplete: str) -> list[str]:
    from sdpo_plugins.embedded import task_names

    return [name for name in task_names(family=None) if name.startswith(incomplete)]


@app.callback()
def _global_options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", envvar="SDPO_DEBUG", help="Show the stack trace of an error, too.")
    ] = False,
) -> None:
    pass


@app.command("list", epilog="Example: `sdpo list --json | jq '.strategies.divergences[].name'`")
def list_command(json: _Json = False) -> None:
    """Show plug-ins, strategies of each kind, and hosts."""
    from sdpo_plugins.cli.listing import show_listing

    show_listing(as_json=json)


@app.command("doctor", epilog="Example: `sdpo doctor`. The exit code is 1 if the installation is broken.")
def doctor_command(json: _Json = False) -> None:
    """Say what is installed, what is supported, what is missing and how to get it."""
    from sdpo_plugins.cli.doctor import show_diagnosis

    if not show_diagnosis(as_json=json):
        raise typer.Exit(1)


@app.command(
    "train",
    epilog="Examples: `sdpo train recipes/trl/arithmetic.yaml` · "
    "`sdpo train recipes/trl/arithmetic.yaml seed=1 alpha=1.0`",
)
def train_command(
    config: Annotated[
        Path, typer.Argument(exists=True, dir_okay=False, readable=True, help="A recipe: a YAML file with `host: …`.")
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Entries of the recipe to change for this run.")
    ] = None,
) -> None:
    """Train as a recipe says, on the host that it names."""
    from sdpo_plugins.cli.run import train

    train(config, overrides or [])


@app.command(
    "demo", epilog="Examples: `sdpo demo` · `sdpo demo --seeds 3` · `sdpo demo --task facts --output runs/facts`"
)
def demo_command(
    seeds: Annotated[int, typer.Option(min=1, help="Seeds of each method; 3 or more give means and spread.")] = 1,
    task: Annotated[
        list[str] | None,
        typer.Option(help="Only this task; may be given several times.", autocompletion=_complete_task),
    ] = None,
    output: Annotated[
        Path, typer.Option(file_okay=False, help="Folder for results.json and the learning curves.")
    ] = Path("runs/demo"),
) -> None:
    """Train the embedded model by GRPO and by SDPO and compare them."""
    from sdpo_plugins.cli.run import demo

    demo(seeds, task or [], output)


app.command(
    "estimate",
    epilog="Examples: `sdpo estimate --model Qwen/Qwen2.5-0.5B` · "
    "`sdpo estimate --model Qwen/Qwen2.5-7B --teacher lora_ema --lora-rank 16 --load-in-4bit` · "
    "`sdpo estimate --model Qwen/Qwen3-8B --host verl --ranks 4 --compare`",
)(estimate_command)


app.add_typer(
    data_app, name="data", epilog="Examples: `sdpo data gsm8k` · `sdpo data sciknoweval --host verl --domain Physics`"
)


def main() -> None:
    """Entry point of the console script `sdpo`."""
    app()
