"""The contract of a teacher."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sdpo_plugins._catalogues import TEACHERS
from sdpo_plugins.config import SDPOConfig
from sdpo_plugins.testing._common import build_entry
from sdpo_plugins.types import TeacherStrategy

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

__all__ = ["check_teacher"]

_METHODS = ("check_model", "start", "due", "update", "score", "state_dict", "load_state_dict")


def check_teacher(
    entry: TeacherStrategy,
    *,
    config: SDPOConfig | None = None,
    options: Mapping[str, Any] | None = None,
    make_model: Callable[[], nn.Module] | None = None,
) -> None:
    """Check that a teacher starts as the student, leaves the student alone, and survives a checkpoint.

    The teacher's logits equal the student's before and right after `start`; the student's weights, gradients and
    modes are the same before and after scoring and updating; no gradient flows; the state after save and load gives
    the same logits bit for bit; `due` follows `teacher_update_every`; two teachers share nothing.

    Args:
        entry: The catalogue entry.
        config: The configuration to build it with; by default `SDPOConfig()`.
        options: The strategy's own options as a plain mapping.
        make_model: Gives a fresh small model, tokens [B, T] → logits [B, T, V] with ids below 8; by default a
            network with a layer named like a LoRA pair, so that adapter teachers find one.

    Raises:
        AssertionError: Says what does not hold.

    Example:
        >>> from sdpo_plugins.plugins import catalogue
        >>> check_teacher(catalogue("teacher")["ema"])
    """
    import torch

    from sdpo_plugins.teacher import local_tensors

    name = f"the teacher {entry.name!r}"
    teacher = build_entry(entry, TEACHERS, config, options)
    missing = [method for method in _METHODS if not callable(getattr(teacher, method, None))]
    assert not missing, f"{name} lacks the methods {', '.join(missing)}; derive it from sdpo_plugins.teacher.Teacher"
    assert build_entry(entry, TEACHERS, config, options) is not teacher, f"{name} must be built afresh for each run"

    model = (make_model or _small_model)()
    tokens = torch.arange(6).reshape(2, 3)

    def score(which: Any) -> Tensor:
        logits: Tensor = which.score(lambda: model(tokens), local_tensors(model))
        return logits

    teacher.check_model(model)
    student = model(tokens)
    for moment in ("before `start`", "right after `start`"):
        with _unchanged(name, model, moment):
            logits = score(teacher)
        assert torch.allclose(logits, student, rtol=1e-6, atol=1e-6), f"{name} must equal the student {moment}"
        assert not logits.requires_grad, f"{name} must give logits without gradient"
        if moment == "before `start`":
            teacher.start(local_tensors(model))
    _train_a_little(model)
    with _unchanged(name, model, "during `update`"):
        _check_due(name, teacher, config or SDPOConfig())
        teacher.update(local_tensors(model))
    _check_checkpoint(name, entry, teacher, config, options, model, score)


def _check_due(name: str, teacher: Any, config: SDPOConfig) -> None:
    every = config.teacher_update_every
    assert not teacher.due(every, 0), f"{name} must not be due before an optimizer step was taken"
    assert teacher.due(every, every), f"{name} must be due after {every} × {config.teacher_update_unit}"


def _check_checkpoint(
    name: str,
    entry: TeacherStrategy,
    teacher: Any,
    config: SDPOConfig | None,
    options: Mapping[str, Any] | None,
    model: nn.Module,
    score: Callable[[Any], Tensor],
) -> None:
    import torch

    from sdpo_plugins.teacher import local_tensors

    file = io.BytesIO()
    torch.save(teacher.state_dict(), file)
    file.seek(0)
    resumed = build_entry(entry, TEACHERS, config, options)
    resumed.load_state_dict(torch.load(file, weights_only=True), local_tensors(model))
    assert torch.equal(score(resumed), score(teacher)), f"{name} gives other logits after a checkpoint was loaded"
    _train_a_little(model)
    reached = 2 * (config or SDPOConfig()).teacher_update_every
    for which in (resumed, teacher):
        which.due(reached, reached)
        which.update(local_tensors(model))
    assert torch.equal(score(resumed), score(teacher)), f"{name} goes on differently after a checkpoint was loaded"


class _unchanged:
    """Within the block, the student's weights, gradients and modes must come back as they were."""

    def __init__(self, name: str, model: nn.Module, moment: str) -> None:
        self.name, self.model, self.moment = name, model, moment

    def __enter__(self) -> None:
        self.state = {key: value.clone() for key, value in self.model.state_dict().items()}
        self.modes = [module.training for module in self.model.modules()]
        self.storage = {key: value.data_ptr() for key, value in self.model.named_parameters()}

    def __exit__(self, kind: Any, *_: Any) -> None:
        import torch

        if kind is not None:
            return
        for key, value in self.model.state_dict().items():
            assert torch.equal(value, self.state[key]), f"{self.name} changed the student's {key!r} {self.moment}"
        assert [module.training for module in self.model.modules()] == self.modes, (
            f"{self.name} changed train or eval mode {self.moment}"
        )
        storage = {key: value.data_ptr() for key, value in self.model.named_parameters()}
        assert storage == self.storage, f"{self.name} moved the student's parameters {self.moment}"


def _small_model() -> nn.Module:
    import torch
    from torch import nn

    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(8, 4)
            self.head = nn.Linear(4, 8)
            self.lora_A = nn.ModuleDict({"default": nn.Linear(4, 2, bias=False)})
            self.lora_B = nn.ModuleDict({"default": nn.Linear(2, 8, bias=False)})
            for base in (self.embed, self.head):
                base.requires_grad_(False)

        def forward(self, tokens: Tensor) -> Tensor:
            hidden = self.embed(tokens)
            logits: Tensor = self.head(hidden) + self.lora_B["default"](self.lora_A["default"](hidden))
            return logits

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Small()


def _train_a_little(model: nn.Module) -> None:
    import torch

    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
