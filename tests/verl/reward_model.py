"""A reward model's server that answers nothing, `silent`: verl then takes its path of a colocated reward model.

verl starts reward models as servers of vLLM or SGLang, which need accelerators. Scores come from a reward manager of
the user, which may ask the server, or not.
"""

from __future__ import annotations

from typing import Any

from wrapt import when_imported

__all__ = ["NAME"]

NAME = "silent"


@when_imported("verl.workers.rollout")
def _register(rollouts: Any) -> None:
    from verl.workers.rollout.replica import RolloutReplica, RolloutReplicaRegistry

    class SilentReplica(RolloutReplica):
        """Starts nothing."""

        async def init_colocated(self, resource_pool: Any) -> None:
            """Take no part of the pool."""
            self.resource_pool = resource_pool
            await self.launch_servers()

        async def launch_servers(self) -> None:
            """There is nothing to launch."""
            self.servers: list[Any] = []
            self._server_handle, self._server_address = None, "127.0.0.1:9"

        async def wake_up(self) -> None:
            """There is nobody to wake."""

        async def sleep(self) -> None:
            """There is nobody to send to sleep."""

    RolloutReplicaRegistry.register(NAME, lambda: SilentReplica)
