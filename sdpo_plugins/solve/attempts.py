"""The attempts of a run, one JSON line each, in a file that survives a crash at any moment."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sdpo_plugins.errors import DataError
from sdpo_plugins.reprompt import reaches

__all__ = ["BASELINE", "METHODS", "SDPO", "Attempt", "AttemptLog", "first_success", "of_method"]

SDPO = "sdpo"
BASELINE = "best-of-k"
METHODS = (SDPO, BASELINE)


@dataclass(frozen=True)
class Attempt:
    """One answer to the question.

    Args:
        index: Its place among the attempts of its method, from 1.
        method: "sdpo", or "best-of-k": an answer of the model that nothing has been trained on.
        step: Optimizer steps that the answering model had taken; for "best-of-k" the batch, from 0.
        response: The answer.
        reward: What the scorer gave it.
        feedback: What the scorer said of it.
    """

    index: int
    method: str
    step: int
    response: str
    reward: float
    feedback: str | None = None


class AttemptLog:
    """Appends batches of attempts to a file and reads them back.

    A batch is written at once and flushed to the disk. What a crash leaves of a line is dropped when reading, and cut
    off before the next batch is written.

    Args:
        path: The file; made by the first batch.

    Example:
        >>> import tempfile
        >>> log = AttemptLog(Path(tempfile.mkdtemp()) / "attempts.jsonl")
        >>> log.append([Attempt(1, "sdpo", 0, "x = 3", 0.0, "Wrong."), Attempt(2, "sdpo", 0, "x = 4", 1.0)])
        >>> first_success(log.read(), threshold=0.5)
        2
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> list[Attempt]:
        """Return the whole attempts, in the order in which they were made.

        Raises:
            DataError: A line that is not the last one is no attempt.
        """
        if not self.path.exists():
            return []
        lines = self.path.read_bytes().split(b"\n")
        attempts = []
        for number, line in enumerate(lines[:-1], start=1):
            try:
                attempts.append(Attempt(**json.loads(line)))
            except (ValueError, TypeError) as error:
                raise DataError(
                    f"Line {number} of {self.path} is no attempt ({error}). Restore the file, or begin anew with "
                    "--overwrite."
                ) from error
        # Without its line end the last line is what a crash left of it.
        return attempts

    def append(self, attempts: Sequence[Attempt]) -> None:
        """Write a batch to the end of the file, and to the disk."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        text = "".join(json.dumps(dataclasses.asdict(each), ensure_ascii=False) + "\n" for each in attempts)
        with self.path.open("ab") as file:
            file.write(text.encode("utf-8", errors="replace"))
            file.flush()
            os.fsync(file.fileno())

    def replace(self, attempts: Iterable[Attempt]) -> None:
        """Make these the file's attempts, or leave it as it was: never something between the two."""
        temporary = AttemptLog(self.path.with_name(self.path.name + ".tmp"))
        temporary.path.unlink(missing_ok=True)
        temporary.append(list(attempts))
        os.replace(temporary.path, self.path)


def of_method(attempts: Iterable[Attempt], method: str) -> list[Attempt]:
    """Return the attempts of one method."""
    return [each for each in attempts if each.method == method]


def first_success(attempts: Iterable[Attempt], threshold: float) -> int | None:
    """Return the index of the first attempt whose reward reaches the threshold, or None.

    Args:
        attempts: Of one method.
        threshold: Smallest reward that is a success.
    """
    return min((each.index for each in attempts if reaches(each.reward, threshold)), default=None)
