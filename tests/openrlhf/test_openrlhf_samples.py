"""What reward functions and agents return becomes numbers and a feedback text, or an error that says what to do.

The host's own executors call the reward files and agents, as its rollout engine does; only the model is scripted.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from openrlhf.trainer.ppo_utils.experience import Experience
from openrlhf.trainer.ray.vllm_engine import _load_agent_executor
from openrlhf.utils import get_strategy
from openrlhf.utils.agent import SingleTurnAgentExecutor
from vllm import SamplingParams

from openrlhf_direct import arguments
from recorded import tokenizer
from sdpo_openrlhf.feedback import checked_response
from sdpo_openrlhf.fields import FEEDBACK
from sdpo_openrlhf.samples import SDPOSamplesGenerator, in_order_of_questions
from sdpo_plugins import SDPOConfig
from sdpo_plugins.embedded import checkpoint_path
from sdpo_plugins.errors import DataError

PROMPT = "What is the atomic number of iron?"

AGENT = """
from typing import Any

import torch
from openrlhf.utils.agent import AgentInstanceBase, MultiTurnAgentExecutor


class Instance(AgentInstanceBase):
    def __init__(self, *args, **kwargs):
        self.turn = 0

    async def step(self, states: dict, **kwargs) -> dict[str, Any]:
        self.turn += 1
        return {
            "rewards": torch.tensor(0.5),
            "scores": torch.tensor(0.5),
            "environment_feedback": " And now?",
            "done": self.turn == 2,
            "extra_logs": {"turn": torch.tensor([self.turn]), "feedback": f"Turn {self.turn} was wrong."},
        }


class AgentExecutor(MultiTurnAgentExecutor):
    def __init__(self):
        super().__init__(Instance)

    async def execute(self, *args, **kwargs):
        response = await super().execute(*args, **kwargs)
        OWN
        return response
"""


class ScriptedModel:
    """Answers "26" and the end of the turn, as vLLM's engine would hand it over."""

    async def generate(self, ids: list[int], sampling_params: Any, multi_modal_data: Any = None) -> Any:
        answer = [*tokenizer()("26")["input_ids"], tokenizer().eos_token_id]
        log_probs = [{token: SimpleNamespace(logprob=-0.5)} for token in answer]
        output = SimpleNamespace(token_ids=answer, text="26", finish_reason="stop", logprobs=log_probs)
        return SimpleNamespace(outputs=[output])


def generator(reward: str = "--reward.remote_url reward.py") -> SDPOSamplesGenerator:
    strategy = get_strategy(arguments(str(checkpoint_path()), reward, SDPOConfig()))
    return SDPOSamplesGenerator(
        strategy, prompts_dataloader=None, eval_dataloader=None, tokenizer=tokenizer(), vllm_engines=[]
    )


def sampled(executor: Any, made: SDPOSamplesGenerator) -> Experience:
    """Let an executor of the host answer, and the sample generator take its response up."""
    response = asyncio.run(
        executor.execute(PROMPT, "26", SamplingParams(max_tokens=8, logprobs=1), 64, tokenizer(), ScriptedModel())
    )
    return made._process_response_into_experience(response, max_len=64)


def judged(body: str, folder: Path) -> Experience:
    path = folder / "reward.py"
    path.write_text(f"import torch\n\ndef reward_func(queries, prompts, labels):\n    {body}\n", encoding="utf-8")
    return sampled(SingleTurnAgentExecutor([str(path)]), generator())


@pytest.mark.parametrize(
    ("given", "text"),
    [("'Not 26.'", "Not 26."), ("['Not 26.']", "Not 26."), ("('Not 26.',)", "Not 26."), ("None", ""), ("[None]", "")],
)
def test_feedback_of_a_reward_function_is_a_text_beside_the_numbers(given: str, text: str, tmp_path: Path) -> None:
    logs = f"{{'feedback': {given}, 'digits': torch.tensor([2.0, 3.0]), 'share': 0.5}}"
    found = judged(f"return {{'rewards': torch.tensor([0.25]), 'scores': 1, 'extra_logs': {logs}}}", tmp_path)
    assert found.info[FEEDBACK] == [text]
    numbers = {name: value.tolist() for name, value in found.info.items() if isinstance(value, torch.Tensor)}
    assert numbers == {
        "response_clip_ratio": [False],
        "reward": [0.25],
        "score": [1.0],
        "digits": [2.0],
        "share": [0.5],
    }
    assert found.rewards.tolist() == [0.25] and found.prompts == [PROMPT]


def test_a_reward_function_without_extra_logs_gives_no_feedback(tmp_path: Path) -> None:
    found = judged("return {'rewards': [1]}", tmp_path)
    assert found.info[FEEDBACK] == [""]
    assert found.rewards.tolist() == found.scores.tolist() == found.info["reward"].tolist() == [1.0]


@pytest.mark.parametrize("own", ["pass", "response['feedback'] = response['extra_logs'].pop('feedback')"])
def test_feedback_of_an_agent_is_that_of_its_last_turn(own: str, tmp_path: Path) -> None:
    path = tmp_path / "agent.py"
    path.write_text(AGENT.replace("OWN", own), encoding="utf-8")
    found = sampled(_load_agent_executor(str(path)), generator(f"--train.agent_func_path {path}"))
    assert found.info[FEEDBACK] == ["Turn 2 was wrong."]
    assert found.rewards.tolist() == [1.0] and found.info["turn"].tolist() == [2.0]
    ends = int((found.sequences == tokenizer().eos_token_id).sum())
    assert ends == 2 and 0 < int(found.action_mask.sum()) < found.sequences.shape[1]


@pytest.mark.parametrize(
    "body",
    ["raise KeyError('truth')", "return {'scores': torch.tensor([1.0])}", "return None"],
    ids=["it fails", "no rewards", "nothing"],
)
def test_a_missing_reward_is_an_error_that_says_where_to_look(body: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no reward for the prompt 'What is the atomic number of iron\?'") as caught:
        judged(body, tmp_path)
    assert "Failed to fetch reward" in str(caught.value) and '{"rewards"' in str(caught.value)


def test_with_a_reward_model_there_is_no_reward_yet() -> None:
    made = generator()
    made.args.reward.remote_url = None  # as in a run with `--reward.model_name_or_path`
    found = sampled(SingleTurnAgentExecutor(None), made)
    assert found.rewards is None and "reward" not in found.info and found.info[FEEDBACK] == [""]


WRONG = {
    "feedback is a number": ({"feedback": 3}, "`feedback` in extra_logs must be a text.*got '3' \\(int\\)"),
    "feedback for several": ({"feedback": ["a", "b"]}, "as there is one response, got .* \\(list of length 2\\)"),
    "feedback of nothing": ({"feedback": []}, "\\(list of length 0\\)"),
    "another text": ({"note": "long"}, "'note' is 'long' \\(str\\)"),
    "another log is None": ({"note": None}, "'note' is 'None' \\(NoneType\\)"),
    "an empty tensor": ({"note": torch.empty(0)}, "'note' is .*Tensor"),
    "logs are no mapping": (["note"], "`extra_logs` must be a mapping"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_the_host_could_not_take_is_named(name: str) -> None:
    logs, message = WRONG[name]
    with pytest.raises(DataError, match=message) as caught:
        checked_response({"prompt": "p" * 200, "reward": 1.0, "extra_logs": logs}, judged=True)
    assert "p" * 60 + "…" in str(caught.value) and "p" * 61 not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"reward": math.nan}, "`reward` is nan"),
        ({"reward": torch.tensor([-math.inf])}, "`reward` is -inf"),
        ({"reward": torch.tensor([1.0, 2.0])}, "`reward` must be one number.*as there is one response"),
        ({"reward": "1.0"}, "`reward` must be one number.*'1.0' \\(str\\)"),
        ({"reward": 1.0, "scores": [None]}, "`scores` must be one number"),
        ({"reward": 1.0, "feedback": "a", "extra_logs": {"feedback": "b"}}, "`feedback` is given twice"),
        ({"reward": 1.0, "feedback": {"text": "a"}}, "`feedback` in the response must be a text"),
    ],
)
def test_what_would_spoil_a_group_is_refused(given: Mapping[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        checked_response({"prompt": PROMPT, **given}, judged=True)


def test_the_response_of_the_host_is_left_as_it_was() -> None:
    response = {"prompt": PROMPT, "reward": torch.tensor([1]), "extra_logs": {"feedback": "a", "acc": 1}}
    checked, text = checked_response(response, judged=True)
    assert (checked["reward"], checked["extra_logs"], text) == (1.0, {"acc": 1}, "a")
    assert response["extra_logs"] == {"feedback": "a", "acc": 1} and isinstance(response["reward"], torch.Tensor)


def test_groups_stand_in_the_order_of_their_questions() -> None:
    def row(prompt: str, *tokens: int) -> Experience:
        return Experience(sequences=torch.tensor([tokens]), prompts=[prompt])

    def tokens(rows: list[Experience]) -> list[int]:
        return [int(each.sequences[0, -1]) for each in rows]

    one, two, three = [row("a", 1), row("a", 0)], [row("b", 3), row("b", 2)], [row("c", 5), row("c", 4)]
    for ready in ([*three, *one, *two], [*two, *three, *one], [*one, *two, *three]):
        assert tokens(in_order_of_questions(ready, ["a", "b", "c"], 2)) == [1, 0, 3, 2, 5, 4]
    # Filtered groups are missing, later questions replace them; a question may be asked twice.
    again = [row("a", 0), row("a", 9)]
    for ready in ([*one, *three, *again], [*again, *one, *three]):
        assert tokens(in_order_of_questions(ready, ["a", "b", "a", "c"], 2)) == [0, 9, 1, 0, 5, 4]
    # An agent's own prompt is refused later, by name; here it only comes last.
    assert tokens(in_order_of_questions([*[row("x", 7)] * 2, *one], ["a"], 2)) == [1, 0, 7, 7]
