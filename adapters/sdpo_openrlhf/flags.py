"""What a flag that does not exist was meant to be: older releases' names, names without their group, misspellings."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping
from types import MappingProxyType

__all__ = ["RENAMED", "suggestion", "unknown_flags"]

RENAMED: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "actor_learning_rate": ("--actor.adam.lr",),
        "critic_learning_rate": ("--critic.adam.lr",),
        "learning_rate": ("--actor.adam.lr",),
        "lr": ("--actor.adam.lr",),
        "actor.lr": ("--actor.adam.lr",),
        "critic.lr": ("--critic.adam.lr",),
        "adam_betas": ("--actor.adam.betas",),
        "l2": ("--actor.adam.weight_decay",),
        "lr_scheduler": ("--actor.lr_scheduler",),
        "lr_warmup_ratio": ("--actor.lr_warmup_ratio",),
        "max_norm": ("--actor.max_norm",),
        "pretrain": ("--actor.model_name_or_path",),
        "reward_pretrain": ("--reward.model_name_or_path",),
        "critic_pretrain": ("--critic.model_name_or_path",),
        "remote_rm_url": ("--reward.remote_url",),
        "ref_reward_offload": ("--ref.offload", "--reward.offload"),
        "prompt_data": ("--data.prompt_dataset",),
        "prompt_data_probs": ("--data.prompt_probs",),
        "prompt_max_len": ("--data.max_len",),
        "generate_max_len": ("--rollout.max_new_tokens",),
        "n_samples_per_prompt": ("--rollout.n_samples_per_prompt",),
        "temperature": ("--rollout.temperature",),
        "micro_train_batch_size": ("--train.micro_batch_size",),
        "micro_rollout_batch_size": ("--rollout.micro_batch_size",),
        "init_kl_coef": ("--algo.kl.init_coef",),
        "use_kl_loss": ("--algo.kl.use_loss",),
        "kl_estimator": ("--algo.kl.estimator",),
        "advantage_estimator": ("--algo.advantage.estimator",),
        "no_advantage_std_norm": ("--algo.advantage.no_std_norm",),
        "dynamic_filtering": ("--algo.dynamic_filtering_enable",),
        "dynamic_filtering_reward_range": ("--algo.dynamic_filtering_range",),
        "entropy_loss_coef": ("--actor.entropy_coef",),
        "colocate_all_models": ("--train.colocate_all",),
        "async_train": ("--train.async_enable",),
        "use_dynamic_batch": ("--train.dynamic_batch_enable",),
        "full_determinism": ("--train.full_determinism_enable",),
        "partial_rollout": ("--train.partial_rollout_enable",),
        "gradient_checkpointing": ("--actor.gradient_checkpointing_enable",),
        "gradient_checkpointing_use_reentrant": ("--actor.gradient_checkpointing_reentrant",),
        "freezing_actor_steps": ("--critic.freezing_steps",),
        "normalize_reward": ("--reward.normalize_enable",),
        "deepspeed_enable_sleep": ("--ds.enable_sleep",),
        "flash_attn": ("--ds.attn_implementation flash_attention_2",),
        "bf16": ("--ds.param_dtype bf16",),
        "fp16": ("--ds.param_dtype fp16",),
        "ring_head_stride": ("--ds.ring_attn_head_stride",),
        "target_modules": ("--ds.lora.target_modules",),
        "use_ds_universal_ckpt": ("--ds.use_universal_ckpt",),
        "save_path": ("--ckpt.output_dir",),
        "save_hf_ckpt": ("--ckpt.save_hf",),
        "disable_ds_ckpt": ("--ckpt.disable_ds",),
        "load_checkpoint": ("--ckpt.load_enable",),
        "max_ckpt_num": ("--ckpt.max_num",),
        "max_ckpt_mem": ("--ckpt.max_mem",),
        "use_wandb": ("--logger.wandb.key",),
        "use_tensorboard": ("--logger.tensorboard_dir",),
        # Before 0.11.2 one flag turned the correction of rollouts on and another named its kind; since then a level
        # and a mode say both. The first of each that this release has is shown.
        "enable_vllm_is_correction": (
            "--algo.advantage.is_correction_level token",
            "--algo.advantage.is_correction_enable",
        ),
        "use_icepop": ("--algo.advantage.is_correction_mode mask", "--algo.advantage.is_correction_type icepop"),
        "vllm_is_truncated_threshold": ("--algo.advantage.is_correction_threshold",),
        "algo.advantage.is_correction_enable": ("--algo.advantage.is_correction_level token",),
        "algo.advantage.is_correction_type": ("--algo.advantage.is_correction_mode",),
        "algo.advantage.is_correction_level": ("--algo.advantage.is_correction_enable",),
        "algo.advantage.is_correction_mode": ("--algo.advantage.is_correction_type",),
    }
)
"""Names of earlier and later releases, without dashes → what says the same in another release."""

_BOTH = frozenset({"ref_reward_offload"})
_ALIKE = 0.45  # share of words in common from which on a flag is worth naming


def unknown_flags(rest: Collection[str], known: Collection[str]) -> list[str]:
    """Say what each word was meant to be that the parser had no use for.

    Args:
        rest: Words left over, in their order.
        known: All flags of this release, with their dashes.

    Returns:
        One sentence for each flag; values behind an unknown flag are not named again.

    Example:
        >>> unknown_flags(["--pretrain", "Qwen/Qwen3-8B"], ["--actor.model_name_or_path"])
        ['There is no flag `--pretrain`. Here it is `--actor.model_name_or_path`.']
    """
    problems = []
    after_flag = False
    for word in rest:
        if word.startswith("--"):
            flag = word.partition("=")[0]
            problems.append(f"There is no flag `{flag}`.{suggestion(flag, known)}")
            after_flag = True
        elif not after_flag:
            problems.append(f"{word!r} belongs to no flag. Flags are written `--group.name value`.")
    return problems


def suggestion(flag: str, known: Collection[str]) -> str:
    """Return what a flag is called in this release, or the flag most like it, as a sentence.

    Args:
        flag: What the user wrote, with its dashes.
        known: All flags of this release.

    Returns:
        The sentence with a leading space, or where nothing is alike the way to the list of flags.

    Example:
        >>> suggestion("--lora_rank", ["--ds.lora.rank", "--ds.lora.alpha"])
        ' Did you mean `--ds.lora.rank`?'
    """
    name = flag.lstrip("-").replace("-", "_")
    if f"--{name}" in known:
        return f" Did you mean `--{name}`?"
    there = [text for text in RENAMED.get(name, ()) if text.partition(" ")[0] in known]
    if there:
        return f" Here it is `{'` and `'.join(there if name in _BOTH else there[:1])}`."
    spelt = difflib.get_close_matches(f"--{name}", list(known), n=1, cutoff=0.8)
    close = _same_end(name, known) or spelt or _same_words(name, known)
    if close:
        return f" Did you mean `{'` or `'.join(close)}`?"
    return " `--help` lists all flags."


def _same_end(name: str, known: Collection[str]) -> list[str]:
    """Return the flags that are this name with a group before it, three at most."""
    ends = [flag for flag in known if f".{flag.lstrip('-').replace('.', '_')}".endswith((f".{name}", f"_{name}"))]
    return sorted(ends, key=len)[:3]


def _same_words(name: str, known: Collection[str]) -> list[str]:
    """Return the flags that share most words with a name, two at most."""
    words = _words(name)
    shares = {flag: len(words & _words(flag)) / len(words | _words(flag)) for flag in known}
    best = max(shares.values(), default=0.0)
    return [flag for flag, share in shares.items() if share == best][:2] if best >= _ALIKE else []


def _words(name: str) -> set[str]:
    return set(re.split(r"[._]", name.lstrip("-").lower()))
