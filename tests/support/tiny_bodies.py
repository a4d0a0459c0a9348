"""Tiny random transformers without a head, one for each kind of attention and cache, and padded batches for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

# One thread: on tiny matrices more cost time, and the order of sums, so the last bits, would depend on them.
torch.set_num_threads(1)

MIXED_WINDOWS = {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]}
"""Windows shorter than any prefix of the tests."""

SHARING: dict[str, dict[str, Any]] = {
    "qwen3": {},
    "llama": {},
    "mistral": {"sliding_window": 4},
    "gemma2": MIXED_WINDOWS,
    "gemma3_text": MIXED_WINDOWS,
    "qwen2_moe": {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16,
        "decoder_sparse_step": 1,
    },
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2, **MIXED_WINDOWS},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
}
"""Settings of models that can share prefixes; OPT counts its learned positions from the first token of a row."""


def tiny_body(kind: str, attention: str = "eager", **changes: Any) -> nn.Module:
    """A random model of two layers in eval mode, with weights wide enough that every token matters."""
    from transformers import AutoConfig, AutoModel

    settings: dict[str, Any] = {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        **({} if kind in ("opt", "gpt2") else {"head_dim": 8}),
        **SHARING.get(kind, {}),
        **changes,
    }
    torch.manual_seed(0)
    body: nn.Module = AutoModel.from_config(AutoConfig.for_model(kind, **settings), attn_implementation=attention)
    for weight in body.parameters():
        if weight.dim() > 1:
            nn.init.normal_(weight, std=0.2)
    return body.eval()


def padded(rows: Sequence[Sequence[int]], side: str, width: int = 0) -> tuple[Tensor, Tensor]:
    """Ids and mask `[R, N]`, padded on one side to the longest row or further."""
    width = max(width, *map(len, rows))
    ids, mask = torch.zeros(len(rows), width, dtype=torch.long), torch.zeros(len(rows), width, dtype=torch.long)
    for index, row in enumerate(rows):
        place = slice(width - len(row), width) if side == "left" else slice(0, len(row))
        ids[index, place] = torch.tensor(row, dtype=torch.long)
        mask[index, place] = 1
    return ids, mask


def tokens(count: int, seed: int) -> list[int]:
    """Random token ids, none of them the padding's."""
    return torch.randint(3, 64, (count,), generator=torch.Generator().manual_seed(seed)).tolist()
