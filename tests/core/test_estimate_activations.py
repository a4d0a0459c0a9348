"""What autograd keeps of a layer, against the storages that are alive after the forward of a real one."""

from __future__ import annotations

import contextlib

import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen3Config

from benchmarks.live import LiveBytes
from sdpo_plugins.estimate import RunFacts, facts_of_config
from sdpo_plugins.estimate.passes import activation_bytes, cast_bytes, forward_bytes, layer_bytes, student_tokens

ROWS, LENGTH = 2, 48


def config_of(kind, layers, attention):
    common = {
        "vocab_size": 128,
        "hidden_size": 64,
        "intermediate_size": 160,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    config = Qwen3Config(**common, head_dim=24) if kind == "qwen3" else Qwen2Config(**common)
    config._attn_implementation = attention
    return config


def kept(kind, layers, facts, gradient=True):
    """Return bytes that are alive after the forward, and at its peak, beyond the model."""
    live = LiveBytes("model")
    with live:
        model = AutoModelForCausalLM.from_config(
            config_of(kind, layers, facts.attention), dtype=getattr(torch, facts.dtype)
        )
        body = model.model
        if facts.lora_rank is not None:
            peft = pytest.importorskip("peft")
            chosen = "all-linear" if facts.lora_targets == ("all-linear",) else list(facts.lora_targets)
            model = peft.get_peft_model(
                model, peft.LoraConfig(r=facts.lora_rank, target_modules=chosen, task_type="CAUSAL_LM")
            )
            body = model.base_model.model.model
        if facts.gradient_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            if facts.lora_rank is not None:
                model.enable_input_require_grads()
        model.train(gradient)
        ids, mask = torch.randint(0, 128, (ROWS, LENGTH)), torch.ones(ROWS, LENGTH, dtype=torch.long)
        if facts.padding:
            mask[0, :3] = 0
        before = live.alive()
        live.begin("forward")
        cast = torch.autocast("cpu", dtype=torch.bfloat16) if facts.bf16 else contextlib.nullcontext()
        with torch.set_grad_enabled(gradient), cast:
            hidden = body(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        assert hidden.shape == (ROWS, LENGTH, 64)
        after = live.alive()
    return after - before, live.peaks["forward"] - before


def run(**given):
    given = {"gradient_checkpointing": False, "bf16": False, **given}
    return RunFacts(batch_size=ROWS, prompt_length=LENGTH - 8, completion_length=8, **given)


RUNS = {
    "float32": run(),
    "not padded": run(padding=False),
    "eager": run(attention="eager"),
    "bfloat16": run(dtype="bfloat16"),
    "bfloat16, eager": run(dtype="bfloat16", attention="eager"),
    "autocast": run(bf16=True),
    "LoRA": run(lora_rank=4),
    "LoRA on queries and values": run(lora_rank=4, lora_targets=("q_proj", "v_proj")),
    "LoRA, bfloat16": run(lora_rank=4, dtype="bfloat16"),
    "LoRA, bfloat16, autocast": run(lora_rank=4, dtype="bfloat16", bf16=True),
    "LoRA, float32, autocast": run(lora_rank=4, bf16=True),
    "checkpointing": run(gradient_checkpointing=True),
    "checkpointing, bfloat16": run(gradient_checkpointing=True, dtype="bfloat16"),
    "checkpointing, LoRA": run(gradient_checkpointing=True, lora_rank=4),
}


@pytest.mark.parametrize(
    ("kind", "name"),
    [*(("qwen3", name) for name in RUNS), *(("qwen2", name) for name in ("float32", "autocast", "LoRA, bfloat16"))],
)
def test_a_layer_keeps_what_the_formula_says(kind, name):
    facts = RUNS[name]
    measured = kept(kind, 3, facts)[0] - kept(kind, 2, facts)[0]
    model, more = (facts_of_config(config_of(kind, layers, facts.attention)) for layers in (2, 3))
    tokens, row = student_tokens(facts)
    if facts.gradient_checkpointing:
        expected = activation_bytes(more, facts)[0] - activation_bytes(model, facts)[0]
    else:
        expected = layer_bytes(more, facts, row) * tokens
        # Of weights that are cast the copies are kept, too; here, of adapters also.
        expected += cast_bytes(more, facts, graph=True) - cast_bytes(model, facts, graph=True)
        if facts.lora_rank is not None and facts.bf16:
            expected += 2 * sum(4 * (linear.inputs + linear.outputs) for linear in more.linears)
    assert measured == pytest.approx(expected, rel=0.005)


@pytest.mark.parametrize("name", ["float32", "eager", "bfloat16", "autocast", "LoRA", "LoRA, bfloat16, autocast"])
def test_a_pass_without_gradient_works_with_what_the_formula_says(name):
    facts = RUNS[name]
    model = facts_of_config(config_of("qwen3", 3, facts.attention))
    measured = kept("qwen3", 3, facts, gradient=False)[1] - cast_bytes(model, facts)
    tokens, row = student_tokens(facts)
    assert measured == pytest.approx(forward_bytes(model, facts, tokens, row), rel=0.2)
