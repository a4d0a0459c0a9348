"""The one question of a run: from texts, from a file, or from a row of a data set."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sdpo_plugins.errors import ConfigError, DataError

__all__ = ["Question", "read_question"]

_TRUTH = "ground_truth"


@dataclass(frozen=True)
class Question:
    """What is asked, and what only the scorer sees.

    Args:
        messages: Chat messages, the last one of the user.
        columns: The row's other fields, for the scorer.
    """

    messages: Sequence[Mapping[str, str]]
    columns: Mapping[str, Any] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """The last message."""
        return str(self.messages[-1]["content"])

    @property
    def key(self) -> str:
        """A short name that another question does not have."""
        return hashlib.sha256(json.dumps(self.row, sort_keys=True, default=str).encode()).hexdigest()[:10]

    @property
    def row(self) -> dict[str, Any]:
        """The question as a fresh row of a data set."""
        return {**self.columns, "prompt": [dict(message) for message in self.messages]}


def read_question(
    text: str | None = None,
    file: Path | None = None,
    dataset: Path | None = None,
    row: int | None = None,
    truth: str | None = None,
    tests: Path | None = None,
) -> Question:
    """Read the question from the one place that was given.

    Args:
        text: The question itself.
        file: A file with it: a plain text, or, ending in .json or .jsonl, one row with `prompt` and what the scorer
            needs.
        dataset: A .json, .jsonl or .parquet file of such rows.
        row: Which row of `dataset`, from 0.
        truth: The field `ground_truth`, as a text.
        tests: A file that holds it.

    Returns:
        The question.

    Raises:
        ConfigError: Not exactly one place, or options that do not belong together.
        DataError: A file cannot be read, or a row is no question.

    Example:
        >>> read_question(text="What is 2 + 2?", truth="4").row
        {'ground_truth': '4', 'prompt': [{'role': 'user', 'content': 'What is 2 + 2?'}]}
    """
    given = [name for name, value in _places(text, file, dataset) if value is not None]
    problems = []
    if len(given) != 1:
        said = " and ".join(given) or "none of them"
        problems.append(
            f"The question comes from exactly one of --question, --question-file and --dataset; got {said}."
        )
    if (dataset is None) != (row is None):
        problems.append(f"--dataset and --row belong together, got --dataset {dataset} and --row {row}.")
    if truth is not None and tests is not None:
        problems.append("--truth and --tests both give the truth; leave one out.")
    if problems:
        raise ConfigError(problems)
    if text is not None:
        found: Mapping[str, Any] = {"prompt": text}
    elif file is not None:
        found = _of_file(file)
    else:
        assert dataset is not None and row is not None
        found = _of_dataset(dataset, row)
    given_truth = truth if tests is None else _read(tests)
    if given_truth is not None:
        found = {**found, _TRUTH: given_truth}
    return _question(found)


def _places(text: Any, file: Any, dataset: Any) -> list[tuple[str, Any]]:
    return [("--question", text), ("--question-file", file), ("--dataset", dataset)]


def _question(row: Mapping[str, Any]) -> Question:
    prompt = row.get("prompt")
    columns = {name: value for name, value in row.items() if name != "prompt"}
    if isinstance(prompt, str) and prompt.strip():
        return Question(({"role": "user", "content": prompt},), columns)
    if (
        isinstance(prompt, list)
        and prompt
        and all(isinstance(each, Mapping) and isinstance(each.get("content"), str) for each in prompt)
        and prompt[-1].get("role") == "user"
    ):
        return Question(tuple(prompt), columns)
    raise DataError(
        "A question needs the field `prompt`: a text that is not blank, or chat messages of which the last is the "
        f"user's; got {prompt!r} among the fields {', '.join(map(repr, row)) or 'none'}."
    )


def _of_file(path: Path) -> Mapping[str, Any]:
    if path.suffix not in (".json", ".jsonl"):
        return {"prompt": _read(path).strip()}
    rows = _rows(path)
    if len(rows) != 1:
        raise DataError(f"{path} must hold one question, it has {len(rows)} rows. Use --dataset {path} --row NUMBER.")
    return rows[0]


def _of_dataset(path: Path, row: int) -> Mapping[str, Any]:
    if path.suffix == ".parquet":
        from sdpo_plugins.data.loading import KINDS, loaded

        rows: Sequence[Any] = loaded(
            str(path), KINDS[path.suffix], data_files=str(path), help="--dataset is a .jsonl, .json or .parquet file."
        )
    elif path.suffix in (".json", ".jsonl"):
        rows = _rows(path)
    else:
        raise DataError(f"--dataset must be a .jsonl, .json or .parquet file, got {path}.")
    if not 0 <= row < len(rows):
        raise ConfigError(f"--row must be one of 0 … {len(rows) - 1} for {path}, got {row}.")
    found: Mapping[str, Any] = rows[row]
    return found


def _rows(path: Path) -> list[Mapping[str, Any]]:
    text = _read(path)
    try:
        if path.suffix == ".jsonl":
            found = [json.loads(line) for line in text.split("\n") if line.strip()]
        else:
            found = json.loads(text)
    except ValueError as error:
        raise DataError(f"{path} is no {path.suffix[1:].upper()} file: {error}.") from error
    rows = found if isinstance(found, list) else [found]
    if not all(isinstance(each, Mapping) for each in rows):
        raise DataError(f'{path} must hold rows with named fields, for example {{"prompt": …, "ground_truth": …}}.')
    return rows


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        said = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise DataError(f"{path} cannot be read: {said}.") from error
