#!/usr/bin/env python3
"""Prepare LiveCodeBench v6 as verl's parquet: the authors' questions, prompts, and tests to train and to validate on.

    python recipes/verl/livecodebench_v6/prepare.py --output runs/data/livecodebench_v6

Reads livecodebench/code_generation_lite from the Hugging Face hub, or `--from-file`, a file of the same columns.
Questions are the same in both files. `train.parquet` has a random half of each question's tests, `test.parquet` all.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import os
import pickle
import zlib
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, load_dataset

HUB = "livecodebench/code_generation_lite"
REVISION = "refs/pr/6"  # the data as files; its main branch is a loading script, which datasets 4 and later refuse
TIME_LIMIT = 6.0

# The authors' prompt, as the paper shows it in appendix F.2.
PROMPT = (
    "You are a coding expert. You will be given a coding problem, and you need to write a correct Python program that "
    "matches the specification and passes all tests. The time limit is 1 second. You may start by outlining your "
    "thought process. In the end, please provide the complete code in a code block enclosed with ``` ```.\n\n"
)

# Large texts: a column of tests can be longer than the 2 GiB that ordinary ones address.
SCHEMA = pa.schema(
    {
        "data_source": pa.string(),
        "prompt": pa.list_(pa.struct({"role": pa.string(), "content": pa.large_string()})),
        "ability": pa.string(),
        "reward_model": pa.struct({"style": pa.string(), "ground_truth": pa.large_string()}),
        "extra_info": pa.struct({"split": pa.string(), "index": pa.int64(), "question": pa.string()}),
    }
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Write `train.parquet` and `test.parquet`, both or neither."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("runs/data/livecodebench_v6"), help="folder to write to")
    parser.add_argument("--from-file", type=Path, help="json, jsonl or parquet with the hub's columns, in its place")
    parser.add_argument("--revision", default=REVISION, help=f"commit or branch of {HUB}")
    parser.add_argument("--since", type=datetime.fromisoformat, default=datetime(2025, 2, 1), help="first contest date")
    parser.add_argument(
        "--until", type=datetime.fromisoformat, default=datetime(2025, 5, 1), help="date behind the last"
    )
    parser.add_argument("--train-share", type=float, default=0.5, help="share of each question's tests to train on")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of tests")
    given = parser.parse_args(arguments)

    questions = load(given.from_file, given.revision)
    chosen = questions.filter(lambda row: given.since <= date_of(row["contest_date"]) < given.until)
    if len(chosen) == 0:
        raise SystemExit(
            f"none of {len(questions)} questions is of a contest from {given.since:%Y-%m-%d} to before "
            f"{given.until:%Y-%m-%d}: change --since and --until, or take a newer --revision."
        )
    write(given.output, chosen, given.train_share, given.seed)
    print(
        f"{len(chosen)} questions in {given.output}; {given.train_share:.0%} of each one's tests to train, all to test"
    )


def load(file: Path | None, revision: str) -> Dataset:
    """Return the whole data set, from the hub or from a file."""
    if file is None:
        return load_dataset(HUB, split="test", revision=revision)
    return load_dataset("parquet" if file.suffix == ".parquet" else "json", data_files=str(file), split="train")


def date_of(value: Any) -> datetime:
    """Return a contest's date, given as such or as ISO text."""
    return value if isinstance(value, datetime) else datetime.fromisoformat(str(value))


def question_of(row: Mapping[str, Any]) -> str:
    """Return the user message: the problem, which shows the public tests, and the function to write, if any."""
    problem = row["question_content"]
    if row["starter_code"].strip():
        signature = "def " + row["starter_code"].split("def ")[1].split("Input\n")[0].strip()
        problem += f"\n\nYour solution should have the following signature: ```python\n{signature}\n```"
    # A function, not a method: no `self`.
    return PROMPT + problem.replace("(self, ", "(")


def read_tests(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a question's private tests, decoded."""
    encoded = row["private_test_cases"]
    try:
        cases = json.loads(encoded)
    except ValueError:
        cases = json.loads(_Texts(io.BytesIO(zlib.decompress(base64.b64decode(encoded)))).load())
    described = json.loads(row["metadata"]) if row["metadata"].strip() else {}
    return {
        "inputs": [case["input"] for case in cases],
        "outputs": [case["output"] for case in cases],
        "testtype": cases[0]["testtype"],
        "fn_name": described.get("func_name") or "",
        "time_limit": TIME_LIMIT,
    }


class _Texts(pickle.Unpickler):
    """Reads a pickled text, and nothing that could run code."""

    def find_class(self, module: str, name: str) -> Any:
        raise SystemExit(f"the tests of a question hold {module}.{name}, not a text: this file is not to be trusted.")


def rows(questions: Dataset, split: str, share: float, seed: int) -> Iterator[dict[str, Any]]:
    """Give verl's row for each question, with a random share of its tests, at least one, in their order."""
    draw = np.random.RandomState(seed)  # the generator and order of draws of the authors' script
    for index, row in enumerate(questions):
        tests = read_tests(row)
        count = len(tests["inputs"])
        if share < 1.0:
            kept = np.sort(draw.choice(count, size=max(1, int(count * share)), replace=False))
            tests.update({name: [tests[name][place] for place in kept] for name in ("inputs", "outputs")})
        yield {
            "data_source": "livecodebench",
            "prompt": [{"role": "user", "content": question_of(row)}],
            "ability": "code",
            "reward_model": {"style": "rule", "ground_truth": json.dumps(tests, ensure_ascii=False)},
            "extra_info": {"split": split, "index": index, "question": str(row["question_id"])},
        }


def write(folder: Path, questions: Dataset, share: float, seed: int) -> None:
    """Write both files, a few rows at a time, under other names first: what is there is whole."""
    folder.mkdir(parents=True, exist_ok=True)
    partial = {name: folder / f".{name}.{os.getpid()}.partial" for name in ("train", "test")}
    try:
        for name, path in partial.items():
            with pq.ParquetWriter(path, SCHEMA, compression="zstd") as writer:
                for row in rows(questions, name, share if name == "train" else 1.0, seed):
                    writer.write_table(pa.Table.from_pylist([row], schema=SCHEMA))
        for name, path in partial.items():
            path.replace(folder / f"{name}.parquet")
    finally:
        for path in partial.values():
            path.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
