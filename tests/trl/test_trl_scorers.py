"""Scorers of the catalogue in TRL: a plain GRPOTrainer, an SDPOTrainer, and `sdpo train`."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from transformers import AutoTokenizer
from trl import GRPOConfig, GRPOTrainer

from sdpo_plugins import ConfigError, DataError, RewardError
from sdpo_plugins.embedded import checkpoint_path
from sdpo_plugins.feedback import for_trl
from sdpo_plugins.feedback.trl import TRLReward
from sdpo_trl import SDPOTrainer
from sdpo_trl.recipe import train
from sdpo_trl.rewards import FeedbackRecorder
from tiny_trl import questions, tiny_model

LENGTH: dict[str, Any] = {"plugins": ["length_scorer"], "workers": 1, "progress": False}


@pytest.fixture
def reward() -> Iterator[TRLReward]:
    made = for_trl("length", **LENGTH, eos_token_id=2, max_completion_length=3)
    yield made
    made.close()


def rows() -> Dataset:
    return questions().map(lambda row, at: {"ground_truth": f"question {at}"}, with_indices=True)


def even(text: str) -> float:
    return float(sum(map(ord, text)) % 2 == 0)


def test_a_plain_trainer_takes_it_and_logs_what_it_says(tmp_path: Path, reward: TRLReward) -> None:
    trainer = GRPOTrainer(
        tiny_model(),
        reward_funcs=reward,
        args=GRPOConfig(
            output_dir=str(tmp_path),
            per_device_train_batch_size=4,
            num_generations=4,
            max_completion_length=6,
            max_steps=1,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            report_to="none",
            logging_steps=1,
            save_strategy="no",
            log_completions=True,
        ),
        train_dataset=rows(),
        processing_class=AutoTokenizer.from_pretrained(checkpoint_path()),
    )
    trainer.train()
    logs = trainer.state.log_history[0]
    assert "rewards/length/mean" in logs and logs["length/acc"] == pytest.approx(logs["rewards/length/mean"])
    assert logs["length/scoring_crashed"] == 0.0
    texts = [each if isinstance(each, str) else each[-1]["content"] for each in trainer._logs["completion"]]
    assert list(trainer._logs["rewards"]["length"]) == [even(text) for text in texts]
    said = list(trainer._logs["extra"]["feedback"])
    assert [bool(each) for each in said] == [not even(text) for text in texts]
    assert list(trainer._logs["extra"]["length/pred"]) == [text[:5] for text in texts]


def test_sdpo_reads_its_feedback(make_trainer: Callable[..., SDPOTrainer], reward: TRLReward) -> None:
    trainer = make_trainer(
        args={"include_environment_feedback": True, "selector": "none"}, reward_funcs=reward, train_dataset=rows()
    )
    trainer.train()
    for logs in trainer.state.log_history[:2]:
        wrong = 1.0 - logs["rewards/length/mean"]
        assert logs["self_distillation/feedback_used_fraction"] == pytest.approx(wrong)
    said = [text for text in trainer._logs["extra"]["feedback"] if text]
    assert said and all(text.startswith("Wrong for question ") for text in said)


def recorded(reward: Any, **given: Any) -> tuple[list[float], list[str | None] | None]:
    recorder = FeedbackRecorder()
    found = recorder.wrap(reward)(**given)
    return found, recorder.take(len(found))


def test_a_release_without_log_extra_reads_last_feedback(reward: TRLReward) -> None:
    given = {"prompts": ["?", "?"], "completions": ["aa", "ab"], "completion_ids": [[1, 2], [1, 2]]}
    found = recorded(reward, **given, ground_truth=["one", "two"])
    assert found == ([1.0, 0.0], [None, "Wrong for two: 2 characters."])
    logged: dict[str, list[Any]] = {}
    again = recorded(reward, **given, ground_truth=["one", "two"], log_extra=logged.__setitem__)
    assert again == found
    assert reward.last_feedback is None and logged == {"length/pred": ["aa", "ab"]}


def test_what_is_scored_of_a_conversation(reward: TRLReward) -> None:
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "add", "arguments": {}}}]}
    completions = [
        [
            {"role": "assistant", "content": "ab"},
            {"role": "tool", "content": "4"},
            {"role": "assistant", "content": "b"},
        ],
        [{"role": "assistant", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}],
        [call],
        "ab",
    ]
    reward(["?"] * 4, completions, [[1]] * 4, ground_truth=["x"] * 4)
    assert reward.last_feedback == [None, "Wrong for x: 2 characters.", None, "Wrong for x: 2 characters."]
    with pytest.raises(RewardError, match="must be a text or a list of messages, got 3"):
        reward(["?"], [3], [[1]], ground_truth=["x"])


@pytest.mark.parametrize(
    ("settings", "cut"),
    [
        ({"eos_token_id": 2, "max_completion_length": 3}, [0, 0, 1, 0]),
        ({"eos_token_id": [2, 7]}, [0, 1, 1, 0]),
        ({"max_completion_length": 3}, [1, 0, 1, 0]),
        ({}, [0, 0, 0, 0]),
    ],
)
def test_which_answers_were_cut_off(settings: dict[str, Any], cut: list[int]) -> None:
    reward = for_trl("length", **LENGTH, **settings)
    metrics: dict[str, float] = {}
    tokens = [[5, 6, 2], [5, 6], [5, 6, 9], [2]]
    for at, ids in enumerate(tokens):
        reward(["?"], ["a"], [ids], ground_truth=["x"], log_metric=metrics.__setitem__)
        assert metrics["length/truncated"] == cut[at]
    if settings:
        with pytest.raises(RewardError, match="gives no `completion_ids`"):
            reward(["?"], ["a"], ground_truth=["x"])
    reward.close()


def test_wrong_settings_are_refused_at_once() -> None:
    with pytest.raises(ConfigError, match=r"`scorer_options.reveal` is no option of the scorer 'multiple_choice'"):
        for_trl("multiple_choice", reveal=True)
    with pytest.raises(ConfigError, match="`max_completion_length` must be at least 1"):
        for_trl("multiple_choice", max_completion_length=0)


# `sdpo train` ---------------------------------------------------------------------------------------------------------

RECIPE = """
host: trl
model_name_or_path: embedded
dataset_name: questions.jsonl
scorer: length
scorer_options: {workers: 1, timeout: 30}
plugins: [length_scorer]
preset: paper_rich_feedback
output_dir: out
max_steps: 1
logging_steps: 1
per_device_train_batch_size: 4
num_generations: 4
max_completion_length: 3
bf16: false
report_to: none
save_strategy: 'no'
"""


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    lines = [
        {"prompt": [{"role": "user", "content": f"What is {n} + 1?"}], "ground_truth": str(n + 1)} for n in range(8)
    ]
    Path("questions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    Path("mine.yaml").write_text(RECIPE)
    return tmp_path / "mine.yaml"


def test_a_recipe_with_a_scorer_trains(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainers: list[SDPOTrainer] = []

    class Kept(SDPOTrainer):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            trainers.append(self)

    monkeypatch.setattr("sdpo_trl.recipe.SDPOTrainer", Kept)
    train(recipe, ["use_cpu=true"])
    logs = trainers[0].state.log_history[0]
    # Answers of three tokens: which of them were cut off is known from the tokens.
    assert logs["length/truncated"] == logs["completions/clipped_ratio"] > 0
    assert logs["length/acc"] == logs["rewards/length/mean"]
    assert (recipe.parent / "out" / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["scorer=lenght"], "`scorer` must be one of .* got 'lenght'.* Did you mean 'length'"),
        (['scorer_options={"bonus": 1}'], r"`scorer_options.bonus` is no option of the scorer 'length'"),
        (["scorer_options=[1]"], r"`scorer_options` must be a mapping, got \[1\]"),
        (["scorer_options={"], "`scorer_options` must be a mapping in JSON"),
        (["task=sums"], "The task 'sums' brings its own reward function"),
        (["dataset_name=nowhere.jsonl"], "nowhere.jsonl cannot be read: .* `dataset_name` is a .jsonl"),
        (["dataset_name=words.jsonl"], "words.jsonl has no column 'prompt'; it has 'question'. .* `sdpo data jsonl"),
    ],
)
def test_a_recipes_scorer_and_data_are_checked(recipe: Path, changes: list[str], message: str) -> None:
    (recipe.parent / "words.jsonl").write_text('{"question": "Why?"}\n')
    with pytest.raises((ConfigError, DataError), match=message):
        train(recipe, changes)


def test_a_recipe_without_rewards_is_told_what_there_is(recipe: Path) -> None:
    text = RECIPE.replace("scorer: length\n", "")
    recipe.write_text(text)
    with pytest.raises(ConfigError, match="`scorer_options` is given without `scorer`"):
        train(recipe, [])
    recipe.write_text(text.replace("scorer_options: {workers: 1, timeout: 30}\n", ""))
    with pytest.raises(ConfigError, match="`dataset_name` and `scorer` or `reward_functions`"):
        train(recipe, [])


def test_workers_are_quiet(reward: TRLReward, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        reward(["?"], ["a"], [[1]], ground_truth=["x"])
    assert not caplog.records
