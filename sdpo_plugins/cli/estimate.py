"""`sdpo estimate`: how much memory a run takes. Its options are the fields of `RunFacts` and of `SDPOConfig`."""

from __future__ import annotations

import dataclasses
import inspect
import json
import types
import typing
from collections.abc import Callable
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from sdpo_plugins._catalogues import TEACHERS, find
from sdpo_plugins.cli.completion import names_of
from sdpo_plugins.config import SDPOConfig
from sdpo_plugins.errors import ConfigError
from sdpo_plugins.estimate import (
    GIB,
    Estimate,
    ModelFacts,
    Row,
    RunFacts,
    comparison,
    estimate,
    fits,
    read_model,
)
from sdpo_plugins.plugins import catalogue

__all__ = ["estimate_command", "show_comparison", "show_estimate"]

# SDPO's options that decide about memory.
_OF_SDPO = (
    "teacher",
    "loss_path",
    "chunk_memory_mb",
    "full_logit_distillation",
    "distillation_topk",
    "distillation_add_tail",
    "topk_support",
    "share_teacher_prefix",
    "max_reprompt_len",
)
_VERDICTS = {"fits": "green", "tight": "yellow", "does not fit": "red"}


def show_estimate(found: Estimate, as_json: bool) -> None:
    """Print what each phase holds, and on which GPUs it fits.

    Args:
        found: The estimate.
        as_json: JSON instead of tables; sizes in bytes.
    """
    if as_json:
        print(json.dumps(_as_mapping(found), indent=2))
        return
    console = Console(highlight=False)
    console.print(f"[bold]{escape(_headline(found.model, found.run))}[/]")
    console.print(_parts_table(found))
    peak = found.peak
    console.print(
        f"Peak: [bold]{peak.total / GIB:.2f} GiB[/] in the phase '{peak.name}', "
        f"and {found.allowance / GIB:.2f} GiB for CUDA, libraries and the allocator."
    )
    console.print(_cards_table(found))


def show_comparison(rows: tuple[Row, ...], as_json: bool) -> None:
    """Print one line for each teacher and what is trained.

    Args:
        rows: From `comparison`; of one model and host.
        as_json: JSON instead of a table; sizes in bytes.
    """
    if as_json:
        listing = [{"teacher": row.teacher, "trained": row.trained, **_as_mapping(row.found)} for row in rows]
        print(json.dumps(listing, indent=2))
        return
    console = Console(highlight=False)
    first = rows[0].found
    console.print(f"[bold]{escape(_headline(first.model, first.run, trained=False))}[/]; GiB on each GPU")
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("teacher", "trained"):
        table.add_column(heading)
    for heading in ("weights", "optimizer", "teacher", "peak", "needs", "GPU from"):
        table.add_column(heading, justify="right")
    for row in rows:
        found = row.found
        held = found.phases[0].parts
        weights = sum(held.get(name, 0) for name in ("weights", "quantised weights", "adapters"))
        teacher = sum(held.get(name, 0) for name in ("teacher", "teacher, cast"))
        smallest = next((f"{fit.card.gb} GB" for fit in fits(found) if fit.verdict == "fits"), "more")
        sizes = (
            weights,
            held.get("optimizer states", 0),
            teacher,
            found.peak.total,
            found.peak.total + found.allowance,
        )
        table.add_row(row.teacher, row.trained, *(f"{size / GIB:.2f}" for size in sizes), smallest)
    console.print(table)


def _run(model: str, compare: bool, as_json: bool, given: dict[str, Any]) -> None:
    options = {name: given.pop(name) for name in _OF_SDPO if given.get(name) is not None}
    given = {name: value for name, value in given.items() if value is not None and name not in _OF_SDPO}
    if "lora_targets" in given:
        given["lora_targets"] = [part for text in given["lora_targets"] for part in text.split(",") if part]
    options["distillation_topk"] = _number_or_null(options.get("distillation_topk"))
    if options["distillation_topk"] == "unset":
        del options["distillation_topk"]
    if options.get("full_logit_distillation") is False:
        options["alpha"] = 1.0  # the mode has no other, and memory does not depend on it
    sdpo = SDPOConfig.from_mapping(options)
    find(catalogue("teacher"), TEACHERS, sdpo.teacher)
    run = RunFacts(sdpo=sdpo, **given)
    facts = read_model(model)
    if compare:
        show_comparison(comparison(facts, run), as_json)
    else:
        show_estimate(estimate(facts, run), as_json)


def _number_or_null(text: str | None) -> int | str | None:
    if text is None:
        return "unset"
    if text.lower() in ("null", "none"):
        return None
    if not text.isdecimal():
        raise ConfigError(
            f"`distillation_topk` must be a whole number, or null for the whole vocabulary, got {text!r}."
        )
    return int(text)


def _command() -> Callable[..., None]:
    """Make the command from the fields, so that help, choices and defaults are written once."""

    def estimate_command(**given: Any) -> None:
        model, compare, as_json = (given.pop(name) for name in ("model", "compare", "as_json"))
        _run(model, compare, as_json, given)

    parameters = [
        _parameter("model", str, "--model", ..., "Name on the hub, folder with config.json, or such a file."),
        *(_of_field(item, SDPOConfig) for item in dataclasses.fields(SDPOConfig) if item.name in _OF_SDPO),
        *(_of_field(item, RunFacts) for item in dataclasses.fields(RunFacts) if item.name != "sdpo"),
        _parameter("compare", bool, "--compare", False, "All teachers with all weights, LoRA and 4 bits in one table."),
        _parameter("as_json", bool, "--json", False, "Print JSON for other programs; sizes in bytes."),
    ]
    estimate_command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    estimate_command.__doc__ = "Say how much memory a run takes, from the model's configuration alone."
    return estimate_command


def _of_field(item: dataclasses.Field[Any], owner: type) -> inspect.Parameter:
    hint = typing.get_type_hints(owner)[item.name]
    parts = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    kind: Any = parts[0]
    choices = item.metadata["choices"]
    said = item.metadata["help"] + (f" One of {', '.join(choices)}." if choices else "")
    said += f" Default: {'the host' + chr(39) + 's' if item.default is None and choices else _shown(item.default)}."
    flag = "--" + item.name.replace("_", "-")
    if item.name == "distillation_topk":
        kind = str
    if typing.get_origin(kind) is tuple:
        kind = list[str]
    elif kind is bool:
        flag = f"{flag}/--no-{item.name.replace('_', '-')}"
    return _parameter(item.name, kind | None, flag, None, said, choices)


def _parameter(
    name: str, kind: Any, flag: str, default: Any, said: str, choices: typing.Sequence[str] = ()
) -> inspect.Parameter:
    def complete(incomplete: str) -> list[str]:
        return [choice for choice in choices if choice.startswith(incomplete)]

    offer = names_of("teacher") if name == "teacher" else complete if choices else None
    shown = typer.Option(flag, help=said, show_default=False, autocompletion=offer)
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=inspect.Parameter.empty if default is ... else default,
        annotation=Annotated[kind, shown],
    )


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "null" if value is None else ", ".join(value) if isinstance(value, tuple) else str(value)


def _count(parameters: int) -> str:
    """Say a number of parameters in a unit in which it is at least 1."""
    for size, unit in ((1e9, "billion"), (1e6, "million"), (1e3, "thousand")):
        if parameters >= size:
            return f"{parameters / size:.3g} {unit} parameters"
    return f"{parameters} parameters"


def _headline(model: ModelFacts, run: RunFacts, trained: bool = True) -> str:
    count = _count(model.parameters)
    how = "" if not trained else ", all weights trained"
    if trained and run.lora_rank is not None:
        how = f", LoRA of rank {run.lora_rank}" + (" on 4 bits" if run.load_in_4bit else "")
    where = f"{run.host}" + (f", {run.ranks} GPUs, {run.sharding}" if run.ranks > 1 else "")
    teacher = f", teacher {run.sdpo.teacher}" if trained else ""
    return f"{model.name}: {count}{how}{teacher}; {where}"


def _parts_table(found: Estimate) -> Table:
    names = list(dict.fromkeys(name for phase in found.phases for name in phase.parts))
    table = Table(box=None, pad_edge=False, header_style="bold", caption="GiB on each GPU", caption_justify="left")
    table.add_column("part", no_wrap=True)
    for phase in found.phases:
        table.add_column(phase.name, justify="right")
    for name in names:
        cells = [f"{phase.parts[name] / GIB:.2f}" if name in phase.parts else "" for phase in found.phases]
        table.add_row(name, *cells)
    totals = [f"{phase.total / GIB:.2f}" for phase in found.phases]
    table.add_row("[bold]together[/]", *(f"[bold]{total}[/]" for total in totals))
    if any(phase.share for phase in found.phases):
        table.add_row("vLLM", *(f"{phase.share:.0%} of it" if phase.share else "" for phase in found.phases))
    return table


def _cards_table(found: Estimate) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading, justify in (("GPU", "left"), ("has", "right"), ("needs", "right"), ("", "left")):
        table.add_column(heading, justify=typing.cast(Any, justify))
    for fit in fits(found):
        verdict = f"[{_VERDICTS[fit.verdict]}]{fit.verdict}[/]"
        table.add_row(f"{fit.card.gb} GB ({fit.card.name})", f"{fit.card.gib:.1f}", f"{fit.needs / GIB:.1f}", verdict)
    return table


def _as_mapping(found: Estimate) -> dict[str, Any]:
    run = {item.name: getattr(found.run, item.name) for item in dataclasses.fields(found.run) if item.name != "sdpo"}
    return {
        "model": dataclasses.asdict(found.model),
        "run": {**run, "sdpo": {name: getattr(found.run.sdpo, name) for name in _OF_SDPO}},
        "unit": "bytes on each GPU",
        "phases": [
            {"name": phase.name, "parts": dict(phase.parts), "total": phase.total, "vllm_share": phase.share}
            for phase in found.phases
        ],
        "peak": {"phase": found.peak.name, "total": found.peak.total},
        "allowance": found.allowance,
        "gpus": [
            {
                "name": fit.card.name,
                "gb": fit.card.gb,
                "bytes": int(fit.card.gib * GIB),
                "needs": fit.needs,
                "verdict": fit.verdict,
            }
            for fit in fits(found)
        ],
    }


estimate_command = _command()
