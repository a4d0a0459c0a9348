"""One table of what belongs to the host and not to SDPO: the same setting in TRL, verl and OpenRLHF.

`trl`, `verl` and `openrlhf` of this package read and write it. Where a host counts in other units than the table, the
column says how, and the host's module does it (`derived`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from types import MappingProxyType
from typing import Any

__all__ = ["SETTINGS", "TARGETS", "Setting"]

TARGETS = ("trl", "verl", "openrlhf")

_ACTOR = "actor_rollout_ref.actor."
_ROLLOUT = "actor_rollout_ref.rollout."
_MODEL = "actor_rollout_ref.model."


@dataclass(frozen=True)
class Setting:
    """A setting of the host.

    Args:
        name: Ours.
        meaning: For documentation and messages.
        kind: float, int, str, bool, dict, or tuple (of two numbers).
        trl: Its name in a recipe; two names with a comma for a pair; "" if it has none.
        verl: Its dotted name.
        openrlhf: Its flag, without dashes.
        words: By host: their words for values → ours.
        derived: Hosts in which it is computed from several settings; the column then says how.
    """

    name: str
    meaning: str
    kind: type
    trl: str
    verl: str
    openrlhf: str
    words: Mapping[str, Mapping[Any, Any]] = field(default_factory=dict)
    derived: tuple[str, ...] = ()

    def key(self, host: str) -> str:
        """The name in a host that says just this; "" if it has none, or if it is computed there."""
        return "" if host in self.derived else str(getattr(self, host))


_SCHEDULES = {
    "trl": {"constant": "constant", "constant_with_warmup": "constant", "cosine": "cosine", "linear": "linear"},
    "verl": {"constant": "constant", "cosine": "cosine"},
    "openrlhf": {"constant": "constant", "constant_with_warmup": "constant", "cosine": "cosine", "linear": "linear"},
}

_ROWS = (
    Setting("model", "the model", str, "model_name_or_path", _MODEL + "path", "actor.model_name_or_path"),
    Setting("learning_rate", "peak learning rate", float, "learning_rate", _ACTOR + "optim.lr", "actor.adam.lr"),
    Setting(
        "lr_schedule",
        "what the learning rate does after the warm-up",
        str,
        "lr_scheduler_type",
        _ACTOR + "optim.lr_scheduler_type",
        "actor.lr_scheduler",
        words=_SCHEDULES,
    ),
    Setting("warmup_steps", "optimizer steps of warm-up", int, "warmup_steps", _ACTOR + "optim.lr_warmup_steps", ""),
    Setting(
        "warmup_ratio",
        "warm-up as a share of all steps",
        float,
        "warmup_ratio",
        _ACTOR + "optim.lr_warmup_steps_ratio",
        "actor.lr_warmup_ratio",
    ),
    Setting(
        "weight_decay", "of AdamW", float, "weight_decay", _ACTOR + "optim.weight_decay", "actor.adam.weight_decay"
    ),
    Setting(
        "adam_betas", "β₁, β₂ of AdamW", tuple, "adam_beta1,adam_beta2", _ACTOR + "optim.betas", "actor.adam.betas"
    ),
    Setting("max_grad_norm", "gradient clip", float, "max_grad_norm", _ACTOR + "optim.clip_grad", "actor.max_norm"),
    Setting(
        "rollouts_per_question",
        "rollouts of each question",
        int,
        "num_generations",
        _ROLLOUT + "n",
        "rollout.n_samples_per_prompt",
    ),
    Setting(
        "questions_per_batch",
        "questions in a rollout batch",
        int,
        "generation_batch_size / num_generations",
        "data.train_batch_size",
        "rollout.batch_size",
        derived=("trl",),
    ),
    Setting(
        "mini_batch_size",
        "questions in one optimizer step",
        Fraction,
        "per_device_train_batch_size · gradient_accumulation_steps · processes / num_generations",
        _ACTOR + "ppo_mini_batch_size",
        "train.batch_size / rollout.n_samples_per_prompt",
        derived=("trl", "openrlhf"),
    ),
    Setting(
        "micro_batch_size",
        "rollouts of one pass on one GPU",
        int,
        "per_device_train_batch_size",
        _ACTOR + "ppo_micro_batch_size_per_gpu",
        "train.micro_batch_size",
        derived=("trl",),
    ),
    Setting(
        "passes",
        "how often a rollout batch is trained on",
        int,
        "num_iterations",
        _ACTOR + "ppo_epochs",
        "train.max_epochs",
    ),
    Setting("epochs", "passes over the data", float, "num_train_epochs", "trainer.total_epochs", "train.num_episodes"),
    Setting(
        "rollout_batches",
        "length of the run in rollout batches",
        int,
        "max_steps, which counts optimizer steps",
        "trainer.total_training_steps",
        "data.max_samples / rollout.batch_size, in one episode",
        derived=("trl", "openrlhf"),
    ),
    Setting(
        "max_prompt_length",
        "tokens of a question",
        int,
        "",
        "data.max_prompt_length",
        "data.max_len − rollout.max_new_tokens",
        derived=("openrlhf",),
    ),
    Setting(
        "max_response_length",
        "tokens of a response",
        int,
        "max_completion_length",
        "data.max_response_length",
        "rollout.max_new_tokens",
    ),
    Setting("temperature", "of the rollouts", float, "temperature", _ROLLOUT + "temperature", "rollout.temperature"),
    Setting("top_p", "of the rollouts", float, "top_p", _ROLLOUT + "top_p", "rollout.top_p"),
    Setting(
        "top_k",
        "of the rollouts; 0: all tokens",
        int,
        "top_k",
        _ROLLOUT + "top_k",
        "",
        words={"trl": {None: 0}, "verl": {-1: 0}},
    ),
    Setting(
        "kl_coefficient",
        "weight of a KL to a reference model; 0: none",
        float,
        "beta",
        f"{_ACTOR}kl_loss_coef, with use_kl_loss",
        "algo.kl.init_coef, with algo.kl.use_loss",
        derived=("verl", "openrlhf"),
    ),
    Setting(
        "clip_range",
        "lower and upper PPO clip, of the hybrid objective alone",
        tuple,
        "epsilon,epsilon_high",
        f"{_ACTOR}clip_ratio_low,{_ACTOR}clip_ratio_high",
        "actor.eps_clip_low_high",
    ),
    Setting(
        "rollout_is",
        "level at which the engine's and the trainer's probabilities are corrected",
        str,
        "vllm_importance_sampling_mode",
        "algorithm.rollout_correction.rollout_is",
        "algo.advantage.is_correction_level",
        words={"trl": {"token_truncate": "token", "sequence_truncate": "sequence"}, "openrlhf": {"token": "token"}},
    ),
    Setting(
        "rollout_is_threshold",
        "upper cut of that correction",
        float,
        "vllm_importance_sampling_clip_max",
        "algorithm.rollout_correction.rollout_is_threshold",
        "algo.advantage.is_correction_threshold",
        derived=("openrlhf",),
    ),
    Setting("advantage_clip", "clip of the per-token advantage", float, "", "", ""),
    Setting("seed", "of data and sampling", int, "seed", "data.seed", "train.seed"),
    Setting("lora_rank", "of the adapters; 0: all weights", int, "lora_r", _MODEL + "lora_rank", "ds.lora.rank"),
    Setting("lora_alpha", "scale of the adapters", int, "lora_alpha", _MODEL + "lora_alpha", "ds.lora.alpha"),
    Setting(
        "gradient_checkpointing",
        "recompute activations",
        bool,
        "gradient_checkpointing",
        _MODEL + "enable_gradient_checkpointing",
        "actor.gradient_checkpointing_enable",
    ),
    Setting(
        "vllm_memory",
        "vLLM's share of a GPU",
        float,
        "vllm_gpu_memory_utilization",
        _ROLLOUT + "gpu_memory_utilization",
        "vllm.gpu_memory_utilization",
    ),
    Setting(
        "tensor_parallel",
        "GPUs of one vLLM engine",
        int,
        "vllm_tensor_parallel_size",
        _ROLLOUT + "tensor_model_parallel_size",
        "vllm.tensor_parallel_size",
    ),
    Setting(
        "chat_template_kwargs",
        "more arguments of the chat template",
        dict,
        "chat_template_kwargs",
        "data.apply_chat_template_kwargs",
        "",
    ),
    Setting(
        "scorer",
        "a scorer of `sdpo list`, which gives rewards and feedback",
        str,
        "scorer",
        "reward.custom_reward_function.name",
        "sdpo.scorer",
        derived=("verl",),
    ),
    Setting(
        "scorer_options",
        "its options",
        dict,
        "scorer_options",
        "reward.custom_reward_function.reward_kwargs",
        "sdpo.scorer_options",
        derived=("verl",),
    ),
    Setting(
        "gpus",
        "processes that train, each on a GPU",
        int,
        "of `accelerate launch`",
        "trainer.n_gpus_per_node · trainer.nnodes",
        "actor.num_gpus_per_node · actor.num_nodes",
        derived=("trl", "verl", "openrlhf"),
    ),
    Setting("output", "folder of checkpoints", str, "output_dir", "trainer.default_local_dir", "ckpt.output_dir"),
)

SETTINGS: Mapping[str, Setting] = MappingProxyType({row.name: row for row in _ROWS})
