"""The self-distillation loss from hidden states and heads: a chunk of logits at a time, gradients in the forward."""

from sdpo_plugins.losses.fused.budget import DEFAULT_CHUNK_MEMORY_MB, default_chunk_memory_mb
from sdpo_plugins.losses.fused.head import LMHead, as_head
from sdpo_plugins.losses.fused.loss import fused_self_distillation_loss, row_weights
from sdpo_plugins.losses.fused.objective import LinearTerm, LogProbTerm, PolicyTerm
from sdpo_plugins.losses.fused.rows import FusedRows, fused_row_losses

__all__ = [
    "DEFAULT_CHUNK_MEMORY_MB",
    "FusedRows",
    "LMHead",
    "LinearTerm",
    "LogProbTerm",
    "PolicyTerm",
    "as_head",
    "default_chunk_memory_mb",
    "fused_row_losses",
    "fused_self_distillation_loss",
    "row_weights",
]
