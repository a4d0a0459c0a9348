"""Facts of models and runs: exact parameter counts, and what is refused before anything is estimated."""

from __future__ import annotations

import json

import pytest
from transformers import Qwen3MoeConfig, T5Config

from published_models import LLAMA_8B, QWEN3_8B, QWEN_7B, QWEN_14B, QWEN_HALF
from sdpo_plugins.config import SDPOConfig
from sdpo_plugins.errors import ConfigError, PluginError
from sdpo_plugins.estimate import RunFacts, estimate, facts_of_config, read_model
from sdpo_plugins.estimate.held import adapter_parameters, targets


@pytest.mark.parametrize(
    ("config", "published"),
    [
        (QWEN_HALF, 494_032_768),
        (QWEN_7B, 7_615_616_512),
        (QWEN_14B, 14_770_033_664),
        (QWEN3_8B, 8_190_735_360),
        (LLAMA_8B, 8_030_261_248),
    ],
    ids=["Qwen2.5-0.5B", "Qwen2.5-7B", "Qwen2.5-14B", "Qwen3-8B", "Llama-3.1-8B"],
)
def test_parameters_are_those_of_the_published_models(config, published):
    facts = facts_of_config(config)
    assert facts.parameters == published
    assert facts.tied == config.tie_word_embeddings
    assert facts.qk_norm == (config.model_type == "qwen3")
    # What is no linear layer: embeddings, head, norms and biases.
    assert facts.linear_weights + facts.head_entries * (1 if facts.tied else 2) <= facts.parameters
    assert all(linear.count == facts.layers for linear in facts.linears)


def test_a_folder_and_a_file_are_read_as_they_are(tmp_path):
    QWEN_HALF.save_pretrained(tmp_path)
    assert read_model(str(tmp_path)).parameters == 494_032_768
    assert read_model(str(tmp_path / "config.json")).layers == 24


def test_experts_count_as_many_as_a_token_goes_through():
    config = Qwen3MoeConfig(
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        moe_intermediate_size=32,
        num_experts=8,
        num_experts_per_tok=2,
        vocab_size=128,
    )
    facts = facts_of_config(config)
    assert facts.intermediate == 2 * 32
    # All eight are held.
    assert facts.parameters > 2 * 8 * 3 * 64 * 32


def test_an_adapter_has_rank_times_both_widths():
    facts = facts_of_config(QWEN_HALF)
    everywhere = adapter_parameters(facts, RunFacts(lora_rank=16))
    attention = 896 + 896 + 2 * (896 + 128) + 896 + 896
    mlp = 3 * (896 + 4864)
    assert everywhere == 24 * 16 * (attention + mlp)
    chosen = adapter_parameters(facts, RunFacts(lora_rank=8, lora_targets=("q_proj", "v_proj")))
    assert chosen == 24 * 8 * (896 + 896 + 896 + 128)


def test_the_default_targets_are_those_that_peft_chooses():
    peft = pytest.importorskip("peft")
    import torch
    from transformers import AutoModelForCausalLM

    facts = facts_of_config(QWEN_HALF)
    with torch.device("meta"):
        model = peft.get_peft_model(
            AutoModelForCausalLM.from_config(QWEN_HALF), peft.LoraConfig(r=8, task_type="CAUSAL_LM")
        )
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert adapter_parameters(facts, RunFacts(lora_rank=8, lora_targets=("default",))) == trained


def test_an_unknown_target_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match=r"names 'q_prj'.*has.*q_proj.*Did you mean 'q_proj'"):
        targets(facts_of_config(QWEN_HALF), RunFacts(lora_rank=8, lora_targets=("q_prj",)))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"sdpo": SDPOConfig(teacher="lora_ema")}, "'lora_ema' holds an adapter.*lora_rank"),
        ({"load_in_4bit": True}, "needs LoRA.*lora_rank"),
        ({"double_quant": True}, "4-bit weights"),
        ({"load_in_4bit": True, "lora_rank": 8, "host": "verl"}, "trains no adapters on 4-bit.*'trl'"),
        ({"load_in_4bit": True, "lora_rank": 8, "sharding": "zero3"}, "shards of 4 bits"),
        ({"lora_targets": ("q_proj",)}, "without LoRA"),
        ({"host": "verl", "sharding": "zero2"}, "valid are 'fsdp2'"),
        ({"host": "openrlhf", "sharding": "zero3", "lora_rank": 8}, "refuses LoRA with ZeRO-3"),
        ({"host": "verl", "generation": "transformers"}, "generates with vLLM"),
        ({"host": "verl", "sdpo": SDPOConfig(loss_path="logits")}, "fused path alone"),
        ({"sharding": "zero2", "optimizer": "lion"}, "DeepSpeed"),
        ({"sharding": "zero3", "sdpo": SDPOConfig(loss_path="fused")}, "head lies in shards"),
        ({"dtype": "float16"}, "contradict"),
        ({"host": "ver1"}, "Did you mean 'verl'"),
        ({"optimizer": "adamw_4bit"}, "Did you mean 'adamw_8bit'"),
        ({"batch_size": 0}, "`batch_size` must be at least 1"),
        ({"lora_rank": 0}, "`lora_rank` must be at least 1"),
        ({"vllm_gpu_memory_utilization": 1.5}, "vllm_gpu_memory_utilization"),
    ],
)
def test_what_contradicts_itself_is_refused(given, said):
    with pytest.raises(ConfigError, match=said):
        RunFacts(**given)


def test_all_problems_are_said_at_once():
    with pytest.raises(ConfigError) as caught:
        RunFacts(load_in_4bit=True, sdpo=SDPOConfig(teacher="lora_ema"))
    assert len(caught.value.problems) == 2


def test_an_unknown_teacher_is_refused_with_the_nearest():
    with pytest.raises((ConfigError, PluginError), match="Did you mean 'ema'"):
        estimate(facts_of_config(QWEN_HALF), RunFacts(sdpo=SDPOConfig(teacher="emma")))


def test_a_folder_without_a_configuration_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"no config.json"):
        read_model(str(tmp_path))


def test_an_unknown_type_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "abacus", "hidden_size": 8}))
    with pytest.raises(ConfigError, match="abacus"):
        read_model(str(tmp_path))


def test_an_encoder_decoder_is_refused():
    with pytest.raises(ConfigError, match="t5"):
        facts_of_config(T5Config())


def test_a_hub_that_cannot_be_reached_gives_one_message(monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match=r"no configuration was found for 'nobody/no-such-model'.*folder with config"):
        read_model("nobody/no-such-model")
