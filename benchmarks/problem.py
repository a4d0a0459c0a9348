"""What every loss is measured on: hidden states and heads of a student and a teacher that is close to it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Problem", "Shape", "make_problem"]


@dataclass(frozen=True)
class Shape:
    """Sizes of a problem.

    Args:
        batch: B.
        length: T, response tokens of each row.
        width: H.
        vocabulary: V.
        top_k: K.
        masked: Share of the tokens that the mask leaves out, at the ends of rows; at most a half.
        dtype: Name of the type of hidden states and heads.
        device: Where.
    """

    batch: int = 4
    length: int = 256
    width: int = 896
    vocabulary: int = 151_936
    top_k: int = 100
    masked: float = 0.0
    dtype: str = "float32"
    device: str = "cpu"

    @property
    def tokens(self) -> int:
        """N = B·T."""
        return self.batch * self.length


@dataclass
class Problem:
    """Tensors of one problem.

    Args:
        shape: The sizes.
        hidden: Student's `[B, T, H]`, wants a gradient.
        weight: Student's head `[V, H]`, wants a gradient.
        teacher_hidden: `[B, T, H]`.
        teacher_weight: `[V, H]`.
        token_ids: `[B, T]`.
        mask: `[B, T]`.
    """

    shape: Shape
    hidden: Tensor
    weight: Tensor
    teacher_hidden: Tensor
    teacher_weight: Tensor
    token_ids: Tensor
    mask: Tensor

    def mean(self, per_token: Tensor) -> Tensor:
        """Return the mean of `[B, T]` over the tokens that count."""
        return (per_token * self.mask).sum() / self.mask.sum()


def make_problem(shape: Shape) -> Problem:
    """Draw a problem; the same shape gives the same numbers.

    Example:
        >>> make_problem(Shape(batch=2, length=8, width=4, vocabulary=16, masked=0.25)).mask.mean().item()
        0.75
    """
    draw = torch.Generator(shape.device).manual_seed(0)
    dtype = getattr(torch, shape.dtype)

    def normal(*sizes: int) -> Tensor:
        return torch.randn(*sizes, generator=draw, dtype=dtype, device=shape.device)

    hidden = normal(shape.batch, shape.length, shape.width)
    # Logits with a spread of about 1.5 whatever the width; the teacher's differ as those behind another prompt do.
    weight = normal(shape.vocabulary, shape.width).mul_(1.5 / shape.width**0.5)
    teacher_hidden = hidden + 0.3 * normal(*hidden.shape)
    teacher_weight = normal(*weight.shape).mul_(0.06 / shape.width**0.5).add_(weight)
    ids = torch.randint(0, shape.vocabulary, hidden.shape[:2], generator=draw, device=shape.device)
    return Problem(
        shape,
        hidden.requires_grad_(),
        weight.requires_grad_(),
        teacher_hidden,
        teacher_weight,
        ids,
        _mask(shape),
    )


def _mask(shape: Shape) -> Tensor:
    """The first row is whole, each further one shorter, so that `masked` of all tokens are left out."""
    rows = torch.arange(shape.batch) / max(1, shape.batch - 1) if shape.batch > 1 else torch.full((1,), 0.5)
    lengths = (shape.length * (1.0 - 2.0 * shape.masked * rows)).round()
    return (torch.arange(shape.length) < lengths.unsqueeze(-1)).float().to(shape.device)
