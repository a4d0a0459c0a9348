"""Teacher checkpoints: one safetensors and one JSON file per rank, written atomically, checked when read."""

from __future__ import annotations

import json
import os
import re
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from sdpo_plugins.errors import TeacherError
from sdpo_plugins.teacher.base import Teacher
from sdpo_plugins.teacher.checks import FORMAT_VERSION, check_same_strategy

__all__ = ["check_holds_teacher", "load_teacher", "save_teacher"]

_FILE = re.compile(r"^teacher-(\d+)-of-(\d+)\.json$")
_KEYS = ("name", "format", "updates", "reached", "rank", "world_size", "size", "crc32", "tensors")
_NEW_TEACHER = "To go on with a new teacher that starts from the student, resume without loading the teacher."


def save_teacher(teacher: Teacher, directory: str | Path, *, rank: int = 0, world_size: int = 1) -> Path:
    """Write this rank's part of a teacher; each file appears under its name only when it is complete.

    Args:
        teacher: A started teacher.
        directory: Is made if it does not exist.
        rank: This process's. With unsharded weights every rank holds all of it: save once with the defaults.
        world_size: Number of processes over which the weights are sharded.

    Returns:
        The path of the JSON file.

    Raises:
        TeacherError: The teacher has not started.

    Example:
        >>> import tempfile, torch
        >>> from sdpo_plugins.teacher import Frozen, local_tensors
        >>> model = torch.nn.Linear(1, 1)
        >>> teacher = Frozen(rate=0.0, unit="rollout_batch", every=1)
        >>> teacher.start(local_tensors(model))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_teacher(teacher, folder).name
        'teacher-00000-of-00001.json'
    """
    state = teacher.state_dict()
    tensors: Mapping[str, Tensor] = state.pop("tensors")
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    described, weights = _paths(folder, rank, world_size)
    dense = {name: value.contiguous() for name, value in tensors.items()}
    _write(weights, lambda path: save_file(dense, path))
    state |= {
        "rank": rank,
        "world_size": world_size,
        "size": weights.stat().st_size,
        "crc32": _crc32(weights),
        "tensors": {name: _describe(value) for name, value in tensors.items()},
    }
    _write(described, lambda path: path.write_text(json.dumps(state, indent=1) + "\n", encoding="utf-8"))
    return described


def load_teacher(
    teacher: Teacher,
    directory: str | Path,
    tensors: Mapping[str, Tensor],
    *,
    rank: int = 0,
    world_size: int = 1,
) -> None:
    """Load this rank's part of a teacher, bit for bit as it was saved; on an error it stays as it is.

    Args:
        teacher: Of the strategy that was saved.
        directory: Where `save_teacher` wrote.
        tensors: The student's, from `local_tensors`.
        rank: As for `save_teacher`.
        world_size: As for `save_teacher`.

    Raises:
        TeacherError: Says what was found and what to do: no directory or file, a file cut short or changed,
            another strategy, format, number of ranks or model.
    """
    described, weights = _paths(Path(directory), rank, world_size)
    if not described.is_file():
        raise TeacherError(_nothing_there(Path(directory), described, world_size))
    state = _read_description(described)
    try:
        check_same_strategy(teacher.name, state)
    except TeacherError as error:
        raise TeacherError(f"{described}: {error}") from error
    if (state["rank"], state["world_size"]) != (rank, world_size):
        raise TeacherError(
            f"{described} says it is rank {state['rank']} of {state['world_size']}, but its name says rank "
            f"{rank} of {world_size}: it was renamed or edited. Restore the checkpoint. {_NEW_TEACHER}"
        )
    state["tensors"] = _read_weights(weights, state)
    try:
        teacher.load_state_dict(state, tensors)
    except TeacherError as error:
        raise TeacherError(f"{described}: {error}") from error


def check_holds_teacher(checkpoint: str | Path, part: str, remedy: str) -> Path:
    """Return the path of SDPO's part of a host's checkpoint, or refuse to resume without it.

    Args:
        checkpoint: The checkpoint's folder.
        part: What SDPO wrote there, relative to the folder.
        remedy: How to begin SDPO from a checkpoint's weights in this host, a sentence.

    Raises:
        TeacherError: There is nothing of that name.

    Example:
        >>> check_holds_teacher("/nowhere/step-5", "sdpo/teacher", "Start anew.")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
            ...
        sdpo_plugins.errors.TeacherError: The checkpoint /nowhere/step-5 holds no SDPO teacher (no sdpo/teacher), ...
    """
    path = Path(checkpoint) / part
    if not path.exists():
        raise TeacherError(
            f"The checkpoint {checkpoint} holds no SDPO teacher (no {part}), so resuming would silently start a new "
            f"one from today's weights. Was it written by another trainer? {remedy}"
        )
    return path


def _paths(folder: Path, rank: int, world_size: int) -> tuple[Path, Path]:
    if not 0 <= rank < world_size:
        raise TeacherError(f"rank must lie in [0, world_size), got rank={rank}, world_size={world_size}.")
    stem = f"teacher-{rank:05d}-of-{world_size:05d}"
    return folder / f"{stem}.json", folder / f"{stem}.safetensors"


def _write(path: Path, write: Callable[[Path], Any]) -> None:
    # The temporary file lies in the same directory: a rename is atomic only within one file system.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _crc32(path: Path) -> int:
    checksum = 0
    with path.open("rb") as file:
        while block := file.read(1 << 24):
            checksum = zlib.crc32(block, checksum)
    return checksum


def _describe(value: Tensor) -> dict[str, Any]:
    return {"shape": list(value.shape), "dtype": str(value.dtype).removeprefix("torch.")}


def _nothing_there(folder: Path, wanted: Path, world_size: int) -> str:
    if not folder.is_dir():
        return (
            f"there is no teacher checkpoint: the directory {folder} does not exist. Check the path you "
            f"resume from. {_NEW_TEACHER}"
        )
    sizes = sorted({int(match[2]) for path in folder.iterdir() if (match := _FILE.match(path.name))})
    if sizes and world_size not in sizes:
        return (
            f"the teacher in {folder} was saved by {' and '.join(map(str, sizes))} rank(s), this run has "
            f"{world_size}. Its shards fit that number only: resume with as many. {_NEW_TEACHER}"
        )
    seen = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"
    return f"{folder} holds no {wanted.name}; found: {seen}. Check the path you resume from. {_NEW_TEACHER}"


def _read_description(path: Path) -> dict[str, Any]:
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise TeacherError(
            f"{path} is no valid JSON ({error}). Restore the checkpoint, or use an older one. {_NEW_TEACHER}"
        ) from error
    missing = [key for key in _KEYS if key not in state] if isinstance(state, dict) else list(_KEYS)
    # A file of another format may well have other keys: that is for the format's own message.
    if missing and not (isinstance(state, dict) and state.get("format", FORMAT_VERSION) != FORMAT_VERSION):
        raise TeacherError(
            f"{path} does not describe a teacher: {', '.join(missing)} missing. Restore the checkpoint, or "
            f"use an older one. {_NEW_TEACHER}"
        )
    assert isinstance(state, dict)
    return state


def _read_weights(path: Path, state: Mapping[str, Any]) -> dict[str, Tensor]:
    remedy = f"Restore the checkpoint, or use an older one. {_NEW_TEACHER}"
    if not path.is_file():
        raise TeacherError(f"{path} does not exist, though its JSON file does. {remedy}")
    size = path.stat().st_size
    if size != state["size"]:
        raise TeacherError(f"{path} is damaged: it has {size} bytes, {state['size']} were saved. {remedy}")
    if _crc32(path) != state["crc32"]:
        raise TeacherError(f"{path} is damaged: its checksum is not the one that was saved. {remedy}")
    try:
        loaded = load_file(path)
    except SafetensorError as error:
        raise TeacherError(f"{path} is no safetensors file ({error}). {remedy}") from error
    found = {name: _describe(value) for name, value in loaded.items()}
    if found != state["tensors"]:
        saved = state["tensors"]
        differing = sorted(name for name in {*found, *saved} if found.get(name) != saved.get(name))
        raise TeacherError(
            f"{path} and its JSON file do not describe the same tensors; {', '.join(differing[:5])} differ. {remedy}"
        )
    return loaded
