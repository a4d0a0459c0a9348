"""One micro-batch as the loss sees it: which rows run, which tokens count, and what the run's settings are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sdpo_plugins.config import SDPOConfig
from sdpo_plugins.teacher import Teacher
from sdpo_trl.forward import Sequences
from sdpo_trl.window import Window, loss_mask

__all__ = ["MULTIMODAL", "MicroBatch", "PathSettings", "micro_batch"]

# Inputs of vision-language models that go through unchanged, and the per-token ones that follow the prompt's length.
MULTIMODAL = (
    "pixel_values",
    "image_grid_thw",
    "pixel_attention_mask",
    "spatial_shapes",
    "image_sizes",
    "image_position_ids",
)
PER_TOKEN = ("token_type_ids", "mm_token_type_ids")


@dataclass(frozen=True)
class PathSettings:
    """What both ways to the loss need to know of a run.

    Args:
        config: The SDPO options.
        divergence: The per-token divergence, resolved once.
        teacher: The teacher's weights.
        temperature: Temperature of the rollouts, for both models' logits.
        beta: Weight of the KL to the reference model.
        weigh_kl: Weight that KL by the importance ratio π/π_old, which makes its gradient unbiased.
        scale_factor: Tokens that seq-mean-token-sum-norm divides by.
        autocast: Makes the context of a forward pass.
        sharded: True if the weights are spread over ranks, so that every rank has to join in every forward pass.
        balance_experts: Whether a mixture-of-experts model is to give its load-balancing loss, too.
    """

    config: SDPOConfig
    divergence: Callable[[Tensor, Tensor], Tensor]
    teacher: Teacher
    temperature: float
    beta: float
    weigh_kl: bool
    scale_factor: int
    autocast: Callable[[], AbstractContextManager[Any]]
    sharded: bool = False
    balance_experts: bool = False


@dataclass(frozen=True)
class MicroBatch:
    """TRL's micro-batch with the rows of both passes chosen and their sequences built.

    Args:
        inputs: TRL's micro-batch with our `sdpo_*` entries.
        window: What the whole step is divided by.
        mask: [B, T], 1 for tokens that the student wrote.
        active_mask: [B, T], 1 for tokens that carry SDPO's loss.
        rows: Rows in the student's pass [R].
        teacher_rows: Rows in the teacher's pass.
        source: What the student reads, R sequences.
        behind: What the teacher reads; two tokens if nobody is active.
        whole: True if rows cannot be taken out (images).
    """

    inputs: Mapping[str, Any]
    window: Window
    mask: Tensor
    active_mask: Tensor
    rows: Tensor
    teacher_rows: Tensor
    source: Sequences
    behind: Sequences
    whole: bool

    @property
    def has_active(self) -> bool:
        """Whether anything here carries SDPO's loss."""
        return bool(self.active_mask.any())

    @property
    def idle(self) -> bool:
        """Whether there is nothing to compute."""
        return self.rows.numel() == 0

    def rows_of(self, values: Tensor, length: int) -> Tensor:
        """Return a [B, T] tensor's rows of the student's pass, [R, length]."""
        return values[self.rows][:, :length]

    def teacher_rows_of(self, values: Tensor, length: int) -> Tensor:
        """Return a [B, T] tensor's rows of the teacher's pass, [R', length]; none if nobody is active."""
        return values[self.teacher_rows][:, :length]

    def column(self, name: str, length: int) -> Tensor:
        """Return an input of one value for each row or token, flat [R·length]."""
        value: Tensor = self.inputs[name][self.rows]
        if value.dim() == 1:
            value = value.unsqueeze(1)
        return value[:, :length].expand(-1, length).reshape(-1)

    def optional_column(self, name: str, length: int, tokens: Tensor) -> Tensor | None:
        """Return some entries of such an input, or None if the host gave none."""
        return None if self.inputs.get(name) is None else self.column(name, length)[tokens]

    def places(self, tokens: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """Return row and position in [B, T] of single tokens of the student's pass."""
        return self.rows[tokens // length], tokens % length

    def place(self, token: Tensor, length: int) -> str:
        """Name a token of the student's pass."""
        row, position = self.places(token, length)
        return f"row {int(row)} of the micro-batch, position {int(position)} of the completion"


def micro_batch(inputs: Mapping[str, Any], window: Window, *, everyone: bool, student_extra: Any = None) -> MicroBatch:
    """Choose rows and build the sequences of both passes.

    Args:
        inputs: TRL's micro-batch with our `sdpo_*` entries.
        window: What the whole step is divided by.
        everyone: Whether a further term needs the log-probs of inactive rows.
        student_extra: More inputs of the student's pass.
    """
    mask = loss_mask(dict(inputs))
    active = inputs["sdpo_active"].bool() & mask.any(dim=1)
    extra = _present(inputs, MULTIMODAL)
    whole = bool(extra) or any(inputs.get(name) is not None for name in PER_TOKEN)
    all_rows = torch.arange(mask.size(0), device=mask.device)
    chosen = active.nonzero().squeeze(1)
    rows = all_rows if (whole or everyone) and mask.any() else chosen
    names = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")
    source = Sequences(*(inputs[name] for name in names))
    behind = Sequences(
        inputs["sdpo_prompt_ids"], inputs["sdpo_prompt_mask"], source.completion_ids, source.completion_mask
    )
    if whole:
        source = source.having({**extra, **_present(inputs, PER_TOKEN)})
        behind = behind.having({**extra, **_present(inputs, PER_TOKEN, prefix="sdpo_")})
    else:
        source = source.take(rows) if rows.numel() else source.smallest()
        behind = behind.take(chosen) if chosen.numel() else behind.smallest()
    if student_extra:
        source = source.having({**source.extra, **student_extra})
    return MicroBatch(
        inputs=inputs,
        window=window,
        mask=mask,
        active_mask=mask * active.unsqueeze(1),
        rows=rows,
        teacher_rows=all_rows if whole else chosen,
        source=source,
        behind=behind,
        whole=whole,
    )


def _present(inputs: Mapping[str, Any], names: tuple[str, ...], prefix: str = "") -> dict[str, Any]:
    return {name: inputs[prefix + name] for name in names if inputs.get(prefix + name) is not None}
