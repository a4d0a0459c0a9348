"""What the loss holds besides the activations: hidden states, heads and a chunk of logits, or whole logits."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from sdpo_plugins.estimate.facts import ModelFacts, RunFacts
from sdpo_plugins.estimate.held import teacher_passes
from sdpo_plugins.estimate.passes import teacher_tokens
from sdpo_plugins.estimate.precision import precision_of

__all__ = ["chunk_size", "is_fused", "kept_logits_bytes", "loss_parts", "teacher_result_bytes"]

# Rows of logits of one model's size that live at the peak of the loss on logits, besides student's and teacher's, and
# that autograd keeps until the backward pass; measured, see `python -m benchmarks.estimate`.
_BESIDE = {"support": 1, "whole": 10}
_KEPT = {"support": 0, "whole": 5}


def is_fused(run: RunFacts) -> bool:
    """Say whether the loss is computed from hidden states; TRL on ZeRO-3 takes logits, as the adapter does."""
    if run.host == "trl" and run.sharding == "zero3":
        return False
    return run.sdpo.loss_path != "logits"


def loss_parts(model: ModelFacts, run: RunFacts) -> dict[str, int]:
    """Return what the loss of a micro-batch holds at its peak, part by part, in bytes."""
    precision, rows = precision_of(run), run.batch_size * run.completion_length
    full, passes = run.lora_rank is None, teacher_passes(run)
    state = model.width * precision.residual
    if not is_fused(run):
        kind = "whole" if run.sdpo.distillation_topk is None and run.sdpo.full_logit_distillation else "support"
        entries = 24 * 4 * _entries(run)
        both = rows * model.vocabulary * precision.compute * 2
        return {
            "logits of student and teacher": both,
            "logits, intermediate": rows * (model.vocabulary * 4 * _BESIDE[kind] + entries),
        }
    parts = {
        "teacher's hidden states": teacher_result_bytes(model, run) + passes * rows * state,
        "hidden states of tokens": 2 * rows * state,
        "chunk of the loss": chunk_size(model, run),
    }
    if precision.weight > precision.compute and precision.autocast:
        parts["heads, cast"] = (1 + passes) * model.head_entries * precision.compute
    elif run.sharding in ("fsdp2", "zero3"):
        parts["teacher's head, copied"] = passes * model.head_entries * precision.compute
    if full:
        narrow = precision.compute if run.sharding == "fsdp2" else precision.weight
        parts["gradient of the head"] = model.head_entries * (4 + (narrow if narrow < 4 else 0))
    return parts


def kept_logits_bytes(model: ModelFacts, run: RunFacts) -> int:
    """Return what the loss on logits keeps for its backward pass, gradients of the logits included."""
    kind = "whole" if run.sdpo.distillation_topk is None and run.sdpo.full_logit_distillation else "support"
    rows = run.batch_size * run.completion_length
    return rows * model.vocabulary * (3 * precision_of(run).compute + 4 * _KEPT[kind])


def teacher_result_bytes(model: ModelFacts, run: RunFacts) -> int:
    """Return what the teacher's passes leave: hidden states, in TRL of the whole sequence, or logits."""
    precision, passes = precision_of(run), teacher_passes(run)
    rows = run.batch_size * run.completion_length
    if not is_fused(run):
        return passes * rows * model.vocabulary * precision.compute
    return passes * (teacher_tokens(run)[0] if run.host == "trl" else rows) * model.width * precision.residual


def chunk_size(model: ModelFacts, run: RunFacts) -> int:
    """Return the working memory of a chunk, by the very functions that cut the loss into chunks.

    Raises:
        ConfigError: `chunk_memory_mb` is below one token's row.
    """
    import torch

    from sdpo_plugins.losses.divergences import accumulation_dtype
    from sdpo_plugins.losses.fused.budget import chunk_rows
    from sdpo_plugins.losses.fused.footprint import chunk_bytes

    precision, config = precision_of(run), run.sdpo
    dtype = torch.float32 if precision.compute == 4 else torch.bfloat16
    shape = SimpleNamespace(
        head=SimpleNamespace(vocabulary=model.vocabulary, width=model.width, soft_cap=None),
        weight=SimpleNamespace(device=torch.device(run.device)),
        wide=accumulation_dtype(dtype),
        dtype=dtype,
    )
    sparse = (
        config.full_logit_distillation and config.distillation_topk is not None and not config.distillation_add_tail
    )

    def size_of(rows: int) -> int:
        return chunk_bytes(
            rows,
            config,
            cast(Any, shape),
            teacher_passes(run),
            distilled=True,
            own_divergence=config.divergence == "generalized_jsd",
            sparse=sparse and not run.reference,
        )

    rows = run.batch_size * run.completion_length
    return size_of(chunk_rows(rows, size_of, config.chunk_memory_mb, torch.device(run.device)))


def _entries(run: RunFacts) -> int:
    if not run.sdpo.full_logit_distillation:
        return 1
    return (run.sdpo.distillation_topk or 0) + 1
