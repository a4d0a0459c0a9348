"""Which tensors a piece of code holds at the same time, and which products it computes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

PRODUCTS = {"mm", "addmm", "bmm", "baddbmm", "addmm_", "mv", "matmul"}


class LiveTensors(TorchDispatchMode):
    """Follow every storage that is made inside of the block, through forward and backward.

    Attributes:
        peak: Most bytes that were alive at once; memory from before the block does not count.
        counts: Numel → most storages of that many elements that were alive at once.
        products: One `(rows, inner, columns)` for each matrix product; batched ones as `(batch, rows, inner, columns)`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self.counts: Counter[int] = Counter()
        self.products: list[tuple[int, ...]] = []
        self._known: dict[int, tuple[StorageWeakRef, int, int]] = {}

    def largest(self, *, apart_from: Sequence[int] = ()) -> int:
        """Return the most elements that a storage had, apart from those of the given sizes."""
        return max((size for size in self.counts if size not in apart_from), default=0)

    @property
    def multiplications(self) -> int:
        """Multiplications of all matrix products together."""
        total = 0
        for shape in self.products:
            count = 1
            for size in shape:
                count *= size
            total += count
        return total

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for tensor in _tensors((args, kwargs)):
            # What comes in from outside is no one's to count; as a view it may come out again.
            self._known.setdefault(*self._entry(tensor, counted=False))
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket.__name__ in PRODUCTS:
            left, right = [value for value in args if isinstance(value, Tensor)][-2:]
            self.products.append((*left.shape, right.shape[-1]) if right.dim() > 1 else (*left.shape, 1))
        for tensor in _tensors(result):
            self._known.setdefault(*self._entry(tensor, counted=True))
        self._known = {key: entry for key, entry in self._known.items() if not entry[0].expired()}
        alive = Counter(numel for _, size, numel in self._known.values() if size)
        self.counts |= alive
        self.peak = max(self.peak, sum(size for _, size, _ in self._known.values()))
        return result

    @staticmethod
    def _entry(tensor: Tensor, counted: bool) -> tuple[int, tuple[StorageWeakRef, int, int]]:
        storage = tensor.untyped_storage()
        reference = StorageWeakRef(storage)
        size = storage.nbytes() if counted else 0
        return reference.cdata, (reference, size, size // tensor.element_size())


def _tensors(tree: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))
