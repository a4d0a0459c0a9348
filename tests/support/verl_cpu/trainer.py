"""verl's synchronous trainer on a CPU: the mode `sync_cpu`, and the mixin that puts any other trainer there."""

from __future__ import annotations

import functools
import types
from typing import Any

import ray
import transfer_queue as tq
from verl.trainer.ppo.v1 import PPOTrainerSync, register_trainer

# Importing it registers the rollout server in the process that starts servers.
from verl_cpu import rollout as rollout
from verl_cpu.worker import on_cpu

__all__ = ["CPUTrainerMixin", "PPOTrainerSyncCPU"]

# verl looks for finished rollouts every two seconds, which would be most of a step here.
_POLL_SECONDS = 0.02


class CPUTrainerMixin:
    """In front of a synchronous trainer: workers that open gloo, and no waiting made for large clusters.

    Rows of a batch come in an order that only their content decides, so that with a `hf_cpu` rollout server two runs
    of one seed are the same run.

    Example:
        @register_trainer("mine_cpu")
        class MineOnCPU(CPUTrainerMixin, Mine):
            pass
    """

    # verl compares its mode with the literal "sync" to choose the replay buffer and what a checkpoint holds.
    trainer_mode = property(lambda self: "sync", lambda self, value: None)

    def _init_resource_pool_mgr(self) -> None:
        super()._init_resource_pool_mgr()  # type: ignore[misc]
        mapping: dict[Any, Any] = self.role_worker_mapping  # type: ignore[attr-defined]
        for role, remote in mapping.items():
            mapping[role] = ray.remote(on_cpu(remote.__ray_actor_class__))

    def _build_replay_buffer(self) -> Any:
        buffer = super()._build_replay_buffer()  # type: ignore[misc]
        buffer.poll_interval = _POLL_SECONDS
        materialize = buffer._materialize_batch

        @functools.wraps(materialize)
        def in_order(this: Any, *args: Any, **kwargs: Any) -> Any:
            return _in_order_of_content(materialize(*args, **kwargs))

        buffer._materialize_batch = types.MethodType(in_order, buffer)
        return buffer

    def on_validate_end(self) -> None:
        super().on_validate_end()  # type: ignore[misc]
        # Whether a run validates must not change what it samples next.
        replicas = self.llm_server_manager.get_replicas()  # type: ignore[attr-defined]
        ray.get([server.restart_draws.remote() for replica in replicas for server in replica.servers])


@register_trainer("sync_cpu")
class PPOTrainerSyncCPU(CPUTrainerMixin, PPOTrainerSync):
    """verl's `sync` on a CPU."""


def _in_order_of_content(batch: Any) -> Any:
    """Sort a batch by prompt, then response: verl's order is that of arrival, under random names."""
    if not batch.keys:
        return batch
    data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=["prompts", "responses"])
    content = [
        (prompt.tolist(), key.split("_")[0], response.tolist())
        for key, prompt, response in zip(batch.keys, data["prompts"].unbind(), data["responses"].unbind(), strict=True)
    ]
    batch.reorder(sorted(range(len(content)), key=content.__getitem__))
    return batch
