"""What is refused before the first step."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence
from typing import Any

from datasets import Dataset
from torch import nn

from sdpo_plugins.config import SDPOConfig
from sdpo_plugins.errors import ConfigError, DataError, HostError, nearest
from sdpo_plugins.reprompt import check_prompts

__all__ = [
    "argument_problems",
    "check_dataset",
    "check_in_memory",
    "check_model",
    "check_probe",
    "check_prompts_of",
    "check_reward_name",
    "warn_of_idle_arguments",
]

# Options of GRPO's policy loss that would silently do nothing once SDPO's loss stands in its place: name, value that
# means "off", what to do.
_POLICY_ONLY = (
    ("entropy_coef", (0.0, None)),
    ("use_adaptive_entropy", (False,)),
    ("top_entropy_quantile", (1.0,)),
    ("off_policy_mask_threshold", (None,)),
    ("delta", (None,)),
)

# Shape of GRPO's policy loss and of its advantages: whoever comes from a GRPO run has them, and loses nothing but their
# effect.
_POLICY_SHAPE = (
    "loss_type",
    "epsilon",
    "epsilon_high",
    "importance_sampling_level",
    "scale_rewards",
    "multi_objective_aggregation",
    "sapo_temperature_neg",
    "sapo_temperature_pos",
    "vespo_k_pos",
    "vespo_lambda_pos",
    "vespo_k_neg",
    "vespo_lambda_neg",
)


def argument_problems(args: Any, config: SDPOConfig) -> list[str]:
    """Say which training arguments SDPO cannot honour; empty if all is well.

    Args:
        args: A `GRPOConfig`.
        config: The SDPO options.
    """
    problems = []
    if getattr(args, "use_liger_loss", False) or (
        getattr(args, "use_liger_kernel", False) and getattr(args, "loss_type", "") == "liger"
    ):
        problems.append("`use_liger_loss=True` computes GRPO's loss in one kernel that SDPO cannot enter; turn it off.")
    if config.grpo_weight == 0.0:
        for name, off in _POLICY_ONLY:
            value = getattr(args, name, off[0])
            if value not in off:
                problems.append(
                    f"`{name}={value!r}` belongs to GRPO's policy loss, which SDPO replaces (grpo_weight=0). Leave it "
                    f"at {off[0]!r}, or set `grpo_weight` above 0 for the hybrid objective."
                )
    return problems


def warn_of_idle_arguments(args: Any, config: SDPOConfig) -> None:
    """Warn of training arguments that were set for GRPO's policy loss and do nothing in SDPO's.

    Args:
        args: A `GRPOConfig`.
        config: The SDPO options.
    """
    if config.grpo_weight > 0.0:
        return
    defaults = {item.name: item.default for item in dataclasses.fields(args)}
    idle = [
        f"{name}={getattr(args, name)!r}"
        for name in _POLICY_SHAPE
        if name in defaults and getattr(args, name) != defaults[name]
    ]
    if idle:
        warnings.warn(
            f"{', '.join(idle)}: no effect, as SDPO's loss replaces GRPO's policy loss (grpo_weight=0). See "
            "`loss_agg_mode` and `is_clip` of SDPOConfig, or set `grpo_weight` for the hybrid objective.",
            stacklevel=4,
        )


def check_reward_name(config: SDPOConfig, names: Sequence[str]) -> None:
    """Refuse a `success_reward_name` that no reward function has, or more than one."""
    wanted = config.success_reward_name
    if wanted is not None and names.count(wanted) > 1:
        raise ConfigError(
            f"`success_reward_name` is {wanted!r}, but {names.count(wanted)} reward functions are named {wanted!r}. "
            "Give each a name of its own (`def`, or `__name__`)."
        )
    if wanted is not None and wanted not in names:
        raise ConfigError(
            f"`success_reward_name` is {wanted!r}, but the reward functions are {', '.join(map(repr, names))}."
            f"{nearest(wanted, names)}"
        )


def check_probe(every: int, *, tools: bool, environments: bool, images: bool, vllm: bool) -> None:
    """Refuse to measure the teacher's accuracy where it cannot answer, or where one plain answer says nothing of it.

    The teacher's weights only ever stand in the trainer's own model, so an engine of its own cannot write for it.
    """
    present = {"tools": tools, "environments": environments, "a vision-language model": images, "vLLM": vllm}
    found = [name for name, there in present.items() if there]
    if every > 0 and found:
        raise ConfigError(
            f"`teacher_accuracy_every={every}` lets the teacher write one plain answer to each question, and cannot do "
            f"so with {' and '.join(found)}. Set it to 0."
        )


def check_dataset(dataset: Any, *, prompts_needed: bool = True) -> None:
    """Refuse an empty training set, or one without prompts.

    Args:
        dataset: A dataset, or a stream of which the first row is read.
        prompts_needed: False where environments bring the prompts.
    """
    # A row, not the column names: a transform may make the prompt only when the row is read.
    first = next(iter(dataset), None)
    if first is None:
        raise DataError(
            f"The training set is empty (columns {dataset.column_names}). Pass at least one row with a `prompt`."
        )
    if prompts_needed and "prompt" not in first:
        raise DataError(f"The training set has no column `prompt`; its columns are {list(first)}. Rename or add it.")


def check_in_memory(model: nn.Module) -> None:
    """Refuse a model some of whose weights are not in memory."""
    absent = [name for name, parameter in model.named_parameters() if parameter.device.type == "meta"]
    if absent:
        raise HostError(
            f"{len(absent)} of the model's weights are not in memory (first: {absent[0]}), as after loading with a "
            "device map that offloads to disk. Training and the teacher need them all: load the model without offload."
        )


def check_model(model: nn.Module, tokenizer: Any) -> None:
    """Refuse a model that is not in memory, or that has no embedding for some of the tokenizer's tokens."""
    check_in_memory(model)
    embeddings = getattr(model, "get_input_embeddings", lambda: None)()
    rows = getattr(embeddings, "num_embeddings", None)
    largest = max(tokenizer.get_vocab().values(), default=-1)
    if rows is not None and rows > 0 and largest >= rows:
        raise DataError(
            f"The tokenizer has token ids up to {largest}, but the model has only {rows} embeddings. They do not "
            "belong together; load both from the same checkpoint, or call `model.resize_token_embeddings`."
        )


def check_prompts_of(dataset: Any, tokenizer: Any, config: SDPOConfig | None, chat_template: str | None) -> None:
    """Refuse prompts that SDPO cannot put a teacher context behind.

    Args:
        dataset: A dataset with a `prompt` column. Of a large one the first rows are read, of a stream the first; every
            prompt is checked again when its turn comes.
        tokenizer: Only read.
        config: The SDPO options; None: lengths are not looked at.
        chat_template: The trainer's own template, or None for the tokenizer's.
    """
    if isinstance(dataset, Dataset) and "prompt" in dataset.column_names:
        rows = list(dataset.select(range(min(len(dataset), _ROWS_READ)))["prompt"])
    else:
        rows = [next(iter(dataset))["prompt"]]
    for notice in check_prompts(rows, tokenizer, config, chat_template=chat_template):
        warnings.warn(notice, stacklevel=4)


_ROWS_READ = 512
