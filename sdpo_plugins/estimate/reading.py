"""Facts of a model from its configuration; no weights are read or downloaded."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from sdpo_plugins.errors import ConfigError
from sdpo_plugins.estimate.facts import Linear, ModelFacts

__all__ = ["facts_of_config", "read_model"]


def read_model(name: str) -> ModelFacts:
    """Read a model's configuration and count its parameters, by building it without memory.

    Args:
        name: A model's name on the hub, a folder with `config.json`, or such a file.

    Raises:
        ConfigError: No such model, no connection to the hub, an unknown type, or no decoder-only language model; or
            transformers is missing.
    """
    try:
        from transformers import AutoConfig
    except ImportError as error:
        raise ConfigError(
            "reading a model's configuration needs transformers: pip install 'sdpo-plugins[estimate]'."
        ) from error
    path = Path(name)
    if path.exists() and path.is_dir() and not (path / "config.json").is_file():
        raise ConfigError(
            f"the folder {name!r} has no config.json. Give a model's folder, as `save_pretrained` writes it."
        )
    # The hub has no such names: there is no need to ask it, which takes half a minute without a network.
    if not path.exists() and (path.suffix == ".json" or path.is_absolute() or name.startswith((".", "~"))):
        raise ConfigError(
            f"there is no file or folder {name!r}. Give a folder with config.json, such a file, or a model's name on "
            "the hub."
        )
    try:
        config = AutoConfig.from_pretrained(name)
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(_unreadable(name, error)) from error
    return facts_of_config(config, name)


def facts_of_config(config: Any, name: str | None = None) -> ModelFacts:
    """Return the facts of a transformers configuration.

    Args:
        config: A `PreTrainedConfig`.
        name: What to call the model; None: by its type.

    Raises:
        ConfigError: It is no decoder-only language model.

    Example:
        >>> from transformers import Qwen2Config
        >>> facts_of_config(Qwen2Config(num_hidden_layers=2, tie_word_embeddings=True)).layers
        2
    """
    import torch
    from torch import nn
    from transformers import AutoModelForCausalLM

    kind = getattr(config, "model_type", type(config).__name__)
    text = config.get_text_config()
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        sizes = {
            "vocabulary": int(text.vocab_size),
            "width": int(text.hidden_size),
            "layers": int(text.num_hidden_layers),
            "heads": int(text.num_attention_heads),
        }
    except (ValueError, AttributeError, TypeError) as error:
        raise ConfigError(
            f"{name or kind!r} (model type {kind!r}) is no decoder-only language model that transformers can build: "
            f"{_first_line(error)}. Give one such as Qwen2.5 or Llama."
        ) from error
    if getattr(config, "is_encoder_decoder", False):
        raise ConfigError(f"{name or kind!r} (model type {kind!r}) is an encoder-decoder model; SDPO trains decoders.")
    head = model.get_output_embeddings()
    found: Counter[tuple[str, int, int]] = Counter()
    normed = False
    for path, module in model.named_modules():
        leaf = path.rpartition(".")[2]
        if isinstance(module, nn.Linear) and module is not head:
            found[leaf, module.in_features, module.out_features] += 1
        elif type(module).__name__ == "Conv1D":  # GPT-2 keeps its matrices transposed
            inputs, outputs = module.weight.shape
            found[leaf, inputs, outputs] += 1
        normed = normed or leaf in ("q_norm", "q_layernorm")
    embeddings = model.get_input_embeddings()
    return ModelFacts(
        name=name or str(kind),
        kind=str(kind),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        intermediate=_intermediate(text, sizes["width"]),
        kv_heads=int(getattr(text, "num_key_value_heads", None) or sizes["heads"]),
        head_dim=int(getattr(text, "head_dim", None) or sizes["width"] // sizes["heads"]),
        tied=head is not None and embeddings is not None and head.weight is embeddings.weight,
        qk_norm=normed,
        linears=tuple(Linear(*key, count) for key, count in found.items()),
        **sizes,
    )


def _intermediate(text: Any, width: int) -> int:
    routed = getattr(text, "moe_intermediate_size", None)
    experts = getattr(text, "num_experts_per_tok", None)
    if experts:
        return int(experts) * int(routed or text.intermediate_size)
    return int(getattr(text, "intermediate_size", None) or getattr(text, "n_inner", None) or 4 * width)


def _unreadable(name: str, error: Exception) -> str:
    said = _first_line(error)
    if "model type" in said or "model_type" in said or isinstance(error, KeyError):
        return f"the configuration of {name!r} cannot be read: {said} Upgrade transformers, or give another model."
    return (
        f"no configuration was found for {name!r}: {said} Give a model's name on the hub (with a connection to it, and "
        "a login where it is gated), a folder with config.json, or the file itself."
    )


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
