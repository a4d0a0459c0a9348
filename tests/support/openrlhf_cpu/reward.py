"""The embedded tasks' grader as a reward file of OpenRLHF: a score with feedback, as any user would write it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch

from sdpo_plugins.embedded import Question, load_task

_task = cache(load_task)
# OpenRLHF hands over what was sampled with its special tokens: the one that ends the turn is no part of an answer.
_END = "<|im_end|>"


def reward_func(queries: Sequence[str], prompts: Sequence[str], labels: Sequence[str], **_: Any) -> dict[str, Any]:
    """Score responses.

    Args:
        queries: Prompts with responses, special tokens included.
        prompts: The prompts alone.
        labels: JSON with `task`, `question`, `truth` and `subject`.

    Returns:
        `rewards` and `scores` (float tensors), and `extra_logs` with `acc` (the same) and `feedback` (texts, "" for a
        right answer).
    """
    rewards, texts = [], []
    for query, prompt, label in zip(queries, prompts, labels, strict=True):
        asked = json.loads(label)
        question = Question(asked["question"], asked["truth"], asked["subject"])
        reward, feedback = _task(asked["task"]).score(question, query[len(prompt) :].removesuffix(_END))
        rewards.append(reward)
        texts.append(feedback or "")
    scores = torch.tensor(rewards)
    return {"rewards": scores, "scores": scores, "extra_logs": {"acc": scores, "feedback": texts}}
