"""JSON lines in files of bounded size: appended whole, repaired after a crash, thinned evenly when too large."""

from __future__ import annotations

import json
import math
import os
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

__all__ = ["BoundedLines", "as_json", "read_lines"]

# Lines of these kinds are thinned; a run's beginning, its warnings and its end are few, and stay.
_THINNED = ("step", "rollout", "tokens")
_MARK = "thinned"
# A rollout's token values may be written while the next batches are being sampled.
_REMEMBERED_STEPS = 64


class BoundedLines:
    """Appends lines to one file. Over its limit, every second step is dropped, of what is there and of what follows.

    One process writes a file. A line is written by a single call, so that a killed process leaves whole lines and at
    most one torn end, which is cut off when the file is opened again.

    Args:
        path: The file; its folder is made.
        limit_mb: Largest size in MiB; a single step that is larger stays.

    Raises:
        OSError: The file cannot be written.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "steps.jsonl")
        >>> lines = BoundedLines(path, limit_mb=1)
        >>> lines.write({"kind": "step", "step": 1, "metrics": {"loss": 0.5}})
        >>> [line["step"] for line in read_lines(path)[0]]
        [1]
    """

    def __init__(self, path: Path, limit_mb: float) -> None:
        self.path = path
        self._limit = int(limit_mb * 2**20)
        self._stride = 1
        self._steps_seen = 0
        self._kept: OrderedDict[int, bool] = OrderedDict()
        path.parent.mkdir(parents=True, exist_ok=True)
        _cut_torn_end(path)
        if path.is_file():
            self._stride = _stride_of(path)
        self._size = path.stat().st_size if path.is_file() else 0

    def write(self, line: Mapping[str, Any]) -> None:
        """Append one line, unless its step is one that is dropped.

        Args:
            line: With `kind`, and `step` if it is of a kind that is thinned. Numbers that are not finite become null.
        """
        if line["kind"] in _THINNED and not self._keeps(int(line["step"])):
            return
        # A text of the environment may hold half of a surrogate pair, which no encoding has.
        data = as_json(line).encode(errors="replace") + b"\n"
        with open(self.path, "ab", buffering=0) as file:
            file.write(data)
        self._size += len(data)
        if self._size > self._limit:
            self._thin()

    def _keeps(self, step: int) -> bool:
        if step not in self._kept:
            self._kept[step] = self._steps_seen % self._stride == 0
            self._steps_seen += 1
            if len(self._kept) > _REMEMBERED_STEPS:
                self._kept.popitem(last=False)
        return self._kept[step]

    def _thin(self) -> None:
        # One line at a time: a file of the largest size would take a gigabyte as objects.
        heads = [_head(text) for text in _whole_lines(self.path)]
        steps = sorted({step for kind, step in heads if kind in _THINNED})
        if len(steps) < 2:
            return
        dropped = set(steps[1::2])
        self._stride *= 2
        temporary = self.path.with_suffix(".tmp")
        with open(temporary, "wb") as file:
            file.write(as_json({"kind": _MARK, "stride": self._stride}).encode() + b"\n")
            for (kind, step), text in zip(heads, _whole_lines(self.path), strict=True):
                if kind is not None and kind != _MARK and not (kind in _THINNED and step in dropped):
                    file.write(text)
        os.replace(temporary, self.path)
        self._size = self.path.stat().st_size
        # The newest step decides for itself: what is still to come of it has the fate of what was written.
        for step in self._kept:
            self._kept[step] = self._kept[step] and step not in dropped
        # Half of the old stride's steps lie between two that stay now.
        self._steps_seen = 1 if steps[-1] not in dropped else self._stride // 2 + 1


def read_lines(path: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Read a file that may be torn at its end, or still be written.

    Args:
        path: The file.

    Returns:
        The lines, and a sentence for each line that is no JSON object of ours.
    """
    found, problems = [], []
    for number, text in enumerate(_whole_lines(path), 1):
        line = _record(text)
        if isinstance(line, str):
            problems.append(f"{path}, line {number}, {line}; it was left out.")
        else:
            found.append(line)
    return found, problems


def as_json(value: Any) -> str:
    """Return compact JSON; numbers that are not finite become null, which every reader understands.

    Example:
        >>> as_json({"loss": float("nan"), "step": 1})
        '{"loss":null,"step":1}'
    """
    return json.dumps(_finite(value), ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    # A plug-in's numbers may be numpy's or torch's.
    return value if value is None or isinstance(value, (str, int)) or not hasattr(value, "tolist") else value.tolist()


def _whole_lines(path: Path) -> Iterator[bytes]:
    with open(path, "rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                yield line


def _record(text: bytes) -> dict[str, Any] | str:
    """Return a line's object, or what is wrong with it."""
    try:
        line = json.loads(text)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        return f"is no JSON ({error})"
    if not isinstance(line, dict) or not isinstance(line.get("kind"), str):
        return "is no record (an object with `kind`)"
    return line


def _head(text: bytes) -> tuple[str | None, int]:
    """Return a line's kind, None if it is no record, and its step."""
    line = _record(text)
    return (None, 0) if isinstance(line, str) else (line["kind"], int(line.get("step", 0)))


def _cut_torn_end(path: Path) -> None:
    if not path.is_file():
        return
    with open(path, "rb+") as file:
        data = file.read()
        if data and not data.endswith(b"\n"):
            file.truncate(data.rfind(b"\n") + 1)


def _stride_of(path: Path) -> int:
    line = _record(next(_whole_lines(path), b""))
    return int(line["stride"]) if isinstance(line, dict) and line["kind"] == _MARK else 1
