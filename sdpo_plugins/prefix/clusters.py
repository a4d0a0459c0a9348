"""Which rows go behind which common prefix: the choice that leaves the fewest padded tokens to compute."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

__all__ = ["Cluster", "best_clusters", "shared_lengths"]

Cluster = tuple[int, int, tuple[int, ...]]
"""The prompt a prefix is read from, the tokens of the prefix, and the prompts that begin with it."""


def shared_lengths(adjacent: Sequence[int], lengths: Sequence[int]) -> list[list[int]]:
    """Return how long a prefix every two prompts may share; the last token of a prompt is never part of it.

    Args:
        adjacent: Tokens that each prompt and the next have in common, the prompts being distinct and in lexicographic
            order.
        lengths: Tokens of each prompt.

    Returns:
        A symmetric table; its diagonal holds the longest prefix of a prompt alone.

    Example:
        >>> shared_lengths([2, 1], [2, 4, 3])
        [[1, 1, 1], [1, 3, 1], [1, 1, 2]]
    """
    table = [[0] * len(lengths) for _ in lengths]
    for row, length in enumerate(lengths):
        table[row][row] = common = length - 1
        for other in range(row + 1, len(lengths)):
            # In sorted order, what two have in common every one between them has too, and a prompt that another one
            # continues comes first.
            common = min(common, adjacent[other - 1])
            table[row][other] = table[other][row] = common
    return table


def best_clusters(totals: Sequence[int], shared: Sequence[Sequence[int]], rows: int) -> list[Cluster]:
    """Return the prefixes whose computation leaves the fewest padded tokens.

    Formula: cost = C·L + R·M for C prefixes, padded to the longest, L, and R rests, padded to the longest, M.
        Given M, row i needs a prefix of at least nᵢ − M tokens, so L = max n − M; the fewest prefixes are found by
        serving the longest row first, with a prefix just as long as it needs, and with it all that begin likewise.
        C falls as M grows, which bounds the cost of a span of M from below: spans that cannot win are left out.

    Args:
        totals: nᵢ: tokens of each distinct prompt and its longest completion.
        shared: As of `shared_lengths`.
        rows: R: rows of the batch; several may have the same prompt.

    Returns:
        The clusters; a prompt in none of them is short enough to be computed whole with the rests. Empty: no prefix
        can be shared.

    Example:
        >>> best_clusters([12, 12], [[9, 8], [8, 9]], rows=2)
        [(0, 8, (0, 1))]
    """
    longest_first = sorted(range(len(totals)), key=lambda prompt: -totals[prompt])
    longest = totals[longest_first[0]]
    shortest_rest = max(total - shared[prompt][prompt] for prompt, total in enumerate(totals))
    best: list[Cluster] = []
    least: float = inf
    spans = [(shortest_rest, longest - 1), (shortest_rest, shortest_rest)] if shortest_rest < longest else []
    while spans:
        low, high = spans.pop()
        clusters = _clusters_for(high, longest_first, totals, shared)
        cost = len(clusters) * (longest - high) + rows * high
        if cost < least:
            best, least = clusters, cost
        # Within the span C is at least what it is at its upper end, and C ≤ R, so nothing costs less than this.
        if low < high and len(clusters) * (longest - low) + rows * low < least:
            middle = (low + high) // 2
            spans += [(middle + 1, high - 1), (low, middle)] if middle + 1 < high else [(low, middle)]
    return best


def _clusters_for(
    rest: int, longest_first: list[int], totals: Sequence[int], shared: Sequence[Sequence[int]]
) -> list[Cluster]:
    clusters: list[Cluster] = []
    waiting = longest_first
    while waiting and (needed := totals[waiting[0]] - rest) > 0:
        common = shared[waiting[0]]
        clusters.append((waiting[0], needed, tuple(prompt for prompt in waiting if common[prompt] >= needed)))
        waiting = [prompt for prompt in waiting if common[prompt] < needed]
    return clusters
