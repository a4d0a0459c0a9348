"""A platform `cpu` in verl's registry of platforms."""

from __future__ import annotations

import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from verl.plugin.platform import PlatformBase, PlatformRegistry

__all__ = ["CPUPlatform"]


def _device_module() -> types.ModuleType:
    """`torch.cpu`, completed by what verl asks of `torch.cuda`: memory figures are 0, nothing is cached."""
    module = types.ModuleType("verl_cpu.device")
    for name in ("synchronize", "current_device", "set_device", "device_count", "current_stream", "stream", "Stream"):
        setattr(module, name, getattr(torch.cpu, name))
    answers: dict[str, Any] = {
        "is_available": False,
        "empty_cache": None,
        "mem_get_info": (0, 0),
        "get_device_name": "CPU",
        "reset_peak_memory_stats": None,
        "reset_accumulated_memory_stats": None,
        **dict.fromkeys(
            ("memory_allocated", "memory_reserved", "max_memory_allocated", "max_memory_reserved"),
            0,
        ),
    }
    for name, answer in answers.items():
        setattr(module, name, lambda *_, answer=answer, **__: answer)
    module.get_rng_state = lambda *_, **__: torch.get_rng_state()  # type: ignore[attr-defined]
    module.set_rng_state = lambda state, *_, **__: torch.set_rng_state(state)  # type: ignore[attr-defined]
    return module


_DEVICE = _device_module()


@PlatformRegistry.register(platform="cpu")
class CPUPlatform(PlatformBase):
    """Answers for a CPU; never chosen by itself, only by `VERL_PLATFORM=cpu`."""

    device_name = property(lambda self: "cpu")
    vendor_name = property(lambda self: "cpu")
    device_module = property(lambda self: _DEVICE)

    def is_available(self) -> bool:
        return True

    def is_platform_available(self, use_smi_check: bool = False) -> bool:
        return False

    def current_device(self) -> Any:
        return torch.device("cpu")

    def device_count(self) -> int:
        return 1

    def set_device(self, device_index: int) -> None:
        return None

    def synchronize(self, device_index: Any = None) -> None:
        return None

    def manual_seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    def manual_seed_all(self, seed: int) -> None:
        torch.manual_seed(seed)

    def set_allocator_settings(self, settings: Any) -> None:
        return None

    def empty_cache(self) -> None:
        return None

    def get_device_capability(self, device_index: Any = None) -> tuple[None, None]:
        return None, None

    def communication_backend_name(self) -> str:
        return "gloo"

    def visible_devices_envvar(self) -> str:
        return "CUDA_VISIBLE_DEVICES"

    @contextmanager
    def nvtx_range(self, msg: str) -> Iterator[None]:
        yield

    def profiler_start(self) -> None:
        return None

    def profiler_stop(self) -> None:
        return None

    def ray_resource_name(self) -> str:
        # Ray hands out as many slots of this name as `ray_init.num_gpus` says there are.
        return "GPU"

    def ray_noset_envvars(self) -> list[str]:
        return ["RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"]

    def is_ipc_supported(self) -> bool:
        return False

    def cudart(self) -> None:
        return None
