"""The student's live tensors by name, and putting other values into their place for the time of a forward.

A teacher that is a second module goes wrong in several ways: a host that patched `model.forward` with a closure over
the original bound forward makes a deepcopy run the *student's* weights, a LoRA model would hold its base twice, and a
module rebuilt from its hub name is not the student in memory. Values by name have none of these problems.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sdpo_plugins.errors import TeacherError

__all__ = ["LocalTensors", "Slot", "clean_name", "local_tensors", "release_gathered", "swapped"]

Undo = Callable[[], None]

_INNER_WRAPPERS = re.compile(r"(?<![^.])(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")


def clean_name(name: str) -> str:
    """Return a tensor's name without what wrappers (DDP, FSDP, compile, checkpointing) put into it.

    `module.` is a wrapper's only at the front; further inside it may be a module of the model's own.

    Example:
        >>> clean_name("module._orig_mod.layers.0._checkpoint_wrapped_module.weight")
        'layers.0.weight'
    """
    previous = None
    while previous != name:
        previous = name
        name = _INNER_WRAPPERS.sub("", name).removeprefix("module.")
    return name


@dataclass(frozen=True)
class Slot:
    """A plain parameter: other values take its place by a swap of pointers, nothing is copied.

    Args:
        owner: The Parameter (or buffer) object itself, which the optimizer and autograd know.
        is_buffer: True for a buffer.
    """

    owner: Tensor
    is_buffer: bool = False

    in_place = False

    def local(self) -> Tensor:
        """Return the live values on this rank: detached, sharing the student's storage."""
        return self.owner.detach()

    def put(self, value: Tensor) -> Undo:
        """Put `value` (same shape, dtype and device) in place; the result puts the student's storage back."""
        # Autograd saved the Parameter object, not its storage, and assigning `.data` does not count as an
        # in-place change: a backward pass after the undo sees the student's weights and raises no version
        # error.
        original = self.owner.data
        self.owner.data = value
        return partial(setattr, self.owner, "data", original)


@dataclass(frozen=True)
class ShardSlot(Slot):
    """A shard of a DTensor or of a DeepSpeed ZeRO-3 parameter: values are copied in, then the student's back.

    FSDP2 and ZeRO-3 keep references to a shard's storage, so a swap of pointers would pass unseen.
    """

    in_place = True

    def local(self) -> Tensor:
        owner: Any = self.owner
        if hasattr(owner, "ds_tensor"):
            return _without_padding(owner)
        with torch.no_grad():
            local: Tensor = owner.detach().to_local()
        return local

    def put(self, value: Tensor) -> Undo:
        # `.data` has a version counter of its own. Under tensor parallelism the student's graph saved this very shard:
        # it is as it was when the backward pass comes, so autograd need not object to a change between.
        live = self.local().data
        student = live.clone()
        live.copy_(value)

        def undo() -> None:
            live.copy_(student)

        return undo


@dataclass(frozen=True)
class BufferSlot(Slot):
    """A buffer: its entry in the module is replaced, and the student's object comes back untouched.

    So a forward that changes or re-registers it (BatchNorm, dynamic RoPE) changes the teacher's.

    Args:
        places: Every (module, name) at which the buffer is registered.
    """

    places: tuple[tuple[nn.Module, str], ...] = field(default=(), repr=False)

    def local(self) -> Tensor:
        # Read from the module: some models register a new buffer object as they go.
        module, name = self.places[0]
        live = module._buffers[name]
        return (self.owner if live is None else live).detach()

    def put(self, value: Tensor) -> Undo:
        entries = [(module, name, module._buffers[name]) for module, name in self.places]
        for module, name, _ in entries:
            module._buffers[name] = value

        def undo() -> None:
            for module, name, original in entries:
                module._buffers[name] = original

        return undo


class LocalTensors(Mapping[str, Tensor]):
    """The student's tensors that training can change, by name: a live view, never a copy.

    Reading an entry gives this rank's part: the parameter itself, the local shard of a DTensor, or ZeRO-3's
    1-D `ds_tensor` without its padding. Values read later show what the optimizer did meanwhile. Build it once, by
    `local_tensors`.

    Args:
        slots: Name → where the tensor lives.
        before_swap: Called before values are exchanged, both ways; drops gathered weights that would be
            stale.
    """

    def __init__(self, slots: Mapping[str, Slot], before_swap: Undo) -> None:
        self.slots = dict(slots)
        self.before_swap = before_swap
        self.buffers = frozenset(name for name, slot in self.slots.items() if slot.is_buffer)

    def __getitem__(self, name: str) -> Tensor:
        return self.slots[name].local()

    def __iter__(self) -> Iterator[str]:
        return iter(self.slots)

    def __len__(self) -> int:
        return len(self.slots)

    def only(self, keep: Callable[[str], bool]) -> LocalTensors:
        """Return the entries whose name passes `keep`."""
        return LocalTensors({name: slot for name, slot in self.slots.items() if keep(name)}, self.before_swap)


def local_tensors(module: nn.Module, *, before_swap: Undo | None = None) -> LocalTensors:
    """Return the trainable parameters and the buffers of a module as live local tensors by name.

    Frozen parameters are left out: teacher and student share them (the base of a LoRA model, for example).
    Names are those of the bare model, see `clean_name`. Call it on the model as it is trained: wrapped,
    sharded, with its adapters active, and not within a context that switches gradients of parameters off.

    Args:
        module: The student; plain, DDP, FSDP2 (`fully_shard`), DeepSpeed ZeRO, compiled.
        before_swap: Called before each exchange of values; default: `release_gathered(module)`.

    Returns:
        A live mapping; `buffers` names the entries that are buffers.

    Raises:
        TeacherError: A tensor is not in memory, the model is wrapped by FSDP1, or two tensors share a name.

    Example:
        >>> sorted(local_tensors(nn.Linear(2, 1)))
        ['bias', 'weight']
    """
    _refuse_fsdp1(module)
    settle = partial(release_gathered, module) if before_swap is None else before_swap
    settle()  # an FSDP2 module that just ran shows gathered parameters instead of its shards
    slots: dict[str, Slot] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            _add(slots, name, _parameter_slot(name, parameter))
    places: dict[int, list[tuple[nn.Module, str]]] = {}
    names: dict[int, tuple[str, Tensor]] = {}
    for prefix, child in module.named_modules():
        for name, buffer in child._buffers.items():
            if buffer is not None:
                places.setdefault(id(buffer), []).append((child, name))
                names.setdefault(id(buffer), (f"{prefix}.{name}" if prefix else name, buffer))
    for key, (name, buffer) in names.items():
        _refuse_absent(name, buffer)
        sharded = _is_dtensor(buffer)
        _add(slots, name, ShardSlot(buffer, True) if sharded else BufferSlot(buffer, True, tuple(places[key])))
    return LocalTensors(slots, settle)


def release_gathered(module: nn.Module) -> None:
    """Free the full weights that FSDP2 or ZeRO-3 gathered, so that the next use gathers the shards anew.

    FSDP2 keeps a root's weights gathered after a forward, and ZeRO-3 keeps small ones: they would outlive an exchange
    of the shards. A backward pass that is still to come gathers again by itself.

    Args:
        module: Any module; one without shards is left as it is.
    """
    if torch.distributed.is_available():
        from torch.distributed.fsdp import FSDPModule

        for child in module.modules():
            if isinstance(child, FSDPModule):
                child.reshard()
    zero3: Any
    for zero3 in module.parameters():
        if hasattr(zero3, "ds_status") and zero3.ds_status.name == "AVAILABLE":
            zero3.partition()


@contextmanager
def swapped(tensors: LocalTensors, values: Mapping[str, Tensor]) -> Iterator[None]:
    """Within the block, without gradient, the student's module holds `values`; then its own storage again.

    Parameters come back as the very same storage, shards and buffers with the same bits, and so also when the
    block raises. Gradients of a forward before the block are unaffected by it.

    Args:
        tensors: The student's, from `local_tensors`.
        values: Name → tensor of the student's shape, dtype and device (for shards any dtype and device); what
            is not named stays the student's.
    """
    slots = [(tensors.slots[name], value) for name, value in values.items()]
    shards = [slot.local().device for slot, _ in slots if slot.in_place]
    with torch.no_grad(), ExitStack() as leave:
        tensors.before_swap()
        # Autocast caches its low-precision casts by parameter object: without this the teacher's forward
        # would use the student's casts, and a student's forward afterwards casts that carry no gradient.
        torch.clear_autocast_cache()
        leave.callback(torch.clear_autocast_cache)
        leave.callback(_synchronize, shards)
        for slot, value in slots:
            leave.callback(slot.put(value))
        leave.callback(tensors.before_swap)
        _synchronize(shards)
        yield


def _synchronize(devices: list[torch.device]) -> None:
    # Gathers run on streams of their own that do not wait for copies queued on ours.
    for device in set(devices):
        if device.type != "cpu":
            torch.accelerator.synchronize(device)


def _parameter_slot(name: str, parameter: nn.Parameter) -> Slot:
    if hasattr(parameter, "ds_tensor"):
        if getattr(getattr(parameter.ds_tensor, "status", None), "name", "AVAILABLE") != "AVAILABLE":
            raise TeacherError(
                f"{name!r} is not in memory: ZeRO-3 has offloaded it to NVMe. Offload parameters to the CPU, "
                "or not at all."
            )
        return ShardSlot(parameter)
    _refuse_absent(name, parameter)
    return ShardSlot(parameter) if _is_dtensor(parameter) else Slot(parameter)


def _without_padding(zero3: Any) -> Tensor:
    # ZeRO-3 cuts a parameter into equal parts, so the last ones end in memory that was never written.
    shard: Tensor = zero3.ds_tensor
    part = shard.numel()
    before = torch.distributed.get_rank(zero3.ds_process_group) * part
    return shard.detach().view(-1).narrow(0, 0, min(part, max(0, zero3.ds_numel - before)))


def _is_dtensor(tensor: Tensor) -> bool:
    if not torch.distributed.is_available():
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def _add(slots: dict[str, Slot], name: str, slot: Slot) -> None:
    cleaned = clean_name(name)
    if cleaned in slots:
        raise TeacherError(
            f"two tensors of the model are called {cleaned!r} once wrapper prefixes are removed (one is "
            f"{name!r}). Rename the submodule so that they differ."
        )
    slots[cleaned] = slot


def _refuse_absent(name: str, tensor: Tensor) -> None:
    if tensor.device.type == "meta":
        raise TeacherError(
            f"{name!r} is not in memory: it lies on the meta device. The teacher copies the student's "
            "weights, so load the model in full before training (no device_map with offload, no deferred "
            "initialisation)."
        )


def _refuse_fsdp1(module: nn.Module) -> None:
    if not torch.distributed.is_available():
        return
    from torch.distributed.fsdp import FullyShardedDataParallel

    for name, child in module.named_modules():
        if isinstance(child, FullyShardedDataParallel):
            raise TeacherError(
                f"{name or 'the model'!r} is wrapped by FSDP1 (FullyShardedDataParallel), whose flat "
                "parameters have no names to exchange. Use FSDP2: `fully_shard`, in accelerate "
                "`fsdp_version: 2`, in verl `strategy: fsdp2`."
            )
