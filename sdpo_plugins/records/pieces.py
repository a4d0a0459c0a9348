"""The text of single tokens."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

__all__ = ["Pieces"]

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # how they spell it


class Pieces:
    """Gives the text of token ids; each is decoded once.

    Args:
        tokenizer: Of transformers; only read.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._known: dict[int, str] = {}

    def of(self, ids: Iterable[int]) -> dict[int, str]:
        """Return the text of each id; of a part of a character, which has none, the tokenizer's own name for it."""
        wanted = set(ids)
        for token in wanted - self._known.keys():
            self._known[token] = self._text(token)
        return {token: self._known[token] for token in wanted}

    def _text(self, token: int) -> str:
        text = str(self._tokenizer.decode([token], skip_special_tokens=False, clean_up_tokenization_spaces=False))
        name = self._tokenizer.convert_ids_to_tokens(token)
        # Tokenizers of SentencePiece drop the space at the beginning of a text, which a single token is for them.
        space = " " if str(name).startswith(_SPACE) and not text.startswith(" ") else ""
        if space + text and _REPLACEMENT not in text:
            return space + text
        # Ids beyond the tokenizer's are padding of the output layer.
        return f"<{token}>" if name is None else str(name)
