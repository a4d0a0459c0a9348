"""Writes the rows of every training batch down, in a run of verl: a module for it to load in each process.

Only where `SDPO_TEST_ROWS` names a folder. What is written is what the workers were given, read back from
TransferQueue after the update.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from wrapt import when_imported

__all__ = ["VARIABLE"]

VARIABLE = "SDPO_TEST_ROWS"
_JAGGED = ("prompts", "responses", "response_mask", "rm_scores", "teacher_input_ids", "old_log_probs")
_OPTIONAL = ("rollout_is_weights", "ref_log_prob", "advantages")
_SCALARS = ("sdpo_active", "sdpo_success")


@when_imported("sdpo_verl.trainer")
def _watch(module: Any) -> None:
    folder = os.environ.get(VARIABLE)
    if folder is None:
        return
    update = module.SDPOTrainer._update_actor

    def updated(self: Any, batch: Any, metrics: dict[str, Any]) -> Any:
        after = update(self, batch, metrics)
        _write(Path(folder) / f"{self.global_steps}.json", batch)
        return after

    module.SDPOTrainer._update_actor = updated


def _write(path: Path, batch: Any) -> None:
    import transfer_queue as tq

    data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id)
    rows: list[dict[str, Any]] = [
        {"key": key, "uid": str(uid), "is_padding": bool(tag.get("is_padding", False))}
        for key, uid, tag in zip(batch.keys, data["uid"], batch.tags, strict=True)
    ]
    for name in (*_JAGGED, *(name for name in _OPTIONAL if name in data.keys())):  # noqa: SIM118  a TensorDict
        for row, values in zip(rows, data[name].unbind(), strict=True):
            row[name] = values.tolist()
    for name in _SCALARS:
        for row, value in zip(rows, data[name].reshape(-1).tolist(), strict=True):
            row[name] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows), encoding="utf-8")
