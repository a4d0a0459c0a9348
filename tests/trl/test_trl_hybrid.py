"""Terms beside the distillation: GRPO's loss in the hybrid objective, the KL, sampling correction, expert balancing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, Qwen3MoeConfig, Qwen3MoeForCausalLM

from scripted_rollouts import watch_gradients
from sdpo_plugins.embedded import checkpoint_path
from tiny_trl import tiny_model
from watched_loss import Scripted, Spying, core_loss

FROZEN = {"max_steps": 1, "learning_rate": 0.0, "max_completion_length": 12, "max_grad_norm": 0.0}
ANSWERS = ("It is 31", "It is 9", "8", "I say 31 and no more")


def script(prompts: Sequence[str]) -> list[str]:
    return [ANSWERS[row % len(ANSWERS)] for row in range(len(prompts))]


def right(completions: Sequence[Any], **_: Any) -> list[float]:
    return [float("31" in answer[0]["content"]) for answer in completions]


@pytest.fixture(scope="module")
def saved_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """TRL makes the reference model from a folder."""
    folder: Path = tmp_path_factory.mktemp("model")
    tiny_model().save_pretrained(folder)
    return str(folder)


def one_step(make_trainer: Any, model: str, **args: Any) -> tuple[Spying, float, dict[str, torch.Tensor]]:
    trainer = make_trainer(model, args={**FROZEN, **args}, cls=Scripted, script=script, reward_funcs=right)
    if trainer.ref_model is not None:
        # At the start the reference is the policy, and the KL is 0; move it.
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for parameter in trainer.ref_model.parameters():
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    gradients = watch_gradients(trainer)
    trainer.train()
    return trainer, sum(trainer.losses), gradients


@pytest.mark.parametrize("beta", [0.0, 0.1])
@pytest.mark.parametrize("cut", [(8, 1), (2, 4)], ids=str)
def test_the_hybrid_is_the_weighted_sum_of_both_objectives(
    make_trainer: Any, saved_model: str, beta: float, cut: tuple[int, int]
) -> None:
    common = {
        "beta": beta,
        "per_device_train_batch_size": cut[0],
        "gradient_accumulation_steps": cut[1],
        "shuffle_dataset": False,
    }
    sdpo, sdpo_loss, sdpo_gradients = one_step(make_trainer, saved_model, grpo_weight=0.0, **common)
    grpo, grpo_loss, grpo_gradients = one_step(make_trainer, saved_model, enabled=False, **common)
    both, loss, gradients = one_step(make_trainer, saved_model, grpo_weight=0.3, **common)
    for first, second in zip(sdpo.seen, both.seen, strict=True):
        assert torch.equal(first["completion_ids"], second["completion_ids"])
    assert {"".join(map(str, batch["completion_ids"].tolist())) for batch in grpo.seen} == {
        "".join(map(str, batch["completion_ids"].tolist())) for batch in both.seen
    }
    assert abs(sdpo_loss) > 1e-3
    assert max(float(gradient.abs().max()) for gradient in grpo_gradients.values()) > 1e-3
    assert loss == pytest.approx(0.3 * grpo_loss + 0.7 * sdpo_loss, rel=1e-5, abs=1e-7)
    for name, gradient in gradients.items():
        expected = 0.3 * grpo_gradients[name] + 0.7 * sdpo_gradients[name]
        assert torch.allclose(gradient, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max())), name
    kl = [trainer.state.log_history[0].get("kl") for trainer in (sdpo, grpo, both)]
    assert kl == [None] * 3 if beta == 0.0 else kl == pytest.approx([kl[1]] * 3, rel=1e-5)


def test_the_reference_kl_is_added_once(make_trainer: Any, saved_model: str) -> None:
    _, plain, _ = one_step(make_trainer, saved_model)
    for weight in (0.0, 0.3):
        # With SDPO's and GRPO's mean over the same tokens, whatever the mixture, the KL's share is beta.
        without, bare, _ = one_step(make_trainer, saved_model, grpo_weight=weight, loss_type="bnpo")
        trainer, loss, _ = one_step(make_trainer, saved_model, grpo_weight=weight, beta=0.2, loss_type="bnpo")
        kl = trainer.state.log_history[0]["kl"]
        assert kl > 0.01
        assert loss - bare == pytest.approx(0.2 * kl, rel=1e-4)
        assert without.ref_model is None
        if weight == 0.0:
            assert bare == pytest.approx(plain, rel=1e-6)


class Corrected(Scripted):
    """Adds the ratios with which TRL corrects for the difference between vLLM and the trainer."""

    level = "token"

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        output = super()._generate_and_score_completions(inputs)
        width = output["completion_ids"].size(1) if self.level == "token" else 1
        generator = torch.Generator().manual_seed(2)
        output["importance_sampling_ratio"] = 2.0 * torch.rand(len(inputs), width, generator=generator)
        return output


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("cut", [(8, 1), (4, 2)], ids=str)
def test_sampling_correction_weighs_each_token(make_trainer: Any, level: str, cut: tuple[int, int]) -> None:
    cls = type("Level", (Corrected,), {"level": level})
    args = {**FROZEN, "per_device_train_batch_size": cut[0], "gradient_accumulation_steps": cut[1]}
    trainer = make_trainer(args=args, cls=cls, script=script, reward_funcs=right)
    trainer.train()
    corrected = sum(trainer.losses)
    assert corrected == pytest.approx(float(core_loss(trainer)), rel=2e-5)
    for batch in trainer.seen:
        del batch["importance_sampling_ratio"]
    assert abs(float(core_loss(trainer)) - corrected) > 1e-2 * corrected


def tiny_experts() -> Qwen3MoeForCausalLM:
    tokenizer = AutoTokenizer.from_pretrained(checkpoint_path())
    torch.manual_seed(0)
    return Qwen3MoeForCausalLM(
        Qwen3MoeConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            moe_intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=16,
            num_experts=4,
            num_experts_per_tok=2,
            max_position_embeddings=512,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=None,
            initializer_range=0.3,
            router_aux_loss_coef=0.05,
            # The grouped kernel has no float64, in which the loss is computed again.
            experts_implementation="eager",
        )
    )


@pytest.mark.parametrize("cut", [(8, 1), (2, 4)], ids=str)
@pytest.mark.parametrize("normalization", ["global", "reference"])
def test_experts_are_balanced_as_in_grpo(make_trainer: Any, cut: tuple[int, int], normalization: str) -> None:
    def run(**more: Any) -> Spying:
        torch.manual_seed(0)
        trainer: Spying = make_trainer(
            tiny_experts(),
            args={
                **FROZEN,
                "per_device_train_batch_size": cut[0],
                "gradient_accumulation_steps": cut[1],
                "loss_normalization": normalization,
                "dont_reprompt_on_self_success": False,
                **more,
            },
            cls=Scripted,
            script=script,
            reward_funcs=right,
        )
        trainer.train()
        return trainer

    balanced, without = run(), run(router_aux_loss_coef=0.0)
    # The mean over the micro-batches of what the model itself says of each; all rows are active.
    model = balanced.model.double().eval()
    said = []
    for batch in balanced.seen:
        assert batch["sdpo_active"].all()
        with torch.no_grad():
            output = model(
                input_ids=torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1),
                attention_mask=torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1),
                output_router_logits=True,
            )
        said.append(float(output.aux_loss))
    mean = sum(said) / len(said)
    assert mean > 1.0
    assert sum(balanced.losses) - sum(without.losses) == pytest.approx(0.05 * mean, rel=1e-4)
    assert balanced.state.log_history[0]["aux_loss"] == pytest.approx(mean, rel=1e-4)
    assert "aux_loss" not in without.state.log_history[0]
    if normalization == "global":
        assert sum(without.losses) == pytest.approx(float(core_loss(without)), rel=2e-5)
