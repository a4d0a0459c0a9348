"""How prompts and completions lie in their tensors, and the refusal of other layouts."""

from __future__ import annotations

import torch
from torch import Tensor

from sdpo_plugins.errors import DataError

__all__ = ["check_completions", "completion_lengths", "prompt_lengths", "window"]


def prompt_lengths(prompt_ids: Tensor, prompt_mask: Tensor) -> Tensor:
    """Return the tokens of each prompt `[R]`.

    Args:
        prompt_ids: `[R, P]`.
        prompt_mask: `[R, P]`: 0 on the padding, which lies to the left, 1 on the tokens.

    Raises:
        DataError: Another shape, padding elsewhere, or a prompt without a token.

    Example:
        >>> prompt_lengths(torch.tensor([[0, 5], [6, 7]]), torch.tensor([[0, 1], [1, 1]])).tolist()
        [1, 2]
    """
    if prompt_ids.dim() != 2 or prompt_ids.shape != prompt_mask.shape or not prompt_ids.numel():
        raise DataError(
            f"`prompt_ids` and `prompt_mask` must both be [R, P] with a row and a column at least, got "
            f"{list(prompt_ids.shape)} and {list(prompt_mask.shape)}."
        )
    real = prompt_mask.bool()
    lengths = real.sum(-1)
    columns = torch.arange(prompt_ids.shape[1], device=prompt_ids.device)
    wrong = (real != (columns >= prompt_ids.shape[1] - lengths.unsqueeze(-1))).any(-1) | (lengths == 0)
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0])
        raise DataError(
            f"`prompt_mask` must be zeros (padding), then ones, with a one at least; row {row} has {int(lengths[row])} "
            f"ones in {prompt_ids.shape[1]} columns, and not all at the end. Pad prompts on the left."
        )
    return lengths


def check_completions(completion_ids: Tensor, completion_mask: Tensor, rows: int) -> None:
    """Raise DataError unless both are `[R, T]` with T ≥ 1."""
    if completion_ids.dim() != 2 or completion_ids.shape != completion_mask.shape or not completion_ids.shape[1]:
        raise DataError(
            f"`completion_ids` and `completion_mask` must both be [R, T] with a column at least, got "
            f"{list(completion_ids.shape)} and {list(completion_mask.shape)}."
        )
    if completion_ids.shape[0] != rows:
        raise DataError(f"there are {rows} prompts, but {completion_ids.shape[0]} completions: one row each is needed.")


def completion_lengths(completion_mask: Tensor) -> Tensor:
    """Return the columns of each completion up to its last token `[R]`; holes within it count.

    Example:
        >>> completion_lengths(torch.tensor([[1, 0, 1, 0], [0, 0, 0, 0]])).tolist()
        [3, 0]
    """
    columns = torch.arange(1, completion_mask.shape[1] + 1, device=completion_mask.device)
    return (completion_mask.bool() * columns).amax(-1)


def window(ids: Tensor, mask: Tensor, starts: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Cut `width` columns out of each row, from another start in each; outside of the row the mask is 0.

    Args:
        ids: `[R, N]`.
        mask: `[R, N]`.
        starts: `[R]`, may be negative.
        width: Columns.

    Returns:
        Ids and mask, both `[R, width]`.

    Example:
        >>> window(torch.tensor([[5, 6, 7]]), torch.ones(1, 3, dtype=torch.long), torch.tensor([2]), 2)
        (tensor([[7, 7]]), tensor([[1, 0]]))
    """
    columns = starts.unsqueeze(-1) + torch.arange(width, device=ids.device)
    nearest = columns.clamp(0, ids.shape[1] - 1)
    return ids.gather(1, nearest), mask.gather(1, nearest) * (columns == nearest)
