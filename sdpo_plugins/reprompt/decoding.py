"""From token ids to the texts of a `Rollout`, with the thinking tags in place. No torch here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from sdpo_plugins.reprompt.thinking import closing_tag, opens_thinking

__all__ = ["decode_responses", "thinking_opened"]

_TAIL = 16
"""Tokens that hold an opening tag and the whitespace behind it."""


def decode_responses(tokenizer: Any, rows: Iterable[Iterable[Any]], thinking_tag: str) -> list[str]:
    """Decode completions without special tokens, except thinking tags: their removal needs them in place.

    Args:
        tokenizer: Only read.
        rows: Token ids of each completion.
        thinking_tag: The opening tag.

    Returns:
        The texts.
    """
    tags = {tokenizer.convert_tokens_to_ids(tag) for tag in (thinking_tag, closing_tag(thinking_tag))}
    special = set(tokenizer.all_special_ids) - tags
    kept = [[token for token in map(int, row) if token not in special] for row in rows]
    texts: list[str] = tokenizer.batch_decode(kept, skip_special_tokens=False)
    return texts


def thinking_opened(tokenizer: Any, prompts: Iterable[Sequence[Any]], thinking_tag: str) -> list[bool]:
    """Say for each prompt whether it ends in the opening thinking tag.

    Args:
        tokenizer: Only read.
        prompts: Token ids of each prompt, not padded on the right.
        thinking_tag: The opening tag.
    """
    tails = [[int(token) for token in row[-_TAIL:]] for row in prompts]
    return [opens_thinking(text, thinking_tag) for text in tokenizer.batch_decode(tails, skip_special_tokens=False)]
