"""Cutting a teacher prompt to its longest length: by sections (the default), or by the authors' hard cuts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from sdpo_plugins.errors import DataError, PluginError
from sdpo_plugins.reprompt.rendering import Render
from sdpo_plugins.types import Section, TeacherContext

__all__ = ["Cut", "cut_prompt", "keep_part", "longest_fitting"]

_ORDER = ("demonstration", "feedback")


@dataclass(frozen=True)
class Cut:
    """A prompt that fits.

    Args:
        ids: Token ids, at most the limit.
        messages: What `ids` encode; after a hard cut, what they encoded before it.
        active: False if nothing of the demonstration and the feedback is left.
        removed: Tokens taken away, by "demonstration", "feedback" or "prompt" (hard cuts).
    """

    ids: list[int]
    messages: Any
    active: bool
    removed: dict[str, int] = field(default_factory=dict)


def cut_prompt(context: TeacherContext, ids: list[int], render: Render, limit: int, mode: str, row: int | None) -> Cut:
    """Cut a prompt that is longer than the limit.

    "sections" shortens the demonstration first (its end is kept: the answer stands last), then the feedback (its
    beginning is kept: the error stands first). System prompt, question, instruction and generation prompt are never
    touched; where they alone leave no room, the rollout becomes inactive. "left" and "right" take tokens from that
    side whatever they are, as the authors do ("right" takes the generation prompt); "error" refuses. The prompt of an
    inactive rollout adds no loss and is cut on the left, only to bound its length.

    Args:
        context: The context.
        ids: Its tokens, more than `limit`.
        render: Tokenises messages or a string.
        limit: Longest length in tokens.
        mode: "sections", "left", "right" or "error".
        row: The rollout's position, for errors.

    Returns:
        The cut prompt.

    Raises:
        DataError: Mode "error".
        PluginError: The context has sections but no way to write them again.
    """
    excess = len(ids) - limit
    if not context.active:
        return Cut(ids[excess:], context.messages, False)
    if mode == "error":
        where = "" if row is None else f" of row {row}"
        raise DataError(
            f"The teacher prompt{where} has {len(ids)} tokens; `max_reprompt_len` is {limit} and `reprompt_truncation` "
            "is 'error'. Raise `max_reprompt_len`, or let 'sections' shorten demonstration and feedback."
        )
    if mode == "left":
        return Cut(ids[excess:], context.messages, True, {"prompt": excess})
    if mode == "right":
        return Cut(ids[:limit], context.messages, True, {"prompt": excess})
    return _cut_sections(context, ids, render, limit)


def keep_part(section: Section, characters: int, window: int = 40) -> str:
    """Shorten a section's text, at the border of a word where one is near.

    Args:
        section: A demonstration keeps its end, feedback its beginning.
        characters: How many characters may stay.
        window: How many more may be given up to reach white space: half a number is worse than none.

    Returns:
        The text that stays, at most `characters` long.

    Example:
        >>> keep_part(Section("demonstration", "7*8 is 56"), 4)
        '56'
    """
    text = section.text
    if characters >= len(text):
        return text
    if characters <= 0:
        return ""
    if section.kind == "demonstration":
        start = len(text) - characters
        if not text[start - 1].isspace():
            start = next((i for i in range(start, min(start + window, len(text))) if text[i].isspace()), start)
        return text[start:].lstrip()
    end = characters
    if not text[end].isspace():
        end = next((i for i in range(end, max(end - window, 0), -1) if text[i - 1].isspace()), end)
    return text[:end].rstrip()


def longest_fitting(
    length_at: Callable[[int], int], total: int, limit: int, shortest: int, longest: int, *, calls: int = 12
) -> int:
    """Find how many of `total` characters fit, by interpolation and then bisection.

    Args:
        length_at: Tokens of the whole prompt if that many characters stay; roughly rising.
        total: Characters of the whole text.
        limit: Longest length in tokens.
        shortest: `length_at(0)`, at most `limit`.
        longest: `length_at(total)`, more than `limit`.
        calls: Most evaluations of `length_at`.

    Returns:
        A number whose length was seen to be within `limit`; typically within half a percent of it.

    Example:
        >>> longest_fitting(lambda n: 10 + n, 100, 60, 10, 110)
        50
    """
    slack = limit // 200
    low, low_length, high, high_length = 0, shortest, total, longest
    for call in range(calls):
        if high - low <= 1 or limit - low_length <= slack:
            break
        share = (limit - low_length) / max(high_length - low_length, 1) if call < 4 else 0.5
        middle = min(max(low + int(share * (high - low)), low + 1), high - 1)
        length = length_at(middle)
        if length <= limit:
            low, low_length = middle, length
        else:
            high, high_length = middle, length
    return low


def _cut_sections(context: TeacherContext, ids: list[int], render: Render, limit: int) -> Cut:
    if context.sections and context.rebuild is None:
        raise PluginError(
            "A teacher context is too long and names sections, but has no `rebuild` to write it again with shorter "
            "ones. The reprompter must set `TeacherContext.rebuild`, or leave `sections` empty."
        )
    rebuild = context.rebuild
    texts = [section.text for section in context.sections]
    messages = context.messages
    removed = dict.fromkeys(_ORDER, 0)
    positions = sorted(range(len(texts)), key=lambda position: _ORDER.index(context.sections[position].kind))
    for position in positions:
        assert rebuild is not None
        section, before = context.sections[position], len(ids)
        rendered: dict[str, tuple[Any, list[int]]] = {}

        def length_at(characters: int, position: int = position, rendered: Any = rendered) -> int:
            part = keep_part(context.sections[position], characters)
            if part not in rendered:
                changed = rebuild([*texts[:position], part, *texts[position + 1 :]])
                rendered[part] = (changed, render(changed))
            return len(rendered[part][1])

        shortest = length_at(0)
        characters = 0
        if shortest <= limit:
            characters = longest_fitting(length_at, len(section.text), limit, shortest, before)
        texts[position] = keep_part(section, characters)
        messages, ids = rendered[texts[position]]
        removed[section.kind] += before - len(ids)
        if len(ids) <= limit:
            break
    fits = len(ids) <= limit
    active = fits and any(text.strip() for text in texts)
    return Cut(ids if fits else ids[len(ids) - limit :], messages, active, removed)
