"""What the lines of a run's records hold. `docs/reference/records.md` describes them for other programs."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sdpo_plugins.records.sections import marked_prompt, plain_text
from sdpo_plugins.reprompt import EncodedContext, is_success
from sdpo_plugins.types import Rollout, TeacherContext

if TYPE_CHECKING:
    from sdpo_plugins.config import SDPOConfig

__all__ = ["FORMAT", "NOT_RECORDED", "TokenValues", "chosen_rows", "record_id", "rollout_line", "token_line"]

FORMAT = 1
"""Version of the record format, in each `run` line."""

NOT_RECORDED = -1
"""What a batch's `sdpo_record` holds for a row that is not recorded."""

_ROWS = 1 << 20
_DIGITS = 5


def record_id(batch: int, row: int) -> int:
    """Return the number by which a rollout's text and its token values find each other.

    Args:
        batch: Number of the rollout batch, from 0 on, over restarts.
        row: The rollout's place in the batch, over all ranks.

    Example:
        >>> record_id(3, 5)
        3145733
    """
    return batch * _ROWS + row


def chosen_rows(batch: int, rows: Sequence[int], count: int) -> list[int]:
    """Choose the rollouts of a batch that are recorded: a random sample, the same on every rank.

    Args:
        batch: Number of the rollout batch.
        rows: The rows that may be chosen; padding is no rollout.
        count: How many.

    Returns:
        Rows in ascending order; the run's own random numbers are left alone.

    Example:
        >>> chosen_rows(0, range(64), 3) == chosen_rows(0, range(64), 3)
        True
    """
    return sorted(random.Random(batch).sample(list(rows), min(count, len(rows))))


def rollout_line(
    row: int,
    rollout: Rollout,
    context: TeacherContext,
    encoded: EncodedContext | None,
    config: SDPOConfig,
    *,
    step: int,
    batch: int,
    response_tokens: int,
    cut_off: bool | None = None,
) -> dict[str, Any]:
    """Return a rollout's line.

    Args:
        row: Its place in the batch, over all ranks.
        rollout: The rollout.
        context: What the teacher was to read.
        encoded: What it read in the end; None if SDPO is off.
        config: Says what a success is.
        step: The host's step that first trains on it.
        batch: Number of the rollout batch.
        response_tokens: Length of the answer.
        cut_off: Whether the answer ended at the length limit; None: unknown.
    """
    active = encoded is not None and encoded.active
    prompt = rollout.prompt
    return {
        "kind": "rollout",
        "step": step,
        "id": record_id(batch, row),
        "row": row,
        "group": rollout.group_id if isinstance(rollout.group_id, (int, str)) else str(rollout.group_id),
        "prompt": prompt
        if isinstance(prompt, str)
        else [{"role": turn.get("role"), "content": plain_text(turn.get("content"))} for turn in prompt],
        "response": rollout.response,
        "reward": float(rollout.reward),
        "rewards": {name: value for name, value in (rollout.rewards or {}).items() if value is not None},
        "success": is_success(rollout, config, row),
        "feedback": rollout.feedback,
        "active": active,
        "demonstration_index": context.demonstration_index,
        "feedback_used": context.feedback_used,
        "truncated_tokens": {} if encoded is None else dict(encoded.truncated_tokens),
        "response_tokens": response_tokens,
        "cut_off": cut_off,
        "teacher_prompt": marked_prompt(encoded.messages, prompt, context) if encoded is not None and active else None,
    }


@dataclass(frozen=True)
class TokenValues:
    """Token values of one recorded rollout; lists have one entry a token, None where the mask is 0.

    Args:
        id: From `record_id`.
        length: Tokens of the response; the lists may stop earlier.
        ids: Token ids.
        mask: 1 where the token carries SDPO's loss.
        student: log π(y).
        teacher: log q(y).
        divergence: Of student and teacher, in nats, before clip and weights.
        entropy: The student's, in nats.
        student_top: The student's likeliest tokens, each (id, log π).
        teacher_top: The teacher's, each (id, log q).
    """

    id: int
    length: int
    ids: list[int]
    mask: list[int]
    student: list[float | None]
    teacher: list[float | None]
    divergence: list[float | None]
    entropy: list[float | None]
    student_top: list[list[tuple[int, float]] | None] = field(default_factory=list)
    teacher_top: list[list[tuple[int, float]] | None] = field(default_factory=list)

    def used_ids(self) -> set[int]:
        """Return every token id that occurs in it."""
        tops = [*self.student_top, *self.teacher_top]
        return {*self.ids, *(token for top in tops if top for token, _ in top)}


def token_line(values: TokenValues, step: int, pieces: Mapping[int, str]) -> dict[str, Any]:
    """Return the line of a rollout's token values.

    Args:
        values: Of the rollout.
        step: The host's step that first trains on it.
        pieces: Text of every token id in `values`.
    """

    def rounded(numbers: Sequence[float | None]) -> list[float | None]:
        return [None if number is None else round(number, _DIGITS) for number in numbers]

    def tops(rows: Sequence[list[tuple[int, float]] | None]) -> list[Any]:
        return [
            None if row is None else [[token, round(value, _DIGITS)] for token, value in row if math.isfinite(value)]
            for row in rows
        ]

    return {
        "kind": "tokens",
        "step": step,
        "id": values.id,
        "length": values.length,
        "ids": values.ids,
        "pieces": {str(token): pieces[token] for token in sorted(values.used_ids())},
        "mask": values.mask,
        "student": rounded(values.student),
        "teacher": rounded(values.teacher),
        "divergence": rounded(values.divergence),
        "entropy": rounded(values.entropy),
        "student_top": tops(values.student_top),
        "teacher_top": tops(values.teacher_top),
    }
