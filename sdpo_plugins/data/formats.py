"""Each host's rows and files: TRL and verl read Parquet, OpenRLHF reads JSON lines."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdpo_plugins.data.sources import Example, Facts
from sdpo_plugins.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["FORMATS", "Format", "extra_types", "openrlhf_row", "trl_row", "truth_text", "verl_row"]

# Rows are written in groups of so many, or of so many characters: a question's tests may be megabytes.
_GROUP_ROWS = 1000
_GROUP_CHARACTERS = 16 << 20


def truth_text(truth: Any) -> str:
    """Return a truth as a table's column holds it: a text, which is JSON where the truth is none.

    Example:
        >>> truth_text("42"), truth_text({"fn_name": "f"})
        ('42', '{"fn_name": "f"}')
    """
    return truth if isinstance(truth, str) else json.dumps(truth, ensure_ascii=False)


def trl_row(example: Example, facts: Facts, split: str) -> dict[str, Any]:
    """Return TRL's row: whatever stands beside the prompt reaches reward functions by its name."""
    return {
        "prompt": example.prompt,
        "ground_truth": truth_text(example.truth),
        "data_source": facts.data_source,
        "index": example.index,
        "split": split,
        **_plain(example.extra),
    }


def verl_row(example: Example, facts: Facts, split: str) -> dict[str, Any]:
    """Return verl's row, as its `RLHFDataset` and its reward functions take it."""
    return {
        "data_source": facts.data_source,
        "prompt": example.prompt,
        "ability": facts.scorer,
        "reward_model": {"style": "rule", "ground_truth": truth_text(example.truth)},
        "extra_info": {"split": split, "index": example.index, **_plain(example.extra)},
    }


def openrlhf_row(example: Example, facts: Facts, split: str) -> dict[str, Any]:
    """Return OpenRLHF's row. It passes on one text beside the prompt, so `label` is JSON of all that a scorer reads."""
    label = {"ground_truth": example.truth, "index": example.index, "split": split, **example.extra}
    return {
        "input": example.prompt,
        "label": json.dumps(label, ensure_ascii=False),
        "datasource": facts.data_source,
    }


@dataclass(frozen=True)
class Format:
    """How a host's files are written.

    Args:
        host: The host's name.
        suffix: Of its files.
        row: row(example, facts, split) → a row.
        columns: columns(facts, extra) → the table's types, where `extra` are those of further fields; None for lines of
            JSON.
        use: How a run is told of the files; `{folder}` stands for theirs, `{scorer}` for the scorer.
    """

    host: str
    suffix: str
    row: Callable[[Example, Facts, str], dict[str, Any]]
    columns: Callable[[Facts, Mapping[str, Any]], dict[str, Any]] | None
    use: str

    def write(self, examples: Iterable[Example], facts: Facts, split: str, extra: Mapping[str, Any], path: Path) -> int:
        """Write a file and return its number of rows.

        Args:
            examples: The questions.
            facts: What is said of them.
            split: Which ones they are.
            extra: Types of their further fields, from `extra_types`.
            path: Where to.

        Raises:
            DataError: A value cannot be written.
        """
        rows = (self.row(example, facts, split) for example in examples)
        try:
            if self.columns is None:
                return _write_lines(path, rows)
            return _write_table(path, rows, self.columns(facts, extra))
        except (TypeError, UnicodeEncodeError, OverflowError) as error:
            raise DataError(f"a value of the questions ({split}) cannot be written for {self.host}: {error}") from error


def _plain(extra: Mapping[str, Any]) -> dict[str, Any]:
    """Keep what a column can hold; rows of a table cannot have mappings with keys of their own."""
    return {name: json.dumps(value, ensure_ascii=False) if _nested(value) else value for name, value in extra.items()}


def _nested(value: Any) -> bool:
    return isinstance(value, Mapping) or (isinstance(value, list) and any(_nested(each) for each in value))


def _text(facts: Facts) -> pa.DataType:
    import pyarrow as pa

    return pa.large_string() if facts.large else pa.string()


def _messages(facts: Facts) -> pa.DataType:
    import pyarrow as pa

    return pa.list_(pa.struct({"role": pa.string(), "content": _text(facts)}))


def _trl_columns(facts: Facts, extra: Mapping[str, Any]) -> dict[str, Any]:
    import pyarrow as pa

    own = {"data_source": pa.string(), "index": pa.int64(), "split": pa.string()}
    return {"prompt": _messages(facts), "ground_truth": _text(facts), **own, **extra}


def _verl_columns(facts: Facts, extra: Mapping[str, Any]) -> dict[str, Any]:
    import pyarrow as pa

    return {
        "data_source": pa.string(),
        "prompt": _messages(facts),
        "ability": pa.string(),
        "reward_model": pa.struct({"style": pa.string(), "ground_truth": _text(facts)}),
        "extra_info": pa.struct({"split": pa.string(), "index": pa.int64(), **extra}),
    }


def extra_types(extras: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the Arrow types of the questions' further fields.

    Args:
        extras: The fields, of all questions or of one that stands for all.

    Raises:
        DataError: A field holds values of several kinds, which no column can.

    Example:
        >>> {name: str(kind) for name, kind in extra_types([{"level": 1}, {"topic": "sums"}]).items()}
        {'level': 'int64', 'topic': 'string'}
    """
    import pyarrow as pa

    values: dict[str, list[Any]] = {}
    for extra in extras:
        for name, value in _plain(extra).items():
            values.setdefault(name, []).append(value)
    types = {}
    for name, found in values.items():
        try:
            kind = pa.array(found).type
        except (pa.ArrowInvalid, pa.ArrowTypeError, UnicodeEncodeError, OverflowError) as error:
            raise DataError(
                f"the column {name!r} holds values of several kinds, or such as no column can hold: {error}. Correct "
                f"it, or leave it out with `--drop {name}`."
            ) from error
        types[name] = pa.string() if pa.types.is_null(kind) else kind
    return types


def _write_table(path: Path, rows: Iterator[dict[str, Any]], columns: Mapping[str, Any]) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema, count = pa.schema(columns), 0
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for group in _groups(rows):
            writer.write_table(pa.Table.from_pylist(group, schema=schema))
            count += len(group)
    return count


def _write_lines(path: Path, rows: Iterator[dict[str, Any]]) -> int:
    count = 0
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row) + "\n")
            count += 1
    return count


def _groups(rows: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    group: list[dict[str, Any]] = []
    characters = 0
    for row in rows:
        group.append(row)
        characters += len(row.get("ground_truth") or row["reward_model"]["ground_truth"])
        if len(group) >= _GROUP_ROWS or characters >= _GROUP_CHARACTERS:
            yield group
            group, characters = [], 0
    if group:
        yield group


_TRL_USE = """In a recipe of `sdpo train`:

```yaml
dataset_name: {folder}
dataset_split: train
scorer: {scorer}
```"""
_VERL_USE = """Options of verl, the last two for the scorer:

```
data.train_files={folder}/train.parquet
data.val_files={folder}/test.parquet
reward.custom_reward_function.path=pkg://sdpo_plugins.feedback.verl
reward.custom_reward_function.name={scorer}
```"""
_OPENRLHF_USE = """Flags of OpenRLHF:

```
--data.prompt_dataset {folder}/train.jsonl --eval.dataset {folder}/test.jsonl
--data.input_key input --data.label_key label --data.apply_chat_template
--sdpo.scorer {scorer}
```"""

FORMATS = {
    each.host: each
    for each in (
        Format("trl", ".parquet", trl_row, _trl_columns, _TRL_USE),
        Format("verl", ".parquet", verl_row, _verl_columns, _VERL_USE),
        Format("openrlhf", ".jsonl", openrlhf_row, None, _OPENRLHF_USE),
    )
}
