"""Matrix products between hidden states and a head, with results and sums in float32 (float64 for float64)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from sdpo_plugins.losses.divergences import accumulation_dtype
from sdpo_plugins.losses.fused.budget import gathered_rows
from sdpo_plugins.losses.fused.head import LMHead

__all__ = ["PRODUCT_COLUMNS", "Projection", "blocks", "product_dtype"]

PRODUCT_COLUMNS = 16384


def product_dtype(hidden: Tensor, weight: Tensor) -> torch.dtype:
    """Return the type of the products: the wider of both, or autocast's where that is on, as the model's own layer."""
    device = hidden.device.type
    wide = torch.promote_types(hidden.dtype, weight.dtype)
    if torch.is_autocast_enabled(device) and wide != torch.float64:
        return torch.get_autocast_dtype(device)
    return wide


def blocks(width: int, size: int) -> Iterator[slice]:
    """Cut `width` columns into slices of at most `size`."""
    for start in range(0, width, size):
        yield slice(start, min(start + size, width))


class Projection:
    """One head's products: logits of a chunk of rows, and gradients back through them.

    Args:
        head: The head.
        dtype: Type of the matrix products.
        temperature: τ: what is returned are logits/τ.
    """

    def __init__(self, head: LMHead, dtype: torch.dtype, temperature: float) -> None:
        self.head = head
        self.dtype = dtype
        self.temperature = temperature
        self.wide = accumulation_dtype(dtype)
        self.weight = head.weight.detach().to(dtype)
        self.bias = None if head.bias is None else head.bias.detach().to(self.wide)

    def rows(self, hidden: Tensor) -> Tensor:
        """Return hidden states `[n, H]` in the type of the products."""
        return hidden.detach().to(self.dtype)

    def logits(self, hidden: Tensor, out: Tensor) -> Tensor | None:
        """Write all logits/τ into `out [n, V]`; return ∂(logit/τ)/∂(h·Wᵀ) where it is no constant, else None."""
        if self.dtype == self.wide:
            torch.mm(hidden, self.weight.t(), out=out)
        else:
            for block in blocks(self.head.vocabulary, PRODUCT_COLUMNS):
                out[:, block] = self._product(hidden, self.weight[block].t())
        return self._finish_in_place(out, self.bias, keep_slope=True)

    def logits_of_block(self, hidden: Tensor, block: slice) -> Tensor:
        """Return the logits/τ of some columns of the vocabulary `[n, v]`."""
        part = self._product(hidden, self.weight[block].t())
        self._finish_in_place(part, None if self.bias is None else self.bias[block], keep_slope=False)
        return part

    def logits_at(self, hidden: Tensor, ids: Tensor) -> Tensor:
        """Return the logits/τ of K entries of each row `[n, K]` by K dot products, without the other entries."""
        rows, entries = ids.shape
        picked = torch.empty(rows, entries, dtype=self.wide, device=hidden.device)
        for part in self._gathers(rows, entries):
            weights = self.weight[ids[part].reshape(-1)].view(-1, entries, self.head.width)
            picked[part] = torch.bmm(weights, hidden[part].unsqueeze(-1)).squeeze(-1).to(self.wide)
        self._finish_in_place(picked, None if self.bias is None else self.bias[ids], keep_slope=False)
        return picked

    def slope_at(self, scaled: Tensor) -> Tensor | float:
        """Return ∂(logit/τ)/∂(h·Wᵀ) at given logits/τ."""
        if self.head.soft_cap is None:
            return self.slope
        return self.slope * (1.0 - (scaled * (self.temperature / self.head.soft_cap)).square())

    @property
    def slope(self) -> float:
        """The constant part of ∂(logit/τ)/∂(h·Wᵀ)."""
        return self.head.scale / self.temperature

    def hidden_gradient(self, logit_gradient: Tensor) -> Tensor:
        """Return G·W `[n, H]` for G `[n, V]` = ∂L/∂(h·Wᵀ)."""
        if self.dtype == self.wide:
            return logit_gradient @ self.weight
        total = torch.zeros(logit_gradient.shape[0], self.head.width, dtype=self.wide, device=logit_gradient.device)
        for block in blocks(self.head.vocabulary, PRODUCT_COLUMNS):
            total += self._product(logit_gradient[:, block].to(self.dtype), self.weight[block])
        return total

    def add_weight_gradient(self, total: Tensor, logit_gradient: Tensor, hidden: Tensor) -> None:
        """Add Gᵀ·h to the head's gradient `[V, H]`, in place."""
        if self.dtype == self.wide:
            total.addmm_(logit_gradient.t(), hidden)
            return
        for block in blocks(self.head.vocabulary, PRODUCT_COLUMNS):
            total[block] += self._product(logit_gradient[:, block].to(self.dtype).t(), hidden)

    def sparse_hidden_gradient(self, ids: Tensor, gradient: Tensor) -> Tensor:
        """Return G·W where G has only the entries `gradient [n, K]` at `ids [n, K]`."""
        weights = gradient.to(self.dtype)
        result = nn.functional.embedding_bag(ids, self.weight, per_sample_weights=weights, mode="sum")
        return result.to(self.wide)

    def add_sparse_weight_gradient(self, total: Tensor, ids: Tensor, gradient: Tensor, hidden: Tensor) -> None:
        """Add Gᵀ·h for the same sparse G, in place; rows of `total` that no id names stay untouched."""
        for part in self._gathers(*ids.shape):
            outer = gradient[part].unsqueeze(-1) * hidden[part].to(self.wide).unsqueeze(1)
            total.index_add_(0, ids[part].reshape(-1), outer.view(-1, self.head.width))

    def _gathers(self, rows: int, entries: int) -> Iterator[slice]:
        size = entries * self.head.width * torch.empty((), dtype=self.wide).element_size()
        return blocks(rows, gathered_rows(size, self.weight.device.type))

    def _product(self, left: Tensor, right: Tensor) -> Tensor:
        if self.dtype == self.wide:
            return left @ right
        if left.is_cuda and hasattr(torch.ops.aten.mm, "dtype"):
            # The sums are float32 in the matrix units anyway; this also keeps them when they leave.
            return torch.mm(left, right, out_dtype=self.wide)
        return (left @ right).to(self.wide)

    def _finish_in_place(self, raw: Tensor, bias: Tensor | None, keep_slope: bool) -> Tensor | None:
        if bias is not None:
            raw.add_(bias)
        if self.head.soft_cap is None:
            if self.slope != 1.0:
                raw.mul_(self.slope)
            return None
        raw.mul_(self.head.scale / self.head.soft_cap).tanh_()
        slope = raw.square().neg_().add_(1.0).mul_(self.slope) if keep_slope else None
        raw.mul_(self.head.soft_cap / self.temperature)
        return slope
