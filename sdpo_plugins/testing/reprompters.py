"""The contract of a reprompter."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

from sdpo_plugins._catalogues import REPROMPTERS
from sdpo_plugins.config import SDPOConfig
from sdpo_plugins.testing._common import build_entry, sample_rollouts
from sdpo_plugins.types import Reprompter, Rollout, TeacherContext, TeacherContexts

__all__ = ["check_reprompter"]


def check_reprompter(
    entry: Reprompter, *, config: SDPOConfig | None = None, options: Mapping[str, Any] | None = None
) -> None:
    """Check that reprompt(rollouts) gives a context that can be tokenised for every rollout.

    One context each in the same order; chat prompts stay chat, strings strings; inactive rollouts keep their own
    prompt; padding is inactive; who demonstrates is another position of the same group; what truncation may shorten
    can be rewritten; metrics are finite numbers; rollouts unchanged; an empty batch is no error.

    Args:
        entry: The catalogue entry.
        config: The configuration to build it with; by default `SDPOConfig()`.
        options: The strategy's own options as a plain mapping.

    Raises:
        AssertionError: Says what does not hold.

    Example:
        >>> from sdpo_plugins.plugins import catalogue
        >>> check_reprompter(catalogue("reprompter")["template"])
    """
    name = f"the reprompter {entry.name!r}"
    reprompt = build_entry(entry, REPROMPTERS, config, options)
    rollouts = sample_rollouts()
    before = copy.deepcopy(rollouts)
    result = reprompt(rollouts)
    assert isinstance(result, TeacherContexts), f"{name} must return TeacherContexts, got {type(result).__name__}"
    assert rollouts == before, f"{name} changed the rollouts"
    assert len(result.contexts) == len(rollouts), (
        f"{name} must give one context for each of {len(rollouts)} rollouts, got {len(result.contexts)}"
    )
    for row, (rollout, context) in enumerate(zip(rollouts, result.contexts, strict=True)):
        _check_context(f"{name}, row {row},", rollouts, rollout, context)
    for key, value in result.metrics.items():
        assert isinstance(key, str) and isinstance(value, (int, float)) and math.isfinite(value), (
            f"{name} must give metrics as finite numbers by name, got {key!r}: {value!r}"
        )
    assert reprompt(rollouts) == result, f"{name} gave another result for the same rollouts"
    assert not reprompt([]).contexts, f"{name} must give no contexts for no rollouts"


def _check_context(where: str, rollouts: list[Rollout], rollout: Rollout, context: TeacherContext) -> None:
    assert isinstance(context, TeacherContext), f"{where} must be a TeacherContext, got {context!r}"
    if isinstance(rollout.prompt, str):
        assert isinstance(context.messages, str), f"{where} must be a string like its prompt, got {context.messages!r}"
    else:
        _check_chat(where, rollout.prompt, context.messages)
    if rollout.is_padding:
        assert not context.active, f"{where} is padding and must be inactive"
    if not context.active:
        own = rollout.prompt if isinstance(rollout.prompt, str) else list(rollout.prompt)
        assert context.messages == own, f"{where} is inactive and must keep its own prompt, got {context.messages!r}"
        assert context.demonstration_index is None and not context.feedback_used, (
            f"{where} is inactive, so it cannot have a demonstration or feedback"
        )
    _check_demonstration(where, rollouts, rollout, context)
    if context.sections and context.rebuild is not None:
        again = context.rebuild([section.text for section in context.sections])
        assert again == context.messages, f"{where} `rebuild` with the same texts must give the same messages"


def _check_chat(where: str, prompt: Any, messages: Any) -> None:
    well_formed = isinstance(messages, list) and all(
        isinstance(message, dict) and {"role", "content"} <= set(message) for message in messages
    )
    assert well_formed, f"{where} must be a list of messages with role and content, got {messages!r}"
    assert messages and messages[-1]["role"] in ("user", "tool"), (
        f"{where} must end in a user's or a tool's message, so that the assistant answers; got {messages[-1:]!r}"
    )
    own = any(message is original for message in messages for original in prompt)
    assert not own, f"{where} must copy the prompt's messages, not hand out the user's own"


def _check_demonstration(where: str, rollouts: list[Rollout], rollout: Rollout, context: TeacherContext) -> None:
    position = context.demonstration_index
    if position is None:
        return
    assert 0 <= position < len(rollouts), f"{where} `demonstration_index` {position} is outside of the batch"
    other = rollouts[position]
    assert other.group_id == rollout.group_id, (
        f"{where} question {rollout.group_id!r}, has a demonstration for another question, {other.group_id!r}"
    )
    assert not other.is_padding, f"{where} has a padding row as its demonstration"
