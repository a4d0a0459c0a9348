"""The sources by name."""

from __future__ import annotations

from typing import Any

from sdpo_plugins.data import gsm8k, jsonl, livecodebench, mbpp, sciknoweval, tooluse
from sdpo_plugins.data.prepare import Prepared, prepare_source
from sdpo_plugins.data.sources import Source
from sdpo_plugins.errors import ConfigError, nearest

__all__ = ["SOURCES", "prepare"]

SOURCES: dict[str, Source] = {
    module.SOURCE.name: module.SOURCE for module in (sciknoweval, livecodebench, tooluse, gsm8k, mbpp, jsonl)
}
"""Our sources by name."""


def prepare(source: str, **options: Any) -> Prepared:
    """Write a source's questions in a host's format, or find that they are there.

    Args:
        source: A name of `SOURCES`.
        **options: `CommonOptions`, and the source's own; `note` and `progress`, functions that are told what happens.

    Returns:
        The folder and its card.

    Raises:
        ConfigError: Unknown source, invalid options, or a folder that holds something else.
        DataError: The source cannot be read, or holds what cannot be used.

    Example:
        >>> import json, pathlib, tempfile
        >>> with tempfile.TemporaryDirectory() as name:
        ...     folder = pathlib.Path(name)
        ...     _ = (folder / "mine.jsonl").write_text(json.dumps({"prompt": "1 + 1?", "ground_truth": "2"}))
        ...     prepared = prepare("jsonl", place=folder / "mine.jsonl", output=folder / "out", test_share=0.0)
        ...     prepared.card["splits"]["train"]["rows"]
        1
    """
    if source not in SOURCES:
        raise ConfigError(f"There is no source {source!r}; there are {', '.join(SOURCES)}.{nearest(source, SOURCES)}")
    hooks = {name: options.pop(name) for name in ("note", "progress") if name in options}
    return prepare_source(SOURCES[source], options, **hooks)
