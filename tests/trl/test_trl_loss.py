"""The loss that reaches the optimizer is the core's, and SDPO switched off is GRPO to the bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from trl import GRPOConfig, GRPOTrainer

from scripted_rollouts import watch_gradients
from tiny_trl import tiny_model
from watched_loss import Spying, core_loss


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
        },
        cls=Spying,
    )
    gradients = watch_gradients(trainer)
    trainer.train()
    assert any(row["active"] for row in trainer.rows())
    expected = core_loss(trainer, temperature=0.8, gradient=True)
    trainer.model.zero_grad()
    expected.backward()
    assert sum(trainer.losses) == pytest.approx(expected.item(), rel=2e-5, abs=1e-8)
    for name, parameter in trainer.model.named_parameters():
        assert parameter.grad is not None
        scale = float(parameter.grad.abs().max())
        assert torch.allclose(gradients[name].double(), parameter.grad, rtol=1e-4, atol=1e-5 * scale), name


def test_the_entropy_logged_is_that_of_grpo(make_trainer: Any) -> None:
    """With every answer active both log the mean over the same tokens, here of the same rollouts."""

    def wrong(completions: list[Any], **_: Any) -> list[dict[str, Any]]:
        return [{"score": 0.0, "feedback": "Wrong."} for _ in completions]

    logged = {}
    for name, enabled in (("self_distillation/entropy", True), ("entropy", False)):
        trainer = make_trainer(args={"enabled": enabled, "max_steps": 1, "temperature": 0.7}, reward_funcs=wrong)
        trainer.train()
        logged[enabled] = trainer.state.log_history[0][name]
    assert logged[True] == pytest.approx(logged[False], rel=1e-4)
    assert logged[True] > 0.1
