"""verl's workers where torch.distributed has only gloo."""

from __future__ import annotations

import os
from typing import Any

import torch

# A worker process imports this module to find its class; the engines it builds must be registered by then.
from verl_cpu import engine as engine

__all__ = ["CPUWorkerMixin", "on_cpu", "open_gloo"]


def open_gloo() -> None:
    """Open the process group before verl does, with the rank that verl gave to this process.

    verl asks for `cpu:gloo,<device>:<backend>`; with a CPU for device that names one device twice, which torch refuses.
    """
    if not torch.distributed.is_initialized():
        rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        torch.distributed.init_process_group("gloo", rank=rank, world_size=size)
    torch.set_num_threads(1)


class CPUWorkerMixin:
    """In front of a worker class of verl: the process group is open before the worker's first line."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        open_gloo()
        super().__init__(*args, **kwargs)


def on_cpu(worker: type) -> type:
    """Return a worker class with `CPUWorkerMixin` in front.

    Args:
        worker: One of verl's worker classes, or a subclass. Workers that it builds inside its process need nothing:
            they find the group open.
    """
    return type(f"CPU{worker.__name__}", (CPUWorkerMixin, worker), {"__module__": __name__})
