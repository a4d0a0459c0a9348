"""Reading rows of a batch out of TransferQueue."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import transfer_queue as tq
from tensordict import NonTensorData

__all__ = ["field_names", "read_rows", "with_reward_fields"]


def read_rows(batch: Any, fields: Sequence[str]) -> dict[str, Any]:
    """Return some fields of a batch, all rows of them.

    Args:
        batch: verl's keys of the rows.
        fields: Names; texts and mappings come back as any kind of list.
    """
    found = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=list(fields))
    return {name: found[name] for name in fields}


def field_names(batch: Any) -> set[str]:
    """Return the names of all fields that a batch has now."""
    return set(tq.kv_batch_get(keys=batch.keys[:1], partition_id=batch.partition_id).keys())


def with_reward_fields(rows: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Put what a colocated reward model gave where it lies after other reward functions.

    Args:
        rows: Fields of a batch, `extra_fields` and `names` among them.
        names: Fields that the reward model wrote; none: the rows are given back as they are.

    Returns:
        The rows without `names`, which are in each row's `extra_fields` under `reward_extra_info`.

    Example:
        >>> rows = {"extra_fields": [{"turns": 1}], "feedback": ["Wrong."]}
        >>> with_reward_fields(rows, ["feedback"])
        {'extra_fields': [{'turns': 1, 'reward_extra_info': {'feedback': 'Wrong.'}}]}
    """
    if not names:
        return dict(rows)
    columns = {name: [_plain(value) for value in rows[name]] for name in names}
    extra = [
        {**(row if isinstance(row, Mapping) else {}), "reward_extra_info": {name: columns[name][at] for name in names}}
        for at, row in enumerate(rows["extra_fields"])
    ]
    return {**{name: values for name, values in rows.items() if name not in names}, "extra_fields": extra}


def _plain(value: Any) -> Any:
    if isinstance(value, NonTensorData):
        value = value.data
    return value.item() if hasattr(value, "item") else value
