"""What a checkpoint holds beyond TRL's own: the teacher, and the rollouts of a batch that is only half used."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from sdpo_plugins.errors import ConfigError, TeacherError
from sdpo_plugins.teacher import Teacher, check_holds_teacher, load_teacher, save_teacher

__all__ = [
    "FOLDER",
    "check_same_cut",
    "load_run_state",
    "load_teacher_state",
    "save_run_state",
    "save_teacher_state",
    "skip_epochs",
]

FOLDER = "sdpo"
_KEYS = frozenset({"step", "cut", "epochs", "clock", "health", "probed", "metrics", "has_rollouts"})


def save_teacher_state(teacher: Teacher, checkpoint: Path, rank: int, world_size: int, sharded: bool) -> None:
    """Write the teacher into a checkpoint; where weights are sharded every rank writes its part, else the first."""
    if sharded:
        save_teacher(teacher, checkpoint / FOLDER / "teacher", rank=rank, world_size=world_size)
    elif rank == 0:
        save_teacher(teacher, checkpoint / FOLDER / "teacher")


def load_teacher_state(
    teacher: Teacher, checkpoint: Path, tensors: Any, rank: int, world_size: int, sharded: bool
) -> None:
    """Take the teacher up from a checkpoint, on every rank.

    Raises:
        TeacherError: The checkpoint has no teacher, another one, or a damaged one.
    """
    folder = check_holds_teacher(
        checkpoint,
        f"{FOLDER}/teacher",
        "To begin SDPO from its weights, load the model from that folder and train without `resume_from_checkpoint`.",
    )
    if sharded:
        load_teacher(teacher, folder, tensors, rank=rank, world_size=world_size)
    else:
        load_teacher(teacher, folder, tensors)


def save_run_state(checkpoint: Path, rank: int, state: dict[str, Any], rollouts: list[dict[str, Any]] | None) -> None:
    """Write one rank's counters, and the rollouts that later optimizer steps still need.

    Args:
        checkpoint: The checkpoint's folder.
        rank: This process's index.
        state: Plain values.
        rollouts: The buffered micro-batches, or None between two generations.
    """
    folder = checkpoint / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    buffer = folder / f"rollouts-{rank}.pt"
    if rollouts is not None:
        _atomically(buffer, lambda path: torch.save(rollouts, path))
    text = json.dumps({**state, "has_rollouts": rollouts is not None})
    _atomically(folder / f"state-{rank}.json", lambda path: Path(path).write_text(text, encoding="utf-8"))


def load_run_state(
    checkpoint: Path, rank: int, device: torch.device
) -> tuple[dict[str, Any], list[dict[str, Any]] | None]:
    """Read what `save_run_state` wrote for this rank.

    Raises:
        TeacherError: The files are missing or damaged.
    """
    folder = checkpoint / FOLDER
    try:
        state = dict(json.loads((folder / f"state-{rank}.json").read_text(encoding="utf-8")))
        rollouts = None
        if missing := _KEYS - state.keys():
            raise KeyError(*sorted(missing))
        if state.pop("has_rollouts"):
            rollouts = torch.load(folder / f"rollouts-{rank}.pt", map_location=device, weights_only=True)
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise TeacherError(
            f"The SDPO state of rank {rank} in {folder} cannot be read ({type(error).__name__}: {error}). Resume from "
            "another checkpoint, with as many processes as it was written with."
        ) from error
    return state, rollouts


def check_same_cut(checkpoint: Path, saved: Sequence[int], now: Sequence[int]) -> None:
    """Refuse to go on in the middle of a rollout batch that this run would cut otherwise.

    Args:
        checkpoint: The checkpoint's folder, for the message.
        saved: `steps_per_generation` and `num_iterations` of the run that wrote it.
        now: The same of this run.

    Raises:
        ConfigError: They differ.
    """
    if list(saved) != list(now):
        raise ConfigError(
            f"The checkpoint {checkpoint} was written in the middle of a rollout batch with steps_per_generation="
            f"{saved[0]} and num_iterations={saved[1]}; this run has {now[0]} and {now[1]}. Set them as they were, or "
            "resume from a checkpoint between two rollout batches."
        )


def skip_epochs(sampler: Iterable[Any] | None, epochs: int) -> None:
    """Draw the shuffles of finished epochs, so that a new sampler goes on with the next epoch's.

    TRL's sampler has a generator of its own that moves on with every epoch and that nothing saves: without this, an
    epoch after a restart would be shuffled as the first one was.

    Args:
        sampler: Of the training set, or None for a stream of data.
        epochs: Number of epochs finished.
    """
    if sampler is not None:
        for _ in range(epochs):
            next(iter(sampler), None)


def _atomically(path: Path, write: Any) -> None:
    temporary = path.with_name(path.name + ".tmp")
    write(temporary)
    os.replace(temporary, path)
