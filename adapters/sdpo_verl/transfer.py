"""Reading rows of a batch out of TransferQueue."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import transfer_queue as tq
from tensordict import NonTensorData

__all__ = ["field_names", "read_rows", "with_reward_fields", "without_odd_feedback"]


def read_rows(batch: Any, fields: Sequence[str], keys: Sequence[str] | None = None) -> dict[str, Any]:
    """Return some fields of a batch.

    Args:
        batch: verl's keys of the rows.
        fields: Names; texts and mappings come back as any kind of list.
        keys: Of the rows that are read; None: all.
    """
    rows = batch.keys if keys is None else list(keys)
    found = tq.kv_batch_get(keys=rows, partition_id=batch.partition_id, select_fields=list(fields))
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


def without_odd_feedback(rows: Mapping[str, Any]) -> dict[str, Any]:
    """Leave feedback out that is no text: SDPO refuses it, but verl's own algorithm never looks at it.

    Args:
        rows: Fields of a batch, `extra_fields` among them.

    Example:
        >>> said = [{"reward_extra_info": {"feedback": ["Wrong."], "acc": 0.0}}, {"reward_extra_info": {"acc": 1.0}}]
        >>> without_odd_feedback({"extra_fields": said})["extra_fields"]
        [{'reward_extra_info': {'acc': 0.0}}, {'reward_extra_info': {'acc': 1.0}}]
    """
    extra = []
    for row in rows["extra_fields"]:
        found = row.get("reward_extra_info") if isinstance(row, Mapping) else None
        if isinstance(found, Mapping) and not isinstance(found.get("feedback", ""), str):
            rest = {name: value for name, value in found.items() if name != "feedback"}
            row = {**row, "reward_extra_info": rest}
        extra.append(row)
    return {**rows, "extra_fields": extra}


def _plain(value: Any) -> Any:
    if isinstance(value, NonTensorData):
        value = value.data
    return value.item() if hasattr(value, "item") else value
