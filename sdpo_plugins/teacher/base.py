"""`Teacher`: weights that re-score the student's answers, held by name and put into the student's own module."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sdpo_plugins.errors import TeacherError
from sdpo_plugins.teacher.checks import FORMAT_VERSION, check_dtypes, check_same_strategy, check_trainable
from sdpo_plugins.teacher.named import Distance, check_same_names, copy_named, distance
from sdpo_plugins.teacher.passes import Pass, mix_passes
from sdpo_plugins.teacher.tensors import LocalTensors, swapped

__all__ = ["Reduce", "Teacher", "buffer_names"]

Reduce = Callable[[list[float]], Sequence[float]]
"""Adds each number of a list over the ranks."""


class Teacher:
    """Base of the teachers; what is left alone gives one that stays as it started.

    Life of a teacher, as a host drives it::

        teacher.check_model(model)                  # before the first step
        tensors = local_tensors(model)              # once, on the model as wrapped and sharded for training
        teacher.start(tensors)                      # or load_teacher(teacher, directory, tensors) on resume
        logits = teacher.score(forward, tensors)    # each batch; forward() runs the model on the teacher's inputs
        if teacher.due(rollout_batches, optimizer_steps):       # after each optimizer step
            metrics = teacher.update(tensors)

    The teacher is values by name, never a module. Before `start` (evaluation before training) it equals the student,
    as it will on `start`, and holds nothing; an `update` then is an error, so that a forgotten `start` shows.

    Args:
        rate: `teacher_update_rate`, r in [0, 1].
        unit: What `every` counts: "rollout_batch" or "optimizer_step".
        every: Update after this many units.
    """

    name: ClassVar[str]

    passes: tuple[Pass, ...] = (Pass("teacher", 1.0, held=True),)
    """The forwards that make up the teacher's logits, in order."""

    def __init__(self, rate: float, unit: str, every: int) -> None:
        self.rate = rate
        self.unit = unit
        self.every = every
        self.updates = 0
        self._held: dict[str, Tensor] | None = None
        self._working: dict[str, Tensor] = {}
        self._in_effect = False
        # (rollout batches, optimizer steps): at the last update, and as `due` was last asked
        self._reached = (0, 0)
        self._asked = (0, 0)

    # What a strategy decides

    def held_dtype(self, name: str, live: Tensor) -> torch.dtype:
        """Return the dtype in which this teacher holds the tensor; the base keeps the student's."""
        return live.dtype

    def select(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return the part of the student's tensors that this teacher holds; the base: all."""
        return tensors

    def check_model(self, module: nn.Module) -> None:
        """Refuse, before the first step, a model that this teacher cannot follow.

        Args:
            module: The student, as it is trained.

        Raises:
            TeacherError: Nothing is trainable, LoRA adapters are merged, or tensors are not in memory.
        """
        check_trainable(self.name, module)

    def _follow(self, held: dict[str, Tensor], student: Mapping[str, Tensor]) -> bool:
        """Change the held values once; False if this teacher never changes."""
        return False

    # What hosts call

    @property
    def started(self) -> bool:
        """True once the teacher has weights of its own."""
        return self._held is not None

    @torch.no_grad()
    def start(self, tensors: Mapping[str, Tensor]) -> None:
        """Become an exact copy of the student in memory, with no update counted.

        Args:
            tensors: The student's, from `local_tensors`, or any mapping of local tensors by name.
        """
        self._refuse_in_effect("start")
        student = self.select(tensors)
        held = {}
        for name, live in student.items():
            held[name] = live.detach().to(dtype=self.held_dtype(name, live), copy=True)
        self._held, self._working = held, {}
        self.updates, self._reached, self._asked = 0, (0, 0), (0, 0)

    def due(self, rollout_batches: int, optimizer_steps: int) -> bool:
        """Say whether it is time for `update`, by `teacher_update_unit` and `teacher_update_every`.

        Ask as often as you like, for example after every optimizer step: it is True once for each multiple of
        `every` reached, and only if an optimizer step was taken since the last update. The next `update` is
        booked against the numbers asked with last; they survive a checkpoint.

        Args:
            rollout_batches: Rollout batches finished since training began.
            optimizer_steps: Optimizer steps taken since training began.

        Example:
            >>> from sdpo_plugins.teacher import Ema
            >>> Ema(rate=0.05, unit="optimizer_step", every=4).due(rollout_batches=0, optimizer_steps=4)
            True
        """
        self._asked = (rollout_batches, optimizer_steps)
        counted = 0 if self.unit == "rollout_batch" else 1
        reached_multiple = self._asked[counted] // self.every > self._reached[counted] // self.every
        return reached_multiple and optimizer_steps > self._reached[1]

    def update(self, tensors: Mapping[str, Tensor], *, reduce: Reduce | None = None) -> dict[str, float]:
        """Follow the student once, and say how far the teacher is from it.

        Args:
            tensors: The student's, after its optimizer steps.
            reduce: Adds a list of numbers over ranks, for sharded models; None: this process holds all of it.

        Returns:
            `teacher/distance` (root mean square of θ' − θ after the update), `teacher/relative_distance`
            (‖θ' − θ‖/‖θ‖) and `teacher/updates`.

        Raises:
            TeacherError: The teacher has not started, is in effect, or does not fit the student.
        """
        self._refuse_in_effect("update")
        held = self._started("update")
        student = self.select(tensors)
        check_same_names(held, student)
        if self._follow(held, student):
            self.updates += 1
            self._refresh()
        self._reached = self._asked
        found = self.distance(tensors)
        if reduce is not None:
            found = Distance(*reduce(found.sums))
        return {
            "teacher/distance": found.rms,
            "teacher/relative_distance": found.relative,
            "teacher/updates": float(self.updates),
        }

    def distance(self, tensors: Mapping[str, Tensor]) -> Distance:
        """Return how far the teacher's parameters are from the student's, as sums over this rank's part."""
        held = self._started("measure")
        buffers = buffer_names(tensors)
        student = {name: live for name, live in self.select(tensors).items() if name not in buffers}
        return distance({name: value for name, value in held.items() if name not in buffers}, student)

    @contextmanager
    def applied(self, tensors: LocalTensors) -> Iterator[None]:
        """Within the block, without gradient, the student's module holds the teacher's weights.

        They are cast to the student's dtypes. Afterwards the student's storage is back, bit for bit, and so
        also when the block raises. Before `start` the block sees the student's weights.

        Args:
            tensors: The student's, from `local_tensors`.

        Raises:
            TeacherError: The teacher is in effect already, or does not fit the student.
        """
        self._refuse_in_effect("apply")
        if not isinstance(tensors, LocalTensors):
            raise TeacherError(
                f"weights can only be exchanged in tensors from `local_tensors(model)`, got {type(tensors).__name__}."
            )
        with swapped(tensors, self._values(tensors)):
            self._in_effect = True
            try:
                yield
            finally:
                self._in_effect = False

    def score(self, forward: Callable[[], Any], tensors: LocalTensors) -> Any:
        """Return the teacher's logits: run each of `passes` with the right weights, and `mix` what comes out.

        Put the model into eval mode first if it has dropout. Memory: the logits of one more pass, if there
        are two.

        Args:
            forward: Runs the student's module on the *teacher's* inputs and returns raw logits [..., V]
                (before the temperature). With a single pass it may return anything, hidden states for
                example.
            tensors: The student's, from `local_tensors`.

        Returns:
            Logits [..., V], or what a single `forward` returned.

        Example:
            >>> from sdpo_plugins.teacher import Frozen, local_tensors
            >>> model, inputs = nn.Linear(2, 3), torch.ones(4, 2)
            >>> teacher = Frozen(rate=0.0, unit="rollout_batch", every=1)
            >>> teacher.score(lambda: model(inputs), local_tensors(model)).shape
            torch.Size([4, 3])
        """
        outputs = []
        for item in self.passes:
            with self.in_effect(item, tensors):
                outputs.append(forward())
        return self.mix(outputs)

    @contextmanager
    def in_effect(self, item: Pass, tensors: LocalTensors) -> Iterator[None]:
        """Within the block, without gradient, the module holds the weights of this pass.

        For hosts that cannot use `score`, because they need each pass's hidden states, say.
        """
        if item.held:
            with self.applied(tensors):
                yield
        else:
            self._refuse_in_effect("apply")
            with torch.no_grad():
                yield

    def mix(self, outputs: Sequence[Any]) -> Any:
        """Return the teacher's logits from those of its passes, see `mix_passes`.

        Args:
            outputs: What the forwards returned, in the order of `passes`: raw logits [..., V].
        """
        return mix_passes(self.passes, outputs)

    def move(self, device: torch.device | str | int) -> None:
        """Put the held weights on another device, for hosts that lend theirs to a rollout engine meanwhile.

        Move them back to the student's device before the next pass or update.

        Args:
            device: Where to.

        Raises:
            TeacherError: The teacher has not started, or is in effect.
        """
        self._refuse_in_effect("move")
        self._held = {name: value.to(device) for name, value in self._started("move").items()}
        self._working = {}

    def state_dict(self) -> dict[str, Any]:
        """Return what must survive a checkpoint: name, format, counts, and the held tensors themselves.

        Raises:
            TeacherError: The teacher has not started.
        """
        return {
            "name": self.name,
            "format": FORMAT_VERSION,
            "updates": self.updates,
            "reached": list(self._reached),
            "tensors": dict(self._started("save")),
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Take over a state bit for bit, in place of `start`; on an error nothing is changed.

        Args:
            state: From `state_dict` of a teacher of the same strategy.
            tensors: The student's; the values are put on its devices.

        Raises:
            TeacherError: Another strategy or format, or names, shapes or dtypes that do not fit the student.
        """
        self._refuse_in_effect("load")
        check_same_strategy(self.name, state)
        saved: Mapping[str, Tensor] = state["tensors"]
        student = self.select(tensors)
        check_same_names(saved, student)
        check_dtypes(self.name, saved, student, self.held_dtype)
        held = {}
        for name, live in student.items():
            held[name] = torch.empty_like(live, dtype=saved[name].dtype, requires_grad=False).copy_(saved[name])
        self._held, self._working = held, {}
        self.updates = int(state["updates"])
        self._reached = (int(state["reached"][0]), int(state["reached"][1]))
        self._asked = self._reached

    # Inside

    def _values(self, tensors: LocalTensors) -> dict[str, Tensor]:
        """The values to put into the module: the held ones, or working copies cast to the student's dtype."""
        if self._held is None:
            return {}
        student = self.select(tensors)
        check_same_names(self._held, student)
        values = {}
        for name, held in self._held.items():
            live, slot = student[name], tensors.slots[name]
            if slot.is_buffer:
                # A copy each time: a forward may change it, and every pass begins from the held value.
                values[name] = held.to(device=live.device, dtype=live.dtype, copy=True)
            elif slot.in_place or (held.dtype == live.dtype and held.device == live.device):
                values[name] = held
            else:
                working = self._working.get(name)
                if working is None or working.dtype != live.dtype or working.device != live.device:
                    working = self._working[name] = torch.empty_like(live).copy_(held)
                values[name] = working
        return values

    def _refresh(self) -> None:
        copy_named(self._working, self._held or {}, names=self._working)

    def _started(self, verb: str) -> dict[str, Tensor]:
        if self._held is None:
            raise TeacherError(
                f"cannot {verb} the teacher {self.name!r} before it has weights: call "
                "`start(local_tensors(model))` on the student in memory, or load a teacher checkpoint."
            )
        return self._held

    def _refuse_in_effect(self, verb: str) -> None:
        if self._in_effect:
            raise TeacherError(
                f"cannot {verb} the teacher {self.name!r} while its weights are in the student's module. "
                "Leave the `applied` block (or `score`) first; it does not nest."
            )


def buffer_names(tensors: Mapping[str, Tensor]) -> frozenset[str]:
    """Return which entries are buffers; in a mapping that is no `LocalTensors`, those of whole numbers."""
    if isinstance(tensors, LocalTensors):
        return tensors.buffers
    return frozenset(name for name, live in tensors.items() if not live.is_floating_point())
