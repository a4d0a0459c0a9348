"""verl's FSDP engines, registered for the device `cpu`."""

from __future__ import annotations

from typing import Any

from verl.workers.engine import EngineRegistry, FSDPEngineWithLMHead

__all__ = ["CPUEngine"]


@EngineRegistry.register(model_type="language_model", backend=["fsdp", "fsdp2"], device="cpu")
class CPUEngine(FSDPEngineWithLMHead):
    """The stock engine; a forward-only model is not offloaded to pinned memory, which only accelerators have."""

    def _build_fsdp_module(self, module: Any) -> Any:
        settings = self.engine_config
        forward_only = settings.forward_only
        object.__setattr__(settings, "forward_only", False)
        try:
            return super()._build_fsdp_module(module)
        finally:
            object.__setattr__(settings, "forward_only", forward_only)
