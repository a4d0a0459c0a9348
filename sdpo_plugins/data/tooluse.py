"""Tool use: the authors' selection of ToolAlpaca, where a request is to be turned into tool calls."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdpo_plugins._options import option
from sdpo_plugins.data.sources import TEST, TRAIN, Example, Facts, Source, Split, message

if TYPE_CHECKING:
    from sdpo_plugins.data.loading import Loader

__all__ = ["SOURCE", "ToolUseOptions", "readable_calls"]

ADDRESS = "https://raw.githubusercontent.com/lasgroup/SDPO/{revision}/datasets/tooluse/{split}.json"
BRANCH = "main"


@dataclass(frozen=True)
class ToolUseOptions:
    """Options of `tooluse`."""

    seed: int | None = option(None, "Shuffle the questions to train on; by default they keep their order.", low=0)


def facts(options: ToolUseOptions, place: Path | None) -> Facts:
    """Describe the data."""
    return Facts(
        task="tooluse",
        data_source="tooluse",
        scorer="tool_use",
        origin="datasets/tooluse of the authors' repository lasgroup/SDPO, from ToolAlpaca",
        link="https://github.com/lasgroup/SDPO",
        license="apache-2.0",
        prompt="the authors': tools, their parameters and the request in one message, with the form of `Action:` and "
        "`Action Input:`",
        split="the authors' two files",
    )


def read(options: ToolUseOptions, loader: Loader) -> dict[str, Split]:
    """Read the authors' two files."""
    if loader.place is None and loader.revision is None:
        loader.revision = BRANCH
    found = {}
    for split in (TRAIN, TEST):
        address = ADDRESS.format(revision=loader.revision, split=split)
        rows = loader.downloaded(address, split, ("prompt", "system", "answer", "idx"))
        if split == TRAIN and options.seed is not None:
            rows = rows.shuffle(seed=options.seed)
        found[split] = Split(len(rows), _examples(rows, split, loader))
    return found


def readable_calls(answer: Any) -> bool:
    """Say whether an answer is a list of calls, each with a tool and a JSON object as its input.

    Example:
        >>> readable_calls('[{"Action": "find", "Action_Input": "{}"}]'), readable_calls("[]")
        (True, False)
    """
    try:
        calls = [(call["Action"], call["Action_Input"]) for call in json.loads(answer)]
        inputs = [json.loads(given) if isinstance(given, str) else given for _, given in calls]
    except (ValueError, TypeError, KeyError):
        return False
    return bool(calls) and all(isinstance(given, dict) for given in inputs)


def _examples(rows: Any, split: str, loader: Loader) -> Iterator[Example]:
    for row in rows:
        if not readable_calls(row["answer"]):
            loader.note(
                f"left out: question {row['idx']} ({split}); its right calls cannot be read: {str(row['answer'])[:99]}"
            )
            continue
        system = [message("system", row["system"])] if row["system"] else []
        yield Example([*system, message("user", row["prompt"])], row["answer"], row["idx"])


SOURCE = Source(
    "tooluse",
    "The paper's tool use (section 3): the right calls for a request.",
    ToolUseOptions,
    facts,
    read,
)
