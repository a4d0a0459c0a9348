"""Teacher contexts to token ids within `max_reprompt_len`, with what had to be cut counted."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sdpo_plugins.config import SDPOConfig
from sdpo_plugins.reprompt.rendering import Render, make_render
from sdpo_plugins.reprompt.truncation import Cut, cut_prompt
from sdpo_plugins.types import TeacherContext, TeacherContexts

__all__ = ["EncodedContext", "EncodedContexts", "encode_context", "encode_contexts", "encoding_metrics"]


@dataclass(frozen=True)
class EncodedContext:
    """One teacher prompt in tokens; the response's own tokens go behind it.

    Args:
        ids: Token ids, at most `max_reprompt_len`; empty for an inactive context if these were skipped.
        active: Whether the rollout adds to the loss. False also if the context was active, but demonstration and
            feedback had to go entirely: the teacher would then read nothing that the student did not.
        messages: What was encoded in the end, for hosts that encode images along with it.
        truncated_tokens: Tokens removed, by "demonstration", "feedback", and "prompt" (hard cuts).
        cut: True if anything was removed from an active context.
        dropped: True if that made the rollout inactive.
    """

    ids: list[int]
    active: bool
    messages: str | list[dict[str, Any]] = field(repr=False)
    truncated_tokens: Mapping[str, int] = field(default_factory=dict)
    cut: bool = False
    dropped: bool = False


@dataclass(frozen=True)
class EncodedContexts:
    """The teacher prompts of a batch in tokens, in the order of its rollouts, and metrics of their encoding."""

    contexts: tuple[EncodedContext, ...]
    metrics: Mapping[str, float]

    @property
    def self_distillation_mask(self) -> list[float]:
        """1.0 where the rollout is active after encoding, else 0.0; use this one, not the one before encoding."""
        return [float(context.active) for context in self.contexts]

    @property
    def ids(self) -> list[list[int]]:
        """Token ids of each context, unpadded."""
        return [context.ids for context in self.contexts]


def encode_context(
    context: TeacherContext,
    tokenizer: Any,
    config: SDPOConfig,
    *,
    tools: Sequence[Any] | None = None,
    chat_template: str | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    add_special_tokens: bool = True,
    render: Render | None = None,
    skip_inactive: bool = False,
    row: int | None = None,
) -> EncodedContext:
    """Tokenise one teacher context, generation prompt included, cut to `max_reprompt_len` by `reprompt_truncation`.

    The tokenizer is left as it was. See `sdpo_plugins.reprompt.truncation.cut_prompt` for what each mode cuts.

    Args:
        context: What the teacher reads.
        tokenizer: A tokenizer or processor of transformers; not used if `render` is given.
        config: The options.
        tools: Tool schemas for the chat template.
        chat_template: A template to use in the place of the tokenizer's.
        chat_template_kwargs: The host's template arguments; `config.apply_chat_template_kwargs` wins over them.
        add_special_tokens: For plain-string prompts: whether the tokenizer adds its own, as it did for the student.
        render: `render(messages_or_string) -> ids` in the place of the tokenizer, for hosts that tokenise in their own
            way (images); it must write the generation prompt.
        skip_inactive: Give inactive contexts no ids, and spend nothing on them.
        row: The rollout's position, for errors.

    Returns:
        The ids, whether the rollout is still active, and what was cut.

    Raises:
        DataError: No chat template, a template that refuses the messages, or a prompt too long in mode "error".
        ConfigError: Template arguments that SDPO sets itself.

    Example:
        >>> context = TeacherContext(messages="2+2? 4", active=True)
        >>> encode_context(context, None, SDPOConfig(), render=lambda text: list(text.encode())).ids
        [50, 43, 50, 63, 32, 52]
    """
    if skip_inactive and not context.active:
        return EncodedContext([], False, context.messages)
    if render is None:
        render = make_render(
            tokenizer,
            config,
            tools=tools,
            chat_template=chat_template,
            chat_template_kwargs=chat_template_kwargs,
            add_special_tokens=add_special_tokens,
        )
    ids = render(context.messages)
    if len(ids) <= config.max_reprompt_len:
        return EncodedContext(ids, context.active, context.messages)
    done = cut_prompt(context, ids, render, config.max_reprompt_len, config.reprompt_truncation, row)
    return _encoded(done, context, skip_inactive)


def encode_contexts(
    contexts: TeacherContexts | Sequence[TeacherContext],
    tokenizer: Any,
    config: SDPOConfig,
    *,
    tools: Sequence[Any] | None = None,
    chat_template: str | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    add_special_tokens: bool = True,
    render: Render | Sequence[Render] | None = None,
    skip_inactive: bool = False,
) -> EncodedContexts:
    """Tokenise the teacher contexts of a batch; equal texts, frequent within a group, are tokenised once.

    Args:
        contexts: What `build_teacher_contexts` gave.
        tokenizer: As in `encode_context`, and so are the other arguments.
        config: The options.
        tools: Tool schemas, the same for all rows.
        chat_template: As in `encode_context`.
        chat_template_kwargs: As in `encode_context`.
        add_special_tokens: As in `encode_context`.
        render: As in `encode_context`; or one for each row, where rows show other tools.
        skip_inactive: As in `encode_context`.

    Returns:
        The encoded contexts in the same order, and the metrics of `encoding_metrics`.

    Raises:
        DataError: As `encode_context`, with the row.

    Example:
        >>> contexts = [TeacherContext(messages="2+2? 4", active=True)]
        >>> encode_contexts(contexts, None, SDPOConfig(), render=lambda text: list(text.encode())).ids
        [[50, 43, 50, 63, 32, 52]]
    """
    rows = contexts.contexts if isinstance(contexts, TeacherContexts) else tuple(contexts)
    if render is None:
        render = make_render(
            tokenizer,
            config,
            tools=tools,
            chat_template=chat_template,
            chat_template_kwargs=chat_template_kwargs,
            add_special_tokens=add_special_tokens,
        )
    renders = [render] * len(rows) if callable(render) else list(render)
    remembered = {one: _remember(one) for one in renders}
    encoded = [
        encode_context(context, tokenizer, config, render=remembered[one], skip_inactive=skip_inactive, row=row)
        for row, (context, one) in enumerate(zip(rows, renders, strict=True))
    ]
    was_active = [context.active for context in rows]
    return EncodedContexts(tuple(encoded), encoding_metrics(encoded, was_active))


def encoding_metrics(encoded: Sequence[EncodedContext], was_active: Sequence[bool] | None = None) -> dict[str, float]:
    """Return what the encoding cut, over the contexts that were active before it.

    Args:
        encoded: The encoded contexts.
        was_active: Whether each was active before encoding; None: those still active or dropped.

    Returns:
        `self_distillation/…`: `truncated_fraction` (something was cut), `truncated_tokens_mean` (tokens cut per
        context), of these `truncated_demonstration_tokens_mean`, `truncated_feedback_tokens_mean`;
        `dropped_too_long_fraction` (nothing was left, the rollout became inactive); `teacher_prompt_length_mean` and
        `_max` in tokens, over contexts still active.

    Example:
        >>> encoding_metrics([])["self_distillation/truncated_fraction"]
        0.0
    """
    if was_active is None:
        was_active = [context.active or context.dropped for context in encoded]
    counted = [context for context, before in zip(encoded, was_active, strict=True) if before]
    lengths = [len(context.ids) for context in counted if context.active]
    values = {
        "truncated_fraction": _mean([context.cut for context in counted]),
        "truncated_tokens_mean": _mean([sum(context.truncated_tokens.values()) for context in counted]),
        "truncated_demonstration_tokens_mean": _mean([_removed(context, "demonstration") for context in counted]),
        "truncated_feedback_tokens_mean": _mean([_removed(context, "feedback") for context in counted]),
        "dropped_too_long_fraction": _mean([context.dropped for context in counted]),
        "teacher_prompt_length_mean": _mean(lengths),
        "teacher_prompt_length_max": float(max(lengths, default=0)),
    }
    return {f"self_distillation/{name}": float(value) for name, value in values.items()}


def _encoded(done: Cut, context: TeacherContext, skip_inactive: bool) -> EncodedContext:
    return EncodedContext(
        ids=[] if skip_inactive and not done.active else done.ids,
        active=done.active,
        messages=done.messages,
        truncated_tokens=done.removed,
        cut=context.active,
        dropped=context.active and not done.active,
    )


def _remember(render: Render) -> Render:
    known: dict[str, list[int]] = {}

    def remembered(messages: Any) -> list[int]:
        try:
            key = json.dumps(messages)
        except TypeError:  # Images and other objects have no text to compare.
            return render(messages)
        if key not in known:
            known[key] = render(messages)
        return list(known[key])

    return remembered


def _removed(context: EncodedContext, kind: str) -> int:
    return context.truncated_tokens.get(kind, 0)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
