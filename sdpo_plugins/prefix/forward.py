"""Hidden states that predict the completions: the plain pass, and the one behind shared prefixes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sdpo_plugins.errors import ConfigError, DataError
from sdpo_plugins.prefix.cache import checked_cache, expanded
from sdpo_plugins.prefix.layout import check_completions, completion_lengths, prompt_lengths, window
from sdpo_plugins.prefix.plan import PrefixPlan

__all__ = ["hidden_behind_prefixes", "plain_hidden"]


def plain_hidden(
    body: Callable[..., Any],
    prompt_ids: Tensor,
    prompt_mask: Tensor,
    completion_ids: Tensor,
    completion_mask: Tensor,
) -> Tensor:
    """Return the hidden states that predict each completion token, every row computed whole.

    Args:
        body: The transformer without its head: `body(input_ids=, attention_mask=, use_cache=)` gives an output with
            `.last_hidden_state`.
        prompt_ids: `[R, P]`, padded on the left.
        prompt_mask: `[R, P]`, 1 on tokens.
        completion_ids: `[R, T]`, padded on the right.
        completion_mask: `[R, T]`, 1 on tokens.

    Returns:
        `[R, T, H]`: entry t is the state of the token before completion token t. Differentiable.

    Raises:
        DataError: Shapes that do not fit, prompts that are empty or not padded on the left.
    """
    prompt_lengths(prompt_ids, prompt_mask)
    check_completions(completion_ids, completion_mask, prompt_ids.shape[0])
    # The last column predicts nothing that is asked for.
    ids = torch.cat([prompt_ids, completion_ids], dim=1)[:, :-1]
    mask = torch.cat([prompt_mask, completion_mask.to(prompt_mask.dtype)], dim=1)[:, :-1]
    hidden: Tensor = body(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    return hidden[:, prompt_ids.shape[1] - 1 :]


@torch.no_grad()
def hidden_behind_prefixes(
    body: Callable[..., Any],
    prompt_ids: Tensor,
    prompt_mask: Tensor,
    completion_ids: Tensor,
    completion_mask: Tensor,
    plan: PrefixPlan,
    *,
    rows_at_once: int | None = None,
) -> Tensor:
    """Return what `plain_hidden` returns, with the prefixes of the plan computed once, and without gradients.

    First the prefixes run, padded on the left, and leave a key/value cache; then the rests, padded on the right,
    behind it. So the tokens of a row lie side by side, and the model's own default positions are those of the plain
    pass but for a shift, which relative positions do not see: equal up to rounding where `prefix_sharing_problem` finds
    none. The model must be in eval mode: gradient checkpointing turns caches off, and dropout would differ.

    Formula: memory = 2·layers·kv_heads·head_dim·bytes × C·L for the cache of the prefixes, which is never copied as a
        whole, and 4·kv_heads·head_dim·bytes × r·(L + M) for the layer that is running, r = `rows_at_once` or R.

    Args:
        body: As of `plain_hidden`; takes `past_key_values` too. Where its weights are sharded over ranks, every rank
            must run as many forwards: 1 + ⌈R / rows_at_once⌉ here, 1 in the plain pass, so all ranks must agree on
            sharing or not, which is the caller's duty.
        prompt_ids: `[R, P]`, padded on the left.
        prompt_mask: `[R, P]`, 1 on tokens.
        completion_ids: `[R, T]`, padded on the right.
        completion_mask: `[R, T]`, 1 on tokens.
        plan: `plan_prefixes` of the same prompts and completions.
        rows_at_once: Rests computed together; None: all.

    Returns:
        `[R, T, H]`: entry t is the state of the token before completion token t; zeros behind the last token.

    Raises:
        ConfigError: `rows_at_once` below 1.
        DataError: Shapes that do not fit each other or the plan.
        HostError: The model gives no cache that can be shared.

    Source: prefix caching as in servers of language models, e.g. Zheng et al., "SGLang" (arXiv 2312.07104).
    """
    rows = prompt_ids.shape[0]
    if rows_at_once is not None and rows_at_once < 1:
        raise ConfigError(f"`rows_at_once` must be at least 1, or None for all rows, got {rows_at_once}.")
    lengths = prompt_lengths(prompt_ids, prompt_mask)
    check_completions(completion_ids, completion_mask, rows)
    if len(plan.row_prefixes) != rows:
        raise DataError(f"the plan is one of {len(plan.row_prefixes)} rows, but {rows} were given. Plan this batch.")
    device = prompt_ids.device
    prefix_of_row = torch.tensor(plan.row_prefixes, device=device)
    prefix_lengths = torch.tensor(plan.prefix_lengths, device=device)
    behind = prefix_lengths[prefix_of_row].masked_fill_(prefix_of_row < 0, 0)
    asked = completion_lengths(completion_mask)
    if bool((behind >= lengths).any() | (lengths + (asked - 1).clamp(min=0) - behind > plan.rest_width).any()):
        raise DataError("the plan does not fit these prompts and completions: it is one of others. Plan this batch.")

    ids = torch.cat([prompt_ids, completion_ids], dim=1)
    mask = torch.cat([prompt_mask, completion_mask.to(prompt_mask.dtype)], dim=1)
    begins = prompt_ids.shape[1] - lengths
    first = torch.tensor(plan.prefix_rows, device=device)
    width = plan.prefix_width
    prefix_ids, prefix_mask = window(ids[first], mask[first], begins[first] + prefix_lengths - width, width)
    cache = checked_cache(body(input_ids=prefix_ids, attention_mask=prefix_mask, use_cache=True), width)

    from_prefix = (torch.arange(width, device=device) >= width - behind.unsqueeze(-1)).to(mask.dtype)
    rest_ids, rest_mask = window(ids, mask, begins + behind, plan.rest_width)
    rest_mask = torch.cat([from_prefix, rest_mask], dim=1)
    # Entry t of a row is the state t places behind the last token of its prompt.
    steps = torch.arange(completion_ids.shape[1], device=device)
    places = (lengths - behind - 1).unsqueeze(-1) + steps
    result: Tensor | None = None
    for part in torch.arange(rows, device=device).split(rows_at_once or rows):
        output = body(
            input_ids=rest_ids[part],
            attention_mask=rest_mask[part],
            # A row without a prefix sees none of the cache's columns: any will do.
            past_key_values=expanded(cache, prefix_of_row[part].clamp(min=0)),
            use_cache=True,
        )
        hidden: Tensor = output.last_hidden_state
        index = places[part].clamp(max=plan.rest_width - 1).unsqueeze(-1).expand(-1, -1, hidden.shape[-1])
        picked = hidden.gather(1, index.to(hidden.device))
        picked.masked_fill_((steps >= asked[part].unsqueeze(-1)).unsqueeze(-1).to(picked.device), 0)
        if len(part) == rows:
            return picked
        if result is None:
            result = picked.new_empty(rows, *picked.shape[1:])
        result[part] = picked
    assert result is not None
    return result
