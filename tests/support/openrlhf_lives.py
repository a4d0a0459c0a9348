"""Lives of one policy actor: rollout batches, checkpoints, restarts. Each function is a job for `launch.run_ranks`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from openrlhf_direct import actor_of, arguments, rows_of, weights_of
from openrlhf_recorded import experiences
from recorded import recorded
from sdpo_openrlhf.fields import OWN_FIELDS
from sdpo_plugins import SDPOConfig

__all__ = ["checkpoint_files", "life", "lives", "synced"]

ROWS = 16


def lives(cases: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Live several lives one after the other, each as `life` does; a start of ranks costs more than most of them.

    Args:
        cases: Arguments of `life` by name.
    """
    return {name: life(**case) for name, case in cases.items()}


def life(
    folder: str,
    model: str,
    options: Mapping[str, Any],
    flags: str = "",
    batches: Sequence[int] = (1, 2, 3, 4),
    save_after: int | None = None,
) -> dict[str, Any]:
    """Train on some rollout batches, from a checkpoint if the folder holds one.

    Args:
        folder: Of the checkpoints.
        model: Folder of the model to begin with.
        options: SDPO's.
        flags: The host's, `--ds.zero_stage` among them.
        batches: Numbers of the rollout batches; each gives other rows to learn from.
        save_after: Save a checkpoint after this one.

    Returns:
        `weights` and `teacher` (of this rank) at the end, `first_teacher`, `statuses` by batch, `state` as loaded.
    """
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    config = SDPOConfig(**options)
    share = ROWS // world
    args = arguments(
        model,
        f"--actor.num_gpus_per_node {world} --train.batch_size {ROWS // 2} --train.micro_batch_size {share // 4} "
        f"--rollout.batch_size {ROWS // 4} --rollout.temperature {recorded().temperature} --ckpt.path {folder} "
        f"--ckpt.load_enable --ckpt.output_dir {folder}/model {flags}",
        config,
    )
    torch.manual_seed(100 + rank)
    actor = actor_of(args, max_steps=20)
    trainer = actor.trainer
    found: dict[str, Any] = {"statuses": {}, "state": actor.get_checkpoint_states()}
    if config.enabled:
        found["first_teacher"] = _held(trainer)
        found["first_weights"] = {name: value.float().clone() for name, value in trainer.sdpo.tensors.items()}
    rows = experiences(config)
    for batch in batches:
        mine = [_other_row(row, batch) for row in rows[rank * share : (rank + 1) * share]]
        if not config.enabled:  # the experience maker then adds nothing
            for row in mine:
                row.info = {name: value for name, value in row.info.items() if name not in OWN_FIELDS}
        actor.append(rows_of(mine, actor.tokenizer.pad_token_id))
        found["statuses"][batch] = actor.fit(0.0)
        if batch == save_after:
            actor.save_checkpoint(f"global_step{batch}", {"global_step": batch})
    found["weights"] = weights_of(actor.actor.model)
    if config.enabled:
        found["teacher"] = _held(trainer)
        found["updates"] = trainer.sdpo.teacher.updates
    return found


def synced(folder: str, model: str, flags: str) -> dict[str, Any]:
    """Train one batch with LoRA; return what would go to vLLM, beside the base model's own weights merged by PEFT.

    Args:
        folder: Of the checkpoints.
        model: Folder.
        flags: The host's, with `--ds.lora.rank`.
    """
    from sdpo_openrlhf.lora import merged_for_vllm

    config = SDPOConfig()
    args = arguments(
        model,
        f"--train.batch_size {ROWS} --train.micro_batch_size {ROWS} --rollout.batch_size {ROWS // 4} {flags} "
        f"--ckpt.path {folder} --ckpt.output_dir {folder}/model",
        config,
    )
    actor = actor_of(args)
    names = list(dict(actor.actor.model.module.named_parameters()))
    for _ in range(2):  # LoRA's B begins as zeros
        actor.append(rows_of(experiences(config), actor.tokenizer.pad_token_id))
        actor.fit(0.0)
    with merged_for_vllm(actor.actor, args.ds.zero_stage):
        sent = {name: value.data.clone() for name, value in actor.actor.model.module.named_parameters()}
    assert list(dict(actor.actor.model.module.named_parameters())) == names
    actor.save_model()
    merged = actor.actor.model.module.merge_and_unload()
    return {"sent": sent, "merged": {name: value.detach().clone() for name, value in merged.named_parameters()}}


def _held(trainer: Any) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in trainer.sdpo.teacher.state_dict()["tensors"].items()}


def _other_row(row: Any, batch: int) -> Any:
    """The same row with other advantages, so that every batch moves the weights in another way."""
    row = rows_of([row], 0)
    row.advantages = row.advantages + 0.1 * batch
    return row


def checkpoint_files(folder: str, tag: str) -> list[str]:
    """Return the names of SDPO's files in a checkpoint."""
    return sorted(path.name for path in (Path(folder) / "_actor" / tag / "sdpo").iterdir())
