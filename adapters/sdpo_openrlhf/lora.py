"""LoRA adapters on their way to vLLM: merged into the weights that they adapt, one at a time, nothing is changed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from sdpo_plugins.errors import HostError

__all__ = ["MergedWeight", "merged_for_vllm", "merged_weights"]


class MergedWeight:
    """A weight with its adapters' part, computed when `data` is asked for; looks to OpenRLHF like a parameter.

    Args:
        layer: PEFT's layer around the weight.
        weight: The weight itself.

    Formula:
        W + Σ scaling·B·A over the active adapters, added in float32.
    """

    requires_grad = True

    def __init__(self, layer: Any, weight: Tensor) -> None:
        self._layer, self._weight = layer, weight
        self.shape, self.dtype = weight.shape, weight.dtype

    @property
    def data(self) -> Tensor:
        """The merged values, a tensor of their own."""
        merged = self._weight.detach().float()
        for name in self._layer.active_adapters:
            if name in self._layer.lora_A:
                merged = merged + self._layer.get_delta_weight(name).float()
        return merged.to(self.dtype)


def merged_weights(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Give the parameters of a PEFT model under the names of the bare model, with adapters merged.

    Args:
        model: A PeftModel with LoRA adapters on linear layers.

    Raises:
        HostError: PEFT trains copies of whole modules, or an adapter cannot be written as a sum of weights.
    """
    from peft.tuners.lora import LoraLayer

    base: Any = model.get_base_model()  # type: ignore[operator]
    layers = {name: part for name, part in base.named_modules() if isinstance(part, LoraLayer)}
    for name, parameter in base.named_parameters():
        owner, _, rest = name.partition(".base_layer.")
        if owner in layers:
            if rest != "weight":
                yield f"{owner}.{rest}", parameter
                continue
            if not hasattr(layers[owner], "get_delta_weight") or parameter.dim() != 2:
                raise HostError(
                    f"the LoRA adapter of {owner!r} cannot be merged into a plain matrix for vLLM. Adapt linear layers "
                    "that are not quantised (`--ds.lora.target_modules`, no `--ds.load_in_4bit`)."
                )
            yield f"{owner}.weight", MergedWeight(layers[owner], parameter)
        elif "modules_to_save" in name:
            raise HostError(f"PEFT trains a copy of a whole module ({name!r}), which cannot be sent to vLLM.")
        elif "lora_" not in name:
            yield name, parameter


@contextmanager
def merged_for_vllm(actor: Any, zero_stage: int) -> Iterator[None]:
    """Within the block, the host's weight sync sees merged weights in the place of a PEFT model's own.

    vLLM holds the bare model: under PEFT's names the host would send it weights that it does not know.

    Args:
        actor: OpenRLHF's `Actor`; one without adapters is left as it is.
        zero_stage: DeepSpeed's; weights must be whole.

    Raises:
        HostError: ZeRO-3 holds them in shards.
    """
    engine = actor.model
    if not hasattr(engine.module, "get_base_model"):
        yield
        return
    if zero_stage == 3:
        raise HostError(
            "LoRA adapters cannot be merged for vLLM from ZeRO-3's shards. Use `--ds.zero_stage 2`: the base model "
            "has no gradients and no optimizer state."
        )
    named = list(merged_weights(engine.module))
    # Of the engine the host's sync reads no more than the named parameters.
    actor._modules["model"] = SimpleNamespace(module=SimpleNamespace(named_parameters=lambda: named))
    try:
        with torch.no_grad():
            yield
    finally:
        actor._modules["model"] = engine
