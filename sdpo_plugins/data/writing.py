"""A folder whose files appear when all of them are whole, and that a killed run can be continued in."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from sdpo_plugins.data.loading import sha256_of
from sdpo_plugins.errors import DataError, SDPOError

__all__ = ["CARD", "WORK", "Workplace", "file_facts", "read_json", "unlike"]

# The last file to appear: a folder that has it is finished.
CARD = "card.json"
# Hidden, so that neither hosts nor the datasets library look into it.
WORK = ".sdpo-data"
_STATE = "state.json"


class Workplace:
    """Writes files beside their final places, and moves all of them at the end.

    Whole files of an interrupted run are kept if it was asked for the same; a file that was being written is not.

    Args:
        folder: Where the files shall appear.
        asked: What makes them, as plain values: another run's files are used only if this is equal.

    Raises:
        DataError: Another process is writing there.
    """

    def __init__(self, folder: Path, asked: Mapping[str, Any]) -> None:
        self.folder = folder
        self.asked = dict(asked)
        self.state: dict[str, Any] = {}
        self._work = folder / WORK
        self._made: list[Path] = []

    def __enter__(self) -> Workplace:
        from filelock import FileLock, Timeout

        self._made = _missing(self.folder)
        try:
            self._work.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"The folder {self.folder} cannot be made: {error}") from error
        self._lock = FileLock(self._work / "lock")
        try:
            self._lock.acquire(timeout=0)
        except Timeout as error:
            raise DataError(
                f"Another `sdpo data` is writing to {self.folder}: wait for it, or choose another --output."
            ) from error
        found = read_json(self._work / _STATE)
        self.interrupted = found is not None and found.get("asked") != self.asked
        if self.interrupted or found is None:
            self._empty()
        self.state = {"asked": self.asked, "splits": {}, **({} if self.interrupted else found or {})}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # The same command would fail again; after a kill or a full disk, whole files are worth keeping.
        if error is None or isinstance(error, SDPOError) or not self.state["splits"]:
            shutil.rmtree(self._work)
            self._lock.release()
            for folder in self._made if error is not None else ():
                if not any(folder.iterdir()):
                    folder.rmdir()
            return
        for path in self._work.glob("*.writing"):
            path.unlink()
        self._lock.release()

    def finished(self, split: str) -> bool:
        """Say whether an interrupted run has written a split to its end."""
        told = self.state["splits"].get(split)
        return told is not None and self._found(told) is not None

    def write(self, split: str, name: str, write: Callable[[Path], int]) -> None:
        """Write a split's file.

        Args:
            split: Its name.
            name: Of the file.
            write: write(path) → number of rows.
        """
        partial = self._work / f"{name}.writing"
        rows = write(partial)
        _to_disk(partial)
        partial.replace(self._work / name)
        self.state["splits"][split] = {"file": name, "rows": rows, **file_facts(self._work / name)}

    def save(self) -> None:
        """Keep what is done and known, for a run that goes on after this one was killed."""
        _write(self._work / _STATE, json.dumps(self.state, ensure_ascii=False, indent=2))

    def foreign(self, names: Sequence[str]) -> list[str]:
        """Return those of some names that lie in the folder and were not put there by an interrupted run."""
        ours = {
            told["file"] for told in self.state["splits"].values() if self._found(told) == self.folder / told["file"]
        }
        # The README is moved behind the data, so it can be ours only if all of these lie there.
        if ours and len(ours) == len(self.state["splits"]):
            ours.add("README.md")
        return [name for name in names if (self.folder / name).exists() and name not in ours]

    def commit(self, texts: Mapping[str, str], old: Sequence[str]) -> None:
        """Move all files to their places.

        Args:
            texts: Other files by name; the last one marks the folder as finished.
            old: Names of files that are replaced or no longer belong there; the first is the mark.
        """
        for name, text in texts.items():
            _write(self._work / name, text)
        files = [told["file"] for told in self.state["splits"].values()]
        # A kill among the moves left the others where they belong.
        here = [name for name in files if (self._work / name).exists()]
        for name in old:
            if name in here or name not in files:
                (self.folder / name).unlink(missing_ok=True)
        for name in (*here, *texts):
            (self._work / name).replace(self.folder / name)
        _folder_to_disk(self.folder)

    def _found(self, told: Mapping[str, Any]) -> Path | None:
        """Return where a whole file lies; a kill among the moves leaves some in their final places."""
        facts = {name: told[name] for name in ("bytes", "sha256")}
        for path in (self._work / told["file"], self.folder / told["file"]):
            if path.is_file() and path.stat().st_size == told["bytes"] and file_facts(path) == facts:
                return path
        return None

    def _empty(self) -> None:
        for path in self._work.iterdir():
            if path.name != "lock":
                path.unlink()


def file_facts(path: Path) -> dict[str, Any]:
    """Return a file's size and SHA-256."""
    return {"bytes": path.stat().st_size, "sha256": sha256_of(path)}


def read_json(path: Path) -> dict[str, Any] | None:
    """Return a JSON object; None if there is no such file, or it holds something else."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def unlike(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Say in which entries two mappings of plain values differ.

    Example:
        >>> unlike({"host": "trl", "limit": None}, {"host": "verl", "limit": None})
        ["host: 'trl' there, 'verl' now"]
    """
    found = []
    for name in [*before, *(name for name in now if name not in before)]:
        old, new = before.get(name), now.get(name)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found += unlike(old, new, f"{prefix}{name}.")
        elif old != new:
            found.append(f"{prefix}{name}: {old!r} there, {new!r} now")
    return found


def _missing(folder: Path) -> list[Path]:
    """Return the folders that are to be made for this one, the innermost first."""
    return [path for path in (folder, *folder.parents) if not path.exists()]


def _write(path: Path, text: str) -> None:
    partial = path.with_name(f"{path.name}.writing")
    partial.write_text(text, encoding="utf-8")
    _to_disk(partial)
    partial.replace(path)


def _to_disk(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _folder_to_disk(folder: Path) -> None:
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
