"""What passes through the decoder hold: activations kept for the backward pass, one layer's work, caches of keys."""

from __future__ import annotations

from sdpo_plugins.estimate.facts import ModelFacts, RunFacts
from sdpo_plugins.estimate.held import shards, targets
from sdpo_plugins.estimate.precision import Precision, precision_of

__all__ = [
    "activation_bytes",
    "cache_bytes",
    "cast_bytes",
    "forward_bytes",
    "gathered_bytes",
    "largest_weight",
    "layer_bytes",
    "linear_input_bytes",
    "student_tokens",
    "teacher_tokens",
]

# Linear layers that read the same input, by the names that transformers gives them.
_SAME_INPUT = (
    frozenset({"q_proj", "k_proj", "v_proj", "qkv_proj", "query_key_value"}),
    frozenset({"gate_proj", "up_proj", "gate_up_proj"}),
)
_MLP = _SAME_INPUT[1] | {"down_proj"}
_ATTENTION_OUTPUT = frozenset({"o_proj", "out_proj", "dense"})


def student_tokens(run: RunFacts) -> tuple[int, int]:
    """Return tokens of a micro-batch, and of one row."""
    row = run.prompt_length + run.completion_length
    return run.batch_size * row, row


def teacher_tokens(run: RunFacts) -> tuple[int, int]:
    """Return tokens of a micro-batch as the teacher reads it, and of one row."""
    row = run.teacher_prompt + run.completion_length
    return run.batch_size * row, row


def layer_bytes(model: ModelFacts, run: RunFacts, row: int) -> int:
    """Return what autograd keeps of one layer for each token, in bytes.

    Formula: see docs/memory.md. H, F, Q, K: widths of hidden states, MLP, queries, keys; a: bytes of a result, S: row.

        norms      2·H·4, and 2·H·(residual) where their weights are trained
        inputs     of linear layers, see `linear_input_bytes`
        attention  4·Q·a + S·a padded; (2·Q + 2·K)·a not padded or flash; eager: + heads·S·(4 + a)
        queries'   (Q + K)·4, and (Q + K)·a where trained; only models that normalise queries and keys
        MLP        3·F·a, besides the input of its last layer

    Args:
        model: The model.
        run: The run.
        row: S, tokens of a row.
    """
    precision, full = precision_of(run), run.lora_rank is None
    a, q, k = precision.compute, model.queries, model.keys
    norms = 2 * model.width * (4 + (precision.residual if full else 0)) + 8
    if model.qk_norm:
        norms += (q + k) * (4 + (a if full else 0)) + 4 * (model.heads + model.kv_heads)
    return (
        norms + linear_input_bytes(model, run, precision) + _attention(model, run, a, row) + 3 * model.intermediate * a
    )


def linear_input_bytes(model: ModelFacts, run: RunFacts, precision: Precision) -> int:
    """Return what is kept of the inputs of a layer's linear layers, for each token.

    An input is kept where its layer is trained: once for layers that read the same one, but once for each layer that
    casts it (autocast of a wider input, or an adapter of another type). The attention's own result is kept anyway.
    """
    full, a = run.lora_rank is None, precision.compute
    chosen = {linear.name for linear in (model.linears if full else targets(model, run))}
    casts = precision.residual > a if full else precision.trained != a or precision.residual > a
    item = a if precision.autocast or full else precision.trained
    total = 0
    seen: set[frozenset[str]] = set()
    for linear in model.linears:
        if linear.name not in chosen:
            continue
        times = linear.count / model.layers
        group = next((names for names in _SAME_INPUT if linear.name in names), frozenset({linear.name}))
        whole = group in _SAME_INPUT
        if full:
            # Only what comes from a norm is wide, and cast by each reader.
            if linear.name in _ATTENTION_OUTPUT:
                continue
            if casts and whole:
                total += int(linear.inputs * a * times)
            elif group not in seen:
                total += int(linear.inputs * a * (1 if whole else min(times, 1)))
        elif casts:
            total += int(linear.inputs * item * times)
        elif group not in seen and linear.name not in _ATTENTION_OUTPUT:
            total += int(linear.inputs * a * min(times, 1))
        seen.add(group)
        if not full:
            total += int((run.lora_rank or 0) * (a if precision.autocast else precision.trained) * times)
    return total


def activation_bytes(model: ModelFacts, run: RunFacts) -> tuple[int, int]:
    """Return what the student's pass keeps of all layers, and what a layer that is computed again takes.

    With gradient checkpointing the first is each layer's input, the second one layer's activations.
    """
    precision = precision_of(run)
    tokens, row = student_tokens(run)
    ends = tokens * model.width * (4 + precision.residual * (2 if run.lora_rank is None else 1))
    layer = layer_bytes(model, run, row) * tokens
    if run.gradient_checkpointing:
        return model.layers * tokens * model.width * precision.residual + ends, layer
    return model.layers * layer + ends, 0


def forward_bytes(model: ModelFacts, run: RunFacts, tokens: int, row: int) -> int:
    """Return the most that a pass without gradient works with, in one layer.

    Formula: tokens·max(3·F·a + 4·H·residual, 6·Q·a + 2·H·residual), and the mask, for eager attention the scores; an
        adapter on the MLP adds its input, as wide as the adapter, and a hidden state.
    """
    precision = precision_of(run)
    a, r = precision.compute, precision.residual
    work = 3 * model.intermediate * a + 4 * model.width * r
    if any(linear.name in _MLP for linear in targets(model, run)):
        work += model.intermediate * precision.trained + model.width * r
    attention = 6 * model.queries * a + 2 * model.width * r
    if run.attention == "eager":
        attention += model.heads * row * (4 + a)
    elif run.attention == "sdpa" and run.padding:
        attention += row * a
    largest = max(work, attention)
    mask = row if run.padding and run.attention != "flash" else 0
    return tokens * (largest + mask) + (largest_weight(model) * a if run.load_in_4bit else 0)


def cast_bytes(model: ModelFacts, run: RunFacts, *, graph: bool = False) -> int:
    """Return the copies of float32 weights that autocast makes of the linear layers' ones.

    It keeps those of trained weights until it ends. Of frozen ones each is made anew, so that only the largest counts,
    but for a graph that keeps them for its backward pass.

    Args:
        model: The model.
        run: The run.
        graph: Whether this is the student's pass without checkpointing.
    """
    precision = precision_of(run)
    if not precision.casts_weights or run.load_in_4bit:
        return 0
    if run.lora_rank is None or graph:
        return precision.compute * model.linear_weights
    return precision.compute * largest_weight(model)


def largest_weight(model: ModelFacts) -> int:
    """Return the entries of the largest matrix of a linear layer, the head left out."""
    return max((linear.inputs * linear.outputs for linear in model.linears), default=0)


def gathered_bytes(model: ModelFacts, run: RunFacts) -> int:
    """Return the whole weights that shards are gathered into: embeddings, head, and two layers."""
    if shards(run, "weights") == 1 or run.sharding not in ("fsdp2", "zero3"):
        return 0
    ends = model.head_entries * (1 if model.tied else 2)
    return precision_of(run).compute * (ends + 2 * (model.parameters - ends) // model.layers)


def cache_bytes(model: ModelFacts, run: RunFacts, tokens: int) -> int:
    """Return keys and values of so many tokens in all layers; autocast of float32 weights leaves keys wide."""
    precision = precision_of(run)
    return model.layers * tokens * model.keys * (precision.residual + precision.compute)


def _attention(model: ModelFacts, run: RunFacts, a: int, row: int) -> int:
    q, k, heads = model.queries, model.keys, model.heads
    if run.attention == "eager":
        return 4 * q * a + heads * row * (4 + (a if a != 4 else 0))
    if run.attention == "sdpa" and run.padding:
        # Keys and values are repeated for each query head, and each layer makes its own mask of numbers.
        return 4 * q * a + row * a + 4 * heads
    return 2 * (q + k) * a + 4 * heads
