"""The embedded tasks as OpenRLHF's data files: `python -m openrlhf_cpu.data sums runs/data`."""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sdpo_plugins.embedded import Task, load_task, task_names

__all__ = ["data_source", "row_of", "write_jsonl"]

_SOURCE = "sdpo_"


def data_source(task: str) -> str:
    """The task's name in the column `datasource` and in the names of evaluation metrics."""
    return _SOURCE + task


def write_jsonl(task: Task, folder: Path, *, rows: int | None = None, seed: int = 0) -> tuple[Path, Path]:
    """Write a task's questions as OpenRLHF reads them.

    Args:
        task: The task.
        folder: Where to; made if need be.
        rows: How many to train on: the questions in a random order, again and again. None: each once.
        seed: Of that order.

    Returns:
        The files to train and to evaluate on, with columns `input` (chat messages), `label` (JSON: task, question,
        truth and subject) and `datasource`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    train = task.rows("train")
    if rows is not None:
        order = random.Random(seed)
        shuffled: list[dict[str, Any]] = []
        while len(shuffled) < rows:
            shuffled += order.sample(train, len(train))
        train = shuffled[:rows]
    paths = folder / f"{task.name}_train.jsonl", folder / f"{task.name}_evaluation.jsonl"
    _write(paths[0], (row_of(task.name, row) for row in train))
    _write(paths[1], (row_of(task.name, row) for row in task.rows("evaluation")))
    return paths


def row_of(task: str, row: Mapping[str, Any]) -> dict[str, Any]:
    """Turn a row of `Task.rows` into one of the file."""
    label = {"task": task, "question": row["prompt"][-1]["content"], "truth": row["truth"], "subject": row["subject"]}
    return {"input": row["prompt"], "label": json.dumps(label), "datasource": data_source(task)}


def _write(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        prog="python -m openrlhf_cpu.data", description="Write an embedded task as JSON lines."
    )
    parser.add_argument("task", choices=task_names())
    parser.add_argument("folder", type=Path)
    given = parser.parse_args()
    write_jsonl(load_task(given.task), given.folder)
