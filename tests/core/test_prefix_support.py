"""Models that cannot share prefixes are told apart, with the reason; the trial leaves no trace."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from sdpo_plugins.prefix import hidden_behind_prefixes, plain_hidden, plan_prefixes, prefix_sharing_problem, support
from tiny_bodies import MIXED_WINDOWS, SHARING, padded, tiny_body

GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}


@pytest.mark.parametrize("kind", SHARING)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_models_that_can(kind: str, dtype: torch.dtype) -> None:
    assert prefix_sharing_problem(tiny_body(kind).to(dtype)) is None


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_other_types_of_weights(dtype: torch.dtype) -> None:
    assert prefix_sharing_problem(tiny_body("qwen3", "sdpa").to(dtype)) is None
    assert prefix_sharing_problem(tiny_body("gpt2", "sdpa", **GPT2).to(dtype)) is not None


def test_autocast_is_allowed_its_rounding() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert prefix_sharing_problem(tiny_body("llama")) is None


LLAMA4 = {"num_local_experts": 2, "num_experts_per_tok": 1, "intermediate_size_mlp": 48}
LONG_ROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0] * 4,
    "long_factor": [2.0] * 4,
    "original_max_position_embeddings": 64,
    "rope_theta": 1e4,
}
DYNAMIC_ROPE = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}


@pytest.mark.parametrize(
    ("kind", "changes", "reason"),
    [
        ("gpt2", GPT2, "absolute and move with the padding"),
        ("mamba", {"state_size": 4}, "MambaOutput without `past_key_values`: the model keeps no keys and values"),
        ("rwkv", {"attention_hidden_size": 32, "context_length": 64}, "RwkvOutput without `past_key_values`"),
        ("t5", {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}, "encoder-decoder model"),
        ("lfm2", {"layer_types": ["conv", "full_attention"]}, "conv_states|Lfm2HybridConvCache"),
        ("bert", {}, "without `past_key_values`"),
        ("phi3", {"rope_parameters": LONG_ROPE}, "type 'longrope': their frequencies"),
        ("llama", {"rope_parameters": DYNAMIC_ROPE}, "type 'dynamic': their frequencies"),
        ("llama4_text", LLAMA4, "scaled by the absolute position"),
    ],
)
def test_models_that_cannot(kind: str, changes: dict[str, Any], reason: str) -> None:
    problem = prefix_sharing_problem(tiny_body(kind, **changes))
    assert problem is not None
    assert any(words in problem for words in reason.split("|")), problem
    assert not problem.endswith(".")


def test_learned_prompts_cannot() -> None:
    from peft import PrefixTuningConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM(LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=1))
    adapted = get_peft_model(model, PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    assert prefix_sharing_problem(adapted) == (
        "its adapter 'default' learns a prompt, which takes the place of a cached prefix"
    )


class Failing(nn.Module):
    """A body whose forward raises."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error

    def forward(self, **_: Any) -> None:
        raise self.error


def test_what_the_model_raises_is_the_reason() -> None:
    assert prefix_sharing_problem(Failing(ValueError("no cache here."))) == (
        "a trial of 3 rows failed with ValueError: no cache here"
    )


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("full"), KeyboardInterrupt(), AssertionError("a defect")])
def test_other_errors_pass(error: BaseException) -> None:
    with pytest.raises(type(error)):
        prefix_sharing_problem(Failing(error))


class Shifted(nn.Module):
    """A body whose cache forgets: each of its states is off by a little."""

    def __init__(self, size: float) -> None:
        super().__init__()
        self.inner, self.size = tiny_body("llama"), size

    def forward(self, **inputs: Any) -> Any:
        output = self.inner(**inputs)
        if "past_key_values" in inputs:
            output.last_hidden_state = output.last_hidden_state + self.size
        return output


def test_a_small_difference_is_found() -> None:
    assert prefix_sharing_problem(Shifted(0.0)) is None
    problem = prefix_sharing_problem(Shifted(0.01))
    assert problem is not None and "differed from the plain pass" in problem
    assert prefix_sharing_problem(Shifted(float("nan"))) is not None


def test_the_trial_leaves_modes_and_random_numbers_alone() -> None:
    body = tiny_body("qwen3", attention_dropout=0.5)
    body.gradient_checkpointing_enable()
    body.train()
    body.layers[0].eval()
    modes = [module.training for module in body.modules()]
    state = torch.get_rng_state()
    assert prefix_sharing_problem(body) is None
    assert [module.training for module in body.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert all(weight.grad is None for weight in body.parameters())


def test_the_trial_puts_every_row_at_another_place() -> None:
    prompts, completions = torch.tensor(support._PROMPTS), torch.tensor(support._COMPLETIONS)
    # The plan is what would be planned: two prefixes of unequal lengths, more rows than prefixes.
    assert plan_prefixes(prompts, prompts != 0, completions != 0) == support._PLAN


def test_a_window_of_chunks_is_exact() -> None:
    # Chunked attention counts its chunks from the first token of a row, so a row may lie anywhere.
    settings = {
        "num_local_experts": 2,
        "num_experts_per_tok": 1,
        "intermediate_size_mlp": 48,
        "attention_chunk_size": 4,
    }
    body = tiny_body("llama4_text", attn_temperature_tuning=False, no_rope_layers=[1, 0], **settings)
    assert prefix_sharing_problem(body) is None
    prompts = [[*range(3, 16), 20 + row] + [30] * row for row in range(3)]
    batch = (*padded(prompts, "left"), *padded([[40, 41, 42, 43]] * 3, "right"))
    plan = plan_prefixes(batch[0], batch[1], batch[3])
    assert plan is not None
    shared = hidden_behind_prefixes(body, *batch, plan)
    torch.testing.assert_close(shared, plain_hidden(body, *batch).detach(), rtol=1e-5, atol=1e-5)


def test_windows_are_shorter_than_the_trial() -> None:
    assert MIXED_WINDOWS["sliding_window"] < min(support._PLAN.prefix_lengths)
