"""LoRA in the real trainer: both ways of getting it, its teachers, what is saved, mixed dtypes, dropout."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file

from scored_teacher import both_teacher_logits
from sdpo_plugins.errors import TeacherError
from sdpo_plugins.teacher import local_tensors
from sdpo_trl import SDPOTrainer
from sdpo_trl.forward import Sequences
from tiny_trl import questions, tiny_model

Made = Callable[..., Any]


def lora(**changes: Any) -> LoraConfig:
    return LoraConfig(**{"r": 4, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM", **changes})


def with_adapter(base: Any = None, scale: float = 0.1, **changes: Any) -> PeftModel:
    """A PeftModel whose adapter has been trained: B is not zero."""
    model = get_peft_model(tiny_model() if base is None else base, lora(**changes))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    return model


def trained(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters() if value.requires_grad}


def frozen(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters() if not value.requires_grad}


def held(trainer: SDPOTrainer) -> dict[str, torch.Tensor]:
    buffers = local_tensors(trainer.model).buffers
    state = trainer._strategies.teacher.state_dict()["tensors"]
    return {name: value.clone() for name, value in state.items() if name not in buffers}


def sequences() -> Sequences:
    ids = torch.randint(5, 100, (3, 12), generator=torch.Generator().manual_seed(5))
    ones = torch.ones_like(ids)
    return Sequences(ids[:, :7], ones[:, :7], ids[:, 7:], ones[:, 7:])


def teacher_logits(trainer: SDPOTrainer) -> torch.Tensor:
    return both_teacher_logits(trainer, sequences())


@torch.no_grad()
def logits_of(model: torch.nn.Module) -> torch.Tensor:
    inputs = sequences()
    ids = torch.cat([inputs.prompt_ids, inputs.completion_ids], dim=1)
    return model.eval()(input_ids=ids).logits[:, 6:-1]


@pytest.fixture
def build(make_trainer: Made) -> Made:
    """Make a LoRA trainer in either way: the trainer wraps the model, or is given a wrapped one."""

    def make(way: str, args: dict[str, Any] | None = None, **kwargs: Any) -> SDPOTrainer:
        settings = {"max_steps": 3, "learning_rate": 1e-2, "teacher": "lora_ema", **(args or {})}
        if way == "peft_config":
            return make_trainer(tiny_model(), args=settings, peft_config=lora(), **kwargs)
        return make_trainer(with_adapter(), args=settings, **kwargs)

    return make


WAYS = ["peft_config", "PeftModel"]


@pytest.mark.parametrize("teacher", ["lora_ema", "ema", "frozen", "trust_region"])
@pytest.mark.parametrize("way", WAYS)
def test_only_the_adapter_is_trained_and_held(build: Made, way: str, teacher: str) -> None:
    trainer = build(way, args={"teacher": teacher})
    start, base = trained(trainer.model), frozen(trainer.model)
    assert start and all("lora_" in name for name in start)
    trainer.train()
    for name, value in frozen(trainer.model).items():
        assert torch.equal(value, base[name]), name
    assert any(not torch.equal(value, start[name]) for name, value in trained(trainer.model).items())
    copy = held(trainer)
    assert copy.keys() == start.keys()
    assert all(value.dtype == torch.float32 for value in copy.values())
    divergences = [row["self_distillation/divergence"] for row in trainer.state.log_history if "loss" in row]
    assert len(divergences) == 3 and all(value > 1e-6 for value in divergences)


@pytest.mark.parametrize("way", WAYS)
def test_lora_ema_averages_each_factor(build: Made, way: str) -> None:
    """After one update: teacher = (1−r)·start + r·student."""
    rate = 0.25
    trainer = build(way, args={"max_steps": 1, "teacher_update_rate": rate})
    start = trained(trainer.model)
    trainer.train()
    student, copy = trained(trainer.model), held(trainer)
    assert start.keys() == copy.keys()
    moved = 0.0
    for name, value in copy.items():
        expected = (1 - rate) * start[name].double() + rate * student[name].double()
        assert torch.allclose(value.double(), expected, rtol=2e-7, atol=1e-8), name
        moved = max(moved, float((value - start[name]).abs().max()))
    assert moved > 1e-4


@pytest.mark.parametrize("teacher", ["lora_ema", "ema", "frozen"])
@pytest.mark.parametrize("way", WAYS)
def test_defect_05_evaluation_before_training(build: Made, way: str, teacher: str) -> None:
    trainer = build(
        way, args={"teacher": teacher, "per_device_eval_batch_size": 8, "max_steps": 1}, eval_dataset=questions(2)
    )
    metrics = trainer.evaluate()
    assert math.isfinite(metrics["eval_loss"])
    assert trainer.state.log_history[-1]["eval_self_distillation/active_tokens"] > 0
    assert torch.allclose(teacher_logits(trainer), logits_of(trainer.model), atol=1e-5)
    trainer.train()
    assert math.isfinite(trainer.evaluate()["eval_loss"])


def test_defect_05_the_teacher_starts_as_the_students_adapter_not_at_zero(build: Made) -> None:
    trainer = build("PeftModel", args={"max_steps": 1, "teacher_update_rate": 0.0})
    start = trained(trainer.model)
    assert any("lora_B" in name and float(value.abs().max()) > 0.05 for name, value in start.items())
    before = logits_of(trainer.model)
    trainer.train()
    for name, value in held(trainer).items():
        assert torch.equal(value, start[name]), name
    assert torch.allclose(teacher_logits(trainer), before, atol=1e-5)
    # The student has moved, and neither the bare base nor the student is what scores.
    assert not torch.allclose(logits_of(trainer.model), before, atol=1e-3)
    assert not torch.allclose(logits_of(tiny_model()), before, atol=1e-1)


@pytest.mark.parametrize("way", WAYS)
def test_what_is_saved_is_the_students_adapter_alone(build: Made, tmp_path: Path, way: str) -> None:
    trainer = build(way, args={"save_strategy": "steps", "save_steps": 3})
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    trainer.model.save_pretrained(tmp_path / "plain")
    wanted = {name.replace(".default.", "."): value for name, value in trained(trainer.model).items()}
    for folder in (tmp_path / "saved", tmp_path / "plain", tmp_path / "out" / "checkpoint-3"):
        saved = load_file(folder / "adapter_model.safetensors")
        assert saved.keys() == wanted.keys()
        for name, value in saved.items():
            assert torch.equal(value, wanted[name]), name
        loaded = PeftModel.from_pretrained(tiny_model(), str(folder))
        assert torch.allclose(logits_of(loaded), logits_of(trainer.model), atol=1e-6)
    assert not (tmp_path / "saved" / "sdpo").exists()
    assert list(trainer.model.peft_config) == ["default"]
    merged = trainer.model.merge_and_unload()
    assert torch.allclose(logits_of(merged), logits_of(loaded), atol=1e-4)


@pytest.mark.parametrize("way", WAYS)
def test_the_reference_kl_with_adapters(build: Made, way: str) -> None:
    """The reference is the model before training; at the first step the KL is zero, later it is not."""
    trainer = build(way, args={"beta": 0.1, "max_steps": 4, "learning_rate": 3e-2})
    trainer.train()
    kl = [row["kl"] for row in trainer.state.log_history if "kl" in row]
    assert len(kl) == 4
    assert kl[0] == pytest.approx(0.0, abs=1e-6)
    assert kl[-1] > 1e-4
    # The copy that TRL keeps of a given adapter is not a part of the teacher.
    assert not any(".ref." in name for name in held(trainer))


def test_the_reference_kl_pulls_the_student_back(build: Made) -> None:
    distances = []
    for beta in (0.001, 10.0):
        trainer = build("PeftModel", args={"beta": beta, "max_steps": 6, "num_iterations": 3})
        start = trained(trainer.model)
        trainer.train()
        gap = [(value - start[name]).square().sum() for name, value in trained(trainer.model).items() if name in start]
        distances.append(float(torch.stack(gap).sum()))
    assert distances[1] < distances[0]


@pytest.mark.parametrize("teacher", ["lora_ema", "frozen"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_frozen_base_in_bfloat16_with_float32_adapters(make_trainer: Made, teacher: str, checkpointing: bool) -> None:
    """The shape of QLoRA: what is not trained has another dtype, and stays as it is."""
    model = with_adapter(tiny_model().bfloat16())
    for name, parameter in model.named_parameters():
        assert parameter.dtype == (torch.float32 if "lora_" in name else torch.bfloat16)
    base, start = frozen(model), trained(model)
    trainer = make_trainer(
        model,
        args={
            "teacher": teacher,
            "bf16": True,
            "learning_rate": 1e-2,
            "max_steps": 3,
            "gradient_checkpointing": checkpointing,
        },
    )
    trainer.train()
    for name, value in frozen(trainer.model).items():
        assert value.dtype == torch.bfloat16 and torch.equal(value, base[name]), name
    assert all(torch.isfinite(value).all() for value in trained(trainer.model).values())
    assert any(not torch.equal(value, start[name]) for name, value in trained(trainer.model).items())
    for name, value in held(trainer).items():
        assert value.dtype == torch.float32
        assert torch.equal(value, start[name]) == (teacher == "frozen"), name
    divergences = [row["self_distillation/divergence"] for row in trainer.state.log_history if "loss" in row]
    assert len(divergences) == 3 and all(0 < value < 1 for value in divergences)


def test_modules_to_save_follow_with_the_adapter(make_trainer: Made, tmp_path: Path) -> None:
    rate = 0.5
    trainer = make_trainer(
        tiny_model(),
        args={"teacher": "lora_ema", "teacher_update_rate": rate, "learning_rate": 1e-2, "max_steps": 1},
        peft_config=lora(modules_to_save=["down_proj"]),
    )
    start = trained(trainer.model)
    copies = [name for name in start if "modules_to_save" in name]
    assert copies
    trainer.train()
    student, copy = trained(trainer.model), held(trainer)
    for name in copies:
        assert not torch.equal(student[name], start[name])
        found = next(
            value for key, value in copy.items() if key.replace(".default.", ".") == name.replace(".default.", ".")
        )
        assert torch.allclose(found, (1 - rate) * start[name] + rate * student[name], rtol=1e-6, atol=1e-8)
    trainer.save_model(str(tmp_path / "saved"))
    loaded = PeftModel.from_pretrained(tiny_model(), str(tmp_path / "saved"))
    assert torch.allclose(logits_of(loaded), logits_of(trainer.model), atol=1e-6)


@pytest.mark.parametrize("teacher", ["lora_ema", "frozen", "live"])
def test_lora_dropout_is_the_students_alone(make_trainer: Made, teacher: str) -> None:
    """The teacher scores without dropout; the adapter's dropout modules get their training mode back."""
    model = with_adapter(lora_dropout=0.5)
    trainer = make_trainer(model, args={"teacher": teacher, "disable_dropout": False, "max_steps": 1})
    trainer.train()
    trainer.model.train()
    modes = {name: module.training for name, module in trainer.model.named_modules()}
    assert all(modes.values())
    first = teacher_logits(trainer)
    assert torch.equal(first, teacher_logits(trainer))
    assert {name: module.training for name, module in trainer.model.named_modules()} == modes
    inputs = sequences()
    ids = torch.cat([inputs.prompt_ids, inputs.completion_ids], dim=1)
    assert not torch.equal(trainer.model(input_ids=ids).logits, trainer.model(input_ids=ids).logits)


def test_lora_ema_without_lora_is_refused_before_anything_runs(make_trainer: Made) -> None:
    def never(**_: Any) -> list[float]:
        raise AssertionError("generated before the check")

    with pytest.raises(TeacherError, match=r"lora_ema.*needs a model with trainable LoRA adapters"):
        make_trainer(args={"teacher": "lora_ema"}, reward_funcs=never)


def test_an_adapter_loaded_for_inference_is_refused(make_trainer: Made, tmp_path: Path) -> None:
    with_adapter().save_pretrained(tmp_path / "adapter")
    model = PeftModel.from_pretrained(tiny_model(), str(tmp_path / "adapter"))
    with pytest.raises(TeacherError, match="is_trainable=True"):
        make_trainer(model, args={"teacher": "lora_ema"})


def test_an_adapter_loaded_for_training_goes_on(make_trainer: Made, tmp_path: Path) -> None:
    with_adapter().save_pretrained(tmp_path / "adapter")
    model = PeftModel.from_pretrained(tiny_model(), str(tmp_path / "adapter"), is_trainable=True)
    start = trained(model)
    trainer = make_trainer(model, args={"teacher": "lora_ema", "max_steps": 1, "teacher_update_rate": 0.0})
    trainer.train()
    for name, value in held(trainer).items():
        assert torch.equal(value, start[name]), name
