"""Training steps by OpenRLHF's own policy actor on a real DeepSpeed engine, as one rank of one or several takes them.

Ray and vLLM are left out: the actor's class is made by hand, in the process of a rank. Importing this module puts the
CPU support in place, so nothing of OpenRLHF may have been imported before.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import openrlhf_cpu.hooks

openrlhf_cpu.hooks.install()

import deepspeed  # noqa: E402
import torch  # noqa: E402
from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_grad, safe_set_full_fp32_param  # noqa: E402
from openrlhf.trainer.ppo_utils.experience import Experience  # noqa: E402
from openrlhf.utils import get_strategy  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from torch import Tensor  # noqa: E402

from openrlhf_recorded import experiences  # noqa: E402
from recorded import recorded  # noqa: E402
from sdpo_openrlhf.actor import SDPOPolicyModelActor  # noqa: E402
from sdpo_openrlhf.fields import ACTIVE  # noqa: E402
from sdpo_openrlhf.host_cli import HostProgram  # noqa: E402
from sdpo_openrlhf.options import parse, settle  # noqa: E402
from sdpo_plugins import SDPOConfig  # noqa: E402

__all__ = ["Case", "actor_of", "arguments", "gradients_of", "set_weights", "steps", "weights_of"]

_ACTOR = SDPOPolicyModelActor.__ray_actor_class__


@dataclass(frozen=True)
class Case:
    """One training step on the recorded batch.

    Args:
        options: SDPO's.
        stage: DeepSpeed's ZeRO stage.
        packed: Whether rows lie end to end.
        micro_batches: Into how many each rank's rows are cut.
        tokens: Longest micro-batch in tokens, by the host's dynamic cut; None: by rows.
        other_teacher: Whether the teacher has other weights than the student.
        inactive_last: Whether the last rank gets inactive rows only; else rows are dealt out in their order.
        records: Id under which each row is recorded, or `NOT_RECORDED`; None: none is.
        flags: More of the host's flags.
    """

    options: Mapping[str, Any] = field(default_factory=dict)
    stage: int = 2
    packed: bool = False
    micro_batches: int = 1
    tokens: int | None = None
    other_teacher: bool = False
    inactive_last: bool = False
    records: tuple[int, ...] | None = None
    flags: str = ""

    @property
    def config(self) -> SDPOConfig:
        """The options, validated."""
        return SDPOConfig(**self.options)


def arguments(model: str, flags: str, config: SDPOConfig) -> Any:
    """Return the host's arguments, parsed and checked by the host, with models in float32.

    Args:
        model: Folder.
        flags: As on a command line; they win.
        config: The SDPO options.
    """
    common = (
        f"--actor.model_name_or_path {shlex.quote(model)} --data.prompt_dataset none --reward.remote_url none.py "
        "--vllm.num_engines 1 --vllm.sync_backend gloo --actor.num_gpus_per_node 1 --ds.attn_implementation eager "
        "--actor.eps_clip_low_high 0.2 0.28 --actor.adam.lr 1e-3 --actor.lr_warmup_ratio 0 --actor.max_norm 0 "
        "--rollout.n_samples_per_prompt 4"
    )
    program = HostProgram.find()
    checked = program.check(parse(program.build_parser(), shlex.split(f"{common} {flags}")))
    assert not checked.problems and checked.crash is None, checked
    settle(checked.args)
    checked.args.sdpo = config.to_mapping()
    checked.args.ds.param_dtype = "fp32"  # which the host's flag cannot name
    return checked.args


def actor_of(args: Any, *, max_steps: int = 10) -> Any:
    """Return this rank's actor with its model, optimizer and teacher.

    Args:
        args: From `arguments`.
        max_steps: Of the learning rate's schedule.
    """
    strategy = get_strategy(args)
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    actor = _ACTOR(world, rank, os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
    actor.init_model_from_pretrained(strategy, args.actor.model_name_or_path, max_steps, None)
    return actor


def steps(cases: Mapping[str, Case], student: str, teacher: str) -> dict[str, dict[str, Any]]:
    """Take each case's step on this rank.

    Args:
        cases: By name.
        student: Folder of the student's weights.
        teacher: Folder of the other teacher's.

    Returns:
        By name: `loss` over all ranks and micro-batches, `status` as the host reports it, the whole `gradients` as the
        optimizer got them, this rank's `active` rows, `micro_batches` and token values (`recorded`).
    """
    return {name: _step(case, student, teacher) for name, case in cases.items()}


def _step(case: Case, student: str, teacher: str) -> dict[str, Any]:
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    rows = experiences(case.config, case.records)
    share = len(rows) // world
    dynamic = ""
    if case.tokens is not None:
        dynamic = f"--train.dynamic_batch_enable --train.max_tokens_per_gpu {case.tokens}"
    flags = (
        f"--actor.num_gpus_per_node {world} --ds.zero_stage {case.stage} --train.batch_size {len(rows)} "
        f"--train.micro_batch_size {share // case.micro_batches} "
        # Twice as many rows as there are: OpenRLHF then takes further optimizer steps for possible, so that the
        # importance ratio to the recorded log-probs is in the loss.
        f"--rollout.batch_size {2 * len(rows) // 4} --rollout.temperature {recorded().temperature} "
        f"--algo.advantage.is_correction_threshold 0.5 5 {_no_correction()} "
        f"{'--ds.packing_samples' if case.packed else ''} {dynamic} {case.flags}"
    )
    args = arguments(teacher if case.other_teacher else student, flags, case.config)
    actor = actor_of(args)
    if case.other_teacher:
        set_weights(actor, student)
    order = range(len(rows))
    if case.inactive_last:
        order = sorted(order, key=lambda row: -float(rows[row].info[ACTIVE][0]))
    mine = [rows[row] for row in order][rank * share : (rank + 1) * share]
    actor.append(Experience.concat_experiences(mine, actor.tokenizer.pad_token_id))
    with _watched(actor) as seen:
        status = actor.fit(0.0)
    active = torch.cat([row.info[ACTIVE] for row in mine])
    recorded_tokens = [asdict(values) for values in actor.take_recorded()]
    return {"status": status, "active": active, "recorded": recorded_tokens, **seen}


def _no_correction() -> str:
    known = HostProgram.find().build_parser()
    names = {action.dest for action in known._actions}
    if "algo.advantage.is_correction_level" in names:
        return "--algo.advantage.is_correction_level off"
    return "--algo.advantage.no_is_correction_enable"


@contextmanager
def _watched(actor: Any) -> Iterator[dict[str, Any]]:
    """See losses and the gradients that reach the optimizer; nothing is changed."""
    seen: dict[str, Any] = {"loss": 0.0, "micro_batches": 0}
    engine, strategy = actor.actor.model, actor.strategy
    step, backward = engine.step, strategy.backward

    def backward_seen(loss: Tensor, *args: Any, **kwargs: Any) -> None:
        seen["loss"] += float(loss.detach()) / engine.gradient_accumulation_steps()
        seen["micro_batches"] += 1
        backward(loss, *args, **kwargs)

    def step_seen(*args: Any, **kwargs: Any) -> Any:
        if engine.is_gradient_accumulation_boundary():
            seen["gradients"] = gradients_of(engine)
        return step(*args, **kwargs)

    engine.step, strategy.backward = step_seen, backward_seen
    try:
        yield seen
    finally:
        del engine.step, strategy.backward
    total = torch.tensor(seen["loss"], dtype=torch.float64)
    torch.distributed.all_reduce(total)
    seen["loss"] = float(total) / torch.distributed.get_world_size()


def gradients_of(engine: Any) -> dict[str, Tensor]:
    """Return the whole gradients by name, averaged over ranks, before an optimizer step."""
    return {
        name: _gradient(engine, weight) for name, weight in engine.module.named_parameters() if weight.requires_grad
    }


def _gradient(engine: Any, weight: Any) -> Tensor:
    found = weight.grad if engine.zero_optimization_stage() == 0 else safe_get_full_grad(weight)
    assert found is not None
    return found.detach().clone()


def weights_of(engine: Any) -> dict[str, Tensor]:
    """Return the whole weights by name, in the optimizer's precision."""
    found = {}
    for name, weight in engine.module.named_parameters():
        if engine.zero_optimization_stage() == 0 or not weight.requires_grad:
            with deepspeed.zero.GatheredParameters([weight]):
                found[name] = weight.detach().clone()
        else:
            found[name] = safe_get_full_fp32_param(weight).clone()
    return found


def set_weights(actor: Any, folder: str) -> None:
    """Put other weights into the policy, behind the back of its teacher.

    Args:
        actor: From `actor_of`.
        folder: Of a model with the same names.
    """
    values = load_file(f"{folder}/model.safetensors")
    engine = actor.actor.model
    with torch.no_grad():
        for name, weight in engine.module.named_parameters():
            if engine.zero_optimization_stage() > 0:
                safe_set_full_fp32_param(weight, values[name])
            if hasattr(weight, "ds_id"):
                with deepspeed.zero.GatheredParameters([weight], modifier_rank=0):
                    weight.copy_(values[name])
            else:
                weight.copy_(values[name])


def rows_of(batch: Sequence[Any], pad_token_id: int) -> Any:
    """Return several experiences as one."""
    return Experience.concat_experiences(list(batch), pad_token_id)
