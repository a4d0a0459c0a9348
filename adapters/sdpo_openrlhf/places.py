"""Whether Ray can give a run the GPUs it asks for: where it cannot, OpenRLHF waits for them for ever."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sdpo_plugins.errors import HostError

__all__ = ["gpus_here", "gpus_needed", "place_problems"]


def place_problems(args: Any) -> Iterator[str]:
    """Compare the GPUs that a run asks for with those of this machine, where Ray will be started on it.

    Args:
        args: The host's nested arguments.
    """
    train, engines = args.train, args.vllm.num_engines or 0
    ranks = args.actor.num_nodes * args.actor.num_gpus_per_node
    if train.colocate_all and not train.async_enable and engines and ranks != engines * args.vllm.tensor_parallel_size:
        yield (
            f"`--train.colocate_all` puts policy ranks and vLLM onto the same GPUs, but `--actor.num_nodes "
            f"{args.actor.num_nodes}` times `--actor.num_gpus_per_node {args.actor.num_gpus_per_node}` is {ranks} and "
            f"`--vllm.num_engines {engines}` times `--vllm.tensor_parallel_size {args.vllm.tensor_parallel_size}` is "
            f"{engines * args.vllm.tensor_parallel_size}. Make them equal."
        )
    here = gpus_here()
    needed = gpus_needed(args)
    if here is not None and needed > here:
        yield (
            f"The run asks for {needed} GPU(s) ({_listed(args)}), but this machine has {here}: Ray would wait for the "
            "others for ever. Lower the numbers, use `--train.colocate_all`, or set RAY_ADDRESS to a cluster."
        )


def gpus_needed(args: Any) -> int:
    """Count the GPUs that the host reserves.

    Args:
        args: The host's nested arguments.
    """
    return sum(count for _, count in _parts(args))


def gpus_here() -> int | None:
    """Return how many GPUs Ray will find; None if it runs already or joins a cluster, whose size is not known here."""
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        return None
    # `ray.init()` joins the cluster of the last `ray start` on this machine without being told to.
    if os.environ.get("RAY_ADDRESS") or (Path(_ray_folder()) / "ray_current_cluster").exists():
        return None
    told = os.environ.get("RAY_OVERRIDE_RESOURCES")
    if told:
        try:
            found = json.loads(told)
        except ValueError as error:
            raise HostError(
                f"The environment variable RAY_OVERRIDE_RESOURCES is no JSON: {told!r} ({error})."
            ) from error
        if "GPU" in found:
            return int(found["GPU"])
    import torch

    return torch.cuda.device_count()


def _ray_folder() -> str:
    return os.path.join(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp", "ray")


def _parts(args: Any) -> Iterator[tuple[str, int]]:
    ranks = args.actor.num_nodes * args.actor.num_gpus_per_node
    shared = args.train.colocate_all
    yield "actor.num_gpus_per_node", ranks
    if not shared or args.train.async_enable:
        yield "vllm.num_engines", (args.vllm.num_engines or 0) * args.vllm.tensor_parallel_size
    if args.algo.kl.init_coef > 0 and not (shared or args.train.colocate_actor_ref):
        yield "ref.num_gpus_per_node", args.ref.num_nodes * args.ref.num_gpus_per_node
    if not args.reward.remote_url and not args.train.agent_func_path and not shared:
        yield "reward.num_gpus_per_node", args.reward.num_nodes * args.reward.num_gpus_per_node


def _listed(args: Any) -> str:
    return ", ".join(f"{count} for `--{flag}`" for flag, count in _parts(args) if count)
