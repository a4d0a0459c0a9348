"""A key/value cache of a few prefixes, read as if it were one of many rows."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from sdpo_plugins.errors import HostError

__all__ = ["SharedCacheError", "checked_cache", "expanded"]


class SharedCacheError(HostError):
    """A model's cache cannot be shared.

    Args:
        problem: Why, without a full stop.
    """

    def __init__(self, problem: str) -> None:
        self.problem = problem
        super().__init__(f"{problem}. Put the model in eval mode, or score without shared prefixes.")


def checked_cache(output: Any, length: int) -> Any:
    """Return the cache of a model's output.

    Args:
        output: Of a forward with `use_cache=True`.
        length: Tokens that it must have seen.

    Raises:
        SharedCacheError: There is none, it is empty, or it holds more than keys and values.
    """
    cache = getattr(output, "past_key_values", None)
    if cache is None:
        raise SharedCacheError(
            f"a forward with `use_cache=True` gave a {type(output).__name__} without `past_key_values`: the model "
            "keeps no keys and values, or gradient checkpointing turned them off, as it does in training mode"
        )
    layers = getattr(cache, "layers", None)
    if not isinstance(layers, Sequence):
        raise SharedCacheError(
            f"its cache is a {type(cache).__name__}, which has no list of `layers` with keys and values as the "
            "DynamicCache of transformers ≥ 4.56 has"
        )
    for layer in layers:
        others = [name for name, value in vars(layer).items() if name not in ("keys", "values") and _holds_rows(value)]
        if others:
            raise SharedCacheError(
                f"its cache layer {type(layer).__name__} keeps {', '.join(others)} besides keys and values (recurrent "
                "states, for one, cannot be continued for several tokens at once)"
            )
    if not any(_holds_rows(getattr(layer, "keys", None)) for layer in layers) or cache.get_seq_length() != length:
        raise SharedCacheError(
            f"its cache of {length} tokens came back empty or of another length: some layers bypass it, as all do in "
            "training mode with gradient checkpointing"
        )
    return cache


def expanded(cache: Any, rows: Tensor) -> Any:
    """Return a cache that reads `cache` row by row and stores nothing.

    Formula: row i of every layer is row `rows[i]` of `cache`. A layer's rows are copied out when that layer runs, and
        freed before the next one does; `cache` stays as it is, for further calls.

    Args:
        cache: As of `checked_cache`.
        rows: `[R]` indices.

    Returns:
        A cache for one forward without gradients.
    """
    view = copy.copy(cache)
    view.layers = [_read_only(layer, rows) for layer in cache.layers]
    return view


def _read_only(layer: Any, rows: Tensor) -> Any:
    view = copy.copy(layer)
    if not _holds_rows(getattr(layer, "keys", None)):
        return view

    def update(*args: Any, **kwargs: Any) -> Any:
        # Its own `update` on a copy that is dropped afterwards: right for full and for sliding attention alike.
        once = copy.copy(layer)
        once.keys = layer.keys.index_select(0, rows.to(layer.keys.device))
        once.values = layer.values.index_select(0, rows.to(layer.values.device))
        return once.update(*args, **kwargs)

    view.update = update
    return view


def _holds_rows(value: Any) -> bool:
    """Whether a value of a layer is, or contains, a tensor with a batch dimension."""
    if isinstance(value, Tensor):
        return value.dim() > 0 and value.numel() > 0
    if isinstance(value, Mapping):
        return any(map(_holds_rows, value.values()))
    return isinstance(value, list | tuple) and any(map(_holds_rows, value))
