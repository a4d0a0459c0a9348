"""From a source to a folder of a host's files: what `sdpo data` does."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from sdpo_plugins._options import option, problems_of, to_plain
from sdpo_plugins.data.card import command_of, flag_of, make_card, readme_of
from sdpo_plugins.data.formats import FORMATS, extra_types
from sdpo_plugins.data.loading import Loader, need_datasets, sha256_of
from sdpo_plugins.data.sources import TEST, TRAIN, Example, Facts, Source
from sdpo_plugins.data.writing import CARD, Workplace, file_facts, read_json, unlike
from sdpo_plugins.errors import ConfigError, DataError, nearest

__all__ = ["CommonOptions", "Prepared", "checked_options", "prepare_source"]

# Rises when the same options give other files.
LAYOUT = 1
README = "README.md"
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class CommonOptions:
    """Options of every source."""

    host: str = option("trl", "Whose format to write.", choices=tuple(FORMATS))
    output: Path | None = option(None, "Folder to write to; by default runs/data/HOST/NAME.")  # noqa: RUF009
    place: Path | None = option(  # noqa: RUF009
        None, "File or folder with the original's columns, to read in place of the network."
    )
    revision: str | None = option(None, "Branch, tag or commit of the source.")
    limit: int | None = option(None, "At most so many rows a split: for a try.", low=1)
    overwrite: bool = option(False, "Replace what is there, whatever made it.")


@dataclass(frozen=True)
class Prepared:
    """A folder that is ready.

    Args:
        folder: Where it is.
        card: What `card.json` holds.
        written: False if it was there already.
    """

    folder: Path
    card: Mapping[str, Any]
    written: bool


def prepare_source(
    source: Source,
    given: Mapping[str, Any],
    *,
    note: Callable[[str], None] | None = None,
    progress: Progress | None = None,
) -> Prepared:
    """Write a source's questions in a host's format, or find that they are there.

    Args:
        source: From `SOURCES`.
        given: Options of `CommonOptions` and of the source, by name.
        note: Called with what is worth knowing on the way.
        progress: Called with a split, its rows so far, and how many are expected.

    Raises:
        ConfigError: Invalid options, or the folder holds something else.
        DataError: The source cannot be read, or holds what cannot be used.
        HostError: The library `datasets` is missing.
    """
    common, options = checked_options(source, given)
    need_datasets()
    facts = source.facts(options, common.place)
    folder = common.output or Path("runs", "data", common.host, facts.task)
    asked = _asked(source, common, options, facts)
    say = note or (lambda text: None)
    if (ready := _ready(folder, asked, common.overwrite)) is not None:
        return Prepared(folder, ready, written=False)
    with Workplace(folder, asked) as work:
        # Another run may have come to its end in between.
        if (ready := _ready(folder, asked, common.overwrite)) is not None:
            return Prepared(folder, ready, written=False)
        if work.interrupted:
            say(f"a run with other options was interrupted in {folder}: its files are dropped")
        suffix = FORMATS[common.host].suffix
        old = read_json(folder / CARD) or {}
        targets = [CARD, README, *(f"{split}{suffix}" for split in (TRAIN, TEST))]
        if not common.overwrite and (foreign := work.foreign(targets)):
            raise ConfigError(
                f"{folder} holds {', '.join(foreign)}, which `sdpo data` did not write there: choose another --output, "
                "or --overwrite."
            )
        loader = Loader(common.place, work.state.get("commit") or common.revision, say)
        _write_splits(work, source, common, options, facts, loader, progress)
        command = command_of(source.name, common, options)
        splits = work.state["splits"]
        card = make_card(asked, facts, splits, work.state["notes"], loader.commit or loader.revision, command)
        replaced = [told["file"] for told in old.get("splits", {}).values()] if "asked" in old else []
        texts = {README: readme_of(card, folder), CARD: json.dumps(card, indent=2, ensure_ascii=False) + "\n"}
        work.commit(texts, [CARD, *(name for name in dict.fromkeys([*replaced, *targets]) if name != CARD)])
    return Prepared(folder, card, written=True)


def checked_options(source: Source, given: Mapping[str, Any]) -> tuple[CommonOptions, Any]:
    """Make the objects of options.

    Raises:
        ConfigError: Lists unknown names and invalid values.
    """
    values: dict[type, dict[str, Any]] = {CommonOptions: {}, source.options: {}}
    fields = {item.name: (kind, item) for kind in values for item in dataclasses.fields(kind)}
    problems = []
    for name, value in given.items():
        if name not in fields:
            problems.append(f"`{source.name}` has no option {name!r}.{nearest(name, fields)}")
            continue
        kind, item = fields[name]
        values[kind][name], found = problems_of(item, value, kind, flag_of(name))
        problems += found
    place, revision = values[CommonOptions].get("place"), values[CommonOptions].get("revision")
    if place is not None and not Path(place).exists():
        problems.append(f"`--from` must name a file or folder, and there is none at {place}.")
    if place is not None and revision is not None:
        problems.append(
            "`--revision` is of the source's home, and `--from` reads other files in its place: give one of them."
        )
    if place is None and not source.home:
        problems.append("`--from` must name a .jsonl, .json or .parquet file, or a folder with files train and test.")
    if problems:
        raise ConfigError(problems)
    return CommonOptions(**values[CommonOptions]), source.options(**values[source.options])


def _asked(source: Source, common: CommonOptions, options: Any, facts: Facts) -> dict[str, Any]:
    asked = {
        "layout": LAYOUT,
        "source": source.name,
        "host": common.host,
        "options": to_plain(dataclasses.asdict(options)),
        "data_source": facts.data_source,
        "revision": common.revision,
        "limit": common.limit,
        # Of the content, so that a copy elsewhere is the same and a changed file is another.
        "from": None if common.place is None else {"sha256": sha256_of(common.place)},
    }
    plain: dict[str, Any] = json.loads(json.dumps(asked))
    return plain


def _ready(folder: Path, asked: Mapping[str, Any], overwrite: bool) -> dict[str, Any] | None:
    """Return the card of a finished folder, if it holds just what is asked for.

    Raises:
        ConfigError: It holds something else, or was changed.
    """
    card = read_json(folder / CARD)
    if overwrite or card is None or "asked" not in card:
        return None
    if card["asked"].get("source") != asked["source"]:
        raise ConfigError(
            f"{folder} was made of {card['asked'].get('source')!r}, not of {asked['source']!r}: choose another "
            "--output, or --overwrite."
        )
    if differences := unlike(card["asked"], asked):
        raise ConfigError(
            f"{folder} was made with other options ({'; '.join(differences)}): choose another --output, or --overwrite."
        )
    changed = [told["file"] for told in card["splits"].values() if not _intact(folder / told["file"], told)]
    if changed:
        raise ConfigError(
            f"{folder} is not as it was written: {' and '.join(changed)} is missing or changed. --overwrite makes it "
            "anew."
        )
    return card


def _intact(path: Path, told: Mapping[str, Any]) -> bool:
    return path.is_file() and file_facts(path) == {name: told[name] for name in ("bytes", "sha256")}


def _write_splits(
    work: Workplace,
    source: Source,
    common: CommonOptions,
    options: Any,
    facts: Facts,
    loader: Loader,
    progress: Progress | None,
) -> None:
    form = FORMATS[common.host]
    # A source without a home looks at its rows one by one; what a home gives has the original's form.
    place = common.place if source.home else None
    with _of_the_original_form(place):
        splits = source.read(options, loader)
    extra = extra_types(fields for split in splits.values() for fields in split.extras) if form.columns else {}
    loader.notes[:0] = work.state.get("notes", [])
    work.state.update(commit=loader.commit, notes=loader.notes)
    for name, split in splits.items():
        if work.finished(name):
            loader.say(f"{name} was written by an interrupted run and is kept")
            continue
        examples = _counted(_readable(split.examples, place), split.total, name, common.limit, progress)
        work.write(name, f"{name}{form.suffix}", partial(form.write, examples, facts, name, extra))
        if work.state["splits"][name]["rows"] == 0:
            raise DataError(f"No question is left for the split {name!r}: is this the right file?")
        work.save()


def _readable(examples: Iterable[Example], place: Path | None) -> Iterator[Example]:
    with _of_the_original_form(place):
        yield from examples


@contextmanager
def _of_the_original_form(place: Path | None) -> Iterator[None]:
    """Say of a file given by `--from` that its values are of other kinds than the original's."""
    try:
        yield
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        if place is None:
            raise
        raise DataError(
            f"{place} has the original's columns, but a row in which they hold something else ({type(error).__name__}: "
            f"{error}). Texts, lists and mappings have to be such, and none may be missing."
        ) from error


def _counted(
    examples: Iterable[Example], expected: int, name: str, limit: int | None, progress: Progress | None
) -> Iterable[Example]:
    total = expected if limit is None else min(limit, expected)
    rows: Iterator[Example] = itertools.islice(examples, limit)
    if progress is None:
        return rows

    def counting() -> Iterator[Example]:
        progress(name, 0, total)
        for count, row in enumerate(rows, 1):
            yield row
            progress(name, count, total)

    return counting()
