"""OpenRLHF's micro-batches as the loss sees them: which hidden states predict which action tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sdpo_openrlhf.fields import ACTIVE, OWN_FIELDS, RECORD, SUCCESS, TEACHER_PROMPT
from sdpo_plugins.errors import DataError

__all__ = ["ActionTokens", "PassInput", "RowFields", "pass_input", "student_rows", "taken_fields", "teacher_rows"]


@dataclass(frozen=True)
class ActionTokens:
    """A micro-batch's action tokens: which are learnt by SDPO, which only by the host's own terms.

    Position a of a row means token a + 1 of its sequence, as in OpenRLHF's `action_mask`; the hidden state at a
    predicts it. What the environment wrote between two turns has a zero in `action_mask`: it is in none of the two,
    but every sequence keeps it, so that student and teacher read it.

    Args:
        ids: Token ids, [B, A].
        active_mask: 1.0 for tokens that carry SDPO's loss, [B, A].
        success: Nonzero where the rollout succeeded, [B].
        row: Of each token that carries SDPO's loss, [M].
        position: Of the same, [M].
        other_row: Of each other action token, [N − M].
        other_position: Of the same.
    """

    ids: Tensor
    active_mask: Tensor
    success: Tensor
    row: Tensor
    position: Tensor
    other_row: Tensor
    other_position: Tensor

    @staticmethod
    def of(sequences: Tensor, action_mask: Tensor, active: Tensor, success: Tensor) -> ActionTokens:
        """Sort a micro-batch's action tokens.

        Args:
            sequences: Token ids, padded on the right, [B, T].
            action_mask: Nonzero for action tokens, [B, T − 1].
            active: Nonzero for rows whose teacher knows more than the student, [B].
            success: Nonzero for rows that succeeded, [B].

        Example:
            >>> sequences = torch.tensor([[5, 6, 7, 8], [5, 6, 9, 0]])
            >>> mask = torch.tensor([[0, 1, 1], [0, 1, 0]])
            >>> tokens = ActionTokens.of(sequences, mask, torch.tensor([1.0, 0.0]), torch.zeros(2))
            >>> tokens.row.tolist(), tokens.position.tolist(), tokens.other_row.tolist()
            ([0, 0], [1, 2], [1])
        """
        if action_mask.shape[1] != sequences.shape[1] - 1:
            raise DataError(
                f"`action_mask` must have one column less than `sequences`, got {list(action_mask.shape)} and "
                f"{list(sequences.shape)}: this OpenRLHF lays its experiences out in a way that is not known here."
            )
        mask = action_mask != 0
        learnt = mask & (active.reshape(-1, 1) != 0)
        row, position = learnt.nonzero(as_tuple=True)
        other_row, other_position = (mask & ~learnt).nonzero(as_tuple=True)
        return ActionTokens(
            sequences[:, 1:], learnt.float(), success.reshape(-1), row, position, other_row, other_position
        )

    @property
    def active_rows(self) -> list[int]:
        """Rows that carry SDPO's loss."""
        rows: list[int] = (self.active_mask != 0).any(1).nonzero().squeeze(1).tolist()
        return rows

    def places(self, *, everyone: bool) -> tuple[Tensor, Tensor]:
        """Return row and position of the tokens that carry SDPO's loss; if `everyone`, of the others behind them."""
        if not everyone:
            return self.row, self.position
        return torch.cat([self.row, self.other_row]), torch.cat([self.position, self.other_position])


@dataclass(frozen=True)
class PassInput:
    """The input of one pass of the model over some rows of a micro-batch.

    Args:
        arguments: Of the model: `input_ids`, `attention_mask`, `position_ids`.
        starts: Flat place of each row's first state in the output, [B]; -1 for a row that is not in this pass.
        shift: How many tokens further right an action token stands than in the student's sequence, [B].
    """

    arguments: dict[str, Any]
    starts: Tensor
    shift: Tensor

    def flat(self, row: Tensor, position: Tensor) -> Tensor:
        """Return the flat places of the states that predict action tokens.

        Args:
            row: Which row of the micro-batch, [N]; only rows of this pass.
            position: Which position of `action_mask`, [N].
        """
        return self.starts[row] + position + self.shift[row]


def student_rows(sequences: Tensor, attention_mask: Tensor) -> list[Tensor]:
    """Return each row's tokens without its padding.

    Args:
        sequences: [B, T], padded on the right.
        attention_mask: [B, T].
    """
    lengths = attention_mask.sum(1).tolist()
    return [row[: int(length)] for row, length in zip(sequences, lengths, strict=True)]


def teacher_rows(rows: Sequence[Tensor], action_mask: Tensor, prompts: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
    """Put what the teacher reads in the place of each row's prompt.

    The response begins with the first action token; what follows it, environment turns included, stays.

    Args:
        rows: From `student_rows`.
        action_mask: [B, T − 1].
        prompts: Token ids of the teacher's prompts, at least one token each.

    Returns:
        The teacher's rows, and how many tokens further right their responses begin, [B].

    Example:
        >>> rows, shift = teacher_rows([torch.tensor([1, 2, 3])], torch.tensor([[0, 1]]), [torch.tensor([7, 8, 9])])
        >>> rows[0].tolist(), shift.tolist()
        ([7, 8, 9, 3], [1])
    """
    firsts = ((action_mask != 0).int().argmax(1) + 1).tolist()
    joined = [
        torch.cat([prompt.to(row), row[first:]]) for row, first, prompt in zip(rows, firsts, prompts, strict=True)
    ]
    shift = [len(prompt) - first for prompt, first in zip(prompts, firsts, strict=True)]
    return joined, torch.tensor(shift, device=action_mask.device)


def pass_input(
    rows: Sequence[Tensor], picked: Sequence[int], shift: Tensor, *, packed: bool, pad_token_id: int
) -> PassInput:
    """Build the input of one pass, as OpenRLHF's own `Actor` builds it.

    Args:
        rows: Token ids of every row of the micro-batch.
        picked: Which of them take part; where there are none, the first one stands in, as every rank takes part in
            every pass.
        shift: See `PassInput`, [B].
        packed: Whether the rows lie end to end in one sequence (`--ds.packing_samples`) or padded on the right.
        pad_token_id: What pads them.

    Example:
        >>> rows = [torch.tensor([5, 6, 7]), torch.tensor([5, 6])]
        >>> made = pass_input(rows, [0, 1], torch.zeros(2, dtype=torch.long), packed=True, pad_token_id=0)
        >>> made.arguments["position_ids"].tolist(), made.starts.tolist()
        ([[0, 1, 2, 0, 1]], [0, 3])
    """
    chosen = list(picked) or [0]
    parts = [rows[row] for row in chosen]
    device = parts[0].device
    lengths = torch.tensor([len(part) for part in parts], device=device)
    if packed:
        arguments: dict[str, Any] = {
            "input_ids": torch.cat(parts).unsqueeze(0),
            "attention_mask": None,
            "position_ids": torch.cat([torch.arange(len(part), device=device) for part in parts]).unsqueeze(0),
        }
        begin = torch.cumsum(lengths, 0) - lengths
    else:
        width = int(lengths.max())
        ids = torch.full((len(parts), width), pad_token_id, dtype=parts[0].dtype, device=device)
        for at, part in enumerate(parts):
            ids[at, : len(part)] = part
        places = torch.arange(width, device=device).expand(len(parts), width)
        mask = places < lengths.unsqueeze(1)
        arguments = {
            "input_ids": ids,
            "attention_mask": mask.long(),
            "position_ids": torch.where(mask, places, torch.ones_like(places)),
        }
        begin = torch.arange(len(parts), device=device) * width
    starts = torch.full((len(rows),), -1, dtype=torch.long, device=device)
    starts[torch.tensor(chosen, device=device)] = begin
    return PassInput(arguments, starts, shift)


class RowFields(NamedTuple):
    """What the experience maker says of the rows of a micro-batch.

    Args:
        teacher_prompts: Token ids of what the teacher reads before each response.
        active: 1.0 where the teacher knows more than the student, [B].
        success: 1.0 where the rollout succeeded, [B].
        records: Id under which each rollout is recorded, or `NOT_RECORDED`, int64 [B].
    """

    teacher_prompts: list[Tensor]
    active: Tensor
    success: Tensor
    records: Tensor


def taken_fields(info: dict[str, Any], device: Any) -> RowFields:
    """Take SDPO's fields out of an experience's `info`, where the host would log them as metrics.

    Args:
        info: Of a micro-batch; loses the fields of `OWN_FIELDS`.
        device: Where the values go.

    Raises:
        DataError: A field is missing: the experiences come from another experience maker.
    """
    missing = [name for name in OWN_FIELDS if name not in info]
    if missing:
        raise DataError(
            f"the experiences hold no {', '.join(missing)} in `info`, which SDPO's experience maker writes. Start "
            "training with `python -m sdpo_openrlhf.train`, which puts it in place."
        )
    prompts = [torch.as_tensor(prompt, device=device) for prompt in info.pop(TEACHER_PROMPT)]
    active, success, records = (
        torch.stack([torch.as_tensor(value) for value in info.pop(name)]).reshape(-1).to(device)
        for name in (ACTIVE, SUCCESS, RECORD)
    )
    return RowFields(prompts, active.float(), success.float(), records.long())
