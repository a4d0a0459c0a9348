"""A rollout batch's sums, kept by the worker: verl's own way takes means over ranks and mini-batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from sdpo_plugins.step_metrics import SUMS, means_of_sums

__all__ = ["RunningSums"]


class RunningSums:
    """Adds up the sums of micro-batches until their metrics are taken.

    Example:
        >>> import torch
        >>> sums = RunningSums()
        >>> sums.add({"active_tokens": torch.tensor(4), "divergence": torch.tensor(2.0)})
        >>> sums.take(lambda values: values)["self_distillation/divergence"]
        0.5
        >>> sums.take(lambda values: values)["self_distillation/active_tokens"]
        0.0
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}

    def add(self, sums: Mapping[str, Tensor]) -> None:
        """Add a micro-batch's sums; nothing waits for the device.

        Args:
            sums: As of `sdpo_plugins.step_metrics.token_sums`; what is missing is 0.
        """
        for name, value in sums.items():
            value = value.detach().double()
            self._sums[name] = self._sums[name] + value if name in self._sums else value

    def take(self, reduce: Callable[[list[float]], list[float]]) -> dict[str, float]:
        """Return the metrics of what was added on all ranks, and begin anew. Every rank must call this together.

        Args:
            reduce: Adds numbers up over the ranks.

        Returns:
            As of `sdpo_plugins.step_metrics.means_of_sums`.
        """
        local = [float(self._sums.get(name, 0.0)) for name in SUMS]
        self._sums = {}
        return means_of_sums(dict(zip(SUMS, reduce(local), strict=True)))
