"""Host settings in verl's configuration: dotted names, from YAML or from Hydra overrides."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sdpo_plugins.conversion.documents import Given
from sdpo_plugins.conversion.hosts import (
    Read,
    Written,
    batch_shape,
    place_of,
    positive,
    read_by_name,
    whole_number,
    without,
    write_by_name,
)
from sdpo_plugins.conversion.settings import SETTINGS
from sdpo_plugins.conversion.values import Found

__all__ = ["SCORERS", "SECTION", "kept", "needed", "plain_names", "read_verl", "write_verl"]

SECTION = "actor_rollout_ref.actor.self_distillation"
SCORERS = "pkg://sdpo_plugins.feedback.verl"

_ACTOR = "actor_rollout_ref.actor."
_REWARD = "reward.custom_reward_function."
_KL = (_ACTOR + "use_kl_loss", _ACTOR + "kl_loss_coef")
_GPUS = ("trainer.n_gpus_per_node", "trainer.nnodes")
# The authors' fork names the clip of gradients differently, and older releases the reward function.
_OLD = {
    _ACTOR + "grad_clip": _ACTOR + "optim.clip_grad",
    "custom_reward_function.path": _REWARD + "path",
    "custom_reward_function.name": _REWARD + "name",
}
_MAPPINGS = ("data.apply_chat_template_kwargs", _REWARD + "reward_kwargs")
_KNOWN = (
    *(_REWARD + part for part in ("path", "name")),
    *("reward.reward_manager." + part for part in ("source", "name", "module.path")),
    *_KL,
    *_GPUS,
)
_DATA = "data are in each host's own format: `sdpo data NAME --host HOST` writes them."
_REASONS = {
    "data.train_files": _DATA,
    "data.val_files": _DATA,
    _REWARD + "path": "it has verl's form: write one of the target's, or use a scorer of `sdpo list`.",
    _REWARD + "name": "it belongs to the reward function.",
    "algorithm.adv_estimator": "SDPO's adapters set the estimator of the hybrid objective themselves.",
    "actor_rollout_ref.rollout.name": "each host has engines of its own.",
}


def read_verl(given: Mapping[str, Given]) -> Read:
    """Read verl's settings.

    Args:
        given: By dotted names, without SDPO's own section.

    Returns:
        Settings, problems, and what has no counterpart.
    """
    named = {_OLD.get(name, name): one for name, one in given.items()}
    read = read_by_name({name: one for name, one in named.items() if name not in (*_KL, *_GPUS)}, "verl")
    if any(name in named for name in _KL):
        used, weight = (named[name].value if name in named else None for name in _KL)
        where = next(named[name] for name in _KL if name in named)
        value = float(weight if isinstance(weight, (int, float)) else 0.001) if used is True else 0.0
        read.settings["kl_coefficient"] = Found(
            value, place_of(where), ", ".join(name for name in _KL if name in named)
        )
    if _GPUS[0] in named:
        numbers = [named[name].value if name in named else 1 for name in _GPUS]
        if all(isinstance(one, int) and one > 0 for one in numbers):
            written = ", ".join(name for name in _GPUS if name in named)
            read.settings["gpus"] = Found(numbers[0] * numbers[1], place_of(named[_GPUS[0]]), written)
    _scorer(read, named)
    positive(read, ("rollouts_per_question", "questions_per_batch", "mini_batch_size", "passes", "max_response_length"))
    for name, off in (("warmup_steps", -1), ("rollout_batches", -1)):
        if name in read.settings and read.settings[name].value == off:
            del read.settings[name]  # verl's word for "not set"
    without(read, _REASONS)
    return read


def _scorer(read: Read, named: Mapping[str, Given]) -> None:
    place, name, options = (named.get(_REWARD + part) for part in ("path", "name", "reward_kwargs"))
    inner = {
        key.removeprefix(_REWARD + "reward_kwargs."): one.value
        for key, one in named.items()
        if key.startswith(_REWARD + "reward_kwargs.")
    }
    kwargs = inner or (dict(options.value) if options is not None and isinstance(options.value, Mapping) else {})
    if place is None or place.value != SCORERS or name is None:
        return
    chosen = kwargs.pop("scorer", None) if name.value == "compute_score" else name.value
    if not isinstance(chosen, str):
        return
    for key in [key for key in read.rest if key.startswith((_REWARD, "reward.reward_manager."))]:
        del read.rest[key]
    read.settings["scorer"] = Found(chosen, place_of(name), _REWARD + "name")
    if kwargs:
        read.settings["scorer_options"] = Found(kwargs, place_of(options or name), _REWARD + "reward_kwargs")


def kept(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Return entries of one verl for another: old names renewed, the entries of a mapping together."""
    found: dict[str, Any] = {}
    for name, value in raw.items():
        whole = next((key for key in _MAPPINGS if name.startswith(key + ".")), "")
        if whole:
            found.setdefault(whole, {})[name.removeprefix(whole + ".")] = value
        else:
            found[_OLD.get(name, name)] = value
    return found


def plain_names() -> frozenset[str]:
    """Return names that verl's own files have: an override of another one needs Hydra's `++`."""
    of_table = {name for row in SETTINGS.values() for name in row.key("verl").split(",") if row.kind is not dict}
    return frozenset(of_table) | frozenset(needed()) | frozenset(_KNOWN)


def write_verl(settings: Mapping[str, Found], gpus: int) -> Written:
    """Say settings in verl's words, with what a run needs beside them.

    Args:
        settings: By our names.
        gpus: GPUs of the one node.

    Returns:
        Dotted names and values, and what could not be said.
    """
    written = write_by_name(settings, "verl")
    pairs, notes = written.pairs, written.notes
    shape = batch_shape(settings, 1)
    if shape is not None:
        batch, mini = shape
        written.put("questions_per_batch", {"data.train_batch_size": int(batch)})
        count = min(whole_number("mini_batch_size", mini, "questions", notes), int(batch))
        written.put("mini_batch_size", {_ACTOR + "ppo_mini_batch_size": count})
    if "epochs" in settings:
        pairs["trainer.total_epochs"] = whole_number("epochs", settings["epochs"].value, "epochs", notes)
    weight = settings.get("kl_coefficient")
    if weight is not None:
        written.put(
            "kl_coefficient", {_KL[0]: weight.value > 0, **({_KL[1]: weight.value} if weight.value > 0 else {})}
        )
    micro = settings["micro_batch_size"].value if "micro_batch_size" in settings else 1
    written.pairs = pairs = needed(micro) | pairs
    written.put("gpus", {"trainer.nnodes": 1, "trainer.n_gpus_per_node": gpus})
    if "scorer" in settings:
        written.put("scorer", _reward(settings))
    if pairs.get(_ACTOR + "optim.lr_warmup_steps_ratio") == 0.0:
        del pairs[_ACTOR + "optim.lr_warmup_steps_ratio"]
    return written


def needed(micro: int = 1) -> dict[str, Any]:
    """What verl asks for and SDPO's sources do not say; all of it may be said otherwise.

    Args:
        micro: Rollouts of one pass on one GPU.

    Returns:
        Dotted names and values.
    """
    return {
        "actor_rollout_ref.rollout.name": "vllm",
        "actor_rollout_ref.rollout.tensor_model_parallel_size": 1,
        "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu": micro,
        "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu": micro,
        _ACTOR + "ppo_micro_batch_size_per_gpu": micro,
        "data.filter_overlong_prompts": True,
    }


def _reward(settings: Mapping[str, Found]) -> dict[str, Any]:
    options = settings["scorer_options"].value if "scorer_options" in settings else {}
    return {
        _REWARD + "path": SCORERS,
        _REWARD + "name": settings["scorer"].value,
        **({_REWARD + "reward_kwargs": options} if options else {}),
        # verl's own manager, which also says which answers were cut off.
        "reward.reward_manager.source": "importlib",
        "reward.reward_manager.name": "CutOffRewardManager",
        "reward.reward_manager.module.path": "pkg://sdpo_verl.rewards",
    }
