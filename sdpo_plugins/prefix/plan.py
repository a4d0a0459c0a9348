"""The plan of a scoring pass: which prefixes are computed once, and which rows run behind which."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sdpo_plugins.errors import DataError
from sdpo_plugins.prefix.clusters import best_clusters, shared_lengths
from sdpo_plugins.prefix.layout import completion_lengths, prompt_lengths

__all__ = ["MIN_SAVED", "PrefixPlan", "plan_prefixes"]

MIN_SAVED = 0.1
"""Share of the tokens that must fall away before a second forward is worth its overhead."""


@dataclass(frozen=True)
class PrefixPlan:
    """Prefixes to compute once, and the rows that go behind each.

    Args:
        prefix_rows: `[C]` a row whose prompt begins with the prefix.
        prefix_lengths: `[C]` tokens of each prefix, all ≥ 1.
        row_prefixes: `[R]` index of each row's prefix; −1: the row is computed whole, with the rests.
        rest_width: Tokens of the longest rest: what is left of a prompt (its last token at least) and its completion
            but for the last token, whose hidden state predicts nothing that is asked for.
        plain_width: Tokens of a row of the plain pass: longest prompt and longest completion, but for its last token.

    Example:
        >>> plan = PrefixPlan((0,), (8,), (0, 0, 0), rest_width=4, plain_width=12)
        >>> plan.tokens, plan.plain_tokens, round(plan.saved, 2)
        (20, 36, 0.44)
    """

    prefix_rows: tuple[int, ...]
    prefix_lengths: tuple[int, ...]
    row_prefixes: tuple[int, ...]
    rest_width: int
    plain_width: int

    @property
    def prefix_width(self) -> int:
        """Tokens of the longest prefix."""
        return max(self.prefix_lengths)

    @property
    def tokens(self) -> int:
        """Padded tokens that the model computes: C·(longest prefix) + R·(longest rest)."""
        return len(self.prefix_rows) * self.prefix_width + len(self.row_prefixes) * self.rest_width

    @property
    def plain_tokens(self) -> int:
        """Padded tokens of the plain pass: R·(longest prompt + longest completion − 1)."""
        return len(self.row_prefixes) * self.plain_width

    @property
    def saved(self) -> float:
        """Share of the plain pass's tokens that need not be computed; padding that falls away counts."""
        return (self.plain_tokens - self.tokens) / self.plain_tokens


def plan_prefixes(prompt_ids: Tensor, prompt_mask: Tensor, completion_mask: Tensor) -> PrefixPlan | None:
    """Plan a scoring pass that computes common prefixes of the prompts once.

    Formula: minimises C·(longest prefix) + R·(longest rest of a prompt with its completion) over all ways to put rows
        together that begin alike, whatever their order and number. Takes O(R·P) memory; the time is that of sorting
        the rows.

    Args:
        prompt_ids: `[R, P]`, padded on the left.
        prompt_mask: `[R, P]`, 1 on tokens.
        completion_mask: `[R, T]`, 1 on tokens, padded on the right; holes are taken as they are.

    Returns:
        The plan, or None where it would save less than `MIN_SAVED`.

    Raises:
        DataError: Shapes that do not fit, prompts that are empty or not padded on the left.

    Example:
        >>> prompts = torch.tensor([[1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 7]])
        >>> plan = plan_prefixes(prompts, torch.ones_like(prompts), torch.ones(2, 2, dtype=torch.long))
        >>> plan.prefix_lengths, plan.row_prefixes, plan.rest_width
        ((5,), (0, 0), 2)
    """
    lengths = prompt_lengths(prompt_ids, prompt_mask)
    if completion_mask.dim() != 2 or completion_mask.shape[0] != prompt_ids.shape[0] or not completion_mask.shape[1]:
        raise DataError(
            f"`completion_mask` must be [R, T] with a row for each of the {prompt_ids.shape[0]} prompts and a column "
            f"at least, got {list(completion_mask.shape)}."
        )
    # The last token of a completion need not be computed; the last of a prompt always is.
    after_prompt = (completion_lengths(completion_mask) - 1).clamp_(min=0)
    prompts, prompt_of_row = torch.unique(_left_aligned(prompt_ids, lengths), dim=0, return_inverse=True)
    # Distinct rows differ somewhere; argmax finds the first such column.
    adjacent: list[int] = (prompts[1:] != prompts[:-1]).int().argmax(-1).tolist()
    shared = shared_lengths(adjacent, (prompts >= 0).sum(-1).tolist())
    totals = [0] * len(shared)
    members: list[int] = prompt_of_row.tolist()
    for prompt, total in zip(members, (lengths + after_prompt).tolist(), strict=True):
        totals[prompt] = max(totals[prompt], total)
    clusters = best_clusters(totals, shared, len(members))
    if not clusters:
        return None
    prefix_of_prompt = {prompt: index for index, (_, _, inside) in enumerate(clusters) for prompt in inside}
    plan = PrefixPlan(
        prefix_rows=tuple(members.index(leader) for leader, _, _ in clusters),
        prefix_lengths=tuple(length for _, length, _ in clusters),
        row_prefixes=tuple(prefix_of_prompt.get(prompt, -1) for prompt in members),
        rest_width=max(totals) - max(length for _, length, _ in clusters),
        plain_width=int(lengths.max()) + int(after_prompt.max()),
    )
    return plan if plan.saved >= MIN_SAVED else None


def _left_aligned(prompt_ids: Tensor, lengths: Tensor) -> Tensor:
    """Move the padding to the right and make it −1, which is no token's id."""
    width = prompt_ids.shape[1]
    columns = torch.arange(width, device=prompt_ids.device)
    source = (columns + width - lengths.unsqueeze(-1)).clamp_(max=width - 1)
    return prompt_ids.gather(1, source).masked_fill_(columns >= lengths.unsqueeze(-1), -1)
