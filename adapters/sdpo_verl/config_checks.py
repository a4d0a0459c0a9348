"""Which of verl's own settings SDPO cannot work with, and which do nothing beside it."""

from __future__ import annotations

import dataclasses
import json
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from verl.workers.config import FSDPActorConfig

from sdpo_plugins.config import SDPOConfig
from sdpo_plugins.errors import HostError, nearest

__all__ = ["check_text_only", "idle_notices", "setting_problems", "warn_of"]

_ACTOR = "actor_rollout_ref.actor"
_TARGET = "sdpo_verl.config.SDPOActorConfig"

# Sections of older releases, the authors' fork among them. verl still reads them from a file, and its trainer never
# looks at them: the reward function a user named there would not be called.
_MOVED = {
    "custom_reward_function.path": "reward.custom_reward_function.path",
    "custom_reward_function.name": "reward.custom_reward_function.name",
    "reward_model.num_workers": "reward.num_workers",
    "reward_model.reward_manager": "reward.reward_manager.name",
    "reward_model.reward_loop_source": "reward.reward_manager.source",
    "reward_model.reward_loop_module_path": "reward.reward_manager.module.path",
    "reward_model.reward_loop_class_name": "reward.reward_manager.module.name",
    "reward_model.enable": "reward.reward_model.enable",
    "reward_model.enable_resource_pool": "reward.reward_model.enable_resource_pool",
    "reward_model.n_gpus_per_node": "reward.reward_model.n_gpus_per_node",
    "reward_model.nnodes": "reward.reward_model.nnodes",
    "reward_model.model.path": "reward.reward_model.model_path",
    "sandbox_fusion.url": "reward.sandbox_fusion.url",
    "sandbox_fusion.max_concurrent": "reward.sandbox_fusion.max_concurrent",
    "sandbox_fusion.memory_limit_mb": "reward.sandbox_fusion.memory_limit_mb",
}

# Setting, the only value SDPO's training step can honour, why.
_ONLY = (
    (f"{_ACTOR}.entropy_coeff", 0, "the fused loss has no gradient of the entropy"),
    (f"{_ACTOR}.pad_to_length", False, "SDPO packs the teacher's sequences itself"),
    (f"{_ACTOR}.fsdp_config.pad_to_length", False, "SDPO packs the teacher's sequences itself"),
    (f"{_ACTOR}.ulysses_sequence_parallel_size", 1, "sequences cut over ranks do not line up with the teacher's"),
    (
        f"{_ACTOR}.fsdp_config.ulysses_sequence_parallel_size",
        1,
        "sequences cut over ranks do not line up with the teacher's",
    ),
    (f"{_ACTOR}.use_prefix_grouper", False, "student and teacher have no common prefix that verl could group"),
    (f"{_ACTOR}.qat.enable", False, "the teacher's weights would be quantised by the student's scales"),
    (f"{_ACTOR}.fsdp_config.qat.enable", False, "the teacher's weights would be quantised by the student's scales"),
    (f"{_ACTOR}.fsdp_config.router_replay.mode", "disabled", "nothing was routed yet for the teacher's prompts"),
    (
        "actor_rollout_ref.rollout.enable_rollout_routing_replay",
        False,
        "nothing was routed yet for the teacher's prompts",
    ),
    ("actor_rollout_ref.model.mtp.enable_train", False, "SDPO's loss knows one head"),
    ("distillation.enabled", False, "verl's own distillation and SDPO would both replace the loss"),
    ("actor_rollout_ref.hybrid_engine", True, "the mode `sdpo` trains and samples on the same devices"),
    ("trainer.use_v1", True, "the trainer mode `sdpo` belongs to verl's v1 trainer"),
)


def setting_problems(config: DictConfig, options: SDPOConfig | None) -> list[str]:
    """Say which of verl's settings SDPO cannot honour; empty if all is well.

    Args:
        config: verl's whole configuration.
        options: SDPO's; None if they are invalid themselves.
    """
    problems = [*_wiring(config), *_moved(config), *_unknown_actor_keys(config), *_model(config), *_slots(config)]
    for path, only, why in _ONLY:
        value = _get(config, path, only)
        if value != only and value is not None:
            problems.append(f"`{path}={value}` is not supported: {why}. Set `{path}={only}`.")
    problems += _advantages(config)
    if options is not None:
        problems += [*_loss_path(options), *_rollouts(config, options), *_teacher(config, options)]
    return problems


def idle_notices(config: DictConfig, options: SDPOConfig) -> list[str]:
    """Say which settings are valid but probably not what was meant.

    Args:
        config: verl's whole configuration.
        options: SDPO's.
    """
    notices = []
    if _get(config, "actor_rollout_ref.model.use_fused_kernels", False):
        notices.append(
            "`actor_rollout_ref.model.use_fused_kernels=True` only speeds up verl's log-probability passes: SDPO's "
            "step has a fused loss of its own."
        )
    if _get(config, "algorithm.filter_groups.enable", False):
        notices.append(
            "`algorithm.filter_groups.enable=True` drops groups whose rollouts all succeed or all fail. SDPO learns "
            "from both: from the successes, and from feedback on failures."
        )
    remote = _get(config, "trainer.default_hdfs_dir", None)
    if remote is not None:
        notices.append(
            f"`trainer.default_hdfs_dir={remote}` receives the actor alone: the teacher is written below "
            "`trainer.default_local_dir` only. Keep that folder to resume from."
        )
    mode = _get(config, f"{_ACTOR}.policy_loss.loss_mode", "vanilla")
    if options.grpo_weight == 0.0 and mode not in ("vanilla", "sdpo"):
        notices.append(
            f"`{_ACTOR}.policy_loss.loss_mode={mode}` has no effect: SDPO replaces the policy loss. Set "
            f"`{_ACTOR}.self_distillation.grpo_weight` above 0 for the hybrid objective."
        )
    one = _get(config, "actor_rollout_ref.rollout.n", 1) == 1
    if one and options.dont_reprompt_on_self_success and options.include_environment_feedback:
        notices.append(
            "`actor_rollout_ref.rollout.n=1`: no other rollout of a question can demonstrate, so all is learnt from "
            "the environment's feedback. A rollout without feedback adds no loss."
        )
    return notices


def warn_of(notices: Sequence[str]) -> None:
    """Issue each notice as a warning."""
    for notice in notices:
        warnings.warn(notice, stacklevel=3)


def check_text_only(processor: Any, path: str) -> None:
    """Refuse a model that also reads images or sound.

    Args:
        processor: What verl loaded beside the tokenizer, or None.
        path: The model's, for the message.

    Raises:
        HostError: There is a processor.
    """
    if processor is not None:
        raise HostError(
            f"{path!r} comes with a {type(processor).__name__}: its prompts may hold images or sound, which SDPO's "
            "teacher contexts cannot carry. Set `actor_rollout_ref.model.path` to a text-only model."
        )


def _get(config: DictConfig, path: str, default: Any) -> Any:
    value = OmegaConf.select(config, path)
    return default if value is None else value


def _wiring(config: DictConfig) -> Iterator[str]:
    mode = _get(config, "trainer.v1.trainer_mode", "sync")
    if mode != "sdpo":
        yield (
            f"`trainer.v1.trainer_mode={mode}` trains without SDPO. Set `trainer.v1.trainer_mode=sdpo`; verl's "
            "asynchronous modes are not supported."
        )
    engine = _get(config, "model_engine", "dp")
    strategy = _get(config, f"{_ACTOR}.strategy", None)
    if engine != "dp":
        yield (
            f"`model_engine={engine}` is not supported: SDPO exchanges the weights of an FSDP2 model for the "
            f"teacher's. Set `model_engine=dp` and `{_ACTOR}.strategy=fsdp2`."
        )
    elif strategy != "fsdp2":
        yield (
            f"`{_ACTOR}.strategy={strategy}` is not supported: FSDP1 keeps weights in flat buffers, where the "
            f"teacher's cannot be exchanged by name, and other engines were never tried. Set `{_ACTOR}.strategy=fsdp2`."
        )
    target = _get(config, f"{_ACTOR}._target_", None)
    if target != _TARGET and engine == "dp":
        yield (
            f"`{_ACTOR}._target_={target}` knows no option `self_distillation`. Set `{_ACTOR}._target_={_TARGET}`, or "
            "start from our files: `--config-name sdpo`, or `+sdpo=default` on top of your own."
        )


def _moved(config: DictConfig) -> Iterator[str]:
    for old, new in _MOVED.items():
        value = _get(config, old, None)
        if value is not None:
            yield f"`{old}` (given: {value!r}) is an old name that verl's trainer ignores. Rename it to `{new}`."


def _unknown_actor_keys(config: DictConfig) -> Iterator[str]:
    actor = OmegaConf.select(config, _ACTOR)
    if actor is None or _get(config, "model_engine", "dp") != "dp":
        return
    known = {item.name for item in dataclasses.fields(FSDPActorConfig)} | {"self_distillation"}
    for name in actor:
        if name not in known:
            yield f"`{_ACTOR}.{name}` is no option of verl's FSDP actor; remove it.{nearest(str(name), known)}"


def _model(config: DictConfig) -> Iterator[str]:
    path = _get(config, "actor_rollout_ref.model.path", None)
    if path is None:
        yield "`actor_rollout_ref.model.path` is missing: set it to a model's folder, or its name on the hub."
        return
    folder = Path(os.path.expanduser(path))
    if str(path).startswith(("/", "~", "./", "../")) and not folder.exists():
        yield f"`actor_rollout_ref.model.path={path}`: there is no such folder. Correct the path."
    try:
        described = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return  # a name on the hub, or a file that the loader itself will complain about
    if isinstance(described, dict) and {"vision_config", "audio_config"} & set(described):
        yield (
            f"`actor_rollout_ref.model.path={path}` is a vision or audio model, whose prompts SDPO's teacher contexts "
            "cannot carry. Take a text-only model."
        )


def _slots(config: DictConfig) -> Iterator[str]:
    """Compare the ranks asked for with Ray's places, where the configuration itself says how many those are."""
    slots = _get(config, "ray_kwargs.ray_init.num_gpus", None)
    elsewhere = _get(config, "ray_kwargs.ray_init.address", None) or os.environ.get("RAY_ADDRESS")
    if slots is None or elsewhere:
        return
    nodes, each = _get(config, "trainer.nnodes", 1), _get(config, "trainer.n_gpus_per_node", 1)
    if nodes * each > slots:
        yield (
            f"`trainer.nnodes={nodes}` times `trainer.n_gpus_per_node={each}` asks for {nodes * each} ranks, but "
            f"`ray_kwargs.ray_init.num_gpus={slots}` gives Ray {slots} places. Lower the first or raise the last."
        )


def _advantages(config: DictConfig) -> Iterator[str]:
    estimator = _get(config, "algorithm.adv_estimator", "gae")
    if estimator == "gae" or _get(config, "critic.enable", False):
        asked = "critic.enable=True" if estimator != "gae" else "algorithm.adv_estimator=gae"
        yield (
            f"`{asked}` trains a critic, whose values SDPO never uses. Set `algorithm.adv_estimator=grpo` and leave "
            "`critic.enable` at null."
        )
    if _get(config, "algorithm.rollout_correction.rollout_is", None) is None:
        return
    if _get(config, "algorithm.rollout_correction.bypass_mode", False):
        yield (
            "`algorithm.rollout_correction.bypass_mode=True` leaves the weights of `rollout_is` to verl's policy loss, "
            "which SDPO replaces. Set `algorithm.rollout_correction.bypass_mode=False`, or `rollout_is=null`."
        )
    if not _get(config, "actor_rollout_ref.rollout.calculate_log_probs", True):
        yield (
            "`algorithm.rollout_correction.rollout_is` needs the rollout engine's probabilities. Set "
            "`actor_rollout_ref.rollout.calculate_log_probs=True`."
        )


def _loss_path(options: SDPOConfig) -> Iterator[str]:
    if options.loss_path == "logits":
        yield (
            f"`{_ACTOR}.self_distillation.loss_path=logits` is not supported: inside of verl the loss is always "
            "computed from hidden states, a chunk of logits at a time. Set `loss_path=auto` or `loss_path=fused`."
        )


def _rollouts(config: DictConfig, options: SDPOConfig) -> Iterator[str]:
    count = _get(config, "actor_rollout_ref.rollout.n", 1)
    alone = count == 1 and (options.dont_reprompt_on_self_success or options.selector == "none")
    if alone and not options.include_environment_feedback:
        yield (
            "`actor_rollout_ref.rollout.n=1` with `include_environment_feedback=False`: nobody can demonstrate and "
            "there is no feedback, so nothing would ever be learnt. Set `actor_rollout_ref.rollout.n=8`, or turn "
            "feedback on."
        )


def _teacher(config: DictConfig, options: SDPOConfig) -> Iterator[str]:
    adapters = _get(config, "actor_rollout_ref.model.lora_rank", 0) > 0
    loaded = _get(config, "actor_rollout_ref.model.lora_adapter_path", None) is not None
    if options.teacher == "lora_ema" and not (adapters or loaded):
        yield (
            "`teacher='lora_ema'` averages LoRA adapters, but `actor_rollout_ref.model.lora_rank=0` trains the whole "
            "model. Set `actor_rollout_ref.model.lora_rank=32` (any rank above 0), or `teacher='ema'`."
        )
    megatron = _get(config, "actor_rollout_ref.model.lora.rank", 0)
    if megatron > 0 and not adapters:
        yield (
            f"`actor_rollout_ref.model.lora.rank={megatron}` is read by Megatron alone. Set "
            f"`actor_rollout_ref.model.lora_rank={megatron}`."
        )
