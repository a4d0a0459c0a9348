"""Token values of the recorded rows of a rollout batch, on the rank that trains on them."""

from __future__ import annotations

from torch import Tensor

from sdpo_plugins.config import SDPOConfig
from sdpo_plugins.records import NOT_RECORDED, TokenValues
from sdpo_plugins.records.capture import Watch

__all__ = ["Captured"]


class Captured:
    """Keeps what is found of each recorded row in the first of the passes over it, until the controller takes it.

    Args:
        config: The SDPO options.
    """

    def __init__(self, config: SDPOConfig) -> None:
        self._config = config
        self._seen: set[int] = set()
        self._found: list[TokenValues] = []

    def begin(self) -> None:
        """Begin a rollout batch."""
        self._seen.clear()
        self._found = []

    def watch(self, records: Tensor, ids: Tensor) -> Watch | None:
        """Return what to watch in a pass over a micro-batch; None: nothing.

        Args:
            records: Record id of each row or `NOT_RECORDED`, [B].
            ids: Token ids of the rows, [B, A].
        """
        if not self._config.record:
            return None
        new = [NOT_RECORDED if record in self._seen else record for record in records.tolist()]
        if all(record == NOT_RECORDED for record in new):
            return None
        self._seen.update(new)
        return Watch(
            records.new_tensor(new), ids, self._config.record_alternatives, self._config.record_tokens, self._found
        )

    def take(self) -> list[TokenValues]:
        """Return what was found since the rollout batch began, and forget it."""
        found, self._found = self._found, []
        return found
