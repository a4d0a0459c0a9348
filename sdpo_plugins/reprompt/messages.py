"""Reading prompts (chat messages or strings) and writing the teacher's text into a copy of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sdpo_plugins.errors import DataError
from sdpo_plugins.reprompt.templates import Template
from sdpo_plugins.types import Message

__all__ = ["copy_prompt", "prompt_problem", "write_prompt"]

_LAST_ROLES = ("user", "tool")


def prompt_problem(prompt: Any) -> str | None:
    """Say why a teacher context cannot be made of a prompt, or return None.

    Args:
        prompt: A string, or chat messages whose last is a user or tool turn.

    Returns:
        One sentence, or None for a good prompt.

    Example:
        >>> prompt_problem([{"role": "assistant", "content": "Hi"}])[:55]
        "the prompt ends in a message of role 'assistant', but m"
    """
    if isinstance(prompt, str):
        return None
    if isinstance(prompt, Mapping) or not hasattr(prompt, "__len__") or not hasattr(prompt, "__iter__"):
        return f"a prompt must be a string or a list of chat messages, got {type(prompt).__name__}."
    if not len(prompt):
        return "the prompt has no messages, but must end in a user or tool turn."
    for message in prompt:
        if not isinstance(message, Mapping) or "role" not in message:
            return (
                "each message of a prompt must be a mapping with `role` and `content`, got "
                f"{type(message).__name__} {message!r:.80}."
            )
    last = list(prompt)[-1]
    if last["role"] not in _LAST_ROLES:
        return (
            f"the prompt ends in a message of role {last['role']!r}, but must end in a user or tool turn, for the "
            "model to answer. Move the answer out of the prompt."
        )
    return _content_problem(last.get("content"))


def copy_prompt(prompt: str | Sequence[Message]) -> str | list[dict[str, Any]]:
    """Copy a prompt so that changing the copy's messages and content lists leaves the original alone.

    Args:
        prompt: A string or chat messages.

    Returns:
        The copy; images and other objects in it are the same objects.
    """
    return prompt if isinstance(prompt, str) else [_copy_message(message) for message in prompt]


def write_prompt(
    prompt: str | Sequence[Message], template: Template, *, solution: str, feedback: str
) -> str | list[dict[str, Any]]:
    """Put question, solution and feedback together by the template, in the place of the last user message.

    All messages but the last stay. In a content list the parts that are no text (images, …) stay where they stand,
    and the template's text joins the text parts beside it. After a tool's turn the whole conversation stays, and the
    template becomes a user message of its own with an empty `{prompt}`: the last question stands further up, and a
    tool's output is no place for a solution.

    Args:
        prompt: A string or chat messages, without a `prompt_problem`.
        template: The template with `{prompt}`, `{solution}` and `{feedback}`.
        solution: The filled solution section, or "".
        feedback: The filled feedback section, or "".

    Returns:
        A string for a string, else new messages.

    Example:
        >>> from sdpo_plugins.reprompt.templates import parse_template
        >>> write_prompt("2+2?", parse_template("{prompt}{solution}{feedback}"), solution=" 4", feedback="")
        '2+2? 4'
    """
    if isinstance(prompt, str):
        return template.fill(prompt=prompt, solution=solution, feedback=feedback)
    *before, last = [_copy_message(message) for message in prompt]
    if last["role"] == "tool":
        text = template.fill(prompt="", solution=solution, feedback=feedback).lstrip("\n")
        return [*before, last, {"role": "user", "content": text}]
    return [*before, {**last, "content": _fill_content(last["content"], template, solution, feedback)}]


def _fill_content(content: Any, template: Template, solution: str, feedback: str) -> Any:
    if isinstance(content, str):
        return template.fill(prompt=content, solution=solution, feedback=feedback)
    words = "".join(_text_of(part) or "" for part in content)
    head, tail = template.around("prompt", prompt=words, solution=solution, feedback=feedback)
    parts: list[Any] = []
    pending = head
    for part in content:
        text = _text_of(part)
        if text is not None:
            pending += text
            continue
        if pending:
            parts.append({"type": "text", "text": pending})
            pending = ""
        parts.append(part)
    parts.append({"type": "text", "text": pending + tail})
    return parts


def _text_of(part: Any) -> str | None:
    if isinstance(part, str):
        return part
    return part["text"] if part.get("type") == "text" else None


def _content_problem(content: Any) -> str | None:
    if isinstance(content, str):
        return None
    wanted = "the content of the last message must be a text or a list of parts such as {'type': 'text', 'text': …}"
    if not isinstance(content, (list, tuple)):
        return f"{wanted}, got {type(content).__name__}."
    for part in content:
        is_part = isinstance(part, str) or (isinstance(part, Mapping) and "type" in part)
        if not is_part or (
            not isinstance(part, str) and part["type"] == "text" and not isinstance(part.get("text"), str)
        ):
            return f"{wanted}, got the part {part!r:.80}."
    return None


def _copy_message(message: Message) -> dict[str, Any]:
    copied = dict(message)
    content = copied.get("content")
    if isinstance(content, (list, tuple)):
        copied["content"] = [dict(part) if isinstance(part, Mapping) else part for part in content]
    return copied


def raise_prompt_problem(prompt: Any, row: int) -> None:
    """Raise a `DataError` that names the row if the prompt has a problem."""
    problem = prompt_problem(prompt)
    if problem is not None:
        raise DataError(f"Row {row}: {problem}")
