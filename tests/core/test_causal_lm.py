"""Models taken apart into body and head: the parts give the model's own logits, or a reason why there are none."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    CohereConfig,
    FalconH1Config,
    Gemma2Config,
    GPT2Config,
    GraniteConfig,
    PhiConfig,
    Qwen3Config,
    T5Config,
    T5ForConditionalGeneration,
)

from sdpo_plugins.causal_lm import HeadNotFound, split_model, split_problem

IDS = torch.tensor([[3, 1, 4, 1, 5, 9]])
SIZES = {
    "vocab_size": 29,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "initializer_range": 0.5,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
}


def build(config: Any, **changes: Any) -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config(**{**SIZES, **changes})).eval()


def with_lora(**options: Any) -> Any:
    return get_peft_model(build(Qwen3Config), LoraConfig(r=2, init_lora_weights=False, **options)).eval()


def with_bias() -> Any:
    model = build(PhiConfig)
    nn.init.normal_(model.lm_head.bias)
    return model


MODELS: dict[str, Callable[[], Any]] = {
    "tied": lambda: build(Qwen3Config, tie_word_embeddings=True),
    "untied": lambda: build(Qwen3Config, tie_word_embeddings=False),
    "soft cap": lambda: build(Gemma2Config, final_logit_softcapping=1.5),
    "divided": lambda: build(GraniteConfig, logits_scaling=3.0),
    "multiplied": lambda: build(CohereConfig, logit_scale=0.5),
    "multiplier": lambda: build(
        FalconH1Config, lm_head_multiplier=0.25, mamba_d_ssm=16, mamba_n_heads=2, mamba_d_head=8, mamba_d_state=4
    ),
    "bias": with_bias,
    "gpt2": lambda: AutoModelForCausalLM.from_config(GPT2Config(vocab_size=29, n_embd=16, n_layer=1, n_head=2)).eval(),
    "lora": lambda: with_lora(target_modules=["q_proj"]),
    "saved head": lambda: with_lora(target_modules=["q_proj"], modules_to_save=["lm_head"]),
    "bfloat16": lambda: build(Qwen3Config).to(torch.bfloat16),
}


@torch.no_grad()
def parts_of(model: Any) -> tuple[Any, torch.Tensor, torch.Tensor]:
    split = split_model(model)
    return split, model(input_ids=IDS).logits, split.body(input_ids=IDS).last_hidden_state


@pytest.mark.parametrize("name", MODELS, ids=str)
def test_the_parts_give_the_models_logits(name: str) -> None:
    split, logits, hidden = parts_of(MODELS[name]())
    assert split_problem(split, logits, hidden) is None
    close = 3e-2 if logits.dtype == torch.bfloat16 else 1e-6
    torch.testing.assert_close(split.head().logits(hidden), logits, rtol=close, atol=close)


@pytest.mark.parametrize("name", ["tied", "untied", "saved head"])
def test_the_head_is_that_of_the_moment_and_trained_with_the_model(name: str) -> None:
    model = MODELS[name]()
    split = split_model(model)
    weight = split.head().weight
    assert any(parameter is weight for parameter in model.parameters()) and weight.requires_grad
    copy = weight.detach().clone()
    original = weight.data
    weight.data = copy + 1.0
    kept = split.head().detached()
    weight.data = original
    torch.testing.assert_close(kept.weight, copy + 1.0)
    torch.testing.assert_close(split.head().weight, copy)


def test_a_scale_that_the_configuration_hides_is_found_out() -> None:
    model = build(GraniteConfig, logits_scaling=3.0)
    split, logits, hidden = parts_of(model)
    assert "do something more" not in str(split_problem(split, logits, hidden))
    message = split_problem(split, logits * 1.5, hidden)
    assert message is not None and "33 % of the largest" in message
    assert "shape" in str(split_problem(split, logits[..., :-1], hidden))
    assert "width 15, its head takes 16" in str(split_problem(split, logits, hidden[..., :-1]))
    logits[..., 3] = float("-inf")
    assert "not its last hidden states" in str(split_problem(split, logits, hidden))


class NoHead(nn.Module):
    """Not a model of transformers."""


def headless() -> Any:
    return AutoModel.from_config(Qwen3Config(**SIZES))


PROBLEMS: dict[str, tuple[Callable[[], Any], str]] = {
    "foreign": (NoHead, "NoHead is no transformers model"),
    "headless": (headless, "names no output embeddings"),
    "encoder-decoder": (
        lambda: T5ForConditionalGeneration(
            T5Config(vocab_size=9, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
        ),
        "encoder-decoder",
    ),
    "lora on the head": (lambda: with_lora(target_modules=["lm_head"]), "not a plain matrix .*LoRA"),
    "prompt tuning": (
        lambda: get_peft_model(build(Qwen3Config), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)),
        "virtual tokens",
    ),
}


@pytest.mark.parametrize("name", PROBLEMS, ids=str)
def test_a_model_that_cannot_be_taken_apart_says_why(name: str) -> None:
    make, words = PROBLEMS[name]
    with pytest.raises(HeadNotFound, match=words):
        split_model(make())


def test_two_saved_heads_are_refused() -> None:
    model = with_lora(target_modules=["q_proj"], modules_to_save=["lm_head"])
    with model.disable_adapter(), pytest.raises(HeadNotFound, match="several adapters, or by none"):
        split_model(model)
