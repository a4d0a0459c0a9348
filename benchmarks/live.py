"""How many bytes of tensors are alive at once, phase by phase, whatever the allocator makes of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["LiveBytes"]


class LiveBytes(TorchDispatchMode):
    """Follow every tensor's storage that is made inside of the block, through forward and backward.

    What a kernel takes and frees within itself is not seen, nor is what an allocator keeps.

    Attributes:
        phase: What the peaks are booked under.
        peaks: Phase → most bytes that were alive at once in it.
    """

    def __init__(self, phase: str) -> None:
        super().__init__()
        self.phase = phase
        self.peaks: dict[str, int] = {}
        self._known: dict[int, tuple[StorageWeakRef, int]] = {}
        # Of the storages in `_known`, those that are gone but not yet looked after included.
        self._most = 0

    def alive(self) -> int:
        """Return the bytes that are alive now."""
        self._known = {key: entry for key, entry in self._known.items() if not entry[0].expired()}
        self._most = sum(size for _, size in self._known.values())
        return self._most

    @contextmanager
    def within(self, phase: str) -> Iterator[None]:
        """Book the block under another phase."""
        before, self.phase = self.phase, phase
        self._book()
        try:
            yield
        finally:
            self.phase = before
            self._book()

    def begin(self, phase: str) -> None:
        """Book what follows under `phase`."""
        self.phase = phase
        self._book()

    def forget(self) -> None:
        """Drop the peaks so far."""
        self.peaks = {}
        self._book()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if not isinstance(tensor, Tensor) or tensor.device.type == "meta":
                continue
            storage = tensor.untyped_storage()
            reference = StorageWeakRef(storage)
            if reference.cdata not in self._known:
                self._known[reference.cdata] = (reference, storage.nbytes())
                self._most += storage.nbytes()
        # Looking after what is gone takes time, and is only needed where a new peak seems to be reached.
        if self._most > self.peaks.get(self.phase, -1):
            self._book()
        return result

    def _book(self) -> None:
        self.peaks[self.phase] = max(self.peaks.get(self.phase, 0), self.alive())
