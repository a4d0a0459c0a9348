"""How good is the teacher? Now and then it answers the batch's questions itself, behind its own contexts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sdpo_plugins.config import SDPOConfig
from sdpo_plugins.modes import evaluating
from sdpo_plugins.reprompt import is_success
from sdpo_plugins.teacher import Teacher, local_tensors
from sdpo_plugins.types import Rollout
from sdpo_trl.forward import is_sharded
from sdpo_trl.rollouts import total_rewards

__all__ = ["TeacherProbe", "as_turns", "one_per_question", "successes", "teacher_answers"]


@dataclass
class TeacherProbe:
    """Samples from the teacher every n rollout batches.

    A teacher that loses its ability to use its context has nothing left to teach, and the loss does not show it.

    Args:
        every: Rollout batches between two measurements; 0: never.
    """

    every: int
    seen: int = 0

    def due(self) -> bool:
        """Count one rollout batch and say whether it is to be measured; the first one is."""
        self.seen += 1
        return self.every > 0 and (self.seen - 1) % self.every == 0


def one_per_question(active: Sequence[float], group_size: int, rank: int) -> list[int]:
    """Return the first active row of each question.

    Args:
        active: Truth values of this rank's rows.
        group_size: Rows of one question, consecutive over ranks.
        rank: This process's index; ranks hold equally many rows.

    Returns:
        Row indices.

    Example:
        >>> one_per_question([False, True, True, True], group_size=2, rank=0)
        [1, 2]
    """
    seen: set[int] = set()
    rows = []
    for row, is_active in enumerate(active):
        question = (rank * len(active) + row) // group_size
        if is_active and question not in seen:
            seen.add(question)
            rows.append(row)
    return rows


@torch.no_grad()
def teacher_answers(
    module: nn.Module, teacher: Teacher, prompt_ids: Tensor, prompt_mask: Tensor, generation_config: Any
) -> list[list[int]]:
    """Sample one answer of the teacher behind each of its prompts, without moving the run's random numbers.

    Args:
        module: The bare model.
        teacher: Its weights are put into the model for the time of generation.
        prompt_ids: [R, P'], left-padded teacher prompts.
        prompt_mask: [R, P'].
        generation_config: As for the rollouts.

    Returns:
        R lists of token ids, without padding and what follows the end.
    """
    generate: Callable[..., Tensor] = module.generate  # type: ignore[assignment]
    with torch.random.fork_rng(), evaluating(module), teacher.applied(local_tensors(module)):
        output = generate(
            input_ids=prompt_ids,
            attention_mask=prompt_mask,
            generation_config=generation_config,
            # Where weights are gathered from all ranks, none may stop before the others.
            synced_gpus=is_sharded(module),
        )
    ends = generation_config.eos_token_id
    stop = set(ends) if isinstance(ends, (list, tuple)) else {ends}
    return [_until(row, stop) for row in output[:, prompt_ids.size(1) :].tolist()]


def as_turns(prompts: Sequence[Any], texts: Sequence[str]) -> list[Any]:
    """Return answers in the form that reward functions expect: a string, or a list with one assistant turn."""
    return [
        text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]
        for prompt, text in zip(prompts, texts, strict=True)
    ]


def successes(rewards: Tensor, names: Sequence[str], weights: Tensor, config: SDPOConfig) -> list[bool]:
    """Say which answers succeeded.

    Args:
        rewards: [N, functions], NaN for "not judged".
        names: Names of the reward functions.
        weights: Their weights [functions].
        config: Says how success is judged.
    """
    totals = total_rewards(rewards, weights).tolist()
    return [
        is_success(Rollout(0, "", "", total, rewards=dict(zip(names, row, strict=True))), config)
        for total, row in zip(totals, rewards.tolist(), strict=True)
    ]


def _until(ids: list[int], stop: set[int]) -> list[int]:
    for position, token in enumerate(ids):
        if token in stop:
            return ids[: position + 1]
    return ids
