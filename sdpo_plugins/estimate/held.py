"""What a run holds between its passes: weights, adapters, optimizer states, teacher, reference."""

from __future__ import annotations

import math
from typing import Any

from sdpo_plugins.errors import ConfigError, nearest
from sdpo_plugins.estimate.facts import ALL_LINEAR, PEFT_DEFAULT, Linear, ModelFacts, RunFacts
from sdpo_plugins.estimate.precision import precision_of

__all__ = [
    "adapter_parameters",
    "four_bit_bytes",
    "gradient_bytes",
    "held_parts",
    "optimizer_bytes",
    "shards",
    "targets",
    "teacher_bytes",
    "teacher_passes",
    "trained_parameters",
]

_BLOCK = 64  # 4-bit weights that share one float32 constant
_OUTER_BLOCK = 256  # constants that share one, with double quantisation
_SPARE_8BIT = 4096  # bitsandbytes keeps the states of smaller tensors in float32
_STATES = {"adamw": 2, "adamw_8bit": 2, "lion": 1, "sgd": 0}


def targets(model: ModelFacts, run: RunFacts) -> tuple[Linear, ...]:
    """Return the linear layers that get an adapter.

    Raises:
        ConfigError: The model has no linear layer of that name.
    """
    if run.lora_rank is None:
        return ()
    if ALL_LINEAR in run.lora_targets:
        return model.linears
    wanted = _peft_targets(model) if run.lora_targets == (PEFT_DEFAULT,) else run.lora_targets
    known = {linear.name for linear in model.linears}
    unknown = [name for name in wanted if name not in known]
    if unknown:
        listing = ", ".join(sorted(known))
        raise ConfigError(
            f"`lora_targets` names {unknown[0]!r}, but {model.name} has no linear layer of that name; it has "
            f"{listing}, or {ALL_LINEAR!r} for all of them.{nearest(unknown[0], known)}"
        )
    return tuple(linear for linear in model.linears if linear.name in wanted)


def adapter_parameters(model: ModelFacts, run: RunFacts) -> int:
    """Return the entries of all LoRA factors: r·(inputs + outputs) of each target."""
    rank = run.lora_rank or 0
    return sum(rank * (linear.inputs + linear.outputs) * linear.count for linear in targets(model, run))


def trained_parameters(model: ModelFacts, run: RunFacts) -> int:
    """Return how many parameters are trained."""
    return model.parameters if run.lora_rank is None else adapter_parameters(model, run)


def four_bit_bytes(weights: int, double_quant: bool) -> int:
    """Return what so many weights take in 4 bits, constants included.

    Formula: n/2 + 4·n/64; with double quantisation n/2 + n/64 + 4·n/(64·256).

    Example:
        >>> four_bit_bytes(1 << 20, double_quant=False) / (1 << 20)
        0.5625
    """
    blocks = math.ceil(weights / _BLOCK)
    constants = blocks + 4 * math.ceil(blocks / _OUTER_BLOCK) if double_quant else 4 * blocks
    return math.ceil(weights / 2) + constants


def shards(run: RunFacts, what: str) -> int:
    """Return over how many ranks "weights", "gradients" or "states" are spread."""
    assert run.sharding is not None
    spread = {
        "none": (),
        "zero1": ("states",),
        "zero2": ("states", "gradients"),
        "zero3": ("states", "gradients", "weights"),
        "fsdp2": ("states", "gradients", "weights"),
    }[run.sharding]
    return run.ranks if what in spread else 1


def teacher_passes(run: RunFacts) -> int:
    """Return how many passes the teacher makes."""
    return len(_teacher(run).passes)


def teacher_bytes(model: ModelFacts, run: RunFacts) -> tuple[int, int, int]:
    """Return what the teacher holds, its copy in the student's type, and what of the student is set aside for its pass.

    The strategies themselves are asked in which type they hold a trained weight. Where ranks hold shards, values are
    copied into them and the student's set aside; elsewhere pointers are exchanged, and a teacher of another type
    keeps a copy of the student's.
    """
    import torch

    precision, trained = precision_of(run), trained_parameters(model, run)
    teacher = _teacher(run)
    live = torch.empty(0, dtype=torch.float32 if precision.trained == 4 else torch.bfloat16)
    if not teacher.select({"lora_A.weight": live}):
        return 0, 0, 0
    item = teacher.held_dtype("lora_A.weight", live).itemsize
    part = math.ceil(trained / shards(run, "weights"))
    if run.sharding in ("fsdp2", "zero3"):
        return item * part, 0, precision.trained * part
    return item * part, precision.trained * part if item != precision.trained else 0, 0


def gradient_bytes(model: ModelFacts, run: RunFacts) -> int:
    """Return what the gradients of all trained parameters take on a rank."""
    return precision_of(run).gradient * math.ceil(trained_parameters(model, run) / shards(run, "gradients"))


def optimizer_bytes(model: ModelFacts, run: RunFacts) -> int:
    """Return the optimizer's states and its own copy of the weights on a rank.

    In 8 bits a state takes a byte, and 4 for each 256; embeddings and small tensors stay in float32.
    """
    precision, trained = precision_of(run), trained_parameters(model, run)
    states = _STATES[run.optimizer]
    part = math.ceil(trained / shards(run, "states"))
    if run.optimizer != "adamw_8bit":
        return (states * precision.state + precision.master) * part
    if run.lora_rank is None:
        wide = 0 if not model.linears else model.head_entries
        wide += trained - model.linear_weights - model.head_entries * (1 if model.tied else 2)
    else:
        wide = sum(
            size * linear.count
            for linear in targets(model, run)
            for size in (run.lora_rank * linear.inputs, run.lora_rank * linear.outputs)
            if size < _SPARE_8BIT
        )
    narrow = math.ceil((trained - wide) / shards(run, "states"))
    return states * (4 * math.ceil(wide / shards(run, "states")) + narrow + 4 * math.ceil(narrow / 256))


def held_parts(model: ModelFacts, run: RunFacts) -> dict[str, int]:
    """Return what is held all the time, part by part, in bytes on a rank."""
    precision, spread = precision_of(run), shards(run, "weights")
    parts: dict[str, int] = {}
    base = model.parameters
    if run.load_in_4bit:
        parts["quantised weights"] = four_bit_bytes(model.linear_weights, run.double_quant)
        base -= model.linear_weights
    parts["weights"] = precision.weight * math.ceil(base / spread)
    if run.lora_rank is not None:
        parts["adapters"] = precision.trained * math.ceil(adapter_parameters(model, run) / spread)
    parts["optimizer states"] = optimizer_bytes(model, run)
    held, working, _ = teacher_bytes(model, run)
    parts["teacher"] = held
    parts["teacher, cast"] = working
    if run.reference and run.lora_rank is None:
        item = 2 if run.host == "verl" else precision.weight
        parts["reference"] = item * math.ceil(model.parameters / spread)
    if run.ranks > 1 and run.sharding == "none" and run.host == "trl":
        # DistributedDataParallel keeps the buckets that ranks exchange beside the gradients.
        parts["buckets of DDP"] = gradient_bytes(model, run)
    return {name: size for name, size in parts.items() if size}


def _teacher(run: RunFacts) -> Any:
    from sdpo_plugins.plugins import build_teacher

    return build_teacher(run.sdpo)


def _peft_targets(model: ModelFacts) -> tuple[str, ...]:
    try:
        from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as chosen
    except ImportError as error:
        raise ConfigError(
            f"`lora_targets` {PEFT_DEFAULT!r} is PEFT's choice, and PEFT is not installed: pip install peft, or name "
            f"the layers, or give {ALL_LINEAR!r}."
        ) from error
    if model.kind not in chosen:
        raise ConfigError(
            f"PEFT has no choice of `lora_targets` for models of the type {model.kind!r}. Name the layers, or give "
            f"{ALL_LINEAR!r}."
        )
    return tuple(chosen[model.kind])
