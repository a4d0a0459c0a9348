"""`sdpo data SOURCE`: real data sets in each host's format. Its options are those of `sdpo_plugins.data`."""

from __future__ import annotations

import dataclasses
import inspect
import json
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from enum import Enum
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from sdpo_plugins.data import SOURCES, CommonOptions, Prepared, Source, prepare_source
from sdpo_plugins.data.card import flag_of

__all__ = ["data_app", "show_prepared"]

data_app = typer.Typer(
    help="Write a data set in a host's format, with the authors' splits and prompts.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)

_EXAMPLES = {
    "sciknoweval": "`sdpo data sciknoweval --host verl --domain Physics`",
    "livecodebench": "`sdpo data livecodebench --host verl` · `sdpo data livecodebench --from copy/of/the/repository`",
    "tooluse": "`sdpo data tooluse --host openrlhf --seed 1`",
    "gsm8k": "`sdpo data gsm8k --limit 100` · `sdpo data gsm8k --host openrlhf --calculator --no-think`",
    "mbpp": "`sdpo data mbpp --subset full --shown 2`",
    "jsonl": "`sdpo data jsonl --from questions.jsonl --prompt-column question --truth-column answer --scorer math`",
}


def show_prepared(source: Source, given: Mapping[str, Any], as_json: bool) -> None:
    """Prepare a source's data and print what was made.

    Args:
        source: Which.
        given: Its options.
        as_json: JSON instead of sentences.
    """
    errors = Console(stderr=True, soft_wrap=True, highlight=False)
    with _host_bars(errors.is_terminal), _bar(errors) as progress:
        prepared = prepare_source(
            source, given, note=lambda text: errors.print(f"[yellow]note:[/] {escape(text)}"), progress=progress
        )
    if as_json:
        status = "written" if prepared.written else "unchanged"
        print(json.dumps({"folder": str(prepared.folder), "status": status, **prepared.card}, ensure_ascii=False))
        return
    _say(Console(soft_wrap=True, highlight=False), prepared)


def _say(console: Console, prepared: Prepared) -> None:
    card, folder = prepared.card, escape(str(prepared.folder))
    counts = " and ".join(f"{told['rows']} in {told['file']}" for told in card["splits"].values())
    if prepared.written:
        console.print(f"Questions: {counts}, in {folder}")
    else:
        console.print(f"Nothing to do: {folder} holds just this ({counts}). --overwrite makes it anew.")
    console.print(f"Scorer: {card['scorer'] or 'none named'}. What was made, and how to use it: {folder}/README.md")


@contextmanager
def _bar(console: Console) -> Iterator[Callable[[str, int, int], None] | None]:
    """Give a function that shows how far the writing is; None where nobody looks."""
    if not console.is_terminal:
        yield None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        tasks: dict[str, Any] = {}

        def show(split: str, done: int, total: int) -> None:
            if split not in tasks:
                tasks[split] = bar.add_task(f"Writing {split}", total=total)
            bar.update(tasks[split], completed=done)

        yield show


@contextmanager
def _host_bars(shown: bool) -> Iterator[None]:
    """Let the libraries show their own bars of downloads on a terminal only."""
    from sdpo_plugins.data.loading import need_datasets

    need_datasets()
    import datasets
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    before = datasets.are_progress_bars_disabled(), are_progress_bars_disabled()
    if not shown:
        datasets.disable_progress_bars()
        disable_progress_bars()
    try:
        yield
    finally:
        if not shown and not before[0]:
            datasets.enable_progress_bars()
        if not shown and not before[1]:
            enable_progress_bars()


def _command(source: Source) -> Callable[..., None]:
    """Return a function with a parameter for each option of a source, from which typer makes a command."""

    def run(json: bool, **given: Any) -> None:
        values = {name: value.value if isinstance(value, Enum) else value for name, value in given.items()}
        show_prepared(source, {name: value for name, value in values.items() if value is not None}, json)

    parameters = [
        _parameter(source, kind, item)
        for kind in (CommonOptions, source.options)
        for item in dataclasses.fields(kind)
        if source.home or item.name != "revision"
    ]
    printed = Annotated[bool, typer.Option("--json", help="Print the card as JSON for other programs.")]
    parameters.append(inspect.Parameter("json", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=printed))
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {each.name: each.annotation for each in parameters}
    run.__doc__ = source.summary
    return run


def _parameter(source: Source, kind: type, item: dataclasses.Field[Any]) -> inspect.Parameter:
    expected: Any = typing.get_type_hints(kind)[item.name]
    default = item.default
    choices = item.metadata["choices"]
    if choices:
        # typer completes and checks the values of an enumeration.
        make: Any = Enum
        expected = make(item.name, {name: name for name in choices}, type=str)
        default = expected(default)
    elif typing.get_origin(expected) is tuple:
        expected, default = list[str] | None, None
    if isinstance(default, type(dataclasses.MISSING)):
        raise TypeError(f"the option {item.name!r} needs a default")
    settings: dict[str, Any] = {"help": item.metadata["help"]}
    if item.name == "place" and not source.home:
        settings["help"] = "Your .jsonl, .json or .parquet file, or a folder with files train and test. Required."
    if item.name == "scorer":
        settings["autocompletion"] = _scorers
    if _plain(expected) in (int, float):
        settings |= {"min": item.metadata["low"], "max": item.metadata["high"]}
    annotation = Annotated[expected, typer.Option(flag_of(item.name), **settings)]
    return inspect.Parameter(item.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _plain(expected: Any) -> Any:
    if isinstance(expected, types.UnionType):
        return next(part for part in typing.get_args(expected) if part is not type(None))
    return expected


def _scorers(incomplete: str) -> list[str]:
    from sdpo_plugins.plugins import catalogue

    return [name for name in catalogue("scorer") if name.startswith(incomplete)]


for _source in SOURCES.values():
    data_app.command(_source.name, epilog=f"Example: {_EXAMPLES[_source.name]}")(_command(_source))
