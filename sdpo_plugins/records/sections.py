"""The teacher's prompt cut into its parts: question, demonstration, feedback, and the template's own words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sdpo_plugins.types import Section, TeacherContext

__all__ = ["marked_prompt", "plain_text"]


def marked_prompt(messages: Any, prompt: Any, context: TeacherContext) -> list[dict[str, Any]]:
    """Say of each piece of a teacher prompt what it is.

    Args:
        messages: What the teacher read, after any truncation: chat messages or a string.
        prompt: The student's prompt.
        context: The context they were made from; its sections may have been shortened since.

    Returns:
        One mapping a message: `role` (None for a string), and `parts`, each with `kind` (question, demonstration,
        feedback, template, or other for messages that the student reads too) and `text`; the texts of a message joined
        are its text.

    Example:
        >>> context = TeacherContext("2+2? Hint: 4.", True, sections=(Section("demonstration", "4"),))
        >>> [(part["kind"], part["text"]) for part in marked_prompt(context.messages, "2+2?", context)[0]["parts"]]
        [('question', '2+2?'), ('template', ' Hint: '), ('demonstration', '4'), ('template', '.')]
    """
    if isinstance(messages, str):
        return [{"role": None, "parts": _parts(messages, plain_text(prompt), context.sections)}]
    # After a tool's turn the template is a message of its own, and the question stands further up.
    own = prompt[-1].get("content") if not isinstance(prompt, str) and len(messages) == len(prompt) else ""
    marked = [
        {"role": message.get("role"), "parts": [{"kind": "other", "text": plain_text(message.get("content"))}]}
        for message in messages[:-1]
    ]
    last = messages[-1]
    parts = _parts(plain_text(last.get("content")), plain_text(own), context.sections)
    return [*marked, {"role": last.get("role"), "parts": parts}]


def plain_text(content: Any) -> str:
    """Return the text of a message's content; of parts that are no text, their kind in brackets.

    Example:
        >>> plain_text([{"type": "text", "text": "What is on "}, {"type": "image", "image": object()}])
        'What is on [image]'
    """
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, Sequence):
        return "".join(_part_text(part) for part in content)
    return str(content)


def _part_text(part: Any) -> str:
    if isinstance(part, Mapping):
        return str(part["text"]) if part.get("type") == "text" and "text" in part else f"[{part.get('type', 'part')}]"
    return str(part)


def _parts(text: str, question: str, sections: Sequence[Section]) -> list[dict[str, str]]:
    """Find the question at the beginning, then each section in order, from the front."""
    marks: list[tuple[int, int, str]] = []
    at = text.find(question) if question.strip() else -1
    if at >= 0:
        marks.append((at, at + len(question), "question"))
    for section in sections:
        start = marks[-1][1] if marks else 0
        span = _find(text, section, start)
        if span is not None:
            marks.append((*span, section.kind))
    parts, end = [], 0
    for start, stop, kind in marks:
        if start > end:
            parts.append({"kind": "template", "text": text[end:start]})
        parts.append({"kind": kind, "text": text[start:stop]})
        end = stop
    if end < len(text):
        parts.append({"kind": "template", "text": text[end:]})
    return parts


def _find(text: str, section: Section, start: int) -> tuple[int, int] | None:
    whole = section.text
    if not whole.strip():
        return None
    at = text.find(whole, start)
    if at >= 0:
        return at, at + len(whole)
    # A shortened demonstration keeps its end, a shortened feedback its beginning.
    from_end = section.kind == "demonstration"
    low, high = 0, len(whole)
    while low < high:  # the longest remainder that stands in the text
        middle = (low + high + 1) // 2
        piece = whole[-middle:] if from_end else whole[:middle]
        low, high = (middle, high) if text.find(piece, start) >= 0 else (low, middle - 1)
    piece = (whole[-low:] if from_end else whole[:low]) if low else ""
    # A handful of characters may stand anywhere by chance.
    if len(piece.strip()) < min(8, len(whole.strip())):
        return None
    at = text.find(piece, start)
    return at, at + len(piece)
