"""The fused path in the trainer: the same step as from logits, on every kind of head, and never a whole row of them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from peft import LoraConfig
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    GPT2Config,
    GraniteConfig,
    PhiConfig,
    Qwen3MoeConfig,
)

from scripted_rollouts import watch_gradients
from sdpo_plugins.errors import ConfigError
from tiny_trl import tiny_model
from watched_loss import Scripted

FROZEN = {"max_steps": 1, "learning_rate": 0.0, "max_completion_length": 12, "max_grad_norm": 0.0}
ANSWERS = ("It is 31", "It is 9", "8", "I say 31 and no more")
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "initializer_range": 0.3,
    "bos_token_id": None,
}
TEACHERS = {
    "live": {"teacher": "live"},
    "trust_region": {"teacher": "trust_region", "teacher_update_rate": 0.3},
}
OBJECTIVES: dict[str, dict[str, Any]] = {
    "top-K and tail": {"distillation_topk": 7},
    "renormalised": {"distillation_topk": 7, "distillation_add_tail": False},
    "whole vocabulary": {"distillation_topk": None},
    "sampled token": {"full_logit_distillation": False, "alpha": 1.0, "distillation_topk": None},
    "teacher's top-K": {"distillation_topk": 7, "topk_support": "teacher"},
    **TEACHERS,
    "sequence mean": {"loss_agg_mode": "seq-mean-token-mean"},
    "authors' normalisation": {"loss_normalization": "reference"},
    "hybrid": {"grpo_weight": 0.3, "loss_type": "dapo"},
    "hybrid over sequences": {"grpo_weight": 0.3, "importance_sampling_level": "sequence", "loss_type": "grpo"},
    "hybrid with a reference": {"grpo_weight": 0.3, "beta": 0.1},
    "reference": {"beta": 0.1},
    "two iterations": {"num_iterations": 2, "max_steps": 2, "is_clip": 1.01, "temperature": 0.7},
}


def script(prompts: Sequence[str]) -> list[str]:
    return [ANSWERS[row % len(ANSWERS)] for row in range(len(prompts))]


def right(completions: Sequence[Any], **_: Any) -> list[float]:
    return [float("31" in answer[0]["content"]) for answer in completions]


def one_step(make_trainer: Any, model: Any, path: str, **args: Any) -> tuple[Any, dict[str, torch.Tensor]]:
    kwargs = {"peft_config": args.pop("peft_config")} if "peft_config" in args else {}
    if "share_teacher_prefix" not in args:
        args["share_teacher_prefix"] = path == "fused"
    trainer = make_trainer(
        model,
        args={**FROZEN, "loss_path": path, "shuffle_dataset": False, "seed": 3, **args},
        cls=Scripted,
        script=script,
        reward_funcs=right,
        **kwargs,
    )
    if getattr(trainer, "ref_model", None) is not None:
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for parameter in trainer.ref_model.parameters():
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    gradients = watch_gradients(trainer)
    trainer.train()
    return trainer, gradients


def same_step(make_trainer: Any, model: Callable[[], Any], tolerance: float = 1e-5, **args: Any) -> None:
    one, fused = one_step(make_trainer, model(), "fused", **args)
    two, plain = one_step(make_trainer, model(), "logits", **args)
    assert one._distiller.fused is not None and two._distiller.fused is None
    assert one.losses == pytest.approx(two.losses, rel=tolerance, abs=1e-7)
    largest = max(float(gradient.abs().max()) for gradient in plain.values())
    assert largest > 0.0 and fused.keys() == plain.keys()
    for name, gradient in plain.items():
        assert float((fused[name] - gradient).abs().max()) <= tolerance * largest, name
    ours, theirs = one.state.log_history[0], two.state.log_history[0]
    for name in theirs:
        if name in ours and "time" not in name and "second" not in name and "runtime" not in name:
            assert ours[name] == pytest.approx(
                theirs[name], rel=max(2e-3, 2 * tolerance), abs=max(1e-5, 0.2 * tolerance)
            ), name
    missing = set(theirs.keys()) - set(ours.keys())
    assert not missing or (
        args.get("distillation_add_tail") is False and all(name.startswith("self_distillation/gap") for name in missing)
    )


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> str:
    """TRL makes the reference model from a folder."""
    folder = tmp_path_factory.mktemp("model")
    tiny_model().save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
def test_the_step_is_that_from_logits(make_trainer: Any, saved: str, objective: str) -> None:
    same_step(make_trainer, lambda: saved, **OBJECTIVES[objective])


@pytest.mark.parametrize("cut", [(8, 1), (2, 4)], ids=str)
@pytest.mark.parametrize("more", [{}, {"grpo_weight": 0.5}], ids=["sdpo", "hybrid"])
def test_the_step_is_that_from_logits_however_it_is_cut(make_trainer: Any, cut: Any, more: dict[str, Any]) -> None:
    args = {"per_device_train_batch_size": cut[0], "gradient_accumulation_steps": cut[1], **more}
    same_step(make_trainer, tiny_model, **args)


def tiny(config: Any, **changes: Any) -> Any:
    """A random model of another family, with the embedded tokenizer's vocabulary."""
    base = tiny_model().config
    torch.manual_seed(0)
    tokens = {name: getattr(base, name) for name in ("vocab_size", "eos_token_id", "pad_token_id")}
    model = AutoModelForCausalLM.from_config(config(**{**SIZES, **tokens, **changes}))
    for part in model.modules():
        if isinstance(part, torch.nn.Linear) and part.bias is not None:
            torch.nn.init.normal_(part.bias)
    return model


HEADS: dict[str, Callable[[], Any]] = {
    "untied": lambda: tiny_model(tie_word_embeddings=False),
    "soft cap": lambda: tiny(Gemma2Config, final_logit_softcapping=2.0),
    "divided logits": lambda: tiny(GraniteConfig, logits_scaling=4.0),
    "multiplied logits": lambda: tiny(CohereConfig, logit_scale=0.25),
    "bias": lambda: tiny(PhiConfig, num_key_value_heads=2),
}


@pytest.mark.parametrize("head", HEADS, ids=str)
def test_every_kind_of_head(make_trainer: Any, head: str) -> None:
    same_step(make_trainer, HEADS[head], tolerance=2e-5)


@pytest.mark.parametrize("more", [{}, {"modules_to_save": ["lm_head"]}], ids=["frozen head", "trained head"])
@pytest.mark.parametrize("teacher", ["lora_ema", "frozen"])
def test_lora_in_the_body(make_trainer: Any, teacher: str, more: dict[str, Any]) -> None:
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False, **more)
    same_step(make_trainer, lambda: tiny_model(tie_word_embeddings=False), peft_config=lora, teacher=teacher)


def test_bfloat16_weights(make_trainer: Any) -> None:
    same_step(make_trainer, lambda: tiny_model().to(torch.bfloat16), tolerance=5e-2)


def test_gradient_checkpointing(make_trainer: Any) -> None:
    same_step(make_trainer, tiny_model, gradient_checkpointing=True)


class Largest(TorchDispatchMode):
    """Notes the largest tensor that an operation makes, but for those of given shapes."""

    def __init__(self, allowed: set[tuple[int, ...]]) -> None:
        super().__init__()
        self.allowed = allowed
        self.found = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and tuple(leaf.shape) not in self.allowed:
                self.found = max(self.found, leaf.numel())
        return result


class Measured(Scripted):
    """Notes the largest tensor of the loss's forward passes."""

    largest = 0

    def _compute_loss(self, model: Any, inputs: Any) -> Any:
        if not self.seen:
            return super()._compute_loss(model, inputs)  # the first tries both ways on a few tokens
        with Largest({tuple(p.shape) for p in self.model.parameters()}) as watch:
            loss = super()._compute_loss(model, inputs)
        self.largest = max(self.largest, watch.found)
        return loss


@pytest.mark.parametrize("path", ["fused", "logits"])
def test_no_tensor_of_tokens_times_vocabulary_is_made(make_trainer: Any, path: str) -> None:
    tokens = 8 * 24
    answers = ["It is 31" + " and 7" * 6] * 4
    trainer = make_trainer(
        args={
            **FROZEN,
            "max_steps": 2,
            "max_completion_length": 24,
            "loss_path": path,
            "chunk_memory_mb": 0.05,
            "distillation_topk": 3,
            "dont_reprompt_on_self_success": False,
        },
        cls=Measured,
        script=lambda prompts: [answers[row % 4] for row in range(len(prompts))],
        reward_funcs=right,
    )
    trainer.train()
    vocabulary = trainer.model.config.vocab_size
    active = int(trainer.seen[-1]["completion_mask"].sum())
    assert active > 0.5 * tokens
    # The widest layer makes a quarter of that here.
    assert (trainer.largest < 0.3 * active * vocabulary) == (path == "fused")


def test_inactive_rows_and_masked_tokens_cost_nothing(make_trainer: Any) -> None:
    """The student's pass sees the active rows alone, and a micro-batch without any two tokens."""
    seen: list[tuple[int, ...]] = []
    model = tiny_model()
    hook = model.get_input_embeddings().register_forward_pre_hook(lambda _, args: seen.append(tuple(args[0].shape)))

    def never(completions: Sequence[Any], **_: Any) -> list[float]:
        return [0.0] * len(completions)

    trainer = make_trainer(model, args={**FROZEN, "max_steps": 2}, cls=Scripted, script=script, reward_funcs=never)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.train()
    hook.remove()
    assert trainer.losses == [0.0, 0.0]
    assert seen[-1] == (1, 2)


def test_what_teacher_prompts_share_is_computed_once(make_trainer: Any) -> None:
    runs = {share: one_step(make_trainer, tiny_model(), "fused", share_teacher_prefix=share) for share in (True, False)}
    saved = [run[0].state.log_history[0].get("self_distillation/prefix_saved_fraction") for run in runs.values()]
    # Two questions of four answers each: their prompts are most of the tokens.
    assert saved[0] > 0.3 and saved[1] is None
    largest = max(float(gradient.abs().max()) for gradient in runs[False][1].values())
    for name, gradient in runs[False][1].items():
        assert float((runs[True][1][name] - gradient).abs().max()) <= 1e-5 * largest, name


def test_a_model_that_cannot_cache_a_prefix_says_why(make_trainer: Any) -> None:
    def absolute() -> Any:
        base = tiny_model().config
        tokens = {name: getattr(base, name) for name in ("vocab_size", "eos_token_id", "pad_token_id")}
        return AutoModelForCausalLM.from_config(GPT2Config(n_embd=32, n_layer=1, n_head=2, **tokens))

    with pytest.warns(UserWarning, match="computed for each answer anew, because .* positions are absolute"):
        trainer, _ = one_step(make_trainer, absolute(), "fused")
    assert not trainer._distiller.fused.share_prefix


def test_a_model_without_a_findable_head_falls_back_and_says_so_once(make_trainer: Any) -> None:
    def strange() -> Any:
        model = tiny_model()
        whole = type(model).forward

        class Strange(type(model)):
            def forward(self, *args: Any, **kwargs: Any) -> Any:
                output = whole(self, *args, **kwargs)
                output.logits = output.logits + 0.5 * output.logits.tanh()
                return output

        model.__class__ = Strange
        return model

    with pytest.warns(UserWarning, match="whole logits, because its logits are not its last hidden states") as told:
        trainer, _ = one_step(make_trainer, strange(), "auto", max_steps=3)
    assert trainer._distiller.fused is None
    assert sum("whole logits" in str(warning.message) for warning in told) == 1
    with pytest.raises(ConfigError, match="`loss_path='fused'` does not work for this model: its logits are not"):
        one_step(make_trainer, strange(), "fused")


REASONS: dict[str, tuple[Callable[[], Any], dict[str, Any], str]] = {
    "experts": (
        lambda: tiny(
            Qwen3MoeConfig,
            num_experts=4,
            num_experts_per_tok=2,
            moe_intermediate_size=16,
            decoder_sparse_step=1,
            output_router_logits=True,
        ),
        {"router_aux_loss_coef": 0.01},
        "load-balancing loss",
    ),
}


@pytest.mark.parametrize("reason", REASONS, ids=str)
def test_what_the_fused_path_cannot_do_is_told(make_trainer: Any, reason: str) -> None:
    model, args, words = REASONS[reason]
    with pytest.warns(UserWarning, match=rf"whole logits, because .*{words}"):
        trainer, gradients = one_step(make_trainer, model(), "auto", **args)
    assert trainer._distiller.fused is None
    assert max(float(gradient.abs().max()) for gradient in gradients.values()) > 0.0
