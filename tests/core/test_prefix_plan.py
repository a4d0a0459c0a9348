"""Plans of shared prefixes: the cheapest of all ways to put rows together, and what they promise of each row."""

from __future__ import annotations

import itertools
import random
import time

import pytest
import torch

from sdpo_plugins.errors import DataError
from sdpo_plugins.prefix import MIN_SAVED, PrefixPlan, plan_prefixes
from tiny_bodies import padded, tokens


def plan_of(prompts: list[list[int]], completions: list[int]) -> PrefixPlan | None:
    """Plan rows given as token lists and lengths of completions."""
    _, completion_mask = padded([[1] * length for length in completions], "right", width=1)
    return plan_prefixes(*padded(prompts, "left"), completion_mask)


def partitions(items: list[int]):
    """All ways to put items together."""
    if not items:
        yield []
        return
    first, rest = items[0], items[1:]
    for smaller in partitions(rest):
        yield [[first], *smaller]
        for index, subset in enumerate(smaller):
            yield [*smaller[:index], [first, *subset], *smaller[index + 1 :]]


def common(rows: list[list[int]]) -> int:
    """Tokens that all rows begin with."""
    return len(list(itertools.takewhile(lambda column: len(set(column)) == 1, zip(*rows, strict=False))))


def least_tokens(prompts: list[list[int]], completions: list[int]) -> int:
    """Padded tokens of the best plan, found by trying all partitions and all lengths of each one's prefix."""
    best = len(prompts) * max(len(p) + max(c, 1) - 1 for p, c in zip(prompts, completions, strict=True))
    for partition in partitions(list(range(len(prompts)))):
        most = [min(common([prompts[i] for i in rows]), *(len(prompts[i]) - 1 for i in rows)) for rows in partition]
        for lengths in itertools.product(*(range(length + 1) for length in most)):
            rests = [
                len(prompts[i]) - length + max(completions[i], 1) - 1
                for rows, length in zip(partition, lengths, strict=True)
                for i in rows
            ]
            computed = sum(length > 0 for length in lengths) * max(lengths) + len(prompts) * max(rests)
            best = min(best, computed)
    return best


def check_rows(plan: PrefixPlan, prompts: list[list[int]], completions: list[int]) -> None:
    """Each row begins with its prefix, keeps a token of its prompt, and fits the widths."""
    rests = []
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        index, length = plan.row_prefixes[row], 0
        if index >= 0:
            length = plan.prefix_lengths[index]
            assert prompt[:length] == prompts[plan.prefix_rows[index]][:length]
        assert length < len(prompt)
        rests.append(len(prompt) - length + max(completion, 1) - 1)
    assert max(rests) == plan.rest_width
    assert min(plan.prefix_lengths) >= 1
    assert set(range(len(plan.prefix_rows))) <= set(plan.row_prefixes)
    assert plan.plain_width == max(map(len, prompts)) + max(*completions, 1) - 1


@pytest.mark.parametrize("seed", range(6))
def test_no_other_plan_computes_fewer_tokens(seed: int) -> None:
    draw = random.Random(seed)
    planned = 0
    for _ in range(40):
        rows = draw.randint(2, 4)
        # Two symbols and some copied beginnings: prefixes that nest, cross and repeat.
        prompts = [[draw.randint(1, 2) for _ in range(draw.randint(1, 7))] for _ in range(rows)]
        for row in range(1, rows):
            if draw.random() < 0.6:
                prompts[row] = prompts[draw.randrange(row)][: draw.randint(1, 7)] + prompts[row][: draw.randint(0, 2)]
        completions = [draw.randint(0, 3) for _ in range(rows)]
        least = least_tokens(prompts, completions)
        plain = rows * (max(map(len, prompts)) + max(*completions, 1) - 1)
        plan = plan_of(prompts, completions)
        if plan is None:
            # A plan without any prefix is none, however much padding would fall away.
            longest = max(len(p) + max(c, 1) - 1 for p, c in zip(prompts, completions, strict=True))
            assert least > (1 - MIN_SAVED) * plain or least == rows * longest
        else:
            planned += 1
            assert plan.tokens == least
            assert plan.plain_tokens == plain
            check_rows(plan, prompts, completions)
    assert planned > 10


def test_group_with_two_demonstrations() -> None:
    question = tokens(10, 0)
    prompts = [question + tokens(20, 1 + row % 2) for row in range(8)]
    plan = plan_of(prompts, [6, 4, 6, 2, 1, 6, 3, 6])
    assert plan is not None
    assert plan.prefix_lengths == (29, 29)
    assert plan.row_prefixes == (0, 1) * 4 or plan.row_prefixes == (1, 0) * 4
    assert (plan.tokens, plan.plain_tokens) == (2 * 29 + 8 * 6, 8 * 35)
    assert plan.saved == pytest.approx(1 - 106 / 280)


def test_groups_of_other_lengths_in_any_order() -> None:
    # Both groups are told apart though the shorter one's whole prompts are shorter than what the other one shares
    # between its two demonstrations.
    short = [tokens(9, 1) for _ in range(4)]
    long = [tokens(30, 2) + tokens(20, 3 + row % 2) for row in range(4)]
    prompts = [prompt for pair in zip(short, long, strict=True) for prompt in pair]
    completions = [5] * 8
    plan = plan_of(prompts, completions)
    assert plan is not None
    check_rows(plan, prompts, completions)
    assert plan.row_prefixes[0::2] == (-1,) * 4
    assert sorted(plan.prefix_lengths) == [41, 41]
    # The rests are as wide as a short row, which is computed whole beside them.
    assert plan.tokens == 2 * 41 + 8 * 13
    shuffled = [5, 2, 7, 0, 3, 6, 1, 4]
    again = plan_of([prompts[row] for row in shuffled], completions)
    assert again is not None
    check_rows(again, [prompts[row] for row in shuffled], completions)
    assert again.tokens == plan.tokens


def test_padding_and_what_lies_under_it_play_no_part() -> None:
    prompts = [[*tokens(12, 0), 5], [*tokens(12, 0), 6, 7, 8]]
    ids, mask = padded(prompts, "left", width=40)
    completion_mask = torch.tensor([[1, 1, 0, 0, 0], [1, 1, 1, 0, 0]])
    plan = plan_prefixes(ids, mask, completion_mask)
    assert plan == plan_of(prompts, [2, 3])
    assert plan == plan_prefixes(ids.masked_fill(mask == 0, 63), mask.bool(), completion_mask.bool())


def test_hole_in_a_completion_is_not_its_end() -> None:
    prompts = [tokens(20, 0)] * 2
    plan = plan_prefixes(*padded(prompts, "left"), torch.tensor([[1, 0, 0, 1, 0], [1, 1, 0, 0, 0]]))
    assert plan is not None
    assert plan.rest_width == 4


@pytest.mark.parametrize(
    ("prompts", "completions"),
    [
        pytest.param([tokens(30, 0)], [4], id="one row"),
        pytest.param([tokens(30, seed) for seed in range(4)], [4] * 4, id="nothing in common"),
        pytest.param([[7, *tokens(20, 1)], [7, *tokens(20, 2)]], [4, 4], id="too little in common"),
        pytest.param([[7]] * 8, [30] * 8, id="one token, which is the last"),
    ],
)
def test_none_where_nothing_worth_it_is_saved(prompts: list[list[int]], completions: list[int]) -> None:
    assert plan_of(prompts, completions) is None


def test_threshold() -> None:
    # Two rows of n tokens with l in common: l of 2·n are saved.
    def saved(shared: int) -> PrefixPlan | None:
        common, rest = tokens(shared, 0), 100 - shared
        return plan_of([common + [3] * rest, common + [4] * rest], [1, 1])

    assert saved(19) is None
    plan = saved(20)
    assert plan is not None
    assert plan.saved == pytest.approx(MIN_SAVED)


def test_large_batch_is_planned_quickly() -> None:
    question, completions = [tokens(4000, seed) for seed in range(8)], [256] * 256
    prompts = [question[row % 8] + tokens(3000 + row, 100 + row % 16) + tokens(200, 200 + row) for row in range(256)]
    batch = (*padded(prompts, "left"), padded([[1] * 256] * 256, "right")[1])
    start = time.perf_counter()
    plan = plan_prefixes(*batch)
    # A small part of any forward over two million tokens; generous for a busy machine.
    assert time.perf_counter() - start < 10
    assert plan is not None
    check_rows(plan, prompts, completions)
    assert plan.saved > 0.8


@pytest.mark.parametrize(
    ("prompt_mask", "completion_mask", "message"),
    [
        (
            torch.tensor([[1, 1, 1], [1, 1, 0]]),
            torch.ones(2, 2),
            "row 1 has 2 ones in 3 columns, and not all at the end",
        ),
        (torch.tensor([[1, 1, 1], [0, 0, 0]]), torch.ones(2, 2), "row 1 has 0 ones"),
        (torch.ones(2, 4), torch.ones(2, 2), r"got \[2, 3\] and \[2, 4\]"),
        (torch.ones(2, 3), torch.ones(3, 2), r"each of the 2 prompts and a column at least, got \[3, 2\]"),
        (torch.ones(2, 3), torch.ones(2, 0), r"got \[2, 0\]"),
    ],
)
def test_other_layouts_are_refused(prompt_mask: torch.Tensor, completion_mask: torch.Tensor, message: str) -> None:
    with pytest.raises(DataError, match=message):
        plan_prefixes(torch.ones(2, 3, dtype=torch.long), prompt_mask, completion_mask)
