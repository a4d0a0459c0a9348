"""In one process: neither accumulation, nor the reuse of rollouts, nor padding, nor other rows change what is learnt.

Each optimizer step is recomputed outside of the trainer in float64, row by row and without padding, by the core's
reference function.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor, nn

from fixed_run import Watched, fixed_trainer, train
from sdpo_plugins import SDPOConfig
from sdpo_plugins.losses import self_distillation_loss
from tiny_trl import questions, tiny_model

SGD_RATE = 0.5
Batch = dict[str, Any]


def unpadded(batch: Batch, row: int) -> tuple[Tensor, Tensor, Tensor]:
    """Student prompt, teacher prompt (the student's where the row is inactive) and answer of one row."""
    asked, told, answer = (
        batch[f"{name}_ids"][row][batch[f"{name}_mask"][row].bool()] for name in ("prompt", "sdpo_prompt", "completion")
    )
    return asked, told if batch["sdpo_active"][row] else asked, answer


def reference_loss(batches: list[Batch], student: nn.Module, teacher: nn.Module, config: SDPOConfig) -> Tensor:
    """The loss of some micro-batches taken together."""
    rows = [(batch, row) for batch in batches for row in range(len(batch["completion_ids"]))]
    width = max(batch["completion_ids"].size(1) for batch in batches)
    student_logits, teacher_logits, ids, mask, old = [], [], [], [], []
    for batch, row in rows:
        asked, told, answer = unpadded(batch, row)
        own = student(input_ids=torch.cat([asked, answer])[None]).logits[0, len(asked) - 1 : -1]
        with torch.no_grad():
            theirs = teacher(input_ids=torch.cat([told, answer])[None]).logits[0, len(told) - 1 : -1]
        pad = own.new_zeros(width - len(answer), own.size(1))
        student_logits.append(torch.cat([own, pad]))
        teacher_logits.append(torch.cat([theirs, pad]))
        ids.append(torch.cat([answer, answer.new_zeros(len(pad))]))
        mask.append((torch.arange(width) < len(answer)).double())
        if "old_per_token_logps" in batch:
            known = batch["old_per_token_logps"][row, : len(answer)].double()
            old.append(torch.cat([known, known.new_zeros(len(pad))]))
    loss, _ = self_distillation_loss(
        torch.stack(student_logits),
        torch.stack(teacher_logits),
        torch.stack(ids),
        torch.stack(mask),
        config,
        old_log_probs=torch.stack(old) if old else None,
        self_distillation_mask=torch.stack([batch["sdpo_active"][row].double() for batch, row in rows]),
        loss_agg_mode=config.loss_agg_mode,
    )
    return loss


def assert_steps_are_the_reference(result: dict[str, Any], args: dict[str, Any], cut: list[list[int]]) -> None:
    """Check the change of the weights in each step, and the logged losses.

    Args:
        result: Of a run with a frozen teacher and plain gradient descent.
        args: Its arguments.
        cut: For each optimizer step the numbers of micro-batches that are divided by one common count.
    """
    names = SDPOConfig.__dataclass_fields__
    config = SDPOConfig(**{name: value for name, value in args.items() if name in names})
    logged = [row["loss"] for row in result["logs"] if "loss" in row]
    teacher, student = tiny_model().double(), tiny_model().double()
    batches = iter(result["seen"])
    for sizes, after, log in zip(cut, result["weights_after"], logged, strict=True):
        student.zero_grad()
        total = 0.0
        for size in sizes:
            window = [next(batches) for _ in range(size)]
            loss = reference_loss(window, student, teacher, config) * size / sum(sizes)
            if loss.requires_grad:
                loss.backward()
            total += float(loss)
        assert log == pytest.approx(total, rel=2e-5, abs=1e-8)
        for name, parameter in student.named_parameters():
            assert parameter.grad is not None
            change = (after[name].double() - parameter.detach()) / SGD_RATE
            scale = float(parameter.grad.abs().max())
            assert torch.allclose(change, -parameter.grad, rtol=0, atol=1e-4 * scale + 1e-6), name
            # From here as the trainer did, so that rounding does not add up.
            parameter.data.copy_(after[name])
    assert next(batches, None) is None


FROZEN = {"teacher": "frozen", "learning_rate": SGD_RATE, "per_device_train_batch_size": 2}

# Arguments, and for each optimizer step the micro-batches that share a divisor: those of one generation.
SCHEDULES: dict[str, tuple[dict[str, Any], list[list[int]]]] = {
    "one generation a step": ({"gradient_accumulation_steps": 4, "max_steps": 2}, [[4], [4]]),
    "a generation serves two steps": (
        {"steps_per_generation": 4, "gradient_accumulation_steps": 2, "max_steps": 4},
        [[2], [2], [2], [2]],
    ),
    "a step takes two generations": (
        {"steps_per_generation": 2, "gradient_accumulation_steps": 4, "max_steps": 2},
        [[2, 2], [2, 2]],
    ),
    "steps and generations overlap": (
        {"steps_per_generation": 6, "gradient_accumulation_steps": 4, "max_steps": 3},
        [[4], [2, 2], [4]],
    ),
    "each generation twice": (
        {"steps_per_generation": 2, "gradient_accumulation_steps": 2, "num_iterations": 2, "max_steps": 4},
        [[2], [2], [2], [2]],
    ),
    "each generation twice in one step": (
        {"steps_per_generation": 2, "gradient_accumulation_steps": 4, "num_iterations": 2, "max_steps": 2},
        [[2, 2], [2, 2]],
    ),
    "sequence means": (
        {
            "loss_agg_mode": "seq-mean-token-mean",
            "steps_per_generation": 4,
            "gradient_accumulation_steps": 2,
            "max_steps": 2,
        },
        [[2], [2]],
    ),
    # The authors': each micro-batch by its own count.
    "reference normalization": (
        {"loss_normalization": "reference", "gradient_accumulation_steps": 4, "max_steps": 2},
        [[1, 1, 1, 1], [1, 1, 1, 1]],
    ),
}


@pytest.mark.parametrize("schedule", list(SCHEDULES))
def test_defect_7_every_step_is_the_reference_whatever_the_schedule(schedule: str) -> None:
    changes, cut = SCHEDULES[schedule]
    args = {**FROZEN, **changes}
    result = train(args)
    assert len({int(batch["sdpo_active"].sum()) for batch in result["seen"]}) > 1
    assert_steps_are_the_reference(result, args, cut)


@pytest.mark.parametrize(("per_generation", "cut"), [(1, [[1, 1], [1]]), (3, [[2], [1]])])
def test_defect_7_an_incomplete_group_at_the_end_of_an_epoch_counts_as_a_whole_step(
    per_generation: int, cut: list[list[int]]
) -> None:
    """Three questions an epoch, one in each micro-batch, two micro-batches a step: the second step has but one."""
    args = {
        **FROZEN,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "steps_per_generation": per_generation,
        "max_steps": -1,
        "num_train_epochs": 2,
    }
    result = train(args, train_dataset=Dataset.from_list(list(questions(3))))
    assert_steps_are_the_reference(result, args, cut * 2)


@pytest.mark.parametrize("accumulate", [2, 4, 8])
def test_defect_7_accumulation_changes_nothing(accumulate: int) -> None:
    """With a moving teacher, over several steps."""
    args = {"learning_rate": SGD_RATE, "teacher_update_rate": 0.25, "max_steps": 3}
    whole = train(args)
    cut = {"per_device_train_batch_size": 8 // accumulate, "gradient_accumulation_steps": accumulate}
    parts = train({**args, **cut, "num_generations": 4})
    for name, value in whole["weights"].items():
        torch.testing.assert_close(parts["weights"][name], value, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(parts["teacher"][name], whole["teacher"][name], rtol=1e-5, atol=1e-6)
    for part, row in zip(parts["logs"][:-1], whole["logs"][:-1], strict=True):
        assert part["loss"] == pytest.approx(row["loss"], rel=2e-5)
        assert part["grad_norm"] == pytest.approx(row["grad_norm"], rel=2e-5)
        assert part["teacher/distance"] == pytest.approx(row["teacher/distance"], rel=1e-3)


def test_the_importance_ratio_leaves_one_after_the_first_pass() -> None:
    args = {**FROZEN, "per_device_train_batch_size": 8, "num_iterations": 3, "max_steps": 6}
    result = train(args)
    ratios = [row["self_distillation/importance_ratio"] for row in result["logs"] if "loss" in row]
    for first in (0, 3):
        assert ratios[first] == pytest.approx(1.0, abs=1e-5)
        assert all(abs(ratio - 1.0) > 1e-4 for ratio in ratios[first + 1 : first + 3])
        rows = [batch["completion_ids"].sort(dim=0).values for batch in result["seen"][first : first + 3]]
        assert all(torch.equal(rows[0], other) for other in rows[1:])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Watched:
    trainer = fixed_trainer(str(tmp_path_factory.mktemp("run")), {"max_steps": 1, "learning_rate": SGD_RATE})
    trainer.train()
    return trainer


def loss_of(trainer: Watched, batch: Batch) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradient of a micro-batch, divided as the step that the trainer has just done."""
    assert trainer._window is not None
    trainer.model.zero_grad()
    loss, *_ = trainer._distiller.loss(trainer.model, trainer._bare_model(), batch, trainer._window)
    loss.backward()
    return float(loss), {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None}


def test_other_rows_never_change_the_loss_of_a_row(trained: Watched) -> None:
    batch = {name: value for name, value in trained.seen[0].items() if torch.is_tensor(value) and value.dim()}
    count = len(batch["completion_ids"])
    assert 0 < batch["sdpo_active"].sum() < count
    whole, gradient = loss_of(trained, batch)
    alone = [loss_of(trained, {name: value[row : row + 1] for name, value in batch.items()}) for row in range(count)]
    assert whole == pytest.approx(sum(loss for loss, _ in alone), rel=1e-5)
    for name, value in gradient.items():
        added = sum(parts[name] for _, parts in alone)
        assert torch.allclose(value, added, rtol=1e-4, atol=1e-5 * float(value.abs().max())), name
    for row, (loss, _) in enumerate(alone):
        assert bool(loss) == bool(batch["sdpo_active"][row])
        pair = {name: value[[row, (row + 3) % count]] for name, value in batch.items()}
        assert loss_of(trained, pair)[0] == pytest.approx(loss + alone[(row + 3) % count][0], rel=1e-5, abs=1e-9)


def test_padding_never_changes_the_loss(trained: Watched) -> None:
    batch = {name: value for name, value in trained.seen[0].items() if torch.is_tensor(value) and value.dim()}
    wider = dict(batch)
    for name, left in (("prompt", True), ("sdpo_prompt", True), ("completion", False)):
        # What stands in the padding is noise: only masks may say what counts.
        ids, mask = batch[f"{name}_ids"], batch[f"{name}_mask"]
        noise = torch.randint(5, 100, (len(ids), 7), generator=torch.Generator().manual_seed(1))
        nothing = torch.zeros_like(noise)
        wider[f"{name}_ids"] = torch.cat([noise, ids] if left else [ids, noise], dim=1)
        wider[f"{name}_mask"] = torch.cat([nothing, mask] if left else [mask, nothing], dim=1)
        filled = wider[f"{name}_ids"]
        filled[~wider[f"{name}_mask"].bool()] = 7
    loss, gradient = loss_of(trained, batch)
    padded_loss, padded = loss_of(trained, wider)
    assert padded_loss == pytest.approx(loss, rel=1e-5)
    for name, value in gradient.items():
        assert torch.allclose(padded[name], value, rtol=1e-4, atol=1e-5 * float(value.abs().max())), name
