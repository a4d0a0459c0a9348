"""Metrics of a step from sums: whatever the cut into micro-batches, they are means over all active tokens."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import fields

import pytest
import torch

from sdpo_plugins.losses import TokenLosses
from sdpo_plugins.step_metrics import SUMS, means_of_sums, token_sums

COUNT = 7
SUCCESS = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0])


def drawn() -> tuple[TokenLosses, torch.Tensor]:
    g = torch.Generator().manual_seed(2)
    values = {item.name: torch.rand(COUNT, generator=g) for item in fields(TokenLosses)}
    return TokenLosses(**values), torch.rand(COUNT, generator=g)


def part(losses: TokenLosses, rows: slice) -> TokenLosses:
    return TokenLosses(**{item.name: getattr(losses, item.name)[rows] for item in fields(TokenLosses)})


@pytest.mark.parametrize("cuts", [(0, 7), (0, 1, 7), (0, 3, 3, 5, 7)], ids=["whole", "two", "one of them empty"])
def test_means_do_not_depend_on_the_cut(cuts: tuple[int, ...]) -> None:
    losses, entropies = drawn()
    total: Counter[str] = Counter()
    for begin, end in itertools.pairwise(cuts):
        rows = slice(begin, end)
        sums = token_sums(part(losses, rows), entropies[rows], SUCCESS[rows])
        total.update({name: float(value) for name, value in sums.items()})
    gap = losses.teacher_log_probs - losses.student_log_probs
    expected = {
        "active_tokens": 7.0,
        "divergence": losses.divergence.mean(),
        "log_prob": losses.student_log_probs.mean(),
        "entropy": entropies.mean(),
        "importance_ratio": losses.importance_ratio.mean(),
        "gap": gap.mean(),
        "gap_on_success": gap[SUCCESS != 0].mean(),
        "gap_on_failure": gap[SUCCESS == 0].mean(),
    }
    assert means_of_sums(total) == pytest.approx(
        {f"self_distillation/{name}": float(value) for name, value in expected.items()}, rel=1e-5
    )


def test_a_mask_takes_tokens_out_even_where_they_are_not_finite() -> None:
    losses, entropies = drawn()
    mask = torch.tensor([1.0, 1.0, 0.0, 1.0, 0.0, 1.0, 1.0])
    losses.divergence[2] = torch.nan
    kept = mask != 0
    chosen = TokenLosses(**{item.name: getattr(losses, item.name)[kept] for item in fields(TokenLosses)})
    sums, expected = token_sums(losses, entropies, SUCCESS, mask), token_sums(chosen, entropies[kept], SUCCESS[kept])
    assert sums.keys() == expected.keys()
    torch.testing.assert_close(torch.stack([*sums.values()]), torch.stack([*expected.values()]))


def test_what_was_not_computed_is_not_reported() -> None:
    losses, entropies = drawn()
    unknown = TokenLosses(losses.per_token, losses.divergence, losses.student_log_probs, None)
    sums = token_sums(unknown, entropies, SUCCESS)
    names = means_of_sums({name: float(value) for name, value in sums.items()}).keys()
    assert names == {f"self_distillation/{name}" for name in ("active_tokens", "divergence", "log_prob", "entropy")}


def test_nothing_active_gives_a_count_and_no_means() -> None:
    assert means_of_sums({}) == {"self_distillation/active_tokens": 0.0}
    assert means_of_sums(dict.fromkeys(SUMS, 0.0)) == {"self_distillation/active_tokens": 0.0}


def test_the_sums_of_a_host_that_averages_over_ranks_give_the_same_means() -> None:
    losses, entropies = drawn()
    sums = {name: float(value) for name, value in token_sums(losses, entropies, SUCCESS).items()}
    means, halved = means_of_sums(sums), means_of_sums({name: value / 2 for name, value in sums.items()})
    assert means.keys() == halved.keys()
    assert {name for name in means if means[name] != pytest.approx(halved[name])} == {"self_distillation/active_tokens"}


def test_sums_have_no_name_that_is_not_listed() -> None:
    losses, entropies = drawn()
    assert token_sums(losses, entropies, SUCCESS).keys() <= set(SUMS)
