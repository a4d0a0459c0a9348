"""Dead signal is loud, once; and figures and losses of plug-ins reach the trainer's logs."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from sdpo_plugins import SDPOConfig
from watched_loss import Scripted, core_loss


def told(trainer: Any, *words: str) -> list[str]:
    """Train, and return the warnings that hold one of the words."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.train()
    texts = [str(warning.message) for warning in caught]
    return [text for text in texts if any(word in text for word in words)]


ALL = (
    "succeeded for",
    "active for",
    "include_environment_feedback",
    "max_reprompt_len",
    "as the student",
    "collapsing",
)


def failing(completions: Sequence[Any], **_: Any) -> list[float]:
    return [0.0] * len(completions)


def failing_with_words(completions: Sequence[Any], **_: Any) -> list[dict[str, Any]]:
    return [{"score": 0.0, "feedback": "Wrong: " + "try another number. " * 10} for _ in completions]


def succeeding(completions: Sequence[Any], **_: Any) -> list[float]:
    return [1.0] * len(completions)


def test_a_run_in_which_nothing_succeeds_says_so_once(make_trainer: Any) -> None:
    trainer = make_trainer(args={"max_steps": 8}, reward_funcs=failing)
    texts = told(trainer, *ALL)
    assert len(texts) == 1
    assert texts[0].startswith("No rollout has succeeded for 5 rollout batches in a row")
    before = trainer.state.log_history
    assert [row["loss"] for row in before if "loss" in row] == [0.0] * 8


def test_feedback_that_is_not_shown_is_told_once(make_trainer: Any) -> None:
    hidden = {"max_steps": 3, "include_environment_feedback": False}
    texts = told(make_trainer(args=hidden, reward_funcs=failing_with_words), *ALL)
    assert len(texts) == 1
    assert "returns feedback" in texts[0]
    shown = {"max_steps": 6, "include_environment_feedback": True}
    assert told(make_trainer(args=shown, reward_funcs=failing_with_words), *ALL) == []


def test_cut_teacher_prompts_are_told_once(make_trainer: Any) -> None:
    args = {"max_steps": 3, "include_environment_feedback": True, "max_reprompt_len": 70}
    trainer = make_trainer(args=args, reward_funcs=failing_with_words)
    texts = told(trainer, *ALL)
    assert len(texts) == 1
    assert texts[0].startswith("100% of the teacher prompts of a batch were longer than `max_reprompt_len`")
    assert trainer.state.log_history[0]["self_distillation/truncated_fraction"] == 1.0


def test_a_teacher_whose_context_makes_no_difference_is_told_once(make_trainer: Any) -> None:
    def blind(prompts: Sequence[str]) -> list[str]:
        return ["31"] * len(prompts)

    model_args = {"max_steps": 8, "learning_rate": 0.0}
    trainer = make_trainer(args=model_args, cls=Scripted, script=blind, reward_funcs=succeeding)
    # A model whose last hidden state is constant ignores every context.
    with torch.no_grad():
        trainer.model.model.norm.weight.zero_()
    texts = told(trainer, *ALL)
    assert len(texts) == 1
    assert texts[0].startswith("The teacher has scored every answer as the student does for 5 steps in a row")


def test_evaluation_does_not_count_as_training(make_trainer: Any) -> None:
    trainer = make_trainer(
        args={"max_steps": 4, "eval_strategy": "steps", "eval_steps": 1, "per_device_eval_batch_size": 4},
        reward_funcs=failing,
        eval_dataset=make_trainer().train_dataset.select(range(2)),
    )
    assert told(trainer, *ALL) == []


def test_a_healthy_run_says_nothing(make_trainer: Any) -> None:
    assert told(make_trainer(args={"max_steps": 7}, reward_funcs=succeeding), *ALL) == []


@pytest.fixture
def renyi_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "example_plugin"))


@pytest.mark.usefixtures("renyi_on_path")
def test_a_plug_ins_divergence_trains_and_its_figures_are_logged(make_trainer: Any) -> None:
    options = {
        "plugins": ["sdpo_renyi"],
        "divergence": "renyi",
        "divergence_options": {"order": 0.7},
        "selector": "longest",
    }
    answers = ["31", "It is 31", "It is 9", "I say it is 31"]
    trainer = make_trainer(
        args={**options, "max_steps": 2, "learning_rate": 0.0, "max_completion_length": 16},
        cls=Scripted,
        script=lambda prompts: [answers[row % 4] for row in range(len(prompts))],
        reward_funcs=lambda completions, **_: [float("31" in answer[0]["content"]) for answer in completions],
    )
    trainer.train()
    logged = [row for row in trainer.state.log_history if "loss" in row]
    # In each of two groups the longest success demonstrates, and for itself the longest of the others.
    assert [row["renyi/distinct_demonstrations"] for row in logged] == [4.0, 4.0]
    for row in trainer.rows():
        longest = "It is 31" if row["answer"].startswith(answers[3]) else answers[3]
        assert f"Correct solution:\n\n{longest}\n\n" in row["teacher"]
    trainer.seen = trainer.seen[-1:]
    assert trainer.losses[-1] == pytest.approx(float(core_loss(trainer)), rel=2e-5)
    trainer.sdpo_config = SDPOConfig()
    assert abs(float(core_loss(trainer)) - trainer.losses[-1]) > 1e-2 * trainer.losses[-1]
