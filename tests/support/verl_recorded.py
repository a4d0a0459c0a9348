"""Training steps on the recorded batch by verl's own worker, as one rank of one or several takes them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from safetensors.torch import load_file
from tensordict import TensorDict
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor
from verl.trainer.ppo.core_algos import compute_grpo_outcome_advantage
from verl.utils import tensordict_utils as tu
from verl.utils.seqlen_balancing import calculate_workload, get_seqlen_balanced_partitions

from recorded import Row, padded, recorded, tokenizer
from sdpo_plugins import SDPOConfig
from sdpo_plugins.reprompt import build_teacher_contexts
from sdpo_verl.jagged import nested
from sdpo_verl.prompts import PromptStyle
from sdpo_verl.records import FIELD
from sdpo_verl.rollouts import rollouts_of, teacher_fields
from verl_cpu.direct import direct_worker
from verl_cpu.worker import open_gloo

__all__ = ["Case", "fields_of", "rows_as_verl_has_them", "steps"]


@dataclass(frozen=True)
class Case:
    """One training step.

    Args:
        options: SDPO's.
        model: Keywords of `direct_worker`.
        micro_batches: Into how many the rank's rows are cut.
        tokens: Longest micro-batch in tokens, by verl's dynamic cut; None: by rows.
        other_teacher: Whether the teacher has other weights than the student.
        inactive_last: Whether the last rank gets inactive rows only; else rows are spread as verl does.
        epochs: Over the batch.
        records: Whether every row's token values are recorded, under its place in the batch.
    """

    options: Mapping[str, Any] = field(default_factory=dict)
    model: Mapping[str, Any] = field(default_factory=lambda: {"removes_padding": False})
    micro_batches: int = 1
    tokens: int | None = None
    other_teacher: bool = False
    inactive_last: bool = False
    epochs: int = 1
    records: bool = False

    @property
    def config(self) -> SDPOConfig:
        """The options, validated."""
        return SDPOConfig(**self.options)


def steps(cases: Mapping[str, Case], student: str, teacher: str) -> dict[str, dict[str, Any]]:
    """Take each case's step on this rank; engines are made once for each kind of model.

    Args:
        cases: By name; those with verl's fused kernels must be last, see `direct_worker`.
        student: Folder of the student's weights.
        teacher: Folder of the other teacher's.

    Returns:
        By name: what verl reports as `loss` and `grad_norm`, all `metrics`, the whole `gradients` as the optimizer got
        them, this rank's `active` rows and `micro_batches`, and its recorded `tokens`.
    """
    open_gloo()
    engines: dict[str, Any] = {}
    found = {}
    for name, case in cases.items():
        kind = repr(sorted(case.model.items()))
        if kind not in engines:
            engines[kind] = direct_worker(student, clip_ratio_high=0.28, **case.model)
        found[name] = _step(case, *engines[kind], student, teacher)
    return found


def rows_as_verl_has_them(rows: Sequence[Row]) -> dict[str, Any]:
    """Return the fields of the rows that the adapter reads, in the types in which TransferQueue gives them."""
    last = [torch.zeros(len(row.response_ids)) for row in rows]
    for rewards, row in zip(last, rows, strict=True):
        rewards[-1] = row.reward
    return {
        "uid": [row.group for row in rows],
        "raw_prompt": [row.prompt for row in rows],
        "prompts": nested([torch.tensor(row.prompt_ids) for row in rows]),
        "responses": nested([torch.tensor(row.response_ids) for row in rows]),
        "rm_scores": nested(last),
        "extra_fields": [{"reward_extra_info": {"score": row.reward, "feedback": row.feedback}} for row in rows],
    }


def fields_of(config: SDPOConfig) -> TensorDict:
    """Return the recorded batch as the workers get it: verl's own fields, and those of the adapter."""
    rows = recorded().rows
    data = rows_as_verl_has_them(rows)
    rollouts = rollouts_of(data, [row.is_padding for row in rows], tokenizer(), config)
    contexts = build_teacher_contexts(rollouts, config)
    responses = list(data["responses"].unbind())
    renders = [PromptStyle(tokenizer()).render(config)] * len(rows)
    made, _ = teacher_fields(rollouts, contexts, responses, tokenizer(), config, renders)
    mask = [torch.tensor(row.response_mask) for row in rows]
    advantages, _ = compute_grpo_outcome_advantage(
        token_level_rewards=padded(list(data["rm_scores"].unbind())),
        response_mask=padded(mask),
        index=data["uid"],
        norm_adv_by_std_in_grpo=False,
    )
    ids = [torch.tensor([*row.prompt_ids, *row.response_ids]) for row in rows]
    own = {
        "prompts": data["prompts"],
        "responses": data["responses"],
        "input_ids": nested(ids),
        "position_ids": nested([torch.arange(len(row)) for row in ids]),
        "response_mask": nested(mask),
        "loss_mask": nested(mask),
        "old_log_probs": nested([torch.tensor(row.log_probs) for row in rows]),
        "advantages": nested([row[: len(one)] for row, one in zip(advantages, mask, strict=True)]),
    }
    return TensorDict({**own, **made}, batch_size=len(rows))


def _step(case: Case, worker: Any, actor: Any, student: str, teacher: str) -> dict[str, Any]:
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    module = worker.engine.module
    if case.other_teacher:
        _load(module, teacher)
    worker.start_sdpo(case.config.to_mapping(), actor)
    _load(module, student)
    data = fields_of(case.config)
    whole = len(data)
    if case.records:
        data[FIELD] = torch.arange(whole)
    part = tu.chunk_tensordict(tu.index_select_tensor_dict(data, _order(data, world, case.inactive_last)), world)[rank]
    active = part["sdpo_active"].clone()
    dynamic: dict[str, Any] = {}
    if case.tokens is not None:
        dynamic["max_token_len_per_gpu"] = case.tokens
    tu.assign_non_tensor(
        part,
        mini_batch_size=whole,
        epochs=case.epochs,
        global_batch_size=whole,
        temperature=recorded().temperature,
        calculate_entropy=False,
        use_dynamic_bsz=case.tokens is not None,
        micro_batch_size_per_gpu=len(part) // case.micro_batches,
        **dynamic,
    )
    with _watched(worker.engine) as seen:
        output = worker.train_mini_batch(part)
    metrics = dict(tu.get(output, "metrics"))
    found, tokens = worker.finish_rollout_batch()
    return {
        "loss": metrics["loss"][0],
        "grad_norm": metrics["grad_norm"][0],
        "metrics": found,
        "tokens": tokens,
        "active": active,
        **seen,
    }


@contextmanager
def _watched(engine: Any) -> Iterator[dict[str, Any]]:
    """See the gradients that reach the optimizer, and count micro-batches; nothing is changed."""
    seen: dict[str, Any] = {}
    optimizer_step, forward_backward = engine.optimizer_step, engine.forward_backward_batch

    def stepping() -> Any:
        seen["gradients"] = {name: _whole(weight.grad) for name, weight in engine.module.named_parameters()}
        return optimizer_step()

    def passing(*args: Any, **kwargs: Any) -> Any:
        output = forward_backward(*args, **kwargs)
        seen["micro_batches"] = len(output["loss"])
        return output

    engine.optimizer_step, engine.forward_backward_batch = stepping, passing
    try:
        yield seen
    finally:
        del engine.optimizer_step, engine.forward_backward_batch


def _order(data: TensorDict, world: int, inactive_last: bool) -> list[int]:
    """The order in which verl spreads rows over ranks, or one that leaves only inactive ones for the last rank."""
    if inactive_last:
        return sorted(range(len(data)), key=lambda row: -float(data["sdpo_active"][row]))
    lengths = data["input_ids"].offsets().diff()
    parts = get_seqlen_balanced_partitions(calculate_workload(lengths), k_partitions=world, equal_size=True)
    return [row for part in parts for row in part]


def _load(module: Any, folder: str) -> None:
    weights = load_file(f"{folder}/model.safetensors")
    with torch.no_grad():
        for name, weight in module.named_parameters():
            weight.copy_(distribute_tensor(weights[name], weight.device_mesh, weight.placements))


def _whole(value: Tensor | None) -> Tensor:
    assert isinstance(value, DTensor)
    return value.full_tensor().clone()
