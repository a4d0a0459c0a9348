"""Configurations of published models, written out: no hub is asked."""

from __future__ import annotations

from transformers import LlamaConfig, Qwen2Config, Qwen3Config


def _qwen2(width, intermediate, layers, heads, kv_heads, vocabulary, tied):
    return Qwen2Config(
        hidden_size=width,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        vocab_size=vocabulary,
        tie_word_embeddings=tied,
    )


QWEN_HALF = _qwen2(896, 4864, 24, 14, 2, 151_936, True)
QWEN_7B = _qwen2(3584, 18_944, 28, 28, 4, 152_064, False)
QWEN_14B = _qwen2(5120, 13_824, 48, 40, 8, 152_064, False)
QWEN3_8B = Qwen3Config(
    hidden_size=4096,
    intermediate_size=12_288,
    num_hidden_layers=36,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=128,
    vocab_size=151_936,
    tie_word_embeddings=False,
)
LLAMA_8B = LlamaConfig(
    hidden_size=4096,
    intermediate_size=14_336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    vocab_size=128_256,
    tie_word_embeddings=False,
)
