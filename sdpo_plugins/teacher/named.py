"""Arithmetic on tensors by name: what the teachers' updates are made of. Works on whole tensors and on shards
alike."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sdpo_plugins.errors import TeacherError

__all__ = ["Distance", "check_same_names", "copy_named", "distance", "lerp_named_"]

_SHOWN = 10


def check_same_names(teacher: Mapping[str, Tensor], student: Mapping[str, Tensor]) -> None:
    """Refuse a teacher whose tensors are not the student's: names and shapes must agree.

    Args:
        teacher: The teacher's tensors by name.
        student: The student's, of this rank.

    Raises:
        TeacherError: Lists by name what is missing from the teacher, what the student does not have, and what
            has another shape.

    Example:
        >>> check_same_names({"w": torch.zeros(2)}, {"w": torch.ones(2)})
    """
    problems = [
        *_listing("missing from the teacher", [name for name in student if name not in teacher]),
        *_listing("unexpected, not in the student", [name for name in teacher if name not in student]),
    ]
    shapes = []
    for name in teacher:
        if name in student and teacher[name].shape != student[name].shape:
            shapes.append(f"{name} (teacher {list(teacher[name].shape)}, student {list(student[name].shape)})")
    problems += _listing("of another shape", shapes)
    if problems:
        raise TeacherError(
            "the teacher's tensors do not fit the student's:\n"
            + "\n".join(f"  - {problem}" for problem in problems)
            + "\nUse the model, adapters and sharding that the teacher was started with, or start a new teacher."
        )


@torch.no_grad()
def lerp_named_(teacher: Mapping[str, Tensor], student: Mapping[str, Tensor], rate: float) -> None:
    r"""Move the teacher towards the student, in place: θ' ← (1−r)·θ' + r·θ.

    Orientation: r = 0 leaves the teacher θ' as it is, r = 1 makes it the student θ. Entries of whole numbers
    are copied.

    Args:
        teacher: θ', float32 or wider.
        student: θ, any dtype, the same names and shapes.
        rate: r in [0, 1].

    Raises:
        TeacherError: The names or shapes differ, the rate is out of range, or θ' is narrower than float32.

    Example:
        >>> teacher = {"w": torch.zeros(1)}
        >>> lerp_named_(teacher, {"w": torch.ones(1, dtype=torch.bfloat16)}, 0.25)
        >>> teacher["w"].item()
        0.25

    Source: arXiv 2601.20802, the EMA teacher.
    """
    check_same_names(teacher, student)
    if not 0.0 <= rate <= 1.0:
        raise TeacherError(f"the teacher's update rate must lie in [0, 1], got {rate!r}.")
    narrow = [name for name, held in teacher.items() if held.is_floating_point() and held.element_size() < 4]
    if narrow:
        raise TeacherError(
            f"an average must be held in float32, but {_shortened(narrow)} is {teacher[narrow[0]].dtype}: "
            "steps of a small rate are lost in its rounding. Hold it with `.float()`."
        )
    groups: dict[tuple[torch.device, torch.dtype], tuple[list[Tensor], list[Tensor]]] = defaultdict(lambda: ([], []))
    for name, held in teacher.items():
        live = student[name]
        if not (held.is_floating_point() or held.is_complex()):
            held.copy_(live)
        elif live.dtype == held.dtype and live.device == held.device:
            group = groups[held.device, held.dtype]
            group[0].append(held)
            group[1].append(live)
        else:  # one by one: the widened copy of one tensor at a time
            held.lerp_(live.to(device=held.device, dtype=held.dtype), rate)
    for ours, theirs in groups.values():
        torch._foreach_lerp_(ours, theirs, rate)


@torch.no_grad()
def copy_named(target: Mapping[str, Tensor], source: Mapping[str, Tensor], names: Iterable[str] | None = None) -> None:
    """Copy values by name into tensors that exist, cast to the target's dtype.

    Args:
        target: Is overwritten.
        source: Same names and shapes.
        names: Only these; default: all.

    Raises:
        TeacherError: The names or shapes differ.
    """
    if names is None:
        check_same_names(target, source)
        names = target
    for name in names:
        target[name].copy_(source[name])


@dataclass(frozen=True)
class Distance:
    """Sums over this rank's elements, from which the distance of teacher and student follows.

    Args:
        difference: Σ (θ' − θ)².
        student: Σ θ².
        count: Number of elements.

    To get the distance of sharded models add the ranks' sums: `Distance(*all_reduce(distance.sums))`.
    """

    difference: float
    student: float
    count: float

    @property
    def sums(self) -> list[float]:
        """The three sums, to be added over ranks."""
        return [self.difference, self.student, self.count]

    @property
    def rms(self) -> float:
        """Root mean square of θ' − θ; 0 if there are no elements."""
        return math.sqrt(self.difference / self.count) if self.count else 0.0

    @property
    def relative(self) -> float:
        """‖θ' − θ‖ / ‖θ‖; 0 if both are equal."""
        if self.difference == 0.0:
            return 0.0
        return math.sqrt(self.difference / self.student) if self.student else math.inf


@torch.no_grad()
def distance(teacher: Mapping[str, Tensor], student: Mapping[str, Tensor]) -> Distance:
    """Return how far the teacher is from the student, as local sums; entries of whole numbers do not count.

    Args:
        teacher: θ' by name.
        student: θ, the same names and shapes.

    Returns:
        Σ(θ'−θ)², Σθ² and the number of elements, of this rank.

    Example:
        >>> distance({"w": torch.tensor([1.0, 3.0])}, {"w": torch.tensor([1.0, 1.0])}).rms
        1.4142135623730951
    """
    check_same_names(teacher, student)
    per_device: dict[torch.device, list[Tensor]] = defaultdict(list)  # each tensor's two sums
    count = 0
    for name, held in teacher.items():
        if held.is_floating_point():
            wide = torch.promote_types(held.dtype, torch.float32)
            live = student[name].to(device=held.device, dtype=wide)
            squares = torch.stack([(held.to(wide) - live).square().sum(), live.square().sum()])
            per_device[held.device].append(squares.float())
            count += held.numel()
    # one transfer for each device, not one for each tensor
    sums = [torch.stack(rows).cpu().double().sum(0).tolist() for rows in per_device.values()]
    return Distance(sum(row[0] for row in sums), sum(row[1] for row in sums), float(count))


def _listing(what: str, names: list[str]) -> list[str]:
    return [f"{len(names)} {what}: {_shortened(names)}"] if names else []


def _shortened(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
