"""Warnings of runs that cannot be learning: each kind of trouble once, after enough bad batches in a row."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from sdpo_plugins.health import HealthMonitor


def batch(**changes: float) -> dict[str, float]:
    figures = {
        "reprompt_sample_fraction": 1.0,
        "success_group_fraction": 1.0,
        "feedback_used_fraction": 0.0,
        "truncated_fraction": 0.0,
        "feedback_unused_fraction": 0.0,
        **changes,
    }
    return {f"self_distillation/{name}": value for name, value in figures.items()}


DEAD = batch(reprompt_sample_fraction=0.0, success_group_fraction=0.0)


def counts(monitor: HealthMonitor, batches: list[dict[str, float]], **more: Any) -> list[int]:
    return [len(monitor.batch(figures, **more)) for figures in batches]


def test_a_healthy_run_is_silent() -> None:
    monitor = HealthMonitor()
    assert counts(monitor, [batch()] * 20, mean_length=50.0) == [0] * 20
    assert all(monitor.step(0.3, 100.0) == [] for _ in range(20))
    # Without metrics there is nothing to judge by.
    assert counts(monitor, [{}] * 20) == [0] * 20


def test_no_success_and_no_feedback_is_told_once_after_five_batches() -> None:
    monitor = HealthMonitor()
    assert counts(monitor, [DEAD] * 20) == [0] * 4 + [1] + [0] * 15
    message = HealthMonitor()
    texts = [text for _ in range(5) for text in message.batch(DEAD)]
    assert "No rollout has succeeded for 5 rollout batches in a row" in texts[0]
    assert "success_reward_threshold" in texts[0]


@pytest.mark.parametrize("relief", [batch(), batch(success_group_fraction=0.0, feedback_used_fraction=0.1)])
def test_one_success_or_one_feedback_ends_the_row(relief: dict[str, float]) -> None:
    assert counts(HealthMonitor(), [*[DEAD] * 4, relief, *[DEAD] * 4]) == [0] * 9
    assert counts(HealthMonitor(), [*[DEAD] * 4, relief, *[DEAD] * 5]) == [0] * 9 + [1]


def test_successes_that_reach_no_teacher_prompt_are_told() -> None:
    nobody = batch(reprompt_sample_fraction=0.0)
    monitor = HealthMonitor()
    texts = [text for _ in range(8) for text in monitor.batch(nobody)]
    assert len(texts) == 1
    assert "No rollout has been active for 5 rollout batches" in texts[0]


@pytest.mark.parametrize(
    ("figures", "words"),
    [
        (batch(truncated_fraction=0.25), "25% of the teacher prompts of a batch were longer than `max_reprompt_len`"),
        (batch(feedback_unused_fraction=0.5), "`include_environment_feedback` is off"),
    ],
)
def test_what_the_user_can_change_at_once_is_told_at_once(figures: dict[str, float], words: str) -> None:
    monitor = HealthMonitor()
    first, *later = [monitor.batch(figures) for _ in range(10)]
    assert len(first) == 1 and words in first[0]
    assert not any(later)
    # Also after it has gone and come again.
    assert counts(monitor, [batch(), figures, batch(), figures]) == [0] * 4


def test_different_troubles_are_told_side_by_side() -> None:
    assert len(HealthMonitor().batch(batch(truncated_fraction=1.0, feedback_unused_fraction=1.0))) == 2


@pytest.mark.parametrize("rounding", [0.0, 2e-7, -2e-7])
def test_a_teacher_that_equals_the_student_up_to_rounding_is_told_once(rounding: float) -> None:
    monitor = HealthMonitor()
    told = [monitor.step(rounding, 40.0) for _ in range(12)]
    assert [len(messages) for messages in told] == [0] * 4 + [1] + [0] * 7
    assert "as the student does for 5 steps" in told[4][0]


@pytest.mark.parametrize("relief", [1e-5, -1e-5])
def test_steps_without_active_tokens_neither_count_nor_end_the_row(relief: float) -> None:
    monitor = HealthMonitor()
    steps = [*[(0.0, 40.0)] * 4, (0.0, 0.0), (relief, 0.0), (0.0, 40.0)]
    assert [len(monitor.step(*step)) for step in steps] == [0] * 6 + [1]
    other = HealthMonitor()
    steps = [*[(0.0, 40.0)] * 4, (relief, 40.0), *[(0.0, 40.0)] * 4]
    assert not any(other.step(*step) for step in steps)


def test_collapsing_answers_are_told_with_both_lengths() -> None:
    monitor = HealthMonitor()
    lengths = [40.0, 12.0, 9.0, 9.0, 11.0, 9.0, 9.0, 9.0, 8.0, 7.0, 6.0]
    told = [monitor.batch(batch(), length) for length in lengths]
    # 10 tokens are a quarter of the first length: the fourth batch ends the row.
    assert [len(messages) for messages in told] == [0] * 9 + [1] + [0]
    assert "(40 tokens) for 5 rollout batches in a row, now 7 tokens" in told[9][0]


@pytest.mark.parametrize("lengths", [[7.0, *[1.0] * 9], [math.nan, 7.0, *[1.0] * 9], [40.0, *[10.0] * 9]])
def test_short_answers_are_no_collapse_where_they_were_short_from_the_start(lengths: list[float]) -> None:
    monitor = HealthMonitor()
    assert not any(monitor.batch(batch(), length) for length in lengths)


def test_a_restart_neither_repeats_nor_forgets() -> None:
    before = HealthMonitor()
    counts(before, [batch(truncated_fraction=1.0)])
    counts(before, [DEAD] * 3, mean_length=40.0)
    for _ in range(2):
        before.step(0.0, 10.0)
    after = HealthMonitor()
    after.load_state_dict(json.loads(json.dumps(before.state_dict())))
    assert counts(after, [{**DEAD, "self_distillation/truncated_fraction": 1.0}, DEAD]) == [0, 1]
    assert [len(after.step(0.0, 10.0)) for _ in range(3)] == [0, 0, 1]
    assert [len(after.batch(batch(), 5.0)) for _ in range(5)] == [0, 0, 0, 0, 1]
