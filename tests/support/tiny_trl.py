"""Tiny real models, data and trainers for the TRL tests. Everything runs on the CPU, nothing comes from a hub."""

from __future__ import annotations

from typing import Any

import torch
from datasets import Dataset
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

from sdpo_plugins.embedded import checkpoint_path
from sdpo_trl import SDPOTrainingArguments

# One thread: on tiny matrices more cost tenfold the time on a busy machine, and the order of sums, so the last bits,
# would depend on how many were free.
torch.set_num_threads(1)


def tiny_model(seed: int = 0, **changes: Any) -> Qwen3ForCausalLM:
    """A random Qwen3 model of two layers with the embedded tokenizer's vocabulary."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoint_path())
    settings: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "max_position_embeddings": 1024,
        "tie_word_embeddings": True,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": None,
        # Wide enough for distributions that differ by more than rounding.
        "initializer_range": 0.3,
        **changes,
    }
    torch.manual_seed(seed)
    return Qwen3ForCausalLM(Qwen3Config(**settings))


def digits_reward(prompts: list[Any], completions: list[Any], **_: Any) -> list[dict[str, Any]]:
    """Success about half of the time, with feedback for the rest; depends on the answer alone."""
    results = []
    for completion in completions:
        text = completion if isinstance(completion, str) else completion[-1]["content"]
        good = sum(map(ord, text)) % 2 == 0
        results.append({"score": float(good), "feedback": None if good else f"Wrong: {len(text)} characters."})
    return results


def questions(count: int = 16) -> Dataset:
    """Chat prompts."""
    return Dataset.from_list(
        [{"prompt": [{"role": "user", "content": f"What is {10 + i} + {20 + 3 * i}?"}]} for i in range(count)]
    )


def tiny_arguments(output: Any, **changes: Any) -> Any:
    """Arguments of a run of a few steps: 2 questions × 4 rollouts a step."""
    settings: dict[str, Any] = {
        "output_dir": str(output),
        "per_device_train_batch_size": 8,
        "num_generations": 4,
        "max_completion_length": 6,
        "max_steps": 2,
        "learning_rate": 1e-3,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": "none",
        "logging_steps": 1,
        "save_strategy": "no",
        "disable_tqdm": True,
        "lr_scheduler_type": "constant",
        **changes,
    }
    return SDPOTrainingArguments(**settings)
