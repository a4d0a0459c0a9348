"""Logits of completions: the student's with gradient, the teacher's behind its own context."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

__all__ = ["Sequences", "completion_logits", "is_sharded", "sampled_log_probs", "token_entropies"]


@dataclass(frozen=True)
class Sequences:
    """Prompts, left-padded, and the completions behind them, right-padded.

    Args:
        prompt_ids: [B, P].
        prompt_mask: [B, P], 1 for real tokens.
        completion_ids: [B, T].
        completion_mask: [B, T], 1 for real tokens; an attention mask (tool output is attended).
        extra: More inputs of the model, such as `pixel_values`; where present, rows cannot be taken out.
    """

    prompt_ids: Tensor
    prompt_mask: Tensor
    completion_ids: Tensor
    completion_mask: Tensor
    extra: Mapping[str, Any] = field(default_factory=dict)

    def take(self, rows: Tensor) -> Sequences:
        """Return some rows, without the columns that are padding in all of them.

        Args:
            rows: Row indices [R], R ≥ 1.
        """
        prompt_mask, completion_mask = self.prompt_mask[rows], self.completion_mask[rows]
        width = max(int(prompt_mask.sum(dim=1).max()), 1)
        length = max(int(completion_mask.sum(dim=1).max()), 1)
        return Sequences(
            self.prompt_ids[rows][:, -width:],
            prompt_mask[:, -width:],
            self.completion_ids[rows][:, :length],
            completion_mask[:, :length],
        )

    def having(self, extra: Mapping[str, Any]) -> Sequences:
        """Return the same sequences with these further inputs of the model."""
        return Sequences(self.prompt_ids, self.prompt_mask, self.completion_ids, self.completion_mask, extra)

    def smallest(self) -> Sequences:
        """Return one row of two tokens, for a forward pass that only keeps the ranks together."""
        one = torch.ones_like(self.prompt_mask[:1, -1:])
        return Sequences(self.prompt_ids[:1, -1:], one, self.completion_ids[:1, :1], one)


def completion_logits(
    model: nn.Module, inputs: Sequences, *, accepts_logits_to_keep: bool = True
) -> tuple[Tensor, Tensor | None]:
    """Return the logits that predict each completion token.

    Args:
        model: A causal language model.
        inputs: B sequences with completions of length T.
        accepts_logits_to_keep: Whether the model can leave out the logits of the prompt.

    Returns:
        Logits [B, T, V] (logit space, temperature 1), and the load-balancing loss of a mixture-of-experts model that
        was asked for it by `output_router_logits`.
    """
    length = inputs.completion_ids.size(1)
    arguments: dict[str, Any] = {
        "input_ids": torch.cat([inputs.prompt_ids, inputs.completion_ids], dim=1),
        "attention_mask": torch.cat([inputs.prompt_mask, inputs.completion_mask], dim=1),
        "use_cache": False,
        **inputs.extra,
    }
    if accepts_logits_to_keep:
        # One more than the completion: the logit at position i predicts token i + 1.
        arguments["logits_to_keep"] = length + 1
    output = model(**arguments)
    return output.logits[:, -(length + 1) : -1], getattr(output, "aux_loss", None)


def sampled_log_probs(logits: Tensor, token_ids: Tensor, temperature: float) -> Tensor:
    """Return log π(y_t) of the given tokens at a temperature.

    Args:
        logits: [B, T, V], logit space.
        token_ids: [B, T].
        temperature: Divisor of the logits.

    Returns:
        Log-probs [B, T] in float32 or wider.
    """
    wide = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    chosen = wide.gather(-1, token_ids.unsqueeze(-1)).squeeze(-1)
    return chosen / temperature - torch.logsumexp(wide / temperature, dim=-1)


@torch.no_grad()
def token_entropies(logits: Tensor, temperature: float) -> Tensor:
    """Return H(π) = −Σ_v p_v log p_v of each token's distribution at a temperature.

    Args:
        logits: [B, T, V], logit space.
        temperature: Divisor of the logits.

    Returns:
        Entropies [B, T] in nats, float32 or wider.

    Example:
        >>> round(token_entropies(torch.zeros(1, 1, 4), 1.0).item(), 4)
        1.3863
    """
    rows = []
    for row in logits:  # row by row: a second [B, T, V] would double the memory for the sake of a metric
        wide = row.float() if row.dtype in (torch.float16, torch.bfloat16) else row
        log_probs = torch.log_softmax(wide / temperature, dim=-1)
        probs = log_probs.exp()
        # A masked entry of the vocabulary has p = 0 and log p = -inf, and adds nothing.
        rows.append(-torch.where(probs > 0, probs * log_probs, probs).sum(dim=-1))
    return torch.stack(rows)


def is_sharded(module: nn.Module) -> bool:
    """Say whether a model's weights are spread over ranks (FSDP2, DeepSpeed ZeRO-3).

    Then every rank has to join in every forward pass.
    """
    # FSDP2 may show the gathered weights of a module that just ran, so its modules tell, not only their parameters.
    return any(isinstance(part, FSDPModule) for part in module.modules()) or any(
        isinstance(p, DTensor) or hasattr(p, "ds_tensor") for p in module.parameters()
    )
