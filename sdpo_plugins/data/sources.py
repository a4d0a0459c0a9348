"""What a source of data is: where it comes from, its options, and the questions it gives."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdpo_plugins.errors import DataError

if TYPE_CHECKING:
    from sdpo_plugins.data.loading import Loader

__all__ = ["TEST", "TRAIN", "Example", "Facts", "Source", "Split", "message"]

TRAIN, TEST = "train", "test"
Message = dict[str, str]


@dataclass(frozen=True)
class Example:
    """One question, whatever host reads it.

    Args:
        prompt: Chat messages.
        truth: What the scorer takes as `ground_truth`: a text, or a mapping or list for its JSON.
        index: The question's place in its source.
        extra: Further fields of the row.
    """

    prompt: list[Message]
    truth: Any
    index: int
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.prompt:
            raise DataError(f"question {self.index} has no messages.")


@dataclass(frozen=True)
class Split:
    """The questions of one file.

    Args:
        total: How many are expected; some may turn out to be of no use.
        examples: The questions, read once.
        extras: Their further fields, from which the columns' types are found: those of all questions, or of one that
            stands for all.
    """

    total: int
    examples: Iterable[Example]
    extras: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True)
class Facts:
    """What the options of a source make of it; the card is written from this.

    Args:
        task: Name of the default folder.
        data_source: What each row says of where it comes from.
        scorer: The scorer of the catalogue that fits, or "".
        origin: Where the questions come from, in words.
        link: Its address.
        license: Its licence as the hub names it, or "" if it is not known.
        prompt: The prompts' form, in words.
        split: How the files were divided, in words.
        large: Whether a column of truths may be longer than the 2 GiB of ordinary Arrow texts.
    """

    task: str
    data_source: str
    scorer: str
    origin: str
    link: str
    license: str
    prompt: str
    split: str
    large: bool = False


@dataclass(frozen=True)
class Source:
    """A source of questions.

    Args:
        name: What the command line calls it.
        summary: One sentence.
        options: A frozen dataclass of options, each declared by `sdpo_plugins.option`.
        facts: facts(options, place) → `Facts`; `place` is what is read instead of the hub, or None.
        read: read(options, loader) → splits by name; what is left out goes to `loader.note`.
        home: Whether it has a place on the network, where it is read by default.
    """

    name: str
    summary: str
    options: type
    facts: Callable[[Any, Path | None], Facts]
    read: Callable[[Any, Loader], Mapping[str, Split]]
    home: bool = True


def message(role: str, content: str) -> Message:
    """Return a chat message.

    Example:
        >>> message("user", "What weighs more?")
        {'role': 'user', 'content': 'What weighs more?'}
    """
    return {"role": role, "content": content}
