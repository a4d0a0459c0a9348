"""Rewards with feedback, in every form that users bring: numbers, table, teacher prompts, who counts as a success."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from scripted_rollouts import buffered_rows, scripted
from sdpo_plugins.errors import DataError, RewardError
from sdpo_plugins.types import Score
from sdpo_trl.rewards import normalize_rewards, reward_name
from tiny_trl import questions

# What the environment says of each answer; texts hold braces and more than one line.
FEEDBACK = {"alpha": None, "beta": "Got {beta}.\nSay alpha.", "gamma": "Not {0}.", "alpha again": ""}
REWARDS = {"alpha": 1.0, "beta": 0.0, "gamma": 0.25, "alpha again": 1.0}
ANSWERS = tuple(FEEDBACK)


def texts_of(completions: list[Any]) -> list[str]:
    return [completion if isinstance(completion, str) else completion[-1]["content"] for completion in completions]


def scores(completions: list[Any]) -> list[float]:
    return [REWARDS[text] for text in texts_of(completions)]


def remarks(completions: list[Any]) -> list[str | None]:
    return [FEEDBACK[text] for text in texts_of(completions)]


def sdpo_trainer_dicts(prompts: Any, completions: Any, **_: Any) -> list[dict[str, Any]]:
    pairs = zip(scores(completions), remarks(completions), strict=True)
    return [{"score": score, "feedback": text} for score, text in pairs]


def verl_dicts(completions: Any, **_: Any) -> list[dict[str, Any]]:
    return [{**row, "acc": row["score"] == 1.0, "pred": "x"} for row in sdpo_trainer_dicts(None, completions)]


def score_objects(completions: Any, **_: Any) -> list[Score]:
    return [Score(row["score"], row["feedback"], {"pred": "x"}) for row in sdpo_trainer_dicts(None, completions)]


def openrlhf_mapping(completions: Any, **_: Any) -> dict[str, Any]:
    rewards = torch.tensor(scores(completions))
    return {"rewards": rewards, "scores": rewards, "extra_logs": {"feedback": remarks(completions), "lengths": rewards}}


def through_log_extra(completions: Any, log_extra: Any, **_: Any) -> list[float]:
    log_extra("feedback", remarks(completions))
    return scores(completions)


class SdpoRlReward:
    """As the sdpo-rl examples write it."""

    def __init__(self) -> None:
        self.last_feedback: list[str] = []

    def __call__(self, prompts: Any, completions: Any, **_: Any) -> list[float]:
        self.last_feedback = [text or "" for text in remarks(completions)]
        return scores(completions)


class AsyncReward:
    async def __call__(self, completions: Any, **_: Any) -> list[dict[str, Any]]:
        return sdpo_trainer_dicts(None, completions)


class Grader:
    def grade(self, completions: Any, **_: Any) -> list[dict[str, Any]]:
        return sdpo_trainer_dicts(None, completions)


async def async_dicts(completions: Any, **_: Any) -> list[dict[str, Any]]:
    return sdpo_trainer_dicts(None, completions)


async def async_log_extra(completions: Any, log_extra: Any, **_: Any) -> list[float]:
    log_extra("feedback", remarks(completions))
    return scores(completions)


def with_prefix(completions: Any, unused: str, **_: Any) -> list[dict[str, Any]]:
    return sdpo_trainer_dicts(None, completions)


def numbers_only(completions: Any, **_: Any) -> list[float]:
    return scores(completions)


FORMS: dict[str, Callable[[], Any]] = {
    "sdpo_trainer_dicts": lambda: sdpo_trainer_dicts,
    "verl_dicts": lambda: verl_dicts,
    "score_objects": lambda: score_objects,
    "openrlhf_mapping": lambda: openrlhf_mapping,
    "through_log_extra": lambda: through_log_extra,
    "SdpoRlReward": SdpoRlReward,
    "AsyncReward": AsyncReward,
    "async_dicts": lambda: async_dicts,
    "async_log_extra": lambda: async_log_extra,
    "grade": lambda: Grader().grade,
    "with_prefix": lambda: functools.partial(with_prefix, unused="x"),
}

# No learning, so that nothing but the texts matters; every piece of feedback is shown.
ARGS = {
    "learning_rate": 0.0,
    "max_steps": 1,
    "log_completions": True,
    "num_completions_to_print": 1,
    "environment_feedback_only_without_solution": False,
    "teacher": "live",
}


@pytest.fixture
def run(make_trainer: Any, tokenizer: Any) -> Callable[..., Any]:
    """Train on scripted answers and return the trainer."""

    def go(reward: Any, args: dict[str, Any] | None = None, **kwargs: Any) -> Any:
        kwargs.setdefault("rollout_func", scripted(tokenizer, ANSWERS))
        trainer = make_trainer(reward_funcs=reward, args={**ARGS, **(args or {})}, **kwargs)
        trainer.train()
        return trainer

    return go


def table_of(trainer: Any, step: int = 1) -> pd.DataFrame:
    table = pd.read_parquet(Path(trainer.args.output_dir) / "completions" / f"completions_{step:05d}.parquet")
    # Older TRL writes the text itself.
    return table.assign(text=[row if isinstance(row, str) else row[-1]["content"] for row in table["completion"]])


def shown(text: str | None) -> str:
    return f"earlier attempt:\n\n{text}\n\nCorrectly solve"


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_rewards_table_and_teacher_prompts(run: Any, form: str) -> None:
    trainer = run(FORMS[form]())
    # A single reward function is named as TRL names it, the form's own name; callable objects by their class.
    assert trainer.reward_func_names == [form]
    assert trainer.state.log_history[0][f"rewards/{form}/mean"] == pytest.approx(2.25 / 4)

    table = table_of(trainer)
    assert len(table) == 8
    for row in table.itertuples():
        assert getattr(row, form) == REWARDS[row.text]
        assert row.feedback == (FEEDBACK[row.text] or "")

    rows = buffered_rows(trainer)
    assert sorted(row["answer"] for row in rows) == sorted(ANSWERS * 2)
    for row in rows:
        feedback = FEEDBACK[row["answer"]]
        # The teacher reads the feedback on this very answer, and nobody else's.
        assert (shown(feedback) in row["teacher"]) == bool(feedback)
        assert sum(shown(text) in row["teacher"] for text in FEEDBACK.values() if text) == bool(feedback)
        assert row["success"] == row["answer"].startswith("alpha")


def test_feedback_of_the_rollout_function_reaches_the_teacher(run: Any, tokenizer: Any) -> None:
    trainer = run(
        numbers_only,
        rollout_func=scripted(tokenizer, ANSWERS, feedback=lambda texts: [FEEDBACK[text] for text in texts]),
    )
    for row in buffered_rows(trainer):
        assert (shown(FEEDBACK[row["answer"]]) in row["teacher"]) == bool(FEEDBACK[row["answer"]])
    for row in table_of(trainer).itertuples():
        assert row.feedback == (FEEDBACK[row.text] or "")


def test_a_feedback_column_of_the_dataset_is_read_too(run: Any) -> None:
    data = questions(2).add_column("feedback", ["Think of the letter a.", None])
    trainer = run(sdpo_trainer_dicts, train_dataset=data)
    with_hint = [row for row in buffered_rows(trainer) if "What is 10 + 20?" in row["teacher"]]
    for row in with_hint:
        own = FEEDBACK[row["answer"]]
        assert shown(f"{own}\n\nThink of the letter a." if own else "Think of the letter a.") in row["teacher"]
    others = [row for row in buffered_rows(trainer) if row not in with_hint]
    assert len(with_hint) == len(others) == 4
    assert not any("Think of the letter" in row["teacher"] for row in others)


def test_several_functions_weigh_in_and_their_feedback_is_joined_once(run: Any) -> None:
    async def style(completions: Any, log_extra: Any, **_: Any) -> list[dict[str, Any]]:
        log_extra("letters", [len(text) for text in texts_of(completions)])
        rows = [{"score": 1.0, "feedback": "Too plain."} for _ in completions]
        # What another function already said is not said twice.
        return [
            {**row, "feedback": FEEDBACK[text]} if text == "gamma" else row
            for row, text in zip(rows, texts_of(completions), strict=True)
        ]

    trainer = run([through_log_extra, style, numbers_only], {"reward_weights": [1.0, 0.5, 0.0]})
    table = table_of(trainer)
    assert len(table) == 8
    for row in table.itertuples():
        joined = (
            FEEDBACK["gamma"] if row.text == "gamma" else "\n\n".join(filter(None, [FEEDBACK[row.text], "Too plain."]))
        )
        assert row.feedback == joined
        assert row.letters == len(row.text)
        assert (row.through_log_extra, row.style, row.numbers_only) == (REWARDS[row.text], 1.0, REWARDS[row.text])
    for row in buffered_rows(trainer):
        joined = table.loc[table.text == row["answer"], "feedback"].iloc[0]
        assert shown(joined) in row["teacher"]
        # 0.25 + 0.5·1 reaches the threshold of 0.5 only through the bonus.
    assert {row["answer"] for row in buffered_rows(trainer) if row["success"]} == set(ANSWERS)
    assert trainer.state.log_history[0]["reward"] == pytest.approx(2.25 / 4 + 0.5)


def test_a_reward_of_none_is_not_judged(run: Any) -> None:
    def half(completions: Any, **_: Any) -> list[Any]:
        return [None if text == "beta" else REWARDS[text] for text in texts_of(completions)]

    trainer = run(half)
    assert trainer.state.log_history[0]["rewards/half/mean"] == pytest.approx(2.25 / 3)
    by_answer = {row["answer"]: row for row in buffered_rows(trainer)}
    assert not by_answer["beta"]["success"]
    assert by_answer["alpha"]["success"]


def test_the_table_keeps_rows_and_feedback_together_when_only_some_batches_have_any(run: Any, tokenizer: Any) -> None:
    """Training has feedback, the smaller evaluation batch has none: a stale column would slip by some rows."""

    def sometimes(completions: Any, log_extra: Any, **_: Any) -> list[float]:
        if len(completions) == 8:
            log_extra("feedback", remarks(completions))
        return scores(completions)

    trainer = run(
        sometimes,
        {"max_steps": 2, "per_device_eval_batch_size": 4, "eval_strategy": "steps", "eval_steps": 1},
        eval_dataset=questions(1),
    )
    for step in (1, 2):
        table = table_of(trainer, step)
        assert len(table) == 8
        # TRL's table holds the last 8 rows: 4 of training, then 4 of evaluation.
        expected = [FEEDBACK[text] or "" for text in ANSWERS] + [""] * 4
        assert list(table["text"]) == [*ANSWERS, *ANSWERS]
        assert list(table["feedback"]) == expected


def test_plain_string_prompts_and_completions(run: Any) -> None:
    data = questions(8).map(lambda row: {"prompt": row["prompt"][0]["content"]})
    trainer = run(sdpo_trainer_dicts, train_dataset=data)
    for row in buffered_rows(trainer):
        assert row["teacher"].startswith("What is") or not row["active"]
        assert (shown(FEEDBACK[row["answer"]]) in row["teacher"]) == bool(FEEDBACK[row["answer"]])


def test_success_is_judged_by_a_named_reward(run: Any) -> None:
    def format_bonus(completions: Any, **_: Any) -> list[float]:
        return [0.9] * len(completions)

    with pytest.warns(
        UserWarning, match=r"weighted sum of the rewards \(numbers_only, format_bonus\).*success_reward_name"
    ):
        summed = run([numbers_only, format_bonus], {"max_steps": 1})
    assert all(row["success"] for row in buffered_rows(summed))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        named = run([numbers_only, format_bonus], {"success_reward_name": "numbers_only"})
    assert not [warning for warning in caught if "weighted sum" in str(warning.message)]
    rows = buffered_rows(named)
    for row in rows:
        assert row["success"] == row["answer"].startswith("alpha")
        # No failure is ever shown as the correct solution.
        assert "Correct solution:\n\nbeta" not in row["teacher"] and "Correct solution:\n\ngamma" not in row["teacher"]
    assert named.state.log_history[0]["self_distillation/success_rollout_fraction"] == 0.5


def test_one_function_needs_no_warning_about_sums(make_trainer: Any) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        make_trainer(reward_funcs=[numbers_only])
    assert not [warning for warning in caught if "weighted sum" in str(warning.message)]


@pytest.mark.parametrize(
    "output",
    [
        [1, 0.5, True],
        (1.0, 0.5, 1.0),
        torch.tensor([1.0, 0.5, 1.0]),
        torch.tensor([[1.0], [0.5], [1.0]], dtype=torch.bfloat16, requires_grad=True),
        np.array([1.0, 0.5, 1.0]),
        [np.float32(1.0), np.float64(0.5), np.int64(1)],
        [torch.tensor(1.0), torch.tensor([0.5]), 1],
        pd.Series([1.0, 0.5, 1.0]),
        {"rewards": np.array([1.0, 0.5, 1.0])},
        [{"score": torch.tensor(1.0)}, {"score": np.float32(0.5), "feedback": None}, {"score": 1}],
    ],
    ids=lambda value: type(value).__name__,
)
def test_numbers_of_any_make(output: Any) -> None:
    rewards, _ = normalize_rewards(output, 3, "grade")
    assert rewards == [1.0, 0.5, 1.0]
    assert all(type(reward) is float for reward in rewards)


@pytest.mark.parametrize("output", [[None, 1.0], [float("nan"), 1.0], torch.tensor([float("nan"), 1.0])])
def test_none_and_nan_mean_not_judged(output: Any) -> None:
    assert normalize_rewards(output, 2, "grade")[0] == [None, 1.0]


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ([1.0], r"'grade' returned 1 rewards for 2 completions: \[1.0\]"),
        (1.0, r"'grade' must return a list of rewards.*1.0 \(float\)"),
        (None, r"'grade' must return a list of rewards.*None \(NoneType\)"),
        ("ab", r"'grade' must return a list of rewards.*'ab' \(str\)"),
        (["good", 1.0], r"'grade' gave 'good' \(str\) as the reward of completion 0"),
        ([1.0, float("inf")], r"'grade' gave inf \(float\) as the reward of completion 1.*finite"),
        ([[1.0], [0.0]], r"'grade' gave \[1.0\] \(list\)"),
        (torch.ones(1, 2, 1).expand(2, 2, 1), r"'grade' gave \[.*\(list\)"),
        ([{"reward": 1.0}, {}], r"'grade' returned a mapping without `score` for completion 0: \{'reward': 1.0\}"),
        (
            [{"score": 1.0, "feedback": 3}, {"score": 1.0}],
            r"of 'grade' for completion 0 must be a text.*3 \(int\)",
        ),
        ({"score": [1.0, 1.0]}, r"'grade' returned one mapping without `rewards`: keys \['score'\]"),
        ({"rewards": [1.0, 1.0], "extra_logs": {"feedback": ["x"]}}, r"returned 1 feedback texts for 2 completions"),
    ],
    ids=lambda value: "" if isinstance(value, str) else None,
)
def test_what_no_reward_can_be_is_named_and_shown(output: Any, message: str) -> None:
    with pytest.raises(RewardError, match=f"(?s){message}"):
        normalize_rewards(output, 2, "grade")


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (lambda completions, **_: [1.0], r"'<lambda>' returned 1 rewards for 8 completions: \[1.0\]"),
        (lambda completions, **_: ["great"] * 8, r"'<lambda>' gave 'great' \(str\)"),
    ],
)
def test_a_wrong_reward_stops_the_run_before_the_first_step(run: Any, reward: Any, message: str) -> None:
    with pytest.raises(RewardError, match=message):
        run(reward)


@pytest.mark.parametrize("kind", ["last_feedback", "log_extra", "async"])
def test_feedback_of_the_wrong_length_is_refused(run: Any, kind: str) -> None:
    class Short:
        last_feedback = ("one",)

        def __call__(self, completions: Any, **_: Any) -> list[float]:
            return scores(completions)

    def logs(completions: Any, log_extra: Any, **_: Any) -> list[float]:
        log_extra("feedback", ["one"])
        return scores(completions)

    async def later(completions: Any, log_extra: Any, **_: Any) -> list[float]:
        return logs(completions, log_extra)

    reward = {"last_feedback": Short(), "log_extra": logs, "async": later}[kind]
    with pytest.raises(RewardError, match=r"(Short.last_feedback|logs|later).*1 feedback texts for 8 completions"):
        run(reward)


def test_names_are_those_that_trl_gives() -> None:
    from trl.trainer.utils import get_callable_name

    for make in FORMS.values():
        assert reward_name(make()) == get_callable_name(make())


def test_the_users_functions_are_called_as_trl_calls_them(run: Any) -> None:
    """The wrapper hides nothing: columns, ids, state and logs arrive, and the user's list keeps its own functions."""
    seen: dict[str, Any] = {}

    def nosy(prompts: Any, completions: Any, completion_ids: Any, truth: Any, trainer_state: Any, **rest: Any) -> Any:
        seen.update(rest, prompts=prompts, completion_ids=completion_ids, truth=truth, state=trainer_state)
        rest["log_metric"]("nosy", 3.0)
        return scores(completions)

    functions = [nosy]
    data = questions(2).add_column("truth", ["30", "34"])
    trainer = run(functions, train_dataset=data)
    assert functions == [nosy]
    assert sorted(set(seen["truth"])) == ["30", "34"] and len(seen["truth"]) == 8
    assert len(seen["completion_ids"]) == 8 and seen["state"] is trainer.state
    assert seen["prompts"][0][0]["role"] == "user"
    assert trainer.state.log_history[0]["nosy"] == 3.0


def test_feedback_switched_off_is_still_logged_and_said_once(run: Any) -> None:
    with pytest.warns(UserWarning, match="returns feedback, but `include_environment_feedback` is off"):
        trainer = run(sdpo_trainer_dicts, {"include_environment_feedback": False})
    assert not any(shown(FEEDBACK["beta"]) in row["teacher"] for row in buffered_rows(trainer))
    assert set(table_of(trainer)["feedback"]) == {"", FEEDBACK["beta"], FEEDBACK["gamma"]}


def test_an_unknown_success_reward_name_is_refused_when_the_trainer_is_made(make_trainer: Any) -> None:
    with pytest.raises(ValueError, match=r"`success_reward_name` is 'number_only'.*'numbers_only'.*Did you mean"):
        make_trainer(reward_funcs=numbers_only, args={"success_reward_name": "number_only"})


def test_two_functions_of_one_name_cannot_judge_success(make_trainer: Any) -> None:
    twins = [lambda completions, **_: scores(completions), lambda completions, **_: [0.0] * len(completions)]
    with pytest.raises(ValueError, match=r"2 reward functions are named '<lambda>'"):
        make_trainer(reward_funcs=twins, args={"success_reward_name": "<lambda>"})


def test_a_wrong_feedback_column_is_refused_with_its_row(run: Any) -> None:
    data = questions(2).add_column("feedback", [1, 2])
    with pytest.raises((RewardError, DataError), match=r"'feedback column'.*must be a text or None, got [12] \(int\)"):
        run(numbers_only, train_dataset=data)
