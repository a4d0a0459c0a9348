"""verl's jagged micro-batches as the loss sees them: which hidden states predict which response tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor
from verl.utils import tensordict_utils as tu

__all__ = ["PassInput", "ResponseTokens", "Stream", "nested", "padded_responses", "pass_input", "sequences_of"]


def nested(rows: Sequence[Tensor]) -> Tensor:
    """Return rows of different lengths as one jagged nested tensor."""
    return torch.nested.as_nested_tensor(list(rows), layout=torch.jagged)


def padded_responses(values: Tensor, width: int) -> Tensor:
    """Return a field of response tokens as [B, width], zeros behind each row's end.

    Args:
        values: Jagged [B, j], or padded already.
        width: Tokens of the longest response.
    """
    if values.is_nested:
        values = values.to_padded_tensor(0)
    return torch.nn.functional.pad(values, (0, width - values.shape[1]))


@dataclass(frozen=True)
class Stream:
    """Where the predictions of response tokens lie in a model's output.

    Args:
        lengths: Tokens of each sequence, prompt and response, [R].
        responses: Tokens of each response [R].
        width: Row length of the output if it is padded [R, width]; None if the sequences lie end to end.
    """

    lengths: Tensor
    responses: Tensor
    width: int | None

    def places(self, row: Tensor, position: Tensor) -> Tensor:
        """Return the flat places of the states that predict response tokens.

        Args:
            row: Which sequence, [N].
            position: Which of its response tokens, [N].
        """
        if self.width is None:
            starts = torch.cumsum(self.lengths, 0) - self.lengths
        else:
            starts = torch.arange(self.lengths.numel(), device=self.lengths.device) * self.width
        # The state before a token predicts it.
        return starts[row] + (self.lengths - self.responses)[row] - 1 + position


def sequences_of(
    source: TensorDict, ids: Sequence[Tensor], positions: Sequence[Tensor], responses: Tensor
) -> tuple[TensorDict, Stream]:
    """Build the input of one pass from single sequences.

    Args:
        source: The micro-batch, for verl's settings (padding removal).
        ids: Token ids of each sequence.
        positions: Position ids of each, of the same lengths.
        responses: Length of each response [R].

    Returns:
        What the engine's `prepare_model_inputs` takes, and where its predictions will lie.
    """
    removes_padding = bool(tu.get_non_tensor_data(source, "use_remove_padding", True))
    data = TensorDict({"input_ids": nested(ids), "position_ids": nested(positions)}, batch_size=len(ids))
    settings: dict[str, Any] = {
        "temperature": 1.0,  # only the model's own logits would be divided by it
        "use_remove_padding": removes_padding,
        "use_fused_kernels": False,
        "pad_token_id": tu.get_non_tensor_data(source, "pad_token_id", 0),
    }
    tu.assign_non_tensor(data, **settings)
    lengths = torch.tensor([row.shape[-1] for row in ids], device=ids[0].device)
    return data, Stream(lengths, responses, None if removes_padding else int(lengths.max()))


@dataclass(frozen=True)
class ResponseTokens:
    """A micro-batch's response tokens: which are learnt by SDPO, which only by the host's terms.

    Tokens that a tool wrote have a zero in verl's `response_mask`: they are in none of the two, but every sequence
    keeps them, so that student and teacher read them.

    Args:
        ids: Token ids, [B, T].
        lengths: Tokens of each response [B].
        active_mask: 1.0 for tokens that carry SDPO's loss, [B, T].
        success: Nonzero where the rollout succeeded, [B].
        row: Of each token that carries SDPO's loss, [M].
        position: Of the same, [M].
        other_row: Of each other token that the student wrote, [N − M].
        other_position: Of the same.
    """

    ids: Tensor
    lengths: Tensor
    active_mask: Tensor
    success: Tensor
    row: Tensor
    position: Tensor
    other_row: Tensor
    other_position: Tensor

    @staticmethod
    def of(micro_batch: TensorDict) -> ResponseTokens:
        """Read a micro-batch's."""
        lengths = micro_batch["responses"].offsets().diff()
        width = int(lengths.max())
        mask = padded_responses(micro_batch["response_mask"], width) != 0
        active = mask & (micro_batch["sdpo_active"].reshape(-1, 1) != 0)
        row, position = active.nonzero(as_tuple=True)
        other_row, other_position = (mask & ~active).nonzero(as_tuple=True)
        return ResponseTokens(
            padded_responses(micro_batch["responses"], width),
            lengths,
            active.float(),
            micro_batch["sdpo_success"].reshape(-1),
            row,
            position,
            other_row,
            other_position,
        )

    @property
    def active_rows(self) -> Tensor:
        """Rows that carry SDPO's loss."""
        return (self.active_mask != 0).any(1).nonzero().squeeze(1)

    @property
    def all_rows(self) -> Tensor:
        """Every row."""
        return torch.arange(self.lengths.numel(), device=self.lengths.device)

    def optional(self, name: str, micro_batch: TensorDict) -> Tensor | None:
        """Return a field's values at the tokens that carry SDPO's loss, or None if the host gave none."""
        if name not in micro_batch.keys():  # noqa: SIM118  a TensorDict iterates over its rows
            return None
        return padded_responses(micro_batch[name], self.ids.shape[1])[self.row, self.position]


@dataclass(frozen=True)
class PassInput:
    """The input of one pass over some rows of a micro-batch.

    Args:
        data: What the engine's `prepare_model_inputs` takes.
        stream: Where its predictions will lie.
        sequence: Which of its sequences a row is, [B]; -1 for a row that it leaves out.
    """

    data: TensorDict
    stream: Stream
    sequence: Tensor

    def places(self, row: Tensor, position: Tensor) -> Tensor:
        """Return the flat places of the states that predict response tokens.

        Args:
            row: Which row of the micro-batch, [N]; only rows of this pass.
            position: Which of its response tokens, [N].
        """
        return self.stream.places(self.sequence[row], position)


def pass_input(micro_batch: TensorDict, rows: Tensor, lengths: Tensor, prefix: str = "") -> PassInput:
    """Build the input of one pass from whole sequences, tool tokens included.

    Args:
        micro_batch: With jagged `input_ids` and `position_ids`, and verl's settings (padding removal).
        rows: Which rows; where there are none, the first one stands in, as every rank takes part in every pass.
        lengths: Tokens of each response [B].
        prefix: Of both names: "teacher_" for what the teacher reads.
    """
    ids, positions = (micro_batch[prefix + name].unbind() for name in ("input_ids", "position_ids"))
    picked = rows.tolist() or [0]
    data, stream = sequences_of(
        micro_batch, [ids[row] for row in picked], [positions[row] for row in picked], lengths[picked]
    )
    sequence = torch.full_like(lengths, -1)
    sequence[rows] = torch.arange(rows.numel(), device=rows.device)
    return PassInput(data, stream, sequence)
