"""The five teachers of the package: whose weights re-score the answers, and how they follow the student."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sdpo_plugins.config import SDPOConfig
from sdpo_plugins.teacher.base import Reduce, Teacher, buffer_names
from sdpo_plugins.teacher.checks import check_lora_only
from sdpo_plugins.teacher.named import copy_named, lerp_named_
from sdpo_plugins.teacher.passes import Pass
from sdpo_plugins.teacher.tensors import LocalTensors, local_tensors

__all__ = [
    "Ema",
    "Frozen",
    "Live",
    "LoraEma",
    "TrustRegion",
    "build_ema",
    "build_frozen",
    "build_live",
    "build_lora_ema",
    "build_trust_region",
]


class Ema(Teacher):
    r"""Exponential moving average of the student: θ' ← (1−r)·θ' + r·θ.

    Orientation: r = `teacher_update_rate` is the share of the student: r = 0 is the frozen teacher, r = 1 the
    student as it was at the last update. θ' is held in float32 whatever the student's dtype, because the steps of a
    small rate are lost in bfloat16's rounding. Buffers are copied, not averaged.

    Example:
        >>> from sdpo_plugins.teacher import local_tensors
        >>> model = nn.Linear(1, 1, bias=False)
        >>> teacher = Ema(rate=0.5, unit="rollout_batch", every=1)
        >>> teacher.start(local_tensors(model))
        >>> with torch.no_grad():
        ...     _ = model.weight.add_(1.0)
        >>> teacher.update(local_tensors(model))["teacher/distance"]
        0.5

    Source: arXiv 2601.20802, the EMA teacher.
    """

    name = "ema"

    def held_dtype(self, name: str, live: Tensor) -> torch.dtype:
        """Return float32, or the student's dtype where that is wider or holds whole numbers."""
        return torch.promote_types(live.dtype, torch.float32) if live.is_floating_point() else live.dtype

    def _follow(self, held: dict[str, Tensor], student: Mapping[str, Tensor]) -> bool:
        copied = buffer_names(student)
        averaged = {name: value for name, value in held.items() if name not in copied}
        lerp_named_(averaged, {name: student[name] for name in averaged}, self.rate)
        with torch.no_grad():
            copy_named(held, student, names=[name for name in held if name in copied])
        return True


class Frozen(Teacher):
    """The student as it was at `start`, in the weights' own dtype; `update` only measures the distance."""

    name = "frozen"


class TrustRegion(Frozen):
    r"""The initial student's logits drawn towards the present student's: q ∝ ref^(1−r) · student^r.

    Two passes on the teacher's input, one with the reference's weights and one with the student's, and no third set of
    weights: logits = (1−r)·ref + r·student. Orientation: r = `teacher_update_rate` is the share of the student; r = 0
    is the frozen teacher, r = 1 the live one, each with its one pass.

    Source: arXiv 2601.20802, the trust-region teacher.
    """

    name = "trust_region"

    def __init__(self, rate: float, unit: str, every: int) -> None:
        super().__init__(rate, unit, every)
        both = (Pass("reference", 1.0 - rate, held=True), Pass("student", rate, held=False))
        self.passes = tuple(item for item in both if item.share > 0.0)


class Live(Teacher):
    """The student itself, as it is at this step: one pass with its own weights; holds and saves nothing."""

    name = "live"
    passes = (Pass("student", 1.0, held=False),)

    def __init__(self, rate: float, unit: str, every: int) -> None:
        super().__init__(rate, unit, every)
        self._held = {}

    def select(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return nothing: this teacher holds no tensor."""
        return {}

    def update(self, tensors: Mapping[str, Tensor], *, reduce: Reduce | None = None) -> dict[str, float]:
        """Do nothing: the teacher is the student already."""
        self._refuse_in_effect("update")
        self._reached = self._asked
        return {}


class LoraEma(Ema):
    r"""Two adapters on one base: the student's, and an EMA of it that lives outside of the model.

    Each trained factor is averaged by itself: A' ← (1−r)·A' + r·A and B' ← (1−r)·B' + r·B. That is *not* the
    EMA of the product BA: it is off by −r(1−r)·(B'−B)(A'−A), second order in the distance of teacher and
    student. An average of the products would not have the adapter's rank.

    It starts as an exact copy of the student's adapter, with B as it is in memory. Because it is no adapter
    of the `PeftModel`, it is never saved with it, merged, or made active by accident. Copies of whole modules
    (`modules_to_save`), new tokens and biases that PEFT trains with the adapter are averaged with it. The
    base's parameters and its buffers are shared and not held.
    """

    name = "lora_ema"

    def select(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return the adapter's trainable tensors.

        Raises:
            TeacherError: There are none, or others are trained too.
        """
        buffers = buffer_names(tensors)
        names = [name for name in tensors if name not in buffers]
        check_lora_only(names)
        if isinstance(tensors, LocalTensors):
            return tensors.only(lambda name: name not in buffers)
        return {name: tensors[name] for name in names}

    def check_model(self, module: nn.Module) -> None:
        """Refuse a model without trainable LoRA adapters, with merged ones, or whose base is trained too."""
        super().check_model(module)
        self.select(local_tensors(module))


def build_ema(config: SDPOConfig, options: Any = None) -> Ema:
    """Build the `ema` teacher from `teacher_update_rate`, `_unit` and `_every`."""
    return Ema(config.teacher_update_rate, config.teacher_update_unit, config.teacher_update_every)


def build_frozen(config: SDPOConfig, options: Any = None) -> Frozen:
    """Build the `frozen` teacher."""
    return Frozen(config.teacher_update_rate, config.teacher_update_unit, config.teacher_update_every)


def build_live(config: SDPOConfig, options: Any = None) -> Live:
    """Build the `live` teacher."""
    return Live(config.teacher_update_rate, config.teacher_update_unit, config.teacher_update_every)


def build_trust_region(config: SDPOConfig, options: Any = None) -> TrustRegion:
    """Build the `trust_region` teacher; `teacher_update_rate` is the share of the student's logits."""
    return TrustRegion(config.teacher_update_rate, config.teacher_update_unit, config.teacher_update_every)


def build_lora_ema(config: SDPOConfig, options: Any = None) -> LoraEma:
    """Build the `lora_ema` teacher."""
    return LoraEma(config.teacher_update_rate, config.teacher_update_unit, config.teacher_update_every)
