"""How many bytes an entry takes: of weights, gradients, optimizer states, activations, adapters."""

from __future__ import annotations

from dataclasses import dataclass

from sdpo_plugins.estimate.facts import RunFacts

__all__ = ["ITEM_BYTES", "Precision", "precision_of"]

ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Precision:
    """Bytes of an entry.

    Args:
        weight: Of a weight as it is held between steps.
        trained: Of a weight that is trained: as `weight`, or an adapter's.
        gradient: Of its gradient.
        master: Of the optimizer's own copy of it; 0: none.
        state: Of each optimizer state.
        compute: Of the results of matrix products.
        residual: Of hidden states between layers.
        autocast: Whether PyTorch's autocast casts inputs, and weights that are wider.
    """

    weight: int
    trained: int
    gradient: int
    master: int
    state: int
    compute: int
    residual: int
    autocast: bool

    @property
    def casts_weights(self) -> bool:
        """Whether a forward makes a copy of the weights in a narrower type."""
        return self.autocast and self.weight > self.compute


def precision_of(run: RunFacts) -> Precision:
    """Return how many bytes an entry takes in this run.

    FSDP2 holds float32 shards and computes in bfloat16; DeepSpeed holds bfloat16 weights and gradients, and float32
    weights and Adam states beside them; without either, everything has the type of the weights, and TRL's `bf16`
    computes in autocast. PEFT holds adapters in float32 also on a 16-bit base, TRL in bfloat16 on a 4-bit one.

    Example:
        >>> precision_of(RunFacts()).autocast, precision_of(RunFacts(host="openrlhf")).master
        (True, 4)
    """
    assert run.dtype is not None
    item = ITEM_BYTES[run.dtype]
    compute = 2 if run.bf16 else item
    if run.sharding == "fsdp2":
        return Precision(4, 4, 4, 0, 4, compute, compute, False)
    if run.sharding != "none" or run.host == "openrlhf":
        return Precision(compute, compute, compute, 4, 4, compute, compute, False)
    trained = item if run.lora_rank is None else 2 if run.load_in_4bit else 4
    return Precision(item, trained, trained, 0, trained, compute, item, run.bf16)
