"""Teachers in the real trainer: which weights score, when they move and how far, in which precision."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from scored_teacher import both_teacher_logits
from sdpo_plugins.embedded import checkpoint_path
from sdpo_trl import SDPOTrainer
from sdpo_trl.forward import Sequences
from tiny_trl import digits_reward, tiny_model

Made = Callable[..., Any]
Tensors = dict[str, torch.Tensor]


def weights(model: torch.nn.Module) -> Tensors:
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def teacher_weights(trainer: SDPOTrainer) -> Tensors:
    """The teacher's parameters by name, copied; a teacher that has not started is an error."""
    state = trainer._strategies.teacher.state_dict()["tensors"]
    names = {name for name, _ in trainer.model.named_parameters()}
    return {name: value.clone() for name, value in state.items() if name in names}


class Recorder(TrainerCallback):
    """Copies student and teacher at the start and after each optimizer step; runs after the teacher's clock."""

    def __init__(self, trainer: SDPOTrainer) -> None:
        self.trainer = trainer
        self.student: list[Tensors] = []
        self.teacher: list[Tensors] = []
        trainer.add_callback(self)

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self._record()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self._record()

    def _record(self) -> None:
        self.student.append(weights(self.trainer.model))
        self.teacher.append(teacher_weights(self.trainer))


def sequences(trainer: SDPOTrainer, rows: int = 3) -> Sequences:
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(5, 100, (rows, 12), generator=generator)
    ones = torch.ones_like(ids)
    return Sequences(ids[:, :7], ones[:, :7], ids[:, 7:], ones[:, 7:])


def teacher_logits(trainer: SDPOTrainer, inputs: Sequences) -> torch.Tensor:
    return both_teacher_logits(trainer, inputs)


@torch.no_grad()
def logits_of(model: torch.nn.Module, inputs: Sequences) -> torch.Tensor:
    ids = torch.cat([inputs.prompt_ids, inputs.completion_ids], dim=1)
    return model.eval()(input_ids=ids).logits[:, inputs.prompt_ids.size(1) - 1 : -1]


def model_with(values: Tensors) -> torch.nn.Module:
    """A model that no trainer has touched, with these weights."""
    model = tiny_model(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(values[name])
    return model


def rows_of(trainer: SDPOTrainer, key: str) -> list[tuple[int, float]]:
    return [(row["step"], row[key]) for row in trainer.state.log_history if key in row]


CLOCKS = [
    # unit, every, num_iterations → the optimizer steps after which the teacher moves
    ("rollout_batch", 1, 1, [1, 2, 3, 4, 5, 6]),
    ("rollout_batch", 1, 2, [2, 4, 6]),
    ("rollout_batch", 2, 1, [2, 4, 6]),
    ("optimizer_step", 1, 2, [1, 2, 3, 4, 5, 6]),
    ("optimizer_step", 4, 2, [4]),
]


@pytest.mark.parametrize(("unit", "every", "iterations", "moves"), CLOCKS)
def test_the_ema_moves_when_it_should_and_by_as_much(
    make_trainer: Made, unit: str, every: int, iterations: int, moves: list[int]
) -> None:
    """θ' ← (1−r)·θ' + r·θ with r the student's share, and nothing in between."""
    rate = 0.3
    trainer = make_trainer(
        args={
            "max_steps": 6,
            "num_iterations": iterations,
            "teacher_update_unit": unit,
            "teacher_update_every": every,
            "teacher_update_rate": rate,
            "learning_rate": 1e-2,
        }
    )
    seen = Recorder(trainer)
    trainer.train()
    for name in seen.teacher[0]:
        assert torch.equal(seen.teacher[0][name], seen.student[0][name]), name
        for step in range(1, 7):
            before, after, student = seen.teacher[step - 1][name], seen.teacher[step][name], seen.student[step][name]
            if step not in moves:
                assert torch.equal(after, before), (name, step)
            else:
                expected = (1 - rate) * before.double() + rate * student.double()
                assert torch.allclose(after.double(), expected, rtol=2e-7, atol=1e-8), (name, step)
    moved = max(float((seen.teacher[-1][name] - seen.teacher[0][name]).abs().max()) for name in seen.teacher[0])
    assert moved > 1e-3
    updates = rows_of(trainer, "teacher/updates")
    assert [step for step, _ in updates] == moves
    assert [count for _, count in updates] == list(range(1, len(moves) + 1))


def test_the_logged_distance_is_that_of_the_weights(make_trainer: Made) -> None:
    trainer = make_trainer(args={"max_steps": 2, "learning_rate": 1e-2})
    seen = Recorder(trainer)
    trainer.train()
    for step in (1, 2):
        gap = torch.cat([(seen.teacher[step][n] - v).flatten() for n, v in seen.student[step].items()]).double()
        size = torch.cat([value.flatten() for value in seen.student[step].values()]).double()
        assert dict(rows_of(trainer, "teacher/distance"))[step] == pytest.approx(float(gap.square().mean().sqrt()))
        assert dict(rows_of(trainer, "teacher/relative_distance"))[step] == pytest.approx(
            float(gap.norm() / size.norm())
        )


def test_defect_08_one_update_for_each_rollout_batch_whatever_the_steps(make_trainer: Made) -> None:
    """Two slices × two iterations: four optimizer steps on one rollout batch, one update."""
    trainer = make_trainer(
        args={
            "max_steps": 8,
            "per_device_train_batch_size": 4,
            "steps_per_generation": 2,
            "num_iterations": 2,
        }
    )
    trainer.train()
    assert rows_of(trainer, "teacher/updates") == [(4, 1.0), (8, 2.0)]


def test_an_update_comes_after_accumulation_not_between(make_trainer: Made) -> None:
    trainer = make_trainer(
        args={
            "max_steps": 4,
            "per_device_train_batch_size": 4,
            "gradient_accumulation_steps": 4,
            "steps_per_generation": 2,
            "teacher_update_unit": "rollout_batch",
        }
    )
    trainer.train()
    # Two rollout batches in each optimizer step: there is one student to follow at its end.
    assert rows_of(trainer, "teacher/updates") == [(step, float(step)) for step in (1, 2, 3, 4)]
    assert trainer._clock.state_dict() == {"batches": 8, "steps": 4}


def test_frozen_stays_and_live_holds_nothing(make_trainer: Made) -> None:
    frozen = make_trainer(args={"teacher": "frozen", "learning_rate": 1e-2})
    seen = Recorder(frozen)
    frozen.train()
    for name, value in seen.student[0].items():
        assert torch.equal(seen.teacher[-1][name], value)
    assert any(not torch.equal(value, seen.student[-1][name]) for name, value in seen.student[0].items())
    inputs = sequences(frozen)
    assert torch.allclose(teacher_logits(frozen, inputs), logits_of(tiny_model(), inputs), atol=1e-5)

    live = make_trainer(args={"teacher": "live", "learning_rate": 1e-2})
    live.train()
    assert teacher_weights(live) == {}
    inputs = sequences(live)
    assert torch.equal(teacher_logits(live, inputs), logits_of(live.model, inputs))
    assert not torch.allclose(teacher_logits(live, inputs), logits_of(tiny_model(), inputs), atol=1e-2)


def test_trust_region_is_the_formula_on_the_real_model(make_trainer: Made) -> None:
    """logits = (1−r)·ref + r·student, r the student's share, from two models that no trainer has touched."""
    rate = 0.2
    trainer = make_trainer(
        args={"teacher": "trust_region", "teacher_update_rate": rate, "learning_rate": 1e-2, "max_steps": 3}
    )
    trainer.train()
    inputs = sequences(trainer)
    reference, student = logits_of(tiny_model(), inputs), logits_of(model_with(weights(trainer.model)), inputs)
    assert float((reference - student).abs().max()) > 0.1
    expected = (1 - rate) * reference + rate * student
    assert torch.allclose(teacher_logits(trainer, inputs), expected, atol=1e-5)


@pytest.mark.parametrize("precision", ["float32", "autocast", "bfloat16"])
def test_the_teacher_is_not_the_students_forward(make_trainer: Made, precision: str) -> None:
    """Zero every teacher weight: its logits must all be zero, so log-probabilities −log V, in the real loss too.

    TRL binds the student's forward into a closure, so a deep copy of the model would still score as the student; and
    autocast keeps casts of the student's weights.
    """
    model = tiny_model().bfloat16() if precision == "bfloat16" else tiny_model()
    trainer = make_trainer(
        model,
        args={"teacher": "frozen", "max_steps": 3, "bf16": precision == "autocast", "distillation_topk": None},
    )

    class Zero(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            if trainer.state.global_step == 2:
                teacher = trainer._strategies.teacher
                state = teacher.state_dict()
                state["tensors"] = {name: torch.zeros_like(value) for name, value in state["tensors"].items()}
                teacher.load_state_dict(state, trainer_tensors())

    def trainer_tensors() -> Any:
        from sdpo_plugins.teacher import local_tensors

        return local_tensors(trainer.model)

    trainer.add_callback(Zero())
    trainer.train()
    logs = {row["step"]: row for row in trainer.state.log_history if "self_distillation/gap" in row}
    vocabulary = trainer.model.config.vocab_size
    teacher = {s: row["self_distillation/gap"] + row["self_distillation/log_prob"] for s, row in logs.items()}
    assert teacher[3] == pytest.approx(-math.log(vocabulary), abs=1e-4)
    assert teacher[2] != pytest.approx(-math.log(vocabulary), abs=0.05)
    assert float(teacher_logits(trainer, sequences(trainer)).abs().max()) == 0.0
    assert float(logits_of(trainer.model, sequences(trainer)).abs().max()) > 0.1


@pytest.mark.parametrize("teacher", ["ema", "frozen", "trust_region"])
def test_defect_06_the_teacher_starts_from_the_student_in_memory(make_trainer: Made, teacher: str) -> None:
    """Not from where its configuration says it was loaded; also if it changes after the trainer was made."""
    model = tiny_model()
    model.config._name_or_path = str(checkpoint_path())
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(1.5)
    trainer = make_trainer(model, args={"teacher": teacher, "learning_rate": 1e-2, "max_steps": 1})
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.add_(0.25)
    initial = weights(model)
    seen = Recorder(trainer)
    trainer.train()
    for name, value in initial.items():
        assert torch.equal(seen.teacher[0][name], value), name
    if teacher == "frozen":
        inputs = sequences(trainer)
        assert torch.allclose(teacher_logits(trainer, inputs), logits_of(model_with(initial), inputs), atol=1e-5)


def test_evaluation_before_training_scores_with_the_student(make_trainer: Made) -> None:
    from tiny_trl import questions

    trainer = make_trainer(
        args={"per_device_eval_batch_size": 8, "learning_rate": 1e-2, "max_steps": 2}, eval_dataset=questions(2)
    )
    metrics = trainer.evaluate()
    assert math.isfinite(metrics["eval_loss"])
    inputs = sequences(trainer)
    assert torch.allclose(teacher_logits(trainer, inputs), logits_of(tiny_model(), inputs), atol=1e-5)
    assert not trainer._strategies.teacher.started
    trainer.train()
    assert trainer._strategies.teacher.updates == 2


def test_defect_09_the_ema_of_a_bfloat16_model_keeps_no_rounding(make_trainer: Made) -> None:
    """Rate 0.01 over 12 updates, compared with an oracle in double; an average held in bfloat16 loses the drift."""
    rate = 0.01
    trainer = make_trainer(
        tiny_model().bfloat16(),
        args={"max_steps": 12, "learning_rate": 3e-3, "teacher_update_rate": rate},
    )
    seen = Recorder(trainer)
    trainer.train()
    oracle = {name: value.double() for name, value in seen.student[0].items()}
    narrow = dict(seen.student[0])
    for student in seen.student[1:]:
        assert {value.dtype for value in student.values()} == {torch.bfloat16}
        for name, value in student.items():
            oracle[name] = (1 - rate) * oracle[name] + rate * value.double()
            narrow[name] = torch.lerp(narrow[name], value, rate)
    drift = lost = naive = 0.0
    for name, value in oracle.items():
        start = seen.student[0][name].double()
        drift += float((value - start).square().sum())
        lost += float((value - seen.teacher[-1][name].double()).square().sum())
        naive += float((value - narrow[name].double()).square().sum())
    assert {value.dtype for value in seen.teacher[-1].values()} == {torch.float32}
    assert math.sqrt(lost / drift) < 1e-3
    assert math.sqrt(naive / drift) > 0.3
    # And it scores in the student's dtype.
    inputs = sequences(trainer)
    assert teacher_logits(trainer, inputs).dtype == torch.bfloat16


# Ways of running the model


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradient_checkpointing_changes_nothing(make_trainer: Made, use_reentrant: bool) -> None:
    """Its second forward comes after the teacher's weights were in the module: it must find the student's."""
    args = {"max_steps": 2, "learning_rate": 1e-2, "teacher_update_rate": 0.5}
    plain = make_trainer(args=args)
    plain.train()
    trainer = make_trainer(
        args={
            **args,
            "gradient_checkpointing": True,
            "gradient_checkpointing_kwargs": {"use_reentrant": use_reentrant},
        }
    )
    trainer.train()
    assert trainer.model.is_gradient_checkpointing
    for name, value in weights(plain.model).items():
        assert torch.allclose(value, weights(trainer.model)[name], rtol=1e-5, atol=1e-6), name
    for name, value in teacher_weights(plain).items():
        assert torch.allclose(value, teacher_weights(trainer)[name], rtol=1e-5, atol=1e-6), name


def test_autocast_trains_float32_weights_close_to_float32(make_trainer: Made) -> None:
    args = {"max_steps": 1, "learning_rate": 0.0}
    losses = []
    for bf16 in (False, True):
        trainer = make_trainer(args={**args, "bf16": bf16})
        trainer.train()
        assert {value.dtype for value in weights(trainer.model).values()} == {torch.float32}
        losses.append(rows_of(trainer, "self_distillation/divergence")[0][1])
    assert losses[1] != losses[0]
    assert losses[1] == pytest.approx(losses[0], rel=0.2)


def test_dropout_is_the_students_alone(make_trainer: Made) -> None:
    """The teacher scores in evaluation mode, twice the same; every module gets the mode back that it had."""
    model = tiny_model(attention_dropout=0.5)
    trainer = make_trainer(model, args={"max_steps": 1, "disable_dropout": False})
    trainer.train()
    model.train()
    model.model.norm.eval()
    inputs = sequences(trainer)
    modes = {name: module.training for name, module in model.named_modules()}
    assert torch.equal(teacher_logits(trainer, inputs), teacher_logits(trainer, inputs))
    assert {name: module.training for name, module in model.named_modules()} == modes
    ids = torch.cat([inputs.prompt_ids, inputs.completion_ids], dim=1)
    assert not torch.equal(model(input_ids=ids).logits, model(input_ids=ids).logits)


# The teacher's own accuracy


def test_teacher_accuracy_is_logged_and_changes_nothing(make_trainer: Made) -> None:
    key = "self_distillation/teacher_accuracy"
    args = {"max_steps": 5, "num_iterations": 1, "learning_rate": 1e-2, "log_completions": False}
    plain = make_trainer(args=args)
    plain.train()
    after = torch.random.get_rng_state()
    # A trainer seeds the random numbers when it is made.
    probed = make_trainer(args={**args, "teacher_accuracy_every": 2})
    probed.train()
    assert torch.equal(after, torch.random.get_rng_state())
    for name, value in weights(plain.model).items():
        assert torch.equal(value, weights(probed.model)[name]), name
    assert rows_of(plain, key) == []
    assert [step for step, _ in rows_of(probed, key)] == [1, 3, 5]
    for row, other in zip(plain.state.log_history, probed.state.log_history, strict=True):
        same = {k: v for k, v in row.items() if "time" not in k and "second" not in k}
        assert same == {k: other[k] for k in same}


@pytest.mark.parametrize("good", [True, False])
def test_teacher_accuracy_counts_the_teachers_answers(make_trainer: Made, good: bool) -> None:
    """Answers of rollouts and of the teacher are told apart by how many come at once."""
    calls: list[int] = []

    def judge(prompts: list[Any], completions: list[Any], **_: Any) -> list[dict[str, Any]]:
        calls.append(len(completions))
        if len(completions) == 8:
            return digits_reward(prompts, completions)
        return [{"score": float(good), "feedback": "No."} for _ in completions]

    trainer = make_trainer(args={"max_steps": 2, "teacher_accuracy_every": 1}, reward_funcs=judge)
    trainer.train()
    assert [value for _, value in rows_of(trainer, "self_distillation/teacher_accuracy")] == [float(good)] * 2
    assert calls[0::2] == [8, 8] and all(count < 8 for count in calls[1::2])
