"""SDPO's part of OpenRLHF's checkpoints: the teacher, the counters, and each rank's random state."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from sdpo_plugins.errors import TeacherError
from sdpo_plugins.teacher import LocalTensors, Teacher, load_teacher, save_teacher

__all__ = ["STATE", "load_sdpo", "save_sdpo", "saved_first", "sdpo_state"]

STATE = "sdpo"
"""SDPO's entry in the checkpoint's client states, and its folder in the checkpoint."""


def sdpo_state(client_states: Mapping[str, Any], checkpoint: str) -> Mapping[str, Any]:
    """Return what SDPO noted in a checkpoint's client states, or refuse to resume without it.

    Args:
        client_states: As DeepSpeed loaded them.
        checkpoint: The checkpoint's folder, for the message.

    Raises:
        TeacherError: The checkpoint was written without SDPO.
    """
    found = client_states.get(STATE)
    if not isinstance(found, Mapping):
        raise TeacherError(
            f"The checkpoint in {checkpoint} holds no SDPO teacher, so resuming would silently start a new one from "
            "today's weights. Was it written by another algorithm? To begin SDPO from its weights, save them as a "
            "model (`--ckpt.save_hf`), give that folder as `--actor.model_name_or_path`, and choose a new "
            "`--ckpt.path`."
        )
    return found


def save_sdpo(teacher: Teacher, folder: Path, *, sharded: bool) -> None:
    """Write this rank's part; every rank must call this together.

    Args:
        teacher: Started.
        folder: The checkpoint's, which need not exist.
        sharded: Whether each rank holds shards of the weights (ZeRO-3); else the first rank writes them all.
    """
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    own = folder / STATE
    own.mkdir(parents=True, exist_ok=True)
    if sharded:
        save_teacher(teacher, own, rank=rank, world_size=world)
    elif rank == 0:
        save_teacher(teacher, own)
    save_file(_random_state(), own / f"random-{rank:05d}.safetensors")
    torch.distributed.barrier()


def load_sdpo(teacher: Teacher, folder: Path, tensors: LocalTensors, *, sharded: bool) -> None:
    """Take teacher and random state up, bit for bit as they were saved.

    Args:
        teacher: Of the strategy that was saved.
        folder: The checkpoint's.
        tensors: The student's.
        sharded: As for `save_sdpo`.

    Raises:
        TeacherError: Something is missing, damaged, or of another model or number of ranks.
    """
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    own = folder / STATE
    if sharded:
        load_teacher(teacher, own, tensors, rank=rank, world_size=world)
    else:
        load_teacher(teacher, own, tensors)
    path = own / f"random-{rank:05d}.safetensors"
    if not path.is_file():
        raise TeacherError(
            f"{path} does not exist: the checkpoint is not whole, or more ranks resume than wrote it. Resume with as "
            "many ranks, or use another checkpoint."
        )
    state = load_file(path)
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


@contextmanager
def saved_first(engine: Any, save: Callable[[Path], None]) -> Iterator[None]:
    """Within the block, DeepSpeed's `save_checkpoint` calls `save(folder)` first.

    The host makes room for a checkpoint before it calls DeepSpeed, and DeepSpeed ends by naming it the latest: what is
    written in between is neither removed nor missed by a run that resumes.

    Args:
        engine: DeepSpeed's.
        save: Writes into the checkpoint's folder; called by every rank.
    """
    original = engine.save_checkpoint

    def save_checkpoint(save_dir: str, tag: str, **kwargs: Any) -> Any:
        save(Path(save_dir) / tag)
        return original(save_dir, tag=tag, **kwargs)

    engine.save_checkpoint = save_checkpoint
    try:
        yield
    finally:
        del engine.save_checkpoint


def _random_state() -> dict[str, torch.Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state
