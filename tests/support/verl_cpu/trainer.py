"""verl's synchronous trainers on a CPU, under their own names."""

from __future__ import annotations

import functools
import types
from typing import Any

import ray
import transfer_queue as tq
from verl.trainer.ppo.v1.trainer_base import TRAINER_REGISTRY

from verl_cpu.worker import on_cpu

__all__ = ["CPUTrainerMixin", "put_on_cpu"]

_MODES = ("sync", "sdpo")

# verl looks for finished rollouts every two seconds, which would be most of a step here.
_POLL_SECONDS = 0.05


class CPUTrainerMixin:
    """In front of a synchronous trainer: workers that open gloo, and no waiting made for large clusters.

    Rows of a batch come in an order that only their content decides, so that with a `hf_cpu` rollout server two runs
    of one seed are the same run.
    """

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


def put_on_cpu() -> None:
    """Replace verl's synchronous trainer, and SDPO's, by the same on a CPU."""
    from sdpo_verl import trainer  # noqa: F401  registers its mode

    for mode in _MODES:
        stock = TRAINER_REGISTRY[mode]
        if not issubclass(stock, CPUTrainerMixin):
            TRAINER_REGISTRY[mode] = type(f"{stock.__name__}OnCPU", (CPUTrainerMixin, stock), {"__module__": __name__})


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
