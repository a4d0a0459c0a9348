"""DeepSpeed's weights on their way to a vLLM engine on a CPU."""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["StoreGroup", "open_group", "repack_embeddings", "update_weight"]


class StoreGroup:
    """A process group that can broadcast, through a store.

    Args:
        group: vLLM's group of the trainer's rank 0 and all engines.
    """

    def __init__(self, group: Any) -> None:
        self._group = group

    def broadcast(self, tensor: torch.Tensor, src: int = 0, stream: Any = None) -> None:
        """Send a tensor, or receive into one. What was sent before must have been received by all, and is forgotten."""
        if self._group.rank != src:
            tensor.copy_(self._group.broadcast(tensor, src))
            return
        while self._group.entries:
            self._group.store.delete_key(self._group.entries.popleft()[0])
        # A copy, for DeepSpeed's parameters are views, and pickle would write all that lies behind one.
        self._group.broadcast(tensor.detach().clone(), src)


def open_group(master_address: str, master_port: int, rank: int, world_size: int, device: Any) -> StoreGroup:
    """Open a group, with the arguments of OpenRLHF's function that opens one on NCCL."""
    from vllm.distributed.utils import StatelessProcessGroup

    return StoreGroup(
        StatelessProcessGroup.create(host=master_address, port=master_port, rank=rank, world_size=world_size)
    )


def update_weight(worker: Any, name: str, dtype: torch.dtype, shape: Any, empty_cache: bool = False) -> None:
    """Receive one weight; with the last one, load all.

    On a CPU, vLLM keeps the weights of linear layers packed, and only the load of a whole layer packs them anew.

    Args:
        worker: vLLM's worker, which OpenRLHF extends by this method.
        name: Of the parameter.
        dtype: As sent.
        shape: As sent.
        empty_cache: Whether this is the last parameter.
    """
    weight = torch.empty(shape, dtype=dtype)
    worker._model_update_group.broadcast(weight, src=0)
    waiting = worker.__dict__.setdefault("_waiting_weights", [])
    waiting.append((name, weight.to(worker.model_config.dtype)))
    if empty_cache:
        worker.model_runner.reload_weights(weights_iterator=iter(waiting))
        waiting.clear()
        repack_embeddings(worker.model_runner.get_model())


def repack_embeddings(model: torch.nn.Module) -> None:
    """Pack the output head anew: tied to the embedding, it gets no weight of its own, and would stay as it was."""
    from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding

    for module in model.modules():
        if isinstance(module, VocabParallelEmbedding):
            module.quant_method.process_weights_after_loading(module)
