"""Taking the thinking part out of an answer, also where its tags are not a pair."""

from __future__ import annotations

import re

__all__ = ["closing_tag", "opens_thinking", "remove_thinking", "thinking_is_unclosed"]


def closing_tag(tag: str) -> str:
    """Return the closing tag of an opening one.

    Example:
        >>> closing_tag("<think>")
        '</think>'
    """
    return f"</{tag[1:]}"


def remove_thinking(text: str, tag: str, mode: str, opened: bool = False) -> str:
    """Return an answer without its thinking part.

    - "paired": each `<think>…</think>` and the whitespace behind it, as the authors do.
    - "tolerant": also everything up to a `</think>` whose opening tag stands in the prompt, and everything from a
      `<think>` that is never closed. Where nothing would remain, the latter two removals are undone one by one, so
      the answer is at worst what "paired" gives.
    - "strict": the same removals, even if nothing remains.

    Args:
        text: The decoded answer.
        tag: The opening tag; the closing tag has a slash behind the first character.
        mode: "paired", "tolerant" or "strict".
        opened: True if the prompt ends in the opening tag, so that the answer begins inside of the thinking part.

    Returns:
        What remains; possibly "".

    Raises:
        ValueError: Unknown mode.

    Example:
        >>> remove_thinking("7*8 is 56</think> 56", "<think>", "tolerant")
        '56'

    Source: lasgroup/SDPO for "paired"; the others answer the reports of unclosed and template-opened tags.
    """
    if mode not in ("paired", "tolerant", "strict"):
        raise ValueError(f"`mode` must be 'paired', 'tolerant' or 'strict', got {mode!r}.")
    paired = _without_pairs(text, tag)
    if mode == "paired":
        return paired
    without_head = _without_pairs(_without_opened_head(text, tag, opened), tag)
    full = _without_unclosed_tail(without_head, tag)
    if mode == "strict":
        return full if full.strip() else ""
    for candidate in (full, without_head, _without_unclosed_tail(paired, tag)):
        if candidate.strip():
            return candidate
    return paired


def thinking_is_unclosed(text: str, tag: str, opened: bool = False) -> bool:
    """Return True if an answer ends inside of a thinking part: the budget ran out, or the tag was forgotten.

    Args:
        text: The decoded answer.
        tag: The opening tag.
        opened: True if the prompt ends in the opening tag.

    Returns:
        Whether the last thinking part has no end.

    Example:
        >>> thinking_is_unclosed("<think>never", "<think>")
        True
    """
    start, end = text.rfind(tag), text.rfind(closing_tag(tag))
    return (opened and end < 0) or start > end


def opens_thinking(rendered_prompt: str, tag: str) -> bool:
    """Return True if a rendered prompt ends in the opening tag, so that answers begin inside of a thinking part.

    A tag elsewhere, say in the question or in a closed empty pair, does not count.

    Args:
        rendered_prompt: The text of the prompt, generation prompt included.
        tag: The opening tag.

    Returns:
        Whether the chat template opened the thinking part.

    Example:
        >>> opens_thinking("<|assistant|><think>\\n", "<think>")
        True
    """
    return rendered_prompt.rstrip().endswith(tag)


def _without_pairs(text: str, tag: str) -> str:
    return re.sub(rf"{re.escape(tag)}.*?{re.escape(closing_tag(tag))}\s*", "", text, flags=re.DOTALL)


def _without_opened_head(text: str, tag: str, opened: bool) -> str:
    close = closing_tag(tag)
    while True:
        end, start = text.find(close), text.find(tag)
        if end < 0:
            return "" if opened else text
        if not opened and 0 <= start < end:
            return text
        text = text[end + len(close) :].lstrip()
        opened = False


def _without_unclosed_tail(text: str, tag: str) -> str:
    start = text.find(tag)
    return text if start < 0 else text[:start].rstrip()
