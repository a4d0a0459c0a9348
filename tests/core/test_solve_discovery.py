"""discovery@k, best-of-k and their intervals, against counts made by hand and known values."""

from __future__ import annotations

import itertools
import math

import pytest

from sdpo_plugins.errors import DataError
from sdpo_plugins.solve.discovery import (
    best_of_k,
    best_of_k_interval,
    discovery_at_k,
    discovery_interval,
    mean_interval,
    rate_interval,
)


def test_discovery_counts_runs_with_a_success_among_the_first_k():
    firsts = [1, 5, 5, None]
    assert [discovery_at_k(firsts, k) for k in (0, 1, 4, 5, 100)] == [0.0, 0.25, 0.25, 0.75, 0.75]


@pytest.mark.parametrize(("answers", "successes"), [(5, 0), (5, 1), (6, 2), (6, 6)])
def test_best_of_k_is_the_share_of_all_choices_of_k_answers_that_hold_a_right_one(answers, successes):
    right = [True] * successes + [False] * (answers - successes)
    for k in range(answers + 1):
        choices = list(itertools.combinations(right, k))
        assert best_of_k(answers, successes, k) == pytest.approx(sum(map(any, choices)) / len(choices))


def test_best_of_k_of_many_answers_neither_overflows_nor_loses_digits():
    assert best_of_k(20_000, 1, 500) == pytest.approx(500 / 20_000)
    assert best_of_k(20_000, 0, 20_000) == 0.0


def test_intervals_are_those_of_the_textbook():
    # Wilson's for 2 of 4: centre 1/2, half width z/(1 + z²/n) · √(1/(4n) + z²/(4n²)) with z = 1.95996.
    z, n = 1.959964, 4
    half = z / (1 + z**2 / n) * math.sqrt(1 / (4 * n) + z**2 / (4 * n**2))
    assert discovery_interval([1, 2, None, None], k=2) == pytest.approx((0.5 - half, 0.5 + half), abs=1e-5)
    # Clopper and Pearson's for nothing of n: from 0 to 1 − 0.025^(1/n).
    assert rate_interval(48, 0) == pytest.approx((0.0, 1 - 0.025 ** (1 / 48)))
    assert discovery_interval([None] * 10, k=3, method="exact") == pytest.approx((0.0, 1 - 0.025 ** (1 / 10)))


def test_best_of_k_s_interval_is_that_of_one_answer_carried_over():
    low, high = rate_interval(2000, 3)
    found = best_of_k_interval(2000, 3, k=320)
    assert found == pytest.approx((1 - (1 - low) ** 320, 1 - (1 - high) ** 320))
    assert best_of_k_interval(5, 5, k=2) == pytest.approx((1 - (1 - 0.025 ** (1 / 5)) ** 2, 1.0))


def test_the_mean_s_interval_resamples_questions():
    low, high = mean_interval([0.0, 1.0] * 50)
    # Of 100 draws of 0 and 1: 1/2 ± 1.96 · √(1/4 / 100).
    assert (low, high) == pytest.approx((0.402, 0.598), abs=0.02)
    assert mean_interval([0.0, 1.0, 0.5]) == mean_interval([0.0, 1.0, 0.5])
    assert mean_interval([1.0, 1.0]) == (1.0, 1.0)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: discovery_at_k([], 3), "no runs"),
        (lambda: discovery_at_k([0], 3), "at least 1"),
        (lambda: discovery_at_k([1], -1), "k ≥ 0"),
        (lambda: best_of_k(3, 4, 1), "successes ≤ answers"),
        (lambda: best_of_k(3, 1, 4), "k ≤ answers"),
        (lambda: best_of_k_interval(0, 0, 1), "answers ≥ 1"),
        (lambda: mean_interval([]), "one number a question"),
    ],
    ids=["no runs", "place 0", "k below 0", "too many right", "k too large", "no answers", "no values"],
)
def test_numbers_out_of_range_are_refused(call, said):
    with pytest.raises(DataError, match=said):
        call()
