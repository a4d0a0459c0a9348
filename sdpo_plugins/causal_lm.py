"""A causal language model taken apart: the transformer that gives hidden states, and the head behind it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sdpo_plugins.errors import DataError, HostError
from sdpo_plugins.inside import Opaque, run_inside
from sdpo_plugins.losses.fused import LMHead, as_head

__all__ = ["HeadNotFound", "SplitModel", "needed_split", "split_model", "split_problem"]

# What a model's forward does to the logits of its head, by the name in its configuration.
_FACTORS: dict[str, Callable[[float], float]] = {
    "logit_scale": lambda value: value,  # Cohere
    "logits_scaling": lambda value: 1.0 / value,  # Granite
    "lm_head_multiplier": lambda value: value,  # Falcon-H1
}
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 4e-2}


class HeadNotFound(Exception):
    """A model whose logits are not known to be a matrix product of its last hidden states; says why."""


@dataclass(frozen=True)
class SplitModel:
    """The two parts of a model.

    Args:
        body: Called like the model, but for `logits_to_keep`; returns `.last_hidden_state` `[B, T, H]`.
        output: The module of the head.
        scale: See `LMHead`.
        soft_cap: See `LMHead`.
    """

    body: nn.Module
    output: nn.Module
    scale: float = 1.0
    soft_cap: float | None = None

    @property
    def linear(self) -> nn.Module:
        """The linear layer of the head; where PEFT trains a copy of it, the copy."""
        return _plain_output(self.output)

    def head(self) -> LMHead:
        """Return the head with the weights that are in the module now; call it inside of a forward of `linear`.

        Raises:
            DataError: They lie in shards, see `LMHead`.
        """
        plain = as_head(self.linear)
        return LMHead(plain.weight, plain.bias, self.scale, self.soft_cap)

    def copy_of_head(self, hidden: Tensor) -> LMHead:
        """Return the head's values as they are in a forward of it, for use after it, when its shards are apart again.

        Args:
            hidden: Hidden states `[..., H]`, of which one row goes in.
        """

        def forward(_: Tensor) -> Opaque:
            head = self.head().detached()
            bias = None if head.bias is None else head.bias.clone()
            return Opaque(LMHead(head.weight.clone(), bias, head.scale, head.soft_cap))

        copied: LMHead = run_inside(self.linear, self.linear, forward, hidden.reshape(-1, hidden.shape[-1])[:1]).value
        return copied


def split_model(model: nn.Module) -> SplitModel:
    """Find body and head of a causal language model, PEFT's adapters within the body included.

    Args:
        model: A transformers model, or a PeftModel around one; no DDP or engine around it.

    Returns:
        The parts; they share the model's parameters.

    Raises:
        HeadNotFound: With the reason.

    Example:
        >>> from transformers import AutoModelForCausalLM
        >>> from sdpo_plugins.embedded import checkpoint_path
        >>> model = AutoModelForCausalLM.from_pretrained(checkpoint_path())
        >>> split_model(model).head().vocabulary == model.config.vocab_size
        True
    """
    base: Any = model
    if hasattr(model, "get_base_model"):
        peft: Any = model
        if peft.active_peft_config.is_prompt_learning:
            raise HeadNotFound("PEFT's prompt learning puts virtual tokens before the prompt")
        base = peft.get_base_model()
    if not hasattr(base, "get_output_embeddings"):
        raise HeadNotFound(f"{type(base).__name__} is no transformers model (it has no `get_output_embeddings`)")
    config = base.config.get_text_config()
    if base.config.is_encoder_decoder:
        raise HeadNotFound("it is an encoder-decoder model")
    output = base.get_output_embeddings()
    if output is None:
        raise HeadNotFound(f"{type(base).__name__} names no output embeddings")
    _plain_output(output)
    body = base.base_model
    if body is base:
        body = getattr(base, "model", None)
    if not isinstance(body, nn.Module) or any(part is output for part in body.modules()):
        raise HeadNotFound(f"{type(base).__name__} has no transformer apart from its head (`base_model`)")
    scale = 1.0
    for name, factor in _FACTORS.items():
        value = getattr(config, name, None)
        if value is not None:
            scale *= factor(float(value))
    cap = getattr(config, "final_logit_softcapping", None)
    return SplitModel(body, output, scale, None if cap is None else float(cap))


def needed_split(model: nn.Module, host: str) -> SplitModel:
    """Find body and head for a host that knows no loss on whole logits.

    Args:
        model: As in `split_model`.
        host: What messages call the host.

    Returns:
        The parts.

    Raises:
        HostError: There are none, and why.
    """
    try:
        return split_model(model)
    except HeadNotFound as reason:
        raise HostError(
            f"SDPO in {host} needs the hidden states in front of the model's head, but {reason}. Use a causal "
            "language model whose head is a plain matrix."
        ) from reason


@torch.no_grad()
def split_problem(split: SplitModel, logits: Tensor, hidden: Tensor) -> str | None:
    """Say how the parts contradict the model, on a few tokens; None if they agree.

    Args:
        split: The parts.
        logits: What the model returned `[..., V]`.
        hidden: What the body returned for the same tokens `[..., H]`.

    Returns:
        A reason in words, or None.
    """
    try:
        head = split.head()
    except DataError as error:
        return str(error)
    if hidden.shape[-1] != head.width:
        return f"its hidden states have the width {hidden.shape[-1]}, its head takes {head.width}"
    ours = head.logits(hidden)
    if ours.shape != logits.shape:
        return f"it returns logits of shape {list(logits.shape)}, its head gives {list(ours.shape)}"
    # A forbidden entry may be -inf in both.
    finite = torch.isfinite(logits) & torch.isfinite(ours)
    difference = torch.where(finite, ours.double() - logits.double(), torch.zeros_like(logits, dtype=torch.float64))
    size = torch.where(finite, logits.double(), torch.zeros_like(difference)).abs().max().clamp(min=1.0)
    found = float(difference.abs().max() / size)
    widest = max(_TOLERANCE.get(tensor.dtype, 4e-2) for tensor in (logits, ours, hidden))
    if not found <= widest or not torch.equal(torch.isfinite(logits), torch.isfinite(ours)):
        return (
            "its logits are not its last hidden states times its head: they differ by "
            f"{100 * found:.2g} % of the largest, so its forward does something more to them"
        )
    return None


def _plain_output(output: nn.Module) -> nn.Module:
    """Return the linear layer of a head, through PEFT's copy of it if there is one that is trained."""
    copies: Any = getattr(output, "modules_to_save", None)
    if isinstance(copies, nn.ModuleDict):
        wrapper: Any = output
        names = list(wrapper.active_adapters)
        if len(names) != 1 or wrapper.disable_adapters:
            raise HeadNotFound("its head is saved by several adapters, or by none that is active")
        output = copies[names[0]]
    if type(output).forward is not nn.Linear.forward:
        raise HeadNotFound(
            f"its head is a {type(output).__name__}, not a plain matrix (quantised, or itself adapted by LoRA)"
        )
    return output
