"""Whether a model can share prefixes: what is known to break it, and a tiny trial for all else."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from sdpo_plugins.modes import evaluating
from sdpo_plugins.prefix.cache import SharedCacheError
from sdpo_plugins.prefix.forward import hidden_behind_prefixes, plain_hidden
from sdpo_plugins.prefix.plan import PrefixPlan

__all__ = ["prefix_sharing_problem"]

_TOLERANCE = {torch.float64: 1e-3, torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""Greatest ‖shared − plain‖/‖plain‖ of the trial. Leaves room for TF32 and for rotary angles, which are always float32;
positions that are off give 1e-1 and more."""

# Two prompts with eight tokens in common and one with none, all of other lengths: three rows behind two prefixes of
# unequal lengths, each row at another place than in the plain pass. (row, column) → id; 0 is padding.
_PROMPTS = [
    [3, 10, 17, 24, 2, 9, 16, 23, 1, 8],
    [0, 3, 10, 17, 24, 2, 9, 16, 23, 15],
    [5, 12, 19, 26, 4, 11, 18, 25, 6, 13],
]
_COMPLETIONS = [[7, 14, 21, 0], [22, 15, 8, 1], [20, 27, 0, 0]]
_PLAN = PrefixPlan((0, 2), (8, 7), (0, 0, 1), rest_width=4, plain_width=13)


def prefix_sharing_problem(body: nn.Module) -> str | None:
    """Say why a model cannot share prefixes, or None where it can.

    Asks the configuration about what only long inputs show (positions that depend on the length), then runs three rows
    of at most 14 tokens plain and behind shared prefixes, in eval mode and without gradients, and compares. Its mode
    is put back afterwards. Where weights are sharded over ranks, call it on every rank: it runs three forwards.

    Args:
        body: The transformer without its head, as of `hidden_behind_prefixes`.

    Returns:
        The reason, a sentence without its full stop, or None.

    Example:
        >>> prefix_sharing_problem(nn.Linear(2, 2))
        "a trial of 3 rows failed with TypeError: Linear.forward() got an unexpected keyword argument 'input_ids'"
    """
    return _known_problem(body) or _problem_in_trial(body)


def _known_problem(body: nn.Module) -> str | None:
    config = getattr(body, "config", None)
    if getattr(config, "is_encoder_decoder", False):
        return "it is an encoder-decoder model: its prompts go through the encoder, which has no cache"
    adapters = getattr(body, "peft_config", None)
    if isinstance(adapters, Mapping):
        for name, adapter in adapters.items():
            if getattr(adapter, "is_prompt_learning", False):
                return f"its adapter {name!r} learns a prompt, which takes the place of a cached prefix"
    for module in body.modules():
        kinds = getattr(module, "rope_type", None)
        for kind in kinds.values() if isinstance(kinds, Mapping) else [kinds]:
            # A prefix alone is shorter than a row, so it would be cached with other frequencies.
            if isinstance(kind, str) and ("dynamic" in kind or kind == "longrope"):
                return f"its rotary positions are of type {kind!r}: their frequencies depend on the length of the input"
    rope = getattr(config, "rope_parameters", None)
    scaled = isinstance(rope, Mapping) and "llama_4_scaling_beta" in rope
    if scaled or getattr(config, "attn_temperature_tuning", False):
        return "its attention is scaled by the absolute position, which padding moves"
    return None


def _problem_in_trial(body: nn.Module) -> str | None:
    weight = next(body.parameters(), None)
    device = torch.device("cpu") if weight is None else weight.device
    prompts, completions = torch.tensor(_PROMPTS, device=device), torch.tensor(_COMPLETIONS, device=device)
    inputs = (prompts, (prompts != 0).long(), completions, (completions != 0).long())
    try:
        with evaluating(body), torch.no_grad():
            plain = plain_hidden(body, *inputs)
            shared = hidden_behind_prefixes(body, *inputs, _PLAN)
    except torch.OutOfMemoryError:
        raise
    except SharedCacheError as error:
        return error.problem
    except (AttributeError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        # Whatever a model's code raises at a cache or an argument that it was not written for.
        return f"a trial of {len(prompts)} rows failed with {type(error).__name__}: {error}".rstrip(".")
    return _difference(plain, shared, inputs[3].bool())


def _difference(plain: Tensor, shared: Tensor, asked: Tensor) -> str | None:
    dtype = plain.dtype
    if torch.is_autocast_enabled(plain.device.type):
        dtype = torch.get_autocast_dtype(plain.device.type)
    wanted, got = plain[asked].double(), shared[asked].double()
    relative = float((got - wanted).norm() / wanted.norm())
    if relative <= _TOLERANCE.get(dtype, _TOLERANCE[torch.bfloat16]):
        return None
    return (
        f"in a trial the hidden states behind shared prefixes differed from the plain pass's by {relative:.2g} of "
        "their norm: its positions are absolute and move with the padding, or its cache is not exact"
    )
