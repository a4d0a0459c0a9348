"""What student and teacher think of each token of the few rollouts that are recorded, computed beside the loss.

The values are those of the pass that trains, without gradient; no random number is drawn and nothing is synchronised
between ranks, so a run with records is the run without them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sdpo_plugins.losses.divergences import accumulation_dtype
from sdpo_plugins.losses.fused import LMHead
from sdpo_plugins.losses.fused.matmul import Projection, product_dtype
from sdpo_plugins.records.lines import TokenValues

__all__ = ["Logits", "Watch", "logits_at", "logits_from_hidden", "watch_tokens"]

Logits = Callable[[Tensor], Tensor]
"""For indices `[n]` into the distilled tokens, gives their logits/τ `[n, V]` in float32 or wider."""

# Tokens whose logits over the whole vocabulary are there at once, of both models: 2 · 32 · 152 000 · 4 bytes = 37 MiB.
_ROWS = 32


@dataclass
class Watch:
    """Says which rows of a micro-batch are recorded, and takes what is found.

    Args:
        records: Record id of each row `[B]`, or `NOT_RECORDED`.
        ids: Token ids of the rows `[B, T]`; what lies between distilled tokens is recorded as masked.
        alternatives: How many of the likeliest tokens to keep.
        limit: At most so many tokens of a row.
    """

    records: Tensor
    ids: Tensor
    alternatives: int
    limit: int
    found: list[TokenValues] = field(default_factory=list)

    @property
    def wanted(self) -> bool:
        """Whether any row of the micro-batch is recorded."""
        return bool((self.records >= 0).any())


@torch.no_grad()
def watch_tokens(
    watch: Watch,
    row: Tensor,
    position: Tensor,
    divergence: Tensor,
    student: Logits,
    teacher: Logits,
) -> None:
    """Put the token values of a micro-batch's recorded rows into `watch.found`.

    Args:
        watch: What is recorded.
        row: Row of each distilled token `[M]`.
        position: Its column in `watch.ids` `[M]`; ascending within a row.
        divergence: Of each, in nats `[M]`.
        student: The student's logits.
        teacher: The teacher's.
    """
    recorded = watch.records.to(row.device)
    for at in (recorded >= 0).nonzero().squeeze(1).tolist():
        index = (row == at).nonzero().squeeze(1)
        if not index.numel():
            continue
        where = position[index]
        first, last = int(where[0]), int(where[-1])
        index = index[where < first + watch.limit]
        columns = (position[index] - first).tolist()
        ids = watch.ids[at, first : min(last + 1, first + watch.limit)].to(row.device)
        watch.found.append(
            _values(
                int(recorded[at]),
                last - first + 1,
                ids,
                columns,
                index,
                divergence[index],
                student,
                teacher,
                watch.alternatives,
            )
        )


def logits_from_hidden(
    states: Sequence[Tensor], heads: Sequence[LMHead], shares: Sequence[float], tau: float
) -> Logits:
    """Return logits/τ from hidden states; those of several passes are mixed, Σ share·logits.

    Args:
        states: Of each pass, `[M, H]`.
        heads: Of each pass.
        shares: Of each pass; they add up to 1.
        tau: Temperature.
    """
    # Made once for all that is recorded: where a head is not in the type of the products, this copies it.
    passes = [
        (Projection(head, product_dtype(part, head.weight), tau), part, share)
        for part, head, share in zip(states, heads, shares, strict=True)
    ]

    def logits(index: Tensor) -> Tensor:
        total: Tensor | None = None
        with torch.autocast(passes[0][1].device.type, enabled=False):
            for projection, part, share in passes:
                hidden = projection.rows(part[index])
                out = hidden.new_empty(hidden.shape[0], projection.head.vocabulary, dtype=projection.wide)
                projection.logits(hidden, out)
                total = out * share if total is None else total.add_(out, alpha=share)
        assert total is not None
        return total

    return logits


def logits_at(values: Tensor, row: Tensor, position: Tensor, tau: float) -> Logits:
    """Return logits/τ from whole logits.

    Args:
        values: `[B, T, V]`.
        row: Of each distilled token `[M]`.
        position: Of each `[M]`.
        tau: Temperature.
    """
    dtype = accumulation_dtype(values.dtype)
    return lambda index: values[row[index], position[index]].detach().to(dtype) / tau


def _values(
    record: int,
    length: int,
    ids: Tensor,
    columns: list[int],
    index: Tensor,
    divergence: Tensor,
    student: Logits,
    teacher: Logits,
    alternatives: int,
) -> TokenValues:
    sampled = ids[torch.tensor(columns, device=ids.device)].long()
    parts: dict[str, list[Any]] = {name: [] for name in ("student", "teacher", "entropy", "student_top", "teacher_top")}
    for start in range(0, len(columns), _ROWS):
        rows = slice(start, min(start + _ROWS, len(columns)))
        token = sampled[rows].unsqueeze(-1)
        for name, logits in (("student", student), ("teacher", teacher)):
            log_probs = logits(index[rows]).log_softmax(-1)
            parts[name] += log_probs.gather(-1, token).squeeze(-1).tolist()
            if name == "student":
                # 0·(−inf) of a masked vocabulary counts nothing.
                parts["entropy"] += torch.special.entr(log_probs.exp()).sum(-1).tolist()
            top = log_probs.topk(min(alternatives, log_probs.shape[-1]), dim=-1)
            parts[f"{name}_top"] += [
                [(int(each), float(value)) for each, value in zip(*pair, strict=True)]
                for pair in zip(top.indices.tolist(), top.values.tolist(), strict=True)
            ]
    spread: dict[str, list[Any]] = {name: [None] * len(ids) for name in (*parts, "divergence")}
    mask = [0] * len(ids)
    for name, values in {**parts, "divergence": divergence.tolist()}.items():
        for column, value in zip(columns, values, strict=True):
            spread[name][column] = value
    for column in columns:
        mask[column] = 1
    return TokenValues(id=record, length=length, ids=ids.tolist(), mask=mask, **spread)
