#!/usr/bin/env python3
"""Prepare the authors' tool-use questions (from ToolAlpaca) as verl's parquet.

    python recipes/verl/tooluse/prepare.py --output runs/data/tooluse

Reads `train.json` and `test.json` from the authors' repository, or `--from-file`, a folder with two such files.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, load_dataset

SOURCE = "https://raw.githubusercontent.com/lasgroup/SDPO/{revision}/datasets/tooluse/{split}.json"

SCHEMA = pa.schema(
    {
        "data_source": pa.string(),
        "prompt": pa.list_(pa.struct({"role": pa.string(), "content": pa.string()})),
        "ability": pa.string(),
        "reward_model": pa.struct({"style": pa.string(), "ground_truth": pa.string()}),
        "extra_info": pa.struct({"split": pa.string(), "index": pa.int64()}),
    }
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Write `train.parquet` and `test.parquet`, both or neither."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("runs/data/tooluse"), help="folder to write to")
    parser.add_argument("--from-file", type=Path, help="folder with train.json and test.json, in place of the download")
    parser.add_argument("--revision", default="main", help="commit or branch of lasgroup/SDPO")
    parser.add_argument("--seed", type=int, help="shuffle the questions to train on; by default they keep their order")
    given = parser.parse_args(arguments)

    parts = {split: load(split, given.from_file, given.revision) for split in ("train", "test")}
    if given.seed is not None:
        parts["train"] = parts["train"].shuffle(seed=given.seed)
    chosen = {split: list(rows(part, split)) for split, part in parts.items()}
    if not all(chosen.values()):
        raise SystemExit("no question is left to train or to test on: is this the authors' file?")
    write(given.output, chosen)
    print(f"{len(chosen['train'])} questions to train and {len(chosen['test'])} to test, in {given.output}")


def load(split: str, folder: Path | None, revision: str) -> Dataset:
    """Return one of the authors' two files."""
    file = SOURCE.format(revision=revision, split=split) if folder is None else str(folder / f"{split}.json")
    return load_dataset("json", data_files=file, split="train")


def rows(questions: Dataset, split: str) -> Iterator[dict[str, Any]]:
    """Give verl's row for each question whose right calls can be read."""
    for row in questions:
        if not readable(row["answer"]):
            print(
                f"left out: question {row['idx']} ({split}); its right calls cannot be read: {str(row['answer'])[:99]}"
            )
            continue
        system = [{"role": "system", "content": row["system"]}] if row["system"] else []
        yield {
            "data_source": "tooluse",
            "prompt": [*system, {"role": "user", "content": row["prompt"]}],
            "ability": "tooluse",
            "reward_model": {"style": "rule", "ground_truth": row["answer"]},
            "extra_info": {"split": split, "index": row["idx"]},
        }


def readable(answer: Any) -> bool:
    """Say whether an answer is a list of calls, each with a tool and a JSON object as its input."""
    try:
        calls = [(call["Action"], call["Action_Input"]) for call in json.loads(answer)]
        inputs = [json.loads(given) if isinstance(given, str) else given for _, given in calls]
    except (ValueError, TypeError, KeyError):
        return False
    return bool(calls) and all(isinstance(given, dict) for given in inputs)


def write(folder: Path, splits: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Write one file for each split, all under other names first: what is there is whole."""
    folder.mkdir(parents=True, exist_ok=True)
    partial = {name: folder / f".{name}.{os.getpid()}.partial" for name in splits}
    try:
        for name, path in partial.items():
            pq.write_table(pa.Table.from_pylist(list(splits[name]), schema=SCHEMA), path)
        for name, path in partial.items():
            path.replace(folder / f"{name}.parquet")
    finally:
        for path in partial.values():
            path.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
