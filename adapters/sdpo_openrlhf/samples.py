"""OpenRLHF's sample generator, which also carries feedback texts, and keeps the order in which questions were asked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from openrlhf.trainer.ppo_utils.experience import Experience
from openrlhf.trainer.ppo_utils.samples_generator import SamplesGenerator

from sdpo_openrlhf.feedback import checked_response
from sdpo_openrlhf.fields import FEEDBACK

__all__ = ["SDPOSamplesGenerator", "in_order_of_questions"]


class SDPOSamplesGenerator(SamplesGenerator):
    """Takes `feedback` out of what a reward function or an agent returns, before the host makes tensors of the rest.

    The host puts a question's answers into the batch when they are ready, so that rows, and with them the optimizer
    steps of a batch, would depend on the clock. Here they stand in the order of the questions.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._asked: list[str] = []

    def _generate_vllm(self, *args: Any, **kwargs: Any) -> Any:
        self._asked = []
        experiences, *rest = super()._generate_vllm(*args, **kwargs)
        size = kwargs.get("n_samples_per_prompt", self.args.rollout.n_samples_per_prompt)
        return (in_order_of_questions(experiences, self._asked, size), *rest)

    def _dispatch_prompts_to_vllm(self, prompts: list[str], *args: Any, **kwargs: Any) -> Any:
        self._asked += prompts
        return super()._dispatch_prompts_to_vllm(prompts, *args, **kwargs)

    def _process_response_into_experience(self, response: Any, **generate_kwargs: Any) -> Experience:
        # The host names an agent as its reward URL too.
        checked, text = checked_response(response, judged=bool(self.args.reward.remote_url))
        experience = super()._process_response_into_experience(checked, **generate_kwargs)
        experience.info[FEEDBACK] = [text]
        return experience


def in_order_of_questions(experiences: Sequence[Experience], asked: Sequence[str], size: int) -> list[Experience]:
    """Put groups of answers into the order in which their questions were asked; a group stays as it is.

    Args:
        experiences: Of one row each; `size` consecutive ones answer the same question.
        asked: Prompts, in order. Of one that was asked twice, the groups are ordered by what was answered.
        size: Answers to each question.
    """
    places = {prompt: place for place, prompt in reversed(list(enumerate(asked)))}
    groups = [list(experiences[start : start + size]) for start in range(0, len(experiences), size)]

    def key(group: list[Experience]) -> tuple[int, list[list[int]]]:
        return places.get(group[0].prompts[0], len(asked)), [row.sequences[0].tolist() for row in group]

    return [row for group in sorted(groups, key=key) for row in group]
