"""What a teacher refuses before the first step, or before it loads a state."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sdpo_plugins.errors import TeacherError
from sdpo_plugins.teacher.tensors import local_tensors

__all__ = [
    "FORMAT_VERSION",
    "check_dtypes",
    "check_lora_only",
    "check_same_strategy",
    "check_trainable",
]

FORMAT_VERSION = 1
"""Version of `Teacher.state_dict` and of the files of a teacher checkpoint."""

# What PEFT trains under the name of an adapter: factors and DoRA magnitudes, whole modules, new tokens, biases.
_LORA = re.compile(r"(?:^|\.)lora_\w+(?:\.|$)")
_ADAPTER = re.compile(r"(?:^|\.)(?:lora_\w+|modules_to_save|trainable_tokens_\w+)(?:\.|$)|(?:^|\.)bias$")


def check_trainable(name: str, module: nn.Module) -> None:
    """Refuse a model of which nothing is trained, whose adapters are merged, or which is not in memory.

    Args:
        name: The teacher's.
        module: The student, as it is trained.

    Raises:
        TeacherError: Says what to do.
    """
    tensors = local_tensors(module)
    if len(tensors) == len(tensors.buffers):
        raise TeacherError(
            f"teacher={name!r} has nothing to follow: no parameter of the model has requires_grad. Enable the training "
            "of some; load PEFT adapters with `is_trainable=True`."
        )
    merged = [
        where
        for where, child in module.named_modules()
        if hasattr(child, "lora_A") and getattr(child, "merged", False) is True
    ]
    if merged:
        raise TeacherError(
            f"the LoRA adapters of {len(merged)} modules ({merged[0]}, …) are merged into the base weights, so the "
            "teacher's adapters would have no effect. Call `model.unmerge_adapter()` before training."
        )


def check_lora_only(trainable: Sequence[str]) -> None:
    """Refuse a set of trainable parameters that is not a LoRA adapter's alone.

    Args:
        trainable: Their names.

    Raises:
        TeacherError: There is no LoRA factor among them, or the base is trained too.
    """
    if not any(_LORA.search(name) for name in trainable):
        seen = (
            f"its trainable parameters are {', '.join(trainable[:3])}, …" if trainable else "nothing in it is trained"
        )
        raise TeacherError(
            f"teacher='lora_ema' needs a model with trainable LoRA adapters, but {seen}. Wrap the model by peft's "
            "`get_peft_model(model, LoraConfig(...))` or pass `peft_config` to the trainer (load saved adapters with "
            "`is_trainable=True`), or set teacher='ema'."
        )
    others = [name for name in trainable if not _ADAPTER.search(name)]
    if others:
        raise TeacherError(
            f"teacher='lora_ema' shares the base, but {len(others)} of the base's parameters are trained too: "
            f"{', '.join(others[:5])}. Freeze them, list their modules in LoRA's `modules_to_save`, or set "
            "teacher='ema', which holds everything that is trained."
        )


def check_same_strategy(name: str, state: Mapping[str, Any]) -> None:
    """Refuse a saved state of another strategy or format.

    Args:
        name: The strategy of this run's teacher.
        state: With the keys "name" and "format".

    Raises:
        TeacherError: Says what was found.
    """
    if state.get("name") != name:
        raise TeacherError(
            f"the saved teacher is a {state.get('name')!r} teacher, but this run is configured with teacher={name!r}. "
            f"Set teacher={state.get('name')!r}, or start a new teacher."
        )
    if state.get("format") != FORMAT_VERSION:
        raise TeacherError(
            f"the saved teacher has format {state.get('format')!r}, this version of sdpo-plugins reads "
            f"{FORMAT_VERSION}. Use the version that saved it, or start a new teacher."
        )


def check_dtypes(
    name: str,
    saved: Mapping[str, Tensor],
    student: Mapping[str, Tensor],
    wanted: Callable[[str, Tensor], torch.dtype],
) -> None:
    """Refuse saved tensors of a dtype in which this teacher would not hold them for this student.

    Args:
        name: The teacher's.
        saved: The saved tensors by name.
        student: The student's, the same names.
        wanted: (tensor's name, student's tensor) → dtype.

    Raises:
        TeacherError: Names the first that differs.
    """
    for tensor, live in student.items():
        if saved[tensor].dtype != wanted(tensor, live):
            raise TeacherError(
                f"the saved teacher holds {tensor!r} as {saved[tensor].dtype}, but teacher={name!r} for this student "
                f"needs {wanted(tensor, live)}. Load the student in the dtype it had, or start a new teacher."
            )
