"""The command line `sdpo`: its commands, with what each of them takes. What they do stands in modules of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sdpo_plugins._version import __version__
from sdpo_plugins.cli import completion
from sdpo_plugins.cli.data import data_app
from sdpo_plugins.cli.estimate import estimate_command
from sdpo_plugins.cli.group import SDPOGroup
from sdpo_plugins.cli.plot import plot_command
from sdpo_plugins.cli.report import report_command
from sdpo_plugins.cli.solve import solve_command

__all__ = ["app", "main"]

app = typer.Typer(
    name="sdpo",
    cls=SDPOGroup,
    help="Self-Distilled Policy Optimization for the frameworks that train language models.",
    epilog="Start with `sdpo doctor`, then `sdpo demo`. Tab completion: `sdpo --install-completion`.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_JsonAtEnd = Annotated[
    bool, typer.Option("--json", help="Print what came of it as JSON; all else goes to the standard error.")
]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON for other programs.")]


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"sdpo-plugins {__version__}")
        raise typer.Exit


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
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE",
            help="Entries of the recipe to change for this run.",
            autocompletion=completion.option_words,
        ),
    ] = None,
    json: _JsonAtEnd = False,
) -> None:
    """Train as a recipe says, on the host that it names."""
    from sdpo_plugins.cli.run import train

    train(config, overrides or [], json)


@app.command(
    "demo", epilog="Examples: `sdpo demo` · `sdpo demo --seeds 3` · `sdpo demo --task facts --output runs/facts`"
)
def demo_command(
    seeds: Annotated[int, typer.Option(min=1, help="Seeds of each method; 3 or more give means and spread.")] = 1,
    task: Annotated[
        list[str] | None,
        typer.Option(
            help="Only this task: sums, facts or programs; may be given several times.", autocompletion=completion.tasks
        ),
    ] = None,
    output: Annotated[
        Path, typer.Option(file_okay=False, help="Folder for results.json and the learning curves.")
    ] = Path("runs/demo"),
    json: _JsonAtEnd = False,
) -> None:
    """Train the embedded model by GRPO and by SDPO and compare them."""
    from sdpo_plugins.cli.run import demo

    demo(seeds, task or [], output, json)


@app.command(
    "config",
    epilog="Examples: `sdpo config recipes/trl/arithmetic.yaml alpha=1.0` · `sdpo config --preset paper --all` · "
    "`sdpo config --from trl grpo.yaml --to verl --output run.yaml` · "
    "`sdpo config --preset paper --to openrlhf model=Qwen/Qwen3-8B > run.sh`",
)
def config_command(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="FILE|KEY=VALUE",
            help="A recipe, a configuration of verl, a YAML or JSON file of SDPO's options, or a script that makes "
            "them; then entries to change. Behind `--to`, settings of the host count too: `learning_rate=1e-6`.",
            autocompletion=completion.option_words,
        ),
    ] = None,
    preset: Annotated[
        str | None, typer.Option(help="Start from these named settings.", autocompletion=completion.presets)
    ] = None,
    dialect: Annotated[
        str | None,
        typer.Option(
            "--from",
            help="FILE is another project's, with its names and defaults: trl, lasgroup, sdpo-rl or sdpo-trainer.",
            autocompletion=completion.dialects,
        ),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            "--to",
            help="Write what this host reads: trl (a recipe), verl (a command, or a file), openrlhf (a launch script).",
            autocompletion=completion.targets,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", dir_okay=False, help="File to write; for verl, .sh is a command, .yaml a file."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file if it is there.")] = False,
    gpus: Annotated[
        int | None, typer.Option(min=1, help="GPUs that the run trains on; what the file says, else 1.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Show options that have their default, too.")] = False,
    json: _Json = False,
    yaml: Annotated[
        bool, typer.Option("--yaml", help="Print all options as a flat file, which reads back as the same.")
    ] = False,
) -> None:
    """Show the options that hold and where each comes from; convert files of other projects and hosts."""
    from sdpo_plugins.cli.config import Request, show_config

    show_config(
        Request(words or (), preset, dialect, target, output, overwrite, gpus, everything, as_json=json, as_yaml=yaml)
    )


app.command(
    "estimate",
    epilog="Examples: `sdpo estimate --model Qwen/Qwen2.5-0.5B` · "
    "`sdpo estimate --model Qwen/Qwen2.5-7B --teacher lora_ema --lora-rank 16 --load-in-4bit` · "
    "`sdpo estimate --model Qwen/Qwen3-8B --host verl --ranks 4 --compare`",
)(estimate_command)


app.command(
    "solve",
    epilog="Examples: `sdpo solve --scorer math --model Qwen/Qwen3-8B --question-file question.txt --truth 42` · "
    "`sdpo solve --scorer code --question-file recipes/trl/stale_report.json --max-completion-length 24 "
    "--learning-rate 1e-3` · `sdpo solve --scorer code --model my/model --dataset train.jsonl --row 17 --budget 2752`",
)(solve_command)


app.command(
    "report",
    epilog="Examples: `sdpo report runs/x` · `sdpo report runs/x runs/y --output comparison.html --open` · "
    "`sdpo report runs/x --watch`",
)(report_command)


app.command(
    "plot",
    epilog="Examples: `sdpo plot runs/x` · `sdpo plot runs/sdpo-seed0 runs/sdpo-seed1 runs/grpo --metric accuracy "
    "--output accuracy.pdf` · `sdpo plot runs/x --rollout 3145731 --style dark`",
)(plot_command)


app.add_typer(
    data_app, name="data", epilog="Examples: `sdpo data gsm8k` · `sdpo data sciknoweval --host verl --domain Physics`"
)


def main() -> None:
    """Entry point of the console script `sdpo`."""
    app()
