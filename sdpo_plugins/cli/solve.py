"""`sdpo solve`: one hard question at test time. Its numbers are the fields of `SolveSettings`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from sdpo_plugins.cli import completion
from sdpo_plugins.cli.group import FAILED, INTERRUPTED
from sdpo_plugins.cli.hosts import adapter_function
from sdpo_plugins.errors import ConfigError
from sdpo_plugins.solve import Outcome, SolveSettings, read_question

__all__ = ["show_outcome", "solve_command"]

_HOST = "trl"
_FIELDS = {item.name: item for item in dataclasses.fields(SolveSettings)}


def _help(name: str) -> str:
    return str(_FIELDS[name].metadata["help"])


def _default(name: str) -> Any:
    return _FIELDS[name].default


def solve_command(
    scorer: Annotated[
        str,
        typer.Option(
            help="Who judges the answers: a scorer of `sdpo list`.", autocompletion=completion.names_of("scorer")
        ),
    ],
    question: Annotated[str | None, typer.Option(help="The question.")] = None,
    question_file: Annotated[
        Path | None, typer.Option(help="A text, or a .json file with one row: `prompt` and what the scorer needs.")
    ] = None,
    dataset: Annotated[Path | None, typer.Option(help="A .json, .jsonl or .parquet file of such rows.")] = None,
    row: Annotated[int | None, typer.Option(help="Which row of --dataset, from 0.")] = None,
    truth: Annotated[str | None, typer.Option(help="The field `ground_truth`, for the scorer alone.")] = None,
    tests: Annotated[
        Path | None, typer.Option(help="A file that holds it, for example the tests of a program.")
    ] = None,
    scorer_option: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="An option of the scorer; may be repeated.")
    ] = None,
    model: Annotated[str, typer.Option(help=_help("model"))] = _default("model"),
    samples: Annotated[int, typer.Option(help=_help("samples"))] = _default("samples"),
    budget: Annotated[int, typer.Option(help=_help("budget"))] = _default("budget"),
    threshold: Annotated[
        float | None, typer.Option(help="Smallest reward that counts as solved; default: the preset's.")
    ] = None,
    baseline: Annotated[str, typer.Option(help=_help("baseline"))] = _default("baseline"),
    keep_going: Annotated[bool, typer.Option("--keep-going", help=_help("keep_going"))] = False,
    learning_rate: Annotated[float, typer.Option(help=_help("learning_rate"))] = _default("learning_rate"),
    temperature: Annotated[float, typer.Option(help=_help("temperature"))] = _default("temperature"),
    max_completion_length: Annotated[int, typer.Option(help=_help("max_completion_length"))] = _default(
        "max_completion_length"
    ),
    micro_batch: Annotated[int | None, typer.Option(help=_help("micro_batch"))] = None,
    checkpoint_every: Annotated[int, typer.Option(help=_help("checkpoint_every"))] = _default("checkpoint_every"),
    seed: Annotated[int, typer.Option(help=_help("seed"))] = _default("seed"),
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="An option of SDPO or of TRL's GRPOConfig; may be repeated."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            file_okay=False,
            show_default=False,
            help="Folder of the run; the same command goes on with it. Default: one for the question, in runs/solve.",
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Delete the run that --output holds.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print results.json for other programs.")] = False,
) -> None:
    """Solve one hard question by test-time self-distillation: sample, score, take an SDPO step, repeat.

    The exit code is 0 if the question is solved, 1 if it is not within the budget, 2 for a mistake in the options, 130
    after Ctrl+C.
    """
    options = _pairs(set_ or [], "--set")
    if threshold is not None:
        options["success_reward_threshold"] = threshold
    settings = SolveSettings(
        model=model,
        samples=samples,
        budget=budget,
        learning_rate=learning_rate,
        temperature=temperature,
        max_completion_length=max_completion_length,
        micro_batch=micro_batch,
        seed=seed,
        keep_going=keep_going,
        baseline=baseline,
        checkpoint_every=checkpoint_every,
        options=options,
    )
    asked = read_question(question, question_file, dataset, row, truth, tests)
    folder = output or Path("runs/solve") / asked.key
    solve = adapter_function(_HOST, "solve", "run")
    with _bar(Console(stderr=True, soft_wrap=True)) as progress:
        outcome = solve(
            asked, scorer, _pairs(scorer_option or [], "--scorer-option"), settings, folder, overwrite, progress
        )
    show_outcome(outcome, folder, as_json)
    if outcome.interrupted:
        raise typer.Exit(INTERRUPTED)
    if not outcome.solved:
        raise typer.Exit(FAILED)


def show_outcome(outcome: Outcome, output: Path, as_json: bool) -> None:
    """Print what came of a run.

    Args:
        outcome: The run's.
        output: Its folder.
        as_json: What `results.json` holds instead of sentences.
    """
    if as_json:
        print((output / "results.json").read_text(encoding="utf-8"), end="")
        return
    console = Console(soft_wrap=True, highlight=False)
    if outcome.sdpo.solution is not None:
        console.print(outcome.sdpo.solution, markup=False)
        console.print()
    for sentence in outcome.sentences():
        console.print(escape(sentence))
    console.print(f"Attempts and results: {escape(str(output))}; `sdpo report {escape(str(output))}` shows the tokens.")


def _pairs(texts: Sequence[str], flag: str) -> dict[str, Any]:
    from sdpo_plugins.conversion.documents import parse_word

    pairs: dict[str, Any] = {}
    problems = []
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            problems.append(f"{flag} takes key=value, got {text!r}.")
            continue
        pairs[name] = parse_word(value)
    if problems:
        raise ConfigError(problems)
    return pairs


@contextmanager
def _bar(console: Console) -> Iterator[Callable[..., None] | None]:
    """Give a function that shows how far the run is; None where nobody looks."""
    if not console.is_terminal:
        yield None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[said]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        tasks: dict[str, Any] = {}

        def show(method: str, done: int, goal: int, best: float | None, solved: bool) -> None:
            said = "" if best is None else f"best reward {best:g}" + (", solved" if solved else "")
            if method not in tasks:
                tasks[method] = bar.add_task(method, total=goal, said=said)
            bar.update(tasks[method], completed=done, total=goal, said=said)

        yield show
