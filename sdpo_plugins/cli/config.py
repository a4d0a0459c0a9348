"""`sdpo config`: the options that hold and where each comes from; from another project's file, to a host's."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from sdpo_plugins.cli.config_tables import as_mapping, print_conversion, print_options
from sdpo_plugins.conversion import (
    FORMATS,
    TARGETS,
    Known,
    Resolved,
    Source,
    emit,
    known_settings,
    read_source,
    resolve,
)
from sdpo_plugins.conversion.emission import flat_yaml
from sdpo_plugins.conversion.hosts import Written
from sdpo_plugins.dialects import dialect_names
from sdpo_plugins.errors import ConfigError, nearest
from sdpo_plugins.plugins import validate

__all__ = ["Request", "show_config"]


@dataclass(frozen=True)
class Request:
    """What was asked for.

    Args:
        words: Perhaps a file, then `KEY=VALUE` words.
        preset: Named settings to start from.
        dialect: Project whose file it is.
        target: Host to write settings for.
        output: File to write them to.
        overwrite: Replace it.
        gpus: Of the run.
        everything: Show options that have their default, too.
        as_json: Print JSON.
        as_yaml: Print a flat file of options.
    """

    words: Sequence[str] = ()
    preset: str | None = None
    dialect: str | None = None
    target: str | None = None
    output: Path | None = None
    overwrite: bool = False
    gpus: int | None = None
    everything: bool = False
    as_json: bool = False
    as_yaml: bool = False


def show_config(request: Request) -> None:
    """Print, or write, what was asked for.

    Args:
        request: It.

    Raises:
        ConfigError: Lists every problem of the options, of the file, and of the request.
    """
    file, words = _file_and_words(request.words)
    _check(request, file)
    source = read_source(file, words, request.dialect)
    resolved = resolve(source, request.preset, request.dialect)
    validate(resolved.config, request.target)
    known = known_settings(source, preset=request.preset, gpus=request.gpus, target=request.target)
    text, written = "", Written()
    if request.target is not None:
        suffix = request.output.suffix.lower() if request.output is not None else FORMATS[request.target][0]
        text, written = emit(request.target, resolved, known, suffix)  # type: ignore[arg-type]
    if request.output is not None:
        _write(request.output, text, request.overwrite)
    if request.as_json:
        told = as_mapping(source, resolved, known)
        if request.target is not None:
            where = None if request.output is None else str(request.output)
            told["target"] = {"host": request.target, "file": where, "text": text, "notes": written.notes}
        # YAML knows dates, JSON does not.
        print(json.dumps(told, indent=2, ensure_ascii=False, default=str))
        return
    _print(request, source, resolved, known, text, written)


def _print(request: Request, source: Source, resolved: Resolved, known: Known, text: str, written: Written) -> None:
    printed = request.as_yaml or (request.target is not None and request.output is None)
    # What a program reads stands alone on the standard output.
    console = Console(stderr=printed, highlight=False)
    if request.dialect is not None or request.target is not None:
        print_conversion(console, source, resolved, known, request.target, written)
    if request.output is not None:
        console.print(f"Written: {request.output}", markup=False, soft_wrap=True)
    elif request.target is not None:
        sys.stdout.write(text)
    elif request.as_yaml:
        sys.stdout.write(_flat(source, resolved))
    else:
        print_options(console, source, resolved, known, request.everything)


def _flat(source: Source, resolved: Resolved) -> str:
    host = {name: one.value for name, one in source.host.items()} if source.kind == "recipe" else {}
    text = flat_yaml(host)
    return text + "\n" * bool(text) + flat_yaml(resolved.config.to_mapping())


def _file_and_words(words: Sequence[str]) -> tuple[Path | None, list[str]]:
    if words and ("=" not in words[0] or Path(words[0]).is_file()):
        return Path(words[0]), list(words[1:])
    return None, list(words)


def _check(request: Request, file: Path | None) -> None:
    problems = []
    if request.dialect is not None and request.dialect not in dialect_names():
        choices = ", ".join(dialect_names())
        hint = nearest(request.dialect, dialect_names())
        problems.append(f"`--from` must be one of {choices}, got {request.dialect!r}.{hint}")
    if request.target is not None and request.target not in TARGETS:
        hint = nearest(request.target, TARGETS)
        problems.append(f"`--to` must be one of {', '.join(TARGETS)}, got {request.target!r}.{hint}")
    if request.dialect is not None and file is None:
        problems.append(f"`--from {request.dialect}` needs the file to convert: sdpo config --from NAME FILE.")
    if request.output is not None and request.target is None:
        problems.append(f"`--output {request.output}` needs a host to write for: --to {', '.join(TARGETS)}.")
    if request.overwrite and request.output is None:
        problems.append("`--overwrite` replaces the file of `--output`, and none is given.")
    if request.as_yaml and (request.as_json or request.target is not None):
        problems.append("`--yaml` prints the options alone; give it without --json and --to.")
    if problems:
        raise ConfigError(problems)


def _write(path: Path, text: str, overwrite: bool) -> None:
    if path.exists() and not overwrite:
        raise ConfigError(f"{path} exists; give another --output, or --overwrite to replace it.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        if path.suffix.lower() == ".sh":
            path.chmod(path.stat().st_mode | 0o111)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror or error}.") from error
