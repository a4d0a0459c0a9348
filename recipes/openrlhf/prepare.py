#!/usr/bin/env python3
"""Prepare GSM8K, grade-school maths, as the JSON lines that OpenRLHF reads.

    python recipes/openrlhf/prepare.py                     # for hybrid_engine: runs/data/openrlhf_hybrid_engine
    python recipes/openrlhf/prepare.py --calculator        # for agent_async: runs/data/openrlhf_agent_async

Reads openai/gsm8k from the Hugging Face hub, or `--from-folder` with files of the same columns.
"""

from __future__ import annotations

import argparse
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, load_dataset

HUB = "openai/gsm8k"
SPLITS = ("train", "test")

EQUATIONS = (
    "Solve the problem step by step. Write every calculation as an equation in numbers, such as 12 * 7 = 84. End with "
    "the answer, a number alone, in a box: \\boxed{84}."
)
CALCULATOR = (
    "Solve the problem step by step. You have a calculator: to use it, end your message with "
    "<calculator>12 * 7</calculator>, and the result comes with the next message. Once you know the answer, write it, "
    "a number alone, in a box: \\boxed{84}."
)
# Qwen3's own switch. OpenRLHF gives chat templates no arguments, so `enable_thinking` cannot be passed.
NO_THINKING = " /no_think"


def main(arguments: Sequence[str] | None = None) -> None:
    """Write `train.jsonl` and `test.jsonl`, both or neither."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--calculator", action="store_true", help="questions for agent_async, which has a calculator")
    parser.add_argument("--output", type=Path, help="folder to write to (default runs/data/openrlhf_<recipe>)")
    parser.add_argument(
        "--from-folder", type=Path, help="train.jsonl and test.jsonl with the hub's columns, in its place"
    )
    parser.add_argument("--revision", help=f"commit or branch of {HUB}")
    parser.add_argument("--thinking", action="store_true", help="leave Qwen3's thinking on")
    parser.add_argument("--reveal", action="store_true", help="let feedback name the right answer")
    given = parser.parse_args(arguments)

    recipe = "agent_async" if given.calculator else "hybrid_engine"
    folder = given.output or Path("runs/data") / f"openrlhf_{recipe}"
    system = (CALCULATOR if given.calculator else EQUATIONS) + ("" if given.thinking else NO_THINKING)
    found = {
        split: list(rows(load(split, given.from_folder, given.revision), system, given.reveal)) for split in SPLITS
    }
    write(folder, found)
    print(f"{len(found['train'])} questions to train and {len(found['test'])} to test, in {folder}")


def load(split: str, folder: Path | None, revision: str | None) -> Dataset:
    """Return one split, from the hub or from a file."""
    if folder is None:
        return load_dataset(HUB, "main", split=split, revision=revision)
    return load_dataset("json", data_files=str(folder / f"{split}.jsonl"), split="train")


def rows(questions: Iterable[Mapping[str, Any]], system: str, reveal: bool) -> Iterator[dict[str, Any]]:
    """Give OpenRLHF's row for each question.

    Args:
        questions: With `question` and `answer`, whose last line is `#### ` and a number.
        system: The system prompt.
        reveal: Whether the reward function may name the right answer.
    """
    for row in questions:
        answer = row["answer"].rpartition("####")[2].strip().replace(",", "")
        if not re.fullmatch(r"-?\d+(\.\d+)?", answer):
            raise SystemExit(
                f"the answer of the question {row['question'][:80]!r} must end with `#### ` and a number, got "
                f"{row['answer'][-80:]!r}."
            )
        yield {
            "input": [{"role": "system", "content": system}, {"role": "user", "content": row["question"].strip()}],
            "label": json.dumps({"answer": answer, "reveal": reveal}),
            "datasource": "gsm8k",
        }


def write(folder: Path, splits: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Write one file for each split, all under other names first: what is there is whole."""
    folder.mkdir(parents=True, exist_ok=True)
    partial = {name: folder / f".{name}.{os.getpid()}.partial" for name in splits}
    try:
        for name, path in partial.items():
            path.write_text("".join(json.dumps(row) + "\n" for row in splits[name]), encoding="utf-8")
        for name, path in partial.items():
            path.replace(folder / f"{name}.jsonl")
    finally:
        for path in partial.values():
            path.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
