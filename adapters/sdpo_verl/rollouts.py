"""From verl's rows in TransferQueue to rollouts, and from teacher contexts to fields of the training batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from sdpo_plugins.config import SDPOConfig
from sdpo_plugins.reprompt import (
    EncodedContexts,
    decode_responses,
    encode_contexts,
    encoding_metrics,
    is_success,
    thinking_opened,
)
from sdpo_plugins.reprompt.rendering import Render
from sdpo_plugins.types import Rollout, TeacherContexts
from sdpo_verl.jagged import nested

__all__ = ["FIELDS", "idle_rows", "rollouts_of", "teacher_fields"]

FIELDS = ["uid", "raw_prompt", "prompts", "responses", "rm_scores", "extra_fields"]
"""What is read of each row."""


def idle_rows(keys: Sequence[str], padding: Sequence[bool]) -> list[bool]:
    """Say which rows neither teach nor learn: those that fill the batch up, and all but a session's last output.

    An agent loop may cut a session into several outputs, which share the last one's reward: as rows of their own they
    would demonstrate for each other. verl's GRPO counts the last one alone as well.

    Args:
        keys: verl's keys of the rows, `{uid}_{session}_{index}`.
        padding: Which rows only fill the batch up.

    Example:
        >>> idle_rows(["7c_0_0", "7c_0_1", "7c_1_0", "pad_0_0"], [False, False, False, True])
        [True, False, False, True]
    """
    last: dict[str, int] = {}
    for at, (key, skip) in enumerate(zip(keys, padding, strict=True)):
        session, index = key.rsplit("_", 1)
        if not skip and (session not in last or int(index) > int(keys[last[session]].rsplit("_", 1)[1])):
            last[session] = at
    answers = set(last.values())
    return [at not in answers for at in range(len(keys))]


def rollouts_of(data: Mapping[str, Any], idle: Sequence[bool], tokenizer: Any, config: SDPOConfig) -> list[Rollout]:
    """Return one rollout for each row.

    Args:
        data: The fields `FIELDS`; texts and mappings may come as any kind of list.
        idle: Which rows are idle, see `idle_rows`.
        tokenizer: Only read.
        config: The SDPO options.
    """
    extras = [_extra(row) for row in data["extra_fields"]]
    texts = decode_responses(tokenizer, (row.tolist() for row in data["responses"].unbind()), config.thinking_tag)
    opened = thinking_opened(tokenizer, data["prompts"].unbind(), config.thinking_tag)
    rewards = [float(row.sum()) for row in data["rm_scores"].unbind()]
    rollouts = []
    for row, uid in enumerate(data["uid"]):
        said = extras[row]
        feedback = said.get("feedback")
        if feedback is not None and not isinstance(feedback, str):
            raise TypeError(
                f"`feedback` of a reward function must be a text or None, got {feedback!r} "
                f"({type(feedback).__name__}) for the prompt {uid}."
            )
        rollouts.append(
            Rollout(
                group_id=str(uid),
                prompt=[dict(message) for message in data["raw_prompt"][row]],
                response=texts[row],
                reward=rewards[row],
                feedback=feedback,
                rewards={name: float(value) for name, value in said.items() if isinstance(value, (int, float))},
                is_padding=bool(idle[row]),
                thinking_opened=opened[row],
            )
        )
    return rollouts


def teacher_fields(
    rollouts: Sequence[Rollout],
    contexts: TeacherContexts,
    responses: Sequence[Tensor],
    tokenizer: Any,
    config: SDPOConfig,
    renders: Sequence[Render],
) -> tuple[TensorDict, EncodedContexts]:
    """Return what the workers need of the teacher's side, and what it was made of.

    Args:
        rollouts: One for each row.
        contexts: The teacher contexts of these.
        responses: Token ids of each response.
        tokenizer: Only read.
        config: The SDPO options.
        renders: How each row's prompt becomes token ids.

    Returns:
        `teacher_input_ids`, `teacher_position_ids` (jagged), `sdpo_active` and `sdpo_success` [B]; the contexts in
        tokens, with the metrics of the rows that are no padding.
    """
    encoded = encode_contexts(contexts, tokenizer, config, render=renders, skip_inactive=True)
    ids = []
    for context, response in zip(encoded.contexts, responses, strict=True):
        # An inactive row is not scored; it only needs something that can be.
        prompt = context.ids or [int(tokenizer.eos_token_id)]
        ids.append(torch.cat([torch.tensor(prompt, dtype=torch.int64), response.to(torch.int64)]))
    counted = [not rollout.is_padding for rollout in rollouts]
    fields = {
        "teacher_input_ids": nested(ids),
        "teacher_position_ids": nested([torch.arange(len(row)) for row in ids]),
        "sdpo_active": torch.tensor([float(context.active) for context in encoded.contexts]),
        "sdpo_success": torch.tensor([float(is_success(rollout, config)) for rollout in rollouts]),
    }
    real = [context for context, counts in zip(encoded.contexts, counted, strict=True) if counts]
    was_active = [context.active for context, counts in zip(contexts.contexts, counted, strict=True) if counts]
    return TensorDict(fields, batch_size=len(ids)), EncodedContexts(
        encoded.contexts, encoding_metrics(real, was_active)
    )


def _extra(row: Any) -> Mapping[str, Any]:
    found = row.get("reward_extra_info", row) if isinstance(row, Mapping) else {}
    return found if isinstance(found, Mapping) else {}
