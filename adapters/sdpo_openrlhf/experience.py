"""OpenRLHF's experience maker, which also writes what the teacher reads before each response."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from openrlhf.trainer.ppo_utils.experience import Experience
from openrlhf.trainer.ppo_utils.experience_maker import RemoteExperienceMaker
from torch import Tensor

from sdpo_openrlhf.feedback import shortened
from sdpo_openrlhf.fields import ACTIVE, FEEDBACK, SUCCESS, TEACHER_PROMPT
from sdpo_openrlhf.prompts import PromptStyle, prompt_style
from sdpo_plugins.config import SDPOConfig
from sdpo_plugins.errors import DataError, HostError
from sdpo_plugins.health import HealthMonitor
from sdpo_plugins.plugins import build_reprompter, extra_metrics
from sdpo_plugins.reprompt import EncodedContexts, decode_responses, encode_contexts, is_success, thinking_opened
from sdpo_plugins.types import Rollout

__all__ = ["SDPOExperienceMaker", "Sample", "attach", "rollouts_of", "samples_of"]

_CUT_PROMPTS = (
    "{} of {} prompts are longer than `--data.max_len` less `--rollout.max_new_tokens`, and OpenRLHF cut their "
    "beginning off. The teacher reads them whole; its prompts should differ from the student's by demonstration and "
    "feedback alone. Raise `--data.max_len`, or leave long prompts out."
)
_OTHER_PROMPTS = (
    "{} of {} prompts are not what the dataset's question is rendered to: an agent changes them in its `reset`, or the "
    "chat template renders another text each time. The teacher reads the dataset's question; its prompts should differ "
    "from the student's by demonstration and feedback alone."
)


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
    """

    prompt: str
    prompt_ids: list[int]
    response_ids: list[int]
    action_tokens: int
    reward: float
    feedback: str
    values: Mapping[str, float]


class SDPOExperienceMaker(RemoteExperienceMaker):
    """Puts teacher prompts, and which rows are active and succeeded, into each experience's `info`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.sdpo_config = SDPOConfig.from_mapping(self.args.sdpo)
        self.health = HealthMonitor()
        self.sdpo_metrics: dict[str, float] = {}
        self._told: set[str] = set()

    @cached_property
    def _reprompter(self) -> Callable[[Sequence[Rollout]], Any]:
        return build_reprompter(self.sdpo_config)

    @cached_property
    def _style(self) -> PromptStyle:
        return prompt_style(self.strategy, self.tokenizer)

    @torch.no_grad()
    def make_experience(self, samples_list: list[Experience]) -> list[Experience]:
        """Do the host's part, then SDPO's; a reward model has judged by then, and nothing has shaped its rewards.

        Args:
            samples_list: Micro-batches, their rows in any order.
        """
        experiences: list[Experience] = super().make_experience(samples_list)
        if self.sdpo_config.enabled:
            self.teach(experiences)
        else:
            for experience in experiences:
                del experience.info[FEEDBACK]
        return experiences

    def warn(self, messages: Sequence[str]) -> None:
        """Print what the user should know."""
        for message in messages:
            print(f"SDPO: {message}", flush=True)

    def teach(self, experiences: Sequence[Experience]) -> None:
        """Put SDPO's entries into each `info`, in the place of the feedback; note metrics, and warn.

        Args:
            experiences: Judged.
        """
        config, style = self.sdpo_config, self._style
        samples = samples_of(experiences)
        rollouts = rollouts_of(samples, style, self.tokenizer, config, self.args.rollout.n_samples_per_prompt)
        contexts = self._reprompter(rollouts)
        encoded = encode_contexts(contexts, self.tokenizer, config, render=style.render(config), skip_inactive=True)
        attach(experiences, rollouts, encoded, config, self.tokenizer.pad_token_id)
        self.sdpo_metrics = {**contexts.metrics, **encoded.metrics, **extra_metrics(config, rollouts, contexts)}
        answered = [sample for sample in samples if sample.action_tokens]
        cut, other = style.unlike([row.prompt for row in answered], [row.prompt_ids for row in answered])
        for count, message in ((cut, _CUT_PROMPTS), (other, _OTHER_PROMPTS)):
            if count and message not in self._told:
                self._told.add(message)
                self.warn([message.format(count, len(answered))])
        length = sum(sample.action_tokens for sample in answered) / max(1, len(answered))
        self.warn(self.health.batch(self.sdpo_metrics, length))


def samples_of(experiences: Sequence[Experience]) -> list[Sample]:
    """Return the rows of micro-batches in the order in which they were sampled: a question's answers one by one.

    Args:
        experiences: With the host's `index` of each row.

    Raises:
        DataError: A reward is not finite, or some rows lack a value that others have.
    """
    found: dict[int, Sample] = {}
    for experience in experiences:
        for row, index in enumerate(experience.index):
            found[index] = _sample(experience, row)
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
        Rollout(
            group_id=at // group_size,
            prompt=style.question(sample.prompt),
            response=texts[at],
            reward=sample.reward,
            feedback=sample.feedback or None,
            rewards=sample.values,
            # Without a sampled token, because the prompt filled the context, it can neither teach nor learn.
            is_padding=sample.action_tokens == 0,
            thinking_opened=opened[at],
        )
        for at, sample in enumerate(samples)
    ]


def attach(
    experiences: Sequence[Experience],
    rollouts: Sequence[Rollout],
    encoded: EncodedContexts,
    config: SDPOConfig,
    filler: int,
) -> None:
    """Put into each experience's `info` what the policy actors need, in the place of the feedback.

    Args:
        experiences: With the host's `index` of each row.
        rollouts: In the order of that index.
        encoded: The teacher's prompts, in the same order.
        config: The SDPO options.
        filler: A token for inactive rows, which are not scored; they only need a prompt that could be.
    """
    prompts = [torch.tensor(context.ids or [filler], dtype=torch.int64) for context in encoded.contexts]
    active = torch.tensor(encoded.self_distillation_mask)
    success = torch.tensor([float(is_success(rollout, config, row)) for row, rollout in enumerate(rollouts)])
    for experience in experiences:
        rows = list(experience.index)
        experience.info.pop(FEEDBACK, None)
        experience.info[TEACHER_PROMPT] = [prompts[row] for row in rows]
        experience.info[ACTIVE] = active[rows]
        experience.info[SUCCESS] = success[rows]


def _sample(experience: Experience, row: int) -> Sample:
    ids = experience.sequences[row][experience.attention_mask[row].bool()].tolist()
    # Place a of the mask stands for token a + 1.
    sampled = experience.action_mask[row].nonzero().squeeze(1)
    first = int(sampled[0]) + 1 if len(sampled) else len(ids)
    reward = float(experience.rewards[row].flatten()[0])
    if not math.isfinite(reward):
        raise DataError(
            f"The reward of the prompt {shortened(experience.prompts[row])} is {reward}: advantages and successes of "
            "its whole group would be undefined. Look at the reward model."
        )
    return Sample(
        prompt=experience.prompts[row],
        prompt_ids=ids[:first],
        response_ids=ids[first:],
        action_tokens=len(sampled),
        reward=reward,
        feedback=experience.info[FEEDBACK][row],
        values=_values(experience, row),
    )


def _values(experience: Experience, row: int) -> dict[str, float]:
    rows = len(experience.sequences)
    values = {}
    for name, value in experience.info.items():
        if not isinstance(value, Tensor):
            continue
        if len(value) != rows:
            raise DataError(
                f"Only {len(value)} of {rows} samples have the extra log {name!r}. A reward function or an agent must "
                "give the same names in `extra_logs` for every response."
            )
        values[name] = float(value[row].flatten()[0])
    return values


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
