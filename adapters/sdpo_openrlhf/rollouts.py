"""The rows of OpenRLHF's experiences as samples, and the rollouts that the core reads."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from openrlhf.trainer.ppo_utils.experience import Experience
from torch import Tensor

from sdpo_openrlhf.feedback import shortened
from sdpo_openrlhf.fields import FEEDBACK
from sdpo_openrlhf.prompts import PromptStyle
from sdpo_plugins.config import SDPOConfig
from sdpo_plugins.errors import DataError, HostError
from sdpo_plugins.reprompt import decode_responses, thinking_opened
from sdpo_plugins.types import Rollout

__all__ = ["Sample", "rollouts_of", "sample_of", "samples_of"]


@dataclass(frozen=True)
class Sample:
    """One sampled answer as the host holds it, without padding.

    Args:
        prompt: The host's text of the prompt.
        prompt_ids: What the student read before its answer.
        response_ids: Everything from the first token it sampled on, an environment's turns included.
        action_tokens: How many of these it sampled.
        reward: Before length penalties and shaping.
        feedback: "" for none.
        values: The numbers in the host's `info`, by name.
        cut_off: Whether the length limit ended it; None if the host does not say.
    """

    prompt: str
    prompt_ids: list[int]
    response_ids: list[int]
    action_tokens: int
    reward: float
    feedback: str
    values: Mapping[str, float]
    cut_off: bool | None = None

    def rollout(self, group: int, question: Any, text: str, *, thinking_opened: bool = False) -> Rollout:
        """Return the rollout that it is.

        Args:
            group: Number of the question in the batch.
            question: Chat messages or a text.
            text: The decoded answer.
            thinking_opened: Whether the prompt's template had opened the thinking tag.
        """
        return Rollout(
            group_id=group,
            prompt=question,
            response=text,
            reward=self.reward,
            feedback=self.feedback or None,
            rewards=self.values,
            # Without a sampled token, because the prompt filled the context, it can neither teach nor learn.
            is_padding=self.action_tokens == 0,
            thinking_opened=thinking_opened,
        )


def samples_of(experiences: Sequence[Experience]) -> list[Sample]:
    """Return the rows of micro-batches in the order in which they were sampled: a question's answers one by one.

    Args:
        experiences: With the host's `index` of each row.

    Raises:
        DataError: A reward is not finite, or some rows lack a value that others have.
    """
    found: dict[int, Sample] = {}
    for experience in experiences:
        _check_logs(experience)
        for row, index in enumerate(experience.index):
            found[index] = sample_of(experience, row)
            _check_reward(found[index])
    return [found[index] for index in sorted(found)]


def rollouts_of(
    samples: Sequence[Sample], style: PromptStyle, tokenizer: Any, config: SDPOConfig, group_size: int
) -> list[Rollout]:
    """Return one rollout for each sample.

    Args:
        samples: In the order in which they were sampled.
        style: Knows the questions.
        tokenizer: Only read.
        config: The SDPO options.
        group_size: Answers to one question (`--rollout.n_samples_per_prompt`).

    Raises:
        DataError: A prompt is not known.
        HostError: Groups are not complete, or hold answers to different questions.
    """
    _check_groups(samples, group_size)
    texts = decode_responses(tokenizer, (sample.response_ids for sample in samples), config.thinking_tag)
    opened = thinking_opened(tokenizer, [sample.prompt_ids for sample in samples], config.thinking_tag)
    return [
        sample.rollout(at // group_size, style.question(sample.prompt), texts[at], thinking_opened=opened[at])
        for at, sample in enumerate(samples)
    ]


def sample_of(experience: Experience, row: int) -> Sample:
    """Return one row of a micro-batch, unchecked."""
    ids = experience.sequences[row][experience.attention_mask[row].bool()].tolist()
    # Place a of the mask stands for token a + 1.
    sampled = experience.action_mask[row].nonzero().squeeze(1)
    first = int(sampled[0]) + 1 if len(sampled) else len(ids)
    return Sample(
        prompt=experience.prompts[row],
        prompt_ids=ids[:first],
        response_ids=ids[first:],
        action_tokens=len(sampled),
        reward=float(experience.rewards[row].flatten()[0]),
        feedback=experience.info[FEEDBACK][row],
        values=_values(experience, row),
        cut_off=None if experience.truncated is None else bool(experience.truncated[row]),
    )


def _values(experience: Experience, row: int) -> dict[str, float]:
    rows = len(experience.sequences)
    return {
        name: float(value[row].flatten()[0])
        for name, value in experience.info.items()
        if isinstance(value, Tensor) and value.shape[:1] == (rows,)
    }


def _check_logs(experience: Experience) -> None:
    rows = len(experience.sequences)
    for name, value in experience.info.items():
        if isinstance(value, Tensor) and len(value) != rows:
            raise DataError(
                f"Only {len(value)} of {rows} samples have the extra log {name!r}. A reward function or an agent must "
                "give the same names in `extra_logs` for every response."
            )


def _check_reward(sample: Sample) -> None:
    if not math.isfinite(sample.reward):
        raise DataError(
            f"The reward of the prompt {shortened(sample.prompt)} is {sample.reward}: advantages and successes of its "
            "whole group would be undefined. Look at the reward model."
        )


def _check_groups(samples: Sequence[Sample], size: int) -> None:
    if len(samples) % size:
        raise HostError(
            f"The batch holds {len(samples)} samples, which is no multiple of `--rollout.n_samples_per_prompt` "
            f"({size}): SDPO cannot tell which of them answer the same question."
        )
    for start in range(0, len(samples), size):
        prompts = {sample.prompt for sample in samples[start : start + size] if sample.action_tokens}
        if len(prompts) > 1:
            raise HostError(
                f"Samples {start} to {start + size - 1} of the batch should answer the same question "
                f"(`--rollout.n_samples_per_prompt` is {size}), but their prompts differ: "
                f"{', '.join(shortened(prompt) for prompt in sorted(prompts)[:2])}. They would demonstrate for each "
                "other. An `AgentExecutor` of your own must return as `prompt` the text that it was given."
            )
