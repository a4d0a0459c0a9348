"""Running a function in place of a module's forward, inside of whatever wraps the module."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor, nn

__all__ = ["Opaque", "loss_inside", "run_inside"]

T = TypeVar("T")


class Opaque:
    """Holds results that wrappers must not look into: FSDP2 may round every tensor that a forward returns.

    Args:
        value: Anything.
    """

    def __init__(self, value: Any) -> None:
        self.value = value


def run_inside(wrapper: nn.Module, module: nn.Module, function: Callable[..., Any], *inputs: Tensor) -> Any:
    """Call the wrapper's forward with `function` in place of the bare module's.

    DDP, FSDP2 and DeepSpeed prepare gradients and gather weights around a forward; parts of the model that are called
    by themselves would miss that.

    Args:
        wrapper: The module as wrapped for training, or the bare one.
        module: The bare module inside of it.
        function: What to do there.
        inputs: What the wrapper is called with, and passes on to `function`.

    Returns:
        What `function` returned, as the wrapper passes it on.

    Example:
        >>> import torch
        >>> layer = nn.Linear(2, 3)
        >>> run_inside(layer, layer, lambda hidden: hidden.shape, torch.ones(4, 2))
        torch.Size([4, 2])
    """
    own = module.__dict__.get("forward")

    def restore() -> None:
        if own is None:
            module.__dict__.pop("forward", None)
        else:
            module.forward = own

    def once(*given: Any, **_: Any) -> Any:
        restore()
        return function(*given)

    module.forward = once
    try:
        return wrapper(*inputs)
    finally:
        restore()


def loss_inside(
    wrapper: nn.Module, module: nn.Module, function: Callable[..., tuple[Tensor, T]], *inputs: Tensor
) -> tuple[Tensor, T]:
    """Compute a loss in place of a module's forward, so that the module's weights are whole, and get their gradients.

    Where FSDP2 or ZeRO-3 cut the module's weights into shards, they gather them for a forward of it, and again once a
    gradient reaches what it returned; DDP follows what it returned to the weights that take part. So the loss itself
    passes unseen, and unrounded, beside a zero made of it.

    Args:
        wrapper: As in `run_inside`.
        module: The model's head (then `wrapper` is the head too), or the whole bare model.
        function: Returns a finite loss, which has a gradient where one is wanted, and anything else.
        inputs: As in `run_inside`; where the module's own gradient is to flow into them, with gradient.

    Returns:
        The loss and the rest.

    Example:
        >>> import torch
        >>> layer = nn.Linear(2, 3)
        >>> loss, rest = loss_inside(layer, layer, lambda states: (states.sum(), "rest"), torch.ones(4, 2))
        >>> float(loss), rest
        (8.0, 'rest')
    """

    def forward(*given: Tensor) -> tuple[Tensor, Opaque]:
        loss, rest = function(*given)
        return loss * 0.0, Opaque((loss, rest))

    visible, opaque = run_inside(wrapper, module, forward, *inputs)
    loss, rest = opaque.value
    return loss + visible.to(loss.dtype), rest
