"""The embedded tasks as verl's parquet: `python -m verl_cpu.data sums runs/data`."""

from __future__ import annotations

import argparse
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from sdpo_plugins.embedded import Task, load_task, task_names

__all__ = ["data_source", "write_parquet"]

_SOURCE = "sdpo_"


def data_source(task: str) -> str:
    """The task's name in verl's column `data_source` and in the names of validation metrics."""
    return _SOURCE + task


def write_parquet(task: Task, folder: Path) -> tuple[Path, Path]:
    """Write a task's questions as verl reads them.

    Args:
        task: The task.
        folder: Where to; made if need be.

    Returns:
        The files to train and to validate on, with columns `prompt`, `data_source`, `ability`, `reward_model` and
        `extra_info`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for split in ("train", "evaluation"):
        rows = [
            {
                "data_source": data_source(task.name),
                "prompt": row["prompt"],
                "ability": task.name,
                "reward_model": {"style": "rule", "ground_truth": row["truth"]},
                "extra_info": {
                    "index": index,
                    "split": split,
                    "task": task.name,
                    "question": row["prompt"][-1]["content"],
                    "subject": row["subject"],
                },
            }
            for index, row in enumerate(task.rows("train" if split == "train" else "evaluation"))
        ]
        paths.append(folder / f"{task.name}_{split}.parquet")
        pq.write_table(pa.Table.from_pylist(rows), paths[-1])
    return paths[0], paths[1]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m verl_cpu.data", description="Write an embedded task as parquet.")
    parser.add_argument("task", choices=task_names())
    parser.add_argument("folder", type=Path)
    given = parser.parse_args()
    write_parquet(load_task(given.task), given.folder)
