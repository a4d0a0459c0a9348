"""verl's jagged micro-batches as the loss sees them: which hidden states predict which response tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor
from verl.utils import tensordict_utils as tu

__all__ = ["Stream", "nested", "padded_responses", "sequences_of"]


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
        source: The micro-batch, for verl's settings (padding removal, temperature).
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
