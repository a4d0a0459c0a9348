"""Refusing unusable tensors with the reason. Shapes are checked always, values only once a result is not finite."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from sdpo_plugins.errors import ConfigError, DataError

__all__ = ["check_inputs", "check_same_shape", "check_temperature", "explain_non_finite"]


def check_same_shape(shape: torch.Size, **tensors: Tensor | None) -> None:
    """Raise DataError for the first named tensor that is given and has another shape."""
    for name, tensor in tensors.items():
        if tensor is not None and tensor.shape != shape:
            raise DataError(
                f"`{name}` must have the shape {list(shape)} of the response tokens, got {list(tensor.shape)}. "
                "Pass response positions only, padded alike in all tensors."
            )


def check_temperature(temperature: float) -> None:
    """Raise ConfigError unless the temperature is a positive finite number."""
    if not 0.0 < temperature < float("inf"):
        raise ConfigError(
            f"`temperature` must be a finite number greater than 0, got {temperature!r}. Pass the temperature of the "
            "rollouts; for greedy rollouts use 1.0."
        )


def check_inputs(student_logits: Tensor, teacher_logits: Tensor, token_ids: Tensor) -> None:
    """Raise DataError unless logits `[..., V]` and token ids `[...]` belong together."""
    for name, logits in (("student_logits", student_logits), ("teacher_logits", teacher_logits)):
        if logits.dim() < 2 or logits.shape[-1] == 0 or not logits.is_floating_point():
            raise DataError(
                f"`{name}` must be float logits of shape [B, T, V] (or [N, V]), got {list(logits.shape)} of "
                f"{logits.dtype}."
            )
    if student_logits.shape[-1] != teacher_logits.shape[-1]:
        raise DataError(
            f"Student and teacher must share one vocabulary, got {student_logits.shape[-1]} and "
            f"{teacher_logits.shape[-1]} logits per token. Use a teacher of the same model family, or cut both to the "
            "tokenizer's size if only the padding of the output layer differs."
        )
    if student_logits.shape != teacher_logits.shape:
        raise DataError(
            f"`student_logits` and `teacher_logits` must have one shape, got {list(student_logits.shape)} and "
            f"{list(teacher_logits.shape)}. Take the response positions of both, each behind its own prompt."
        )
    check_same_shape(student_logits.shape[:-1], token_ids=token_ids)
    if token_ids.is_floating_point() or token_ids.is_complex() or token_ids.dtype == torch.bool:
        raise DataError(f"`token_ids` must be whole numbers, got {token_ids.dtype}.")
    if token_ids.numel():
        low, high = (int(bound) for bound in torch.aminmax(token_ids))
        if low < 0 or high >= student_logits.shape[-1]:
            raise DataError(
                f"`token_ids` must lie in [0, {student_logits.shape[-1]}), the vocabulary of the logits, got values "
                f"from {low} to {high}. Replace label paddings such as -100 by any valid id."
            )


def explain_non_finite(
    result: Tensor, active: Tensor, logits: Mapping[str, Tensor], per_token: Mapping[str, Tensor | None]
) -> DataError:
    """Find out why a token loss is not finite.

    Args:
        result: The token losses `[B, T]`, of which at least one is not finite.
        active: Bool `[B, T]`, where the values of `per_token` matter.
        logits: Named `[B, T, V]` logits; −inf is valid in them, unless a whole row is.
        per_token: Named `[B, T]` inputs that must be finite.

    Returns:
        The error to raise, naming tensor, row, position and vocabulary entry.
    """
    places = (~torch.isfinite(result)).nonzero()
    row, position = places[0].tolist()
    place = f"in row {row}, position {position}"
    if not bool(active[row, position]):
        # A mask on the loss would not help: 0·NaN in the backward pass is NaN.
        place += " (an inactive token, whose NaN would still reach the gradient)"
    for name, tensor in per_token.items():
        if tensor is not None and not bool(torch.isfinite(tensor[row, position])):
            return DataError(
                f"`{name}` must be finite at active tokens, got {tensor[row, position].item()} {place}. "
                "Check the log-probabilities that the host computed."
            )
    for name, tensor in logits.items():
        values = tensor[row, position]
        bad = torch.isnan(values) | torch.isposinf(values)
        if bool(bad.any()):
            entry = int(bad.nonzero()[0])
            return DataError(
                f"`{name}` must hold no NaN and no +inf, got {values[entry].item()} for vocabulary entry {entry} "
                f"{place}. Look for an overflow in the model (float16?), a too large learning rate, or a corrupt "
                "checkpoint."
            )
        if bool(torch.isneginf(values).all()):
            return DataError(
                f"`{name}` must leave at least one token possible, got −inf for the whole vocabulary {place}. "
                "Check the logit mask."
            )
    return DataError(
        f"The token losses must be finite, got {result[row, position].item()} {place} from finite inputs. "
        "Check the divergence (a plug-in's?) against very small probabilities."
    )
