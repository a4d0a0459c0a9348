"""Running a function in place of a model's forward, inside of whatever wraps the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

__all__ = ["Opaque", "run_inside"]


class Opaque:
    """Holds results that wrappers must not look into: FSDP2 casts every tensor that a forward returns.

    Args:
        value: Anything.
    """

    def __init__(self, value: Any) -> None:
        self.value = value


def run_inside(wrapper: nn.Module, module: nn.Module, function: Callable[[], Any]) -> Any:
    """Call the wrapper's forward with `function` in place of the bare module's.

    DDP, FSDP2 and DeepSpeed prepare gradients and gather weights around a forward; parts of the model that are called
    by themselves would miss that.

    Args:
        wrapper: The model as wrapped for training, or the bare one.
        module: The bare model inside of it.
        function: What to do there.

    Returns:
        What `function` returned, as the wrapper passes it on.
    """
    own = module.__dict__.get("forward")

    def restore() -> None:
        if own is None:
            module.__dict__.pop("forward", None)
        else:
            module.forward = own

    def once(*_: Any, **__: Any) -> Any:
        restore()
        return function()

    module.forward = once
    try:
        return wrapper()
    finally:
        restore()
