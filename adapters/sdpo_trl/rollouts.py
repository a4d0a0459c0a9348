"""From what TRL generated and scored to the core's rollouts, groups complete even where they span ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import gather_object

from sdpo_plugins.types import Rollout

__all__ = ["ScoredBatch", "batch_rollouts", "total_rewards"]


@dataclass(frozen=True)
class ScoredBatch:
    """One rank's share of a generation batch, just scored.

    Args:
        prompts: Chat messages or strings, one for each completion.
        responses: Decoded completions.
        feedback: Feedback texts, or None where there is none.
        thinking_opened: Whether the prompt's template already opened the thinking part.
        rewards: Rewards of all ranks [world·B, functions]; NaN means that the function did not judge the completion.
        lengths: Tokens of each completion.
        cut_off: Whether each ended without an end token; None if it has no tokens.
    """

    prompts: Sequence[Any]
    responses: Sequence[str]
    feedback: Sequence[str | None]
    thinking_opened: Sequence[bool]
    rewards: torch.Tensor
    lengths: Sequence[int] = ()
    cut_off: Sequence[bool | None] = ()


def total_rewards(rewards: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Return the weighted sum over reward functions, NaN where none of them judged.

    Args:
        rewards: [N, functions], NaN for "not judged".
        weights: [functions].

    Returns:
        [N].

    Example:
        >>> total_rewards(torch.tensor([[1.0, 2.0], [float("nan"), 4.0]]), torch.tensor([1.0, 0.5])).tolist()
        [2.0, 2.0]
    """
    total = (rewards * weights.to(rewards).unsqueeze(0)).nansum(dim=1)
    return total.masked_fill(torch.isnan(rewards).all(dim=1), float("nan"))


def batch_rollouts(
    batch: ScoredBatch, names: Sequence[str], weights: torch.Tensor, group_size: int, rank: int
) -> tuple[list[Rollout], slice]:
    """Assemble the rollouts of all ranks, so that a group cut by a rank boundary still shares its demonstrations.

    Every rank must call this together.

    Args:
        batch: This rank's share.
        names: Names of the reward functions.
        weights: Their weights [functions].
        group_size: Rollouts of one question; they are consecutive over the ranks.
        rank: This process's index.

    Returns:
        All rollouts in global order, and which of them are this rank's.
    """
    local = [
        {"prompt": _text_only(prompt), "response": response, "feedback": feedback, "opened": opened}
        for prompt, response, feedback, opened in zip(
            batch.prompts, batch.responses, batch.feedback, batch.thinking_opened, strict=True
        )
    ]
    rows = gather_object(local)
    mine = slice(rank * len(local), (rank + 1) * len(local))
    # The gathered prompts have lost their pictures; this rank's own are put back.
    prompts = [row["prompt"] for row in rows]
    prompts[mine] = list(batch.prompts)
    totals = total_rewards(batch.rewards, weights).tolist()
    parts = batch.rewards.tolist()
    rollouts = [
        Rollout(
            group_id=index // group_size,
            prompt=prompts[index],
            response=row["response"],
            reward=totals[index],
            feedback=row["feedback"],
            rewards=dict(zip(names, parts[index], strict=True)),
            thinking_opened=row["opened"],
        )
        for index, row in enumerate(rows)
    ]
    return rollouts, mine


def _text_only(prompt: Any) -> Any:
    if isinstance(prompt, str):
        return prompt
    return [{**message, "content": _text_parts(message.get("content"))} for message in prompt]


def _text_parts(content: Any) -> Any:
    if not isinstance(content, list):
        return content
    return [part for part in content if not isinstance(part, dict) or part.get("type") == "text"]
