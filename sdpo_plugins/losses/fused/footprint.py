"""What a chunk of rows takes in memory besides the gradients, so that a budget can be kept."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from sdpo_plugins.losses.fused.budget import block_bytes
from sdpo_plugins.losses.fused.matmul import PRODUCT_COLUMNS, Projection

if TYPE_CHECKING:
    from sdpo_plugins.config import SDPOConfig

__all__ = ["chunk_bytes"]


def chunk_bytes(
    rows: int,
    config: SDPOConfig,
    student: Projection,
    passes: int,
    *,
    distilled: bool,
    own_divergence: bool,
    sparse: bool,
) -> int:
    """Return the working memory of a chunk in bytes, never less for more rows.

    Args:
        rows: n, tokens of the chunk.
        config: Support and divergence are read.
        student: The student's head.
        passes: Of the teacher.
        distilled: Whether the rows have a teacher.
        own_divergence: Whether its gradient is known in closed form.
        sparse: Whether the gradient has K entries a row, so that of the teacher's logits only those are computed.
    """
    vocabulary, device = student.head.vocabulary, student.weight.device.type
    item, narrow = (torch.empty((), dtype=dtype).element_size() for dtype in (student.wide, student.dtype))
    narrow = 0 if student.dtype == student.wide else narrow
    cached = block_bytes(rows, vocabulary, item, device)
    # A 16-bit product leaves a block of its own type and one of the wide type; its gradient is cast in such blocks.
    product = rows * min(vocabulary, PRODUCT_COLUMNS) * (item + 2 * narrow) if narrow else 0
    teachers = passes * (block_bytes(rows, vocabulary, item, device, product=True) * (item + narrow) // item)
    whole, blocks, entries = 1, 2 * cached, 1
    if student.head.soft_cap is not None:
        whole += 1
    if distilled and config.full_logit_distillation and config.distillation_topk is None:
        # What autograd keeps of a divergence that we do not know takes several times the chunk.
        whole += 1 if own_divergence else 8
        blocks = 6 * cached + (teachers if passes > 1 else 0)
    elif distilled and config.full_logit_distillation:
        entries = min(config.distillation_topk or vocabulary, vocabulary) + 1
        if config.topk_support == "teacher":
            whole += 1
            blocks += teachers if passes > 1 else 0
        elif not sparse:
            blocks += teachers
    elif distilled:
        blocks += teachers
    of_rows = rows * item * (24 * entries + (passes + 4) * student.head.width)
    return rows * vocabulary * item * whole + max(blocks, product) + of_rows
