"""Agent loops, reward functions and a reward manager, as users of verl write them; a run imports this file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import uuid4

from verl.experimental.agent_loop.agent_loop import AgentLoopBase, AgentLoopOutput
from verl.experimental.reward_loop.reward_manager.base import RewardManagerBase

from verl_cpu import reward

TOOL_SAYS = "The tool says: think again."
# What `ToolTurn` takes off the log-probabilities it reports.
UNDERSTATED = 0.5
BARREN_BATCHES = 5


class SecondThoughts(AgentLoopBase):
    """Each session asks with a mark of its own; the first of a question answers twice: two trajectories."""

    async def run(self, sampling_params: dict[str, Any], **kwargs: Any) -> list[AgentLoopOutput]:
        """Return one trajectory, or two."""
        session = int(kwargs["session_id"])
        trajectories = [await self._answer(sampling_params, kwargs["raw_prompt"], f" ({session})")]
        if session == 0:
            trajectories.append(await self._answer(sampling_params, kwargs["raw_prompt"], " (again)"))
        return trajectories

    async def _answer(self, sampling_params: dict[str, Any], prompt: Any, mark: str) -> AgentLoopOutput:
        messages = [*prompt[:-1], {**prompt[-1], "content": prompt[-1]["content"] + mark}]
        ids = await self.ct_build_initial_tokens(messages)
        answer = await self.server_manager.generate(
            request_id=uuid4().hex, prompt_ids=ids, sampling_params=sampling_params
        )
        return _output(ids, answer.token_ids, [1] * len(answer.token_ids), answer.log_probs, answer.extra_fields, 2)


class ToolTurn(AgentLoopBase):
    """Asks, lets a tool say something, asks again: one response with the tool's tokens in the middle."""

    async def run(self, sampling_params: dict[str, Any], **kwargs: Any) -> AgentLoopOutput:
        """Return the trajectory."""
        turn = {**sampling_params, "max_tokens": 6}
        ids = await self.ct_build_initial_tokens(list(kwargs["raw_prompt"]))
        first = await self.server_manager.generate(request_id=uuid4().hex, prompt_ids=ids, sampling_params=turn)
        said = self.tokenizer.apply_chat_template(
            [{"role": "tool", "content": TOOL_SAYS}], add_generation_prompt=True, tokenize=True, return_dict=False
        )
        second = await self.server_manager.generate(
            request_id=uuid4().hex, prompt_ids=[*ids, *first.token_ids, *said], sampling_params=turn
        )
        return _output(
            ids,
            [*first.token_ids, *said, *second.token_ids],
            [1] * len(first.token_ids) + [0] * len(said) + [1] * len(second.token_ids),
            [
                *(value - UNDERSTATED for value in first.log_probs),
                *[0.0] * len(said),
                *(value - UNDERSTATED for value in second.log_probs),
            ],
            second.extra_fields,
            4,
        )


def last_answer(data_source: str, solution_str: str, ground_truth: str, extra_info: Mapping[str, Any], **_: Any) -> Any:
    """Score what was answered after the tool, and show what was said before it in the feedback."""
    before, _, after = solution_str.partition(TOOL_SAYS)
    found = reward.compute_score(data_source, after.removeprefix("\nassistant\n").strip(), ground_truth, extra_info)
    before, said = before.removesuffix("tool\n"), found["feedback"]
    return {**found, "feedback": said and f"{said} At first it was {before.strip()!r}."}


class Barren(RewardManagerBase):
    """Nobody ever succeeds; only after `BARREN_BATCHES` batches does it say why.

    It is given what a reward model beside the actor is given: prompts and responses, no true answers.
    """

    def __init__(self, config: Any, tokenizer: Any, compute_score: Any, **_: Any) -> None:
        super().__init__(config, tokenizer, compute_score)
        self._scored = 0
        self._batch = config.data.train_batch_size * config.actor_rollout_ref.rollout.n

    async def run_single(self, data: Any) -> dict[str, Any]:
        """Score one row."""
        self._scored += 1
        late = self._scored > BARREN_BATCHES * self._batch
        question = data[0].non_tensor_batch["raw_prompt"][-1]["content"]
        said = f"Wrong, whatever {question.removeprefix('What is ').removesuffix('?')} may be." if late else None
        return {"reward_score": 0.0, "reward_extra_info": {"feedback": said, "strictness": 2.0}}


def _output(
    prompt: list[int], response: list[int], mask: list[int], log_probs: list[float], fields: Any, turns: int
) -> AgentLoopOutput:
    return AgentLoopOutput(
        prompt_ids=prompt,
        response_ids=response,
        response_mask=mask,
        response_logprobs=log_probs,
        num_turns=turns,
        metrics={},
        extra_fields={**fields, "turn_scores": [], "tool_rewards": []},
    )
