#!/usr/bin/env python3
"""Prepare SciKnowEval's chemistry questions as verl's parquet: the authors' subset, split and prompts.

    python recipes/verl/sciknoweval_chemistry/prepare.py --output runs/data/sciknoweval_chemistry

Reads hicai-zju/SciKnowEval from the Hugging Face hub, or `--from-file`, a file of the same columns.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, load_dataset

HUB = "hicai-zju/SciKnowEval"
LEVELS = ("L3",)
TYPES = ("mcq-4-choices", "mcq-2-choices")

# The paper's prompt (appendix E.3, listing 1), with its line breaks.
SYSTEM_PROMPT = """
Given a question and four options, please select the right answer. Respond in the following format:
<reasoning>
...
</reasoning>
<answer>
...
</answer>

For the answer, only output the letter corresponding to the correct option (A, B, C, or D), and nothing else. Do not \
restate the answer text. For example, if the answer is "A", just output:
<answer>
A
</answer>
"""

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
    parser.add_argument(
        "--output", type=Path, default=Path("runs/data/sciknoweval_chemistry"), help="folder to write to"
    )
    parser.add_argument("--from-file", type=Path, help="json, jsonl or parquet with the hub's columns, in its place")
    parser.add_argument("--revision", help=f"commit or branch of {HUB}")
    parser.add_argument("--domain", default="Chemistry", help="Biology, Chemistry, Material or Physics")
    parser.add_argument("--test-ratio", type=float, default=0.1, help="share of questions held out")
    parser.add_argument("--seed", type=int, default=42, help="of the split")
    given = parser.parse_args(arguments)

    questions = choose(load(given.from_file, given.revision), given.domain)
    parts = questions.train_test_split(test_size=given.test_ratio, seed=given.seed)
    write(given.output, {name: list(rows(part, name)) for name, part in parts.items()})
    print(f"{len(parts['train'])} questions to train and {len(parts['test'])} to test, in {given.output}")


def load(file: Path | None, revision: str | None) -> Dataset:
    """Return the whole data set, from the hub or from a file."""
    if file is None:
        return load_dataset(HUB, split="test", revision=revision)
    return load_dataset("parquet" if file.suffix == ".parquet" else "json", data_files=str(file), split="train")


def choose(questions: Dataset, domain: str) -> Dataset:
    """Keep the multiple-choice questions of the reasoning level, in their order, with their place as `index`."""
    chosen = questions.filter(
        lambda row: row["domain"] == domain and row["details"]["level"] in LEVELS and row["type"] in TYPES
    )
    if len(chosen) < 2:
        found = sorted({str(name) for name in questions["domain"]})
        raise SystemExit(
            f"{len(chosen)} of {len(questions)} rows are multiple-choice questions of level {LEVELS[0]} on {domain!r}; "
            f"two are needed. Domains in this data: {', '.join(found)}. Choose one with --domain."
        )
    return chosen.add_column("index", list(range(len(chosen))))


def rows(questions: Dataset, split: str) -> Iterator[dict[str, Any]]:
    """Give verl's row for each question."""
    for row in questions:
        choices = zip(row["choices"]["label"], row["choices"]["text"], strict=True)
        listed = "\n".join(f"{label}: {text}" for label, text in choices)
        if row["answerKey"] not in row["choices"]["label"]:
            raise SystemExit(
                f"the answer {row['answerKey']!r} of question {row['question'][:80]!r} is none of its choices."
            )
        yield {
            "data_source": "sciknoweval",
            "prompt": [
                {"role": "system", "content": SYSTEM_PROMPT},
                {"role": "user", "content": f"{row['question']}\n\n{listed}\nPlease reason step by step."},
            ],
            "ability": "mcq",
            "reward_model": {"style": "rule", "ground_truth": row["answerKey"]},
            "extra_info": {"split": split, "index": row["index"]},
        }


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
