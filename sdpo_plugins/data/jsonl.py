"""A user's own questions: a JSON-lines, JSON or Parquet file, whose columns are named by options."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdpo_plugins._options import option
from sdpo_plugins.data.loading import KINDS, data_files, require
from sdpo_plugins.data.sources import TEST, TRAIN, Example, Facts, Source, Split, message
from sdpo_plugins.errors import ConfigError, DataError, nearest

if TYPE_CHECKING:
    from sdpo_plugins.data.loading import Loader

__all__ = ["SOURCE", "JSONLOptions", "chat_of", "read_records"]

# What the hosts' rows call their own fields, and names that trainers give to reward functions themselves.
_TAKEN = ("prompt", "ground_truth", "data_source", "index", "split", "completions", "completion_ids", "trainer_state")
_DEFAULT_SHARE = 0.1
_NAME_THEM = "Name the columns of question and truth with `--prompt-column` and `--truth-column`."


@dataclass(frozen=True)
class JSONLOptions:
    """Options of `jsonl`."""

    prompt_column: str = option("prompt", "Column of the question: a text, or chat messages.")
    truth_column: str = option("ground_truth", "Column of what the scorer compares with.")
    system: str | None = option(None, "System message to put before each question.")
    scorer: str | None = option(None, "Scorer that fits, to be named in rows and card.")
    plugin: tuple[str, ...] = option((), "Plug-in that brings the scorer; may be given several times.")
    name: str | None = option(None, "What rows and folder are called; by default the file's name.")
    drop: tuple[str, ...] = option((), "Column to leave out; may be given several times. All others are kept.")
    test_share: float | None = option(
        None, "Share that is held out of a single file; by default 0.1.", low=0.0, high=1.0
    )
    seed: int = option(42, "Of the split.", low=0)


def facts(options: JSONLOptions, place: Path | None) -> Facts:
    """Describe the data.

    Raises:
        ConfigError: There is no such scorer, or the name is none.
    """
    if options.scorer is not None:
        _check_scorer(options.scorer, options.plugin)
    elif options.plugin:
        raise ConfigError("`--plugin` names a plug-in that brings the scorer; name the scorer too, with `--scorer`.")
    if options.name is not None and Path(options.name).name != options.name:
        raise ConfigError(f"`--name` is the name of a folder, no path; got {options.name!r}.")
    name = options.name or (place.stem if place is not None else "jsonl")
    system = "the given system message, then " if options.system is not None else ""
    share = _DEFAULT_SHARE if options.test_share is None else options.test_share
    return Facts(
        task=name,
        data_source=name,
        scorer=options.scorer or "",
        origin="a file of one's own",
        link="",
        license="",
        prompt=f"{system}column {options.prompt_column!r}; the truth is column {options.truth_column!r}",
        split=f"the files train and test of a folder; a single file is divided at random, a share of {share:g} to test "
        f"(train_test_split of the datasets library, seed {options.seed})",
    )


def read(options: JSONLOptions, loader: Loader) -> dict[str, Split]:
    """Read a file, or a folder's files `train` and `test`."""
    place = loader.place
    assert place is not None  # `Source.home` is False
    if place.is_file():
        numbered = list(enumerate(read_records(place)))
        parts = _divided(numbered, options, place)
    else:
        files = {split: data_files(place, split) for split in (TRAIN, TEST)}
        if not files[TRAIN]:
            raise DataError(f"{place} has no file train.jsonl, train.json or train.parquet.")
        if options.test_share is not None:
            raise ConfigError("`--test-share` divides a single file; a folder's file `test` is what is held out.")
        parts = {split: list(enumerate(read_records(found[0]))) for split, found in files.items() if found}
    _check_dropped(options.drop, {name for rows in parts.values() for _, row in rows for name in row}, place)
    splits = {}
    for split, rows in parts.items():
        examples = list(_examples(rows, options, f"{place} ({split})"))
        splits[split] = Split(len(examples), examples, [each.extra for each in examples])
    return splits


def read_records(file: Path) -> list[dict[str, Any]]:
    """Read a file's rows as they are: JSON is not made into a table, which would give all rows the same keys.

    Raises:
        DataError: It cannot be read.
    """
    if file.suffix not in KINDS:
        raise DataError(f"{file} must be one of {', '.join(KINDS)}, by its name.")
    if file.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            rows: list[dict[str, Any]] = pq.read_table(file).to_pylist()
        except (OSError, pa.ArrowInvalid) as error:
            raise DataError(f"{file} cannot be read as Parquet: {error}") from error
        return rows
    try:
        text = file.read_text(encoding="utf-8-sig")
        if file.suffix == ".json" and text.lstrip().startswith("["):
            records = json.loads(text)
        else:
            records = [_line(line, number, file) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"{file} cannot be read as JSON: {error}") from error
    if any(not isinstance(record, dict) for record in records):
        raise DataError(f"{file} must hold one JSON object for each question.")
    return list(records)


def chat_of(value: Any, system: str | None) -> list[dict[str, str]]:
    """Return a question as chat messages.

    Args:
        value: A text, or messages with `role` and `content`.
        system: A system message to put before it, or None.

    Raises:
        DataError: It is neither, or brings a system message of its own beside the given one.

    Example:
        >>> chat_of("1 + 1?", "Be brief.")
        [{'role': 'system', 'content': 'Be brief.'}, {'role': 'user', 'content': '1 + 1?'}]
    """
    if isinstance(value, str):
        messages = [message("user", value)]
    elif isinstance(value, list) and value and all(_is_message(each) for each in value):
        messages = [message(each["role"], each["content"]) for each in value]
    else:
        raise DataError(
            f"the question must be a text or a list of messages with texts `role` and `content`, got {value!r:.200}."
        )
    if not any(each["content"].strip() for each in messages):
        raise DataError("the question is empty.")
    if system is None:
        return messages
    if messages[0]["role"] == "system":
        raise DataError("the question has a system message of its own; leave out `--system`.")
    return [message("system", system), *messages]


def _is_message(value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(value.get(name), str) for name in ("role", "content"))


def _line(line: str, number: int, file: Path) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{file}, line {number} is no JSON: {error}") from error


def _divided(rows: list[Any], options: JSONLOptions, place: Path) -> dict[str, list[Any]]:
    share = _DEFAULT_SHARE if options.test_share is None else options.test_share
    if share == 0.0:
        return {TRAIN: rows}
    from datasets import Dataset

    places = Dataset.from_dict({"place": list(range(len(rows)))})
    try:
        parts = places.train_test_split(test_size=share, seed=options.seed)
    except ValueError as error:
        raise DataError(
            f"the {len(rows)} questions of {place} cannot be divided with `--test-share {share:g}`: {error} "
            "With `--test-share 0` all are to train on."
        ) from error
    return {split: [rows[at] for at in parts[split]["place"]] for split in (TRAIN, TEST)}


def _examples(rows: list[Any], options: JSONLOptions, place: str) -> Iterator[Example]:
    for number, row in rows:
        where = f"question {number} of {place}"
        require((options.prompt_column, options.truth_column), row, where, _NAME_THEM)
        # A conversation under the name "prompt" is no further column, whatever the truth is called.
        extra = {
            name: value
            for name, value in row.items()
            if name not in (options.prompt_column, options.truth_column, *options.drop)
        }
        taken = [name for name in extra if name in _TAKEN]
        if taken:
            raise DataError(
                f"{where}: the name of the column {taken[0]!r} is used by the rows themselves. Rename it, or leave it "
                f"out with `--drop {taken[0]}`."
            )
        try:
            prompt = chat_of(row[options.prompt_column], options.system)
            truth = _truth(row[options.truth_column])
        except DataError as error:
            raise DataError(f"{where}: {error}") from error
        yield Example(prompt, truth, number, extra)


def _check_dropped(names: Sequence[str], columns: set[str], place: Path) -> None:
    for name in names:
        if name not in columns:
            raise ConfigError(f"`--drop {name}`: {place} has no such column.{nearest(name, columns)}")


def _truth(value: Any) -> Any:
    if isinstance(value, (str, Mapping, list)):
        return value
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    raise DataError(f"the truth must be a text, a number, a list or a mapping, got {value!r}.")


def _check_scorer(name: str, plugins: Sequence[str]) -> None:
    from sdpo_plugins._catalogues import SCORERS, find
    from sdpo_plugins.plugins import catalogue

    find(catalogue("scorer", plugins), SCORERS, name)


SOURCE = Source("jsonl", "Your own questions: a .jsonl, .json or .parquet file.", JSONLOptions, facts, read, home=False)
