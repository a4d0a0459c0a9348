"""The folder of a run: what it was begun with, its attempts, its solution, its results."""

from __future__ import annotations

import json
import reprlib
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sdpo_plugins.errors import ConfigError, DataError
from sdpo_plugins.solve.attempts import SDPO, Attempt, AttemptLog
from sdpo_plugins.solve.results import write_atomically

__all__ = ["RunFolder"]

_FORMAT = 1
_OURS = ("README.md", "run.json", "attempts.jsonl", "attempts.jsonl.tmp", "solution.txt", "results.json")


class RunFolder:
    """Where a run keeps everything, so that the same command goes on after a crash.

    Args:
        path: The folder.

    Attributes:
        log: The attempts.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.log = AttemptLog(path / "attempts.jsonl")

    def begin(self, identity: Mapping[str, Any], overwrite: bool = False) -> None:
        """Take the folder for a run: a new one, or the one that was begun there.

        Args:
            identity: Everything that makes the run what it is, as plain values.
            overwrite: Delete what a run left there. Other files stay.

        Raises:
            ConfigError: The folder holds another run, or something that is none, or it cannot be written.
        """
        wanted = json.loads(json.dumps({"format": _FORMAT, **identity}, default=str))
        try:
            empty = not self.path.is_dir() or not any(self.path.iterdir())
            if overwrite and not empty:
                self._clear()
            if overwrite or empty:
                write_atomically(self.path / "run.json", json.dumps(wanted, indent=2, ensure_ascii=False) + "\n")
                return
        except OSError as error:
            raise ConfigError(
                f"{self.path} cannot be written ({error.strerror or error}). Give another folder: --output."
            ) from error
        there = self._identity()
        differing = [name for name in dict.fromkeys((*there, *wanted)) if there.get(name) != wanted.get(name)]
        if differing:
            said = "; ".join(
                f"{name} is {reprlib.repr(there.get(name))} there and {reprlib.repr(wanted.get(name))} here"
                for name in differing
            )
            raise ConfigError(
                f"{self.path} holds another run: {said}. Give the same options to go on with it, another --output, or "
                "--overwrite to delete it."
            )

    def attempts_to_resume(self, step: int, samples: int) -> list[Attempt]:
        """Cut the log of SDPO's attempts off where the weights of a checkpoint stand, so that none counts twice.

        Args:
            step: Optimizer steps that the checkpoint has taken; 0 without one.
            samples: Attempts before each step.

        Returns:
            Those that stay.

        Raises:
            DataError: Attempts that led to the checkpoint are missing.
        """
        attempts = self.log.read()
        kept = [each for each in attempts if each.method != SDPO or each.step < step]
        found = sum(each.method == SDPO for each in kept)
        if found != step * samples:
            raise DataError(
                f"{self.log.path} holds {found} attempts of the first {step} steps, {step * samples} were made. "
                "Restore the file, or begin anew with --overwrite."
            )
        if len(kept) < len(attempts):
            self.log.replace(kept)
        return kept

    def write_solution(self, response: str) -> None:
        """Write the answer that solved the question."""
        write_atomically(self.path / "solution.txt", response + "\n")

    def _check_ours(self) -> Path:
        path = self.path / "run.json"
        if not path.exists():
            raise ConfigError(
                f"{self.path} is not empty and holds no run of `sdpo solve` (no run.json). Choose another --output."
            )
        return path

    def _identity(self) -> dict[str, Any]:
        path = self._check_ours()
        try:
            return dict(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise DataError(f"{path} cannot be read: {error}. Begin anew with --overwrite.") from error

    def _clear(self) -> None:
        self._check_ours()  # Nothing is deleted in a folder that is no run's.
        for name in _OURS:
            (self.path / name).unlink(missing_ok=True)
        for folder in (*self.path.glob("checkpoint-*"), self.path / "records"):
            if folder.is_dir():
                shutil.rmtree(folder)
