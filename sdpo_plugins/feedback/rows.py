"""Reading what a scorer needs out of a dataset's row, and refusing rows that no answer could be right for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NoReturn

from sdpo_plugins.errors import DataError, nearest

__all__ = ["bad_truth", "decoded", "truth_in", "was_truncated"]


def truth_in(sample: Mapping[str, Any], field: str, scorer: str) -> Any:
    """Return the truth of a row.

    Args:
        sample: The dataset's row.
        field: Where it stands.
        scorer: The scorer's name, for messages.

    Raises:
        DataError: The row has no such field, or nothing in it.

    Example:
        >>> truth_in({"ground_truth": "B"}, "ground_truth", "multiple_choice")
        'B'
    """
    if sample.get(field) is None:
        raise DataError(
            f"the scorer {scorer!r} finds no truth in the row: field {field!r} is missing or null; the row has "
            f"{', '.join(map(repr, sample)) or 'no fields'}.{nearest(field, map(str, sample))} Name the field that "
            "holds it with the option `truth_field`."
        )
    return sample[field]


def was_truncated(sample: Mapping[str, Any]) -> bool:
    """Return whether a row says that the response was cut off by the length limit, in its field `truncated`.

    Raises:
        DataError: The field holds a text or something else that is neither true nor false.

    Example:
        >>> was_truncated({"truncated": True}), was_truncated({})
        (True, False)
    """
    value = sample.get("truncated")
    if value is None:
        return False
    # Also 0, 1 and numpy's booleans, as tables give them; but bool("False") is true.
    if isinstance(value, (str, bytes)) or not hasattr(value, "__bool__") or value not in (0, 1):
        raise DataError(f"a row's field `truncated` must be true or false, got {value!r}.")
    return bool(value)


def decoded(truth: Any, scorer: str, valid: str) -> Any:
    """Return a truth that is either JSON text or the value itself.

    Args:
        truth: As it stands in the row.
        scorer: The scorer's name, for messages.
        valid: What the truth has to be, for messages.

    Raises:
        DataError: It is a text that is no JSON.

    Example:
        >>> decoded('[1]', "tool_use", "a list")
        [1]
    """
    if not isinstance(truth, (str, bytes)):
        return truth
    try:
        return json.loads(truth)
    except (ValueError, RecursionError) as error:
        bad_truth(scorer, valid, truth, f"it is no JSON ({error})", error)


def bad_truth(scorer: str, valid: str, truth: Any, problem: str, cause: BaseException | None = None) -> NoReturn:
    """Refuse a row's truth.

    Raises:
        DataError: Always.
    """
    shown = repr(truth)
    shown = shown if len(shown) <= 200 else f"{shown[:200]}…"
    raise DataError(
        f"the truth of a row for the scorer {scorer!r} cannot be used: {problem.removesuffix('.')}. "
        f"It must be {valid}; got {shown}. Correct the data set: no answer could be scored against this."
    ) from cause
