"""The loss that reaches the optimizer is the core's, and SDPO switched off is GRPO to the bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from trl import GRPOConfig, GRPOTrainer

from sdpo_plugins import SDPOConfig
from sdpo_plugins.losses import self_distillation_loss
from tiny_trl import tiny_model


def weights_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def plain_grpo_config(args: Any) -> GRPOConfig:
    names = set(GRPOConfig.__dataclass_fields__)
    return GRPOConfig(
        output_dir=args.output_dir,
        **{
            name: getattr(args, name)
            for name in names
            & {
                "per_device_train_batch_size",
                "num_generations",
                "max_completion_length",
                "max_steps",
                "learning_rate",
                "use_cpu",
                "bf16",
                "logging_steps",
                "disable_tqdm",
                "gradient_accumulation_steps",
            }
        },
        report_to="none",
        save_strategy="no",
        lr_scheduler_type="constant",
        gradient_checkpointing=False,
    )


@pytest.mark.parametrize("off", [{"enabled": False}, {"grpo_weight": 1.0}])
def test_sdpo_switched_off_is_grpo_to_the_bit(make_trainer: Any, off: dict[str, Any]) -> None:
    def floats(completions: list[Any], **_: Any) -> list[float]:
        return [float(len(completion[0]["content"]) % 2) for completion in completions]

    ours = make_trainer(args={**off, "max_steps": 3, "gradient_accumulation_steps": 2}, reward_funcs=floats)
    ours.train()
    # A trainer seeds the random numbers when it is made, so the second one is made after the first has run.
    theirs = GRPOTrainer(
        tiny_model(),
        floats,
        plain_grpo_config(ours.args),
        train_dataset=ours.train_dataset,
        processing_class=ours.processing_class,
    )
    theirs.train()
    for name, value in weights_of(theirs.model).items():
        assert torch.equal(value, ours.model.state_dict()[name]), name
    timeless = [
        {key: value for key, value in row.items() if "time" not in key and "runtime" not in key and "second" not in key}
        for row in theirs.state.log_history
    ]
    for row, mine in zip(timeless, ours.state.log_history, strict=True):
        assert row == {key: mine[key] for key in row}


OBJECTIVES = {
    "jsd top-k with tail": {"alpha": 0.5, "distillation_topk": 5},
    "reverse, renormalised": {"alpha": 1.0, "distillation_topk": 5, "distillation_add_tail": False},
    "forward, full vocabulary": {"alpha": 0.0, "distillation_topk": None},
    "sampled token": {"alpha": 1.0, "full_logit_distillation": False},
    "sequence mean": {"loss_agg_mode": "seq-mean-token-mean"},
    "sequence sum": {"loss_agg_mode": "seq-mean-token-sum"},
    "clipped": {"per_token_loss_clip": 0.01},
}


CASES = [(name, (8, 1)) for name in OBJECTIVES] + [("jsd top-k with tail", (2, 4)), ("sequence mean", (2, 4))]


@pytest.mark.parametrize(("objective", "cut"), CASES, ids=lambda value: str(value))
def test_loss_and_gradient_are_those_of_the_core(make_trainer: Any, objective: str, cut: tuple[int, int]) -> None:
    """Recompute the step outside of the trainer: own forward passes, unpadded rows, the core's reference function."""
    size, accumulate = cut
    trainer = make_trainer(
        args={
            **OBJECTIVES[objective],
            "per_device_train_batch_size": size,
            "gradient_accumulation_steps": accumulate,
            "max_steps": 1,
            "temperature": 0.8,
            "max_grad_norm": 0.0,
            "learning_rate": 0.0,
        }
    )
    seen: list[dict[str, Any]] = []
    gradients: dict[str, torch.Tensor] = {}
    losses: list[float] = []
    compute = trainer._compute_loss

    def spy(model: Any, inputs: Any) -> torch.Tensor:
        seen.append({key: value.clone() if torch.is_tensor(value) else value for key, value in inputs.items()})
        loss = compute(model, inputs)
        losses.append(float(loss.detach()))
        return loss

    trainer._compute_loss = spy

    original = trainer.create_optimizer

    def watch(*args: Any, **kwargs: Any) -> Any:
        optimizer = original(*args, **kwargs)
        step = optimizer.step

        def stepping(*a: Any, **k: Any) -> Any:
            gradients.update({n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.grad is not None})
            return step(*a, **k)

        optimizer.step = stepping
        return optimizer

    trainer.create_optimizer = watch
    trainer.train()
    model = trainer.model.double()
    model.zero_grad()
    config: SDPOConfig = trainer.sdpo_config
    width = max(batch["completion_ids"].size(1) for batch in seen)
    student, teacher, ids, mask, active = [], [], [], [], []
    for batch in seen:
        for row in range(batch["completion_ids"].size(0)):
            length = int(batch["completion_mask"][row].sum())
            answer = batch["completion_ids"][row, :length]
            asked = batch["prompt_ids"][row][batch["prompt_mask"][row].bool()]
            told = batch["sdpo_prompt_ids"][row][batch["sdpo_prompt_mask"][row].bool()]
            is_active = bool(batch["sdpo_active"][row])
            pad = torch.zeros(width - length, len(trainer.processing_class)).double()
            s = model(input_ids=torch.cat([asked, answer])[None]).logits[0, len(asked) - 1 : -1]
            with torch.no_grad():
                t = model(input_ids=torch.cat([told if is_active else asked, answer])[None]).logits[0, -length - 1 : -1]
            student.append(torch.cat([s, pad]))
            teacher.append(torch.cat([t, pad]))
            ids.append(torch.cat([answer, answer.new_zeros(width - length)]))
            mask.append(torch.arange(width) < length)
            active.append(is_active)
    assert sum(active) > 0
    expected, _ = self_distillation_loss(
        torch.stack(student),
        torch.stack(teacher),
        torch.stack(ids),
        torch.stack(mask).double(),
        config,
        self_distillation_mask=torch.tensor(active).double(),
        temperature=0.8,
    )
    expected.backward()
    assert sum(losses) == pytest.approx(float(expected), rel=2e-5, abs=1e-8)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        scale = float(parameter.grad.abs().max())
        assert torch.allclose(gradients[name].double(), parameter.grad, rtol=1e-4, atol=1e-5 * scale), name
