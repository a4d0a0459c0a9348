"""The output layer of a language model as the fused loss needs it: a matrix and what follows it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sdpo_plugins.errors import DataError

__all__ = ["LMHead", "as_head"]


@dataclass(frozen=True, eq=False)
class LMHead:
    r"""A language-model head: logits = cap·tanh(z/cap) with z = scale·(h·Wᵀ + b).

    Args:
        weight: W `[V, H]`; may be the input embeddings' own (tied). It gets a gradient if it requires one.
        bias: b `[V]`, or None.
        scale: Multiplies the logits (Cohere's `logit_scale`; 1 / Granite's `logits_scaling`).
        soft_cap: Gemma's `final_logit_softcapping`; None: no cap.

    Raises:
        DataError: Shapes that do not fit, a scale or cap that is not a positive number, or weights that lie in shards
            (FSDP2, ZeRO-3).

    Example:
        >>> LMHead(torch.eye(3)[:, :2], scale=2.0).vocabulary
        3
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    soft_cap: float | None = None

    def __post_init__(self) -> None:
        _refuse_sharded("weight", self.weight)
        if self.weight.dim() != 2 or not self.weight.is_floating_point() or 0 in self.weight.shape:
            raise DataError(
                f"the weight of a head must be a float matrix [V, H], got {list(self.weight.shape)} of "
                f"{self.weight.dtype}."
            )
        if self.bias is not None:
            _refuse_sharded("bias", self.bias)
            if self.bias.shape != self.weight.shape[:1]:
                raise DataError(
                    f"the bias of a head with {self.weight.shape[0]} tokens must have the shape "
                    f"[{self.weight.shape[0]}], got {list(self.bias.shape)}."
                )
        for name, value in (("scale", self.scale), ("soft_cap", self.soft_cap)):
            if value is not None and not (math.isfinite(value) and value > 0.0):
                raise DataError(f"`{name}` of a head must be a finite number greater than 0, got {value!r}.")

    @property
    def vocabulary(self) -> int:
        """V, the number of logits."""
        return self.weight.shape[0]

    @property
    def width(self) -> int:
        """H, the width of the hidden states."""
        return self.weight.shape[1]

    def detached(self) -> LMHead:
        """Return the same values without gradient; they stay as they are where `.data` of the parameters is exchanged.

        Example:
            >>> LMHead(nn.Parameter(torch.ones(3, 2))).detached().weight.requires_grad
            False
        """
        bias = None if self.bias is None else self.bias.detach()
        return LMHead(self.weight.detach(), bias, self.scale, self.soft_cap)

    def logits(self, hidden: Tensor) -> Tensor:
        """Return what the model would: logits `[..., V]` of hidden states `[..., H]`, differentiable.

        Example:
            >>> LMHead(torch.ones(3, 2), bias=torch.zeros(3)).logits(torch.ones(1, 2))
            tensor([[2., 2., 2.]])
        """
        logits = nn.functional.linear(hidden.to(self.weight.dtype), self.weight, self.bias)
        if self.scale != 1.0:
            logits = logits * self.scale
        return logits if self.soft_cap is None else self.soft_cap * torch.tanh(logits / self.soft_cap)


def as_head(value: Any, name: str = "head") -> LMHead:
    """Return an `LMHead` from one, from a weight matrix `[V, H]`, or from an `nn.Linear`.

    Args:
        value: The head.
        name: What messages call it.

    Raises:
        DataError: Something else, or a module that is more than a matrix and a bias.

    Example:
        >>> as_head(nn.Linear(2, 5)).vocabulary
        5
    """
    if isinstance(value, LMHead):
        return value
    if isinstance(value, Tensor):
        return LMHead(value)
    if isinstance(value, nn.Module) and type(value).forward is nn.Linear.forward:
        linear: Any = value
        return LMHead(linear.weight, linear.bias)
    raise DataError(
        f"`{name}` must be an LMHead, a weight matrix [V, H] or an nn.Linear, got {type(value).__name__}. Build "
        "`LMHead(weight, bias, scale, soft_cap)` from what your model's output layer does."
    )


def _refuse_sharded(name: str, tensor: Tensor) -> None:
    status: Any = getattr(tensor, "ds_status", None)
    if status is not None and status.name != "AVAILABLE":
        raise DataError(
            f"the {name} of the head is spread over ranks by ZeRO-3, and a gradient from gathered values would not "
            "find its way back to the shards. Use the loss on logits (`loss_path: logits`), or ZeRO-1/2."
        )
    if torch.distributed.is_available():
        from torch.distributed.tensor import DTensor

        if isinstance(tensor, DTensor):
            raise DataError(
                f"the {name} of the head is a DTensor, one shard of the matrix. Call the loss inside of the model's "
                "forward, where FSDP2 has gathered it, or pass a gathered matrix; or use the loss on logits "
                "(`loss_path: logits`)."
            )
