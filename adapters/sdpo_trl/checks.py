"""What is refused before the first step."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from datasets import Dataset
from torch import nn

from sdpo_plugins.config import SDPOConfig
from sdpo_plugins.errors import ConfigError, DataError, HostError, nearest
from sdpo_plugins.reprompt import check_prompts

__all__ = ["argument_problems", "check_dataset", "check_model", "check_prompts_of", "check_reward_name"]

# Options of GRPO's policy loss that would silently do nothing once SDPO's loss stands in its place: name, value that
# means "off", what to do.
_POLICY_ONLY = (
    ("entropy_coef", (0.0, None)),
    ("use_adaptive_entropy", (False,)),
    ("top_entropy_quantile", (1.0,)),
    ("off_policy_mask_threshold", (None,)),
    ("delta", (None,)),
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


def check_dataset(dataset: Any, *, needed: bool = True) -> None:
    """Refuse a missing or empty training set."""
    if dataset is None:
        if needed:
            raise DataError("`train_dataset` is missing: pass a dataset with a `prompt` column.")
        return
    if isinstance(dataset, Dataset) and len(dataset) == 0:
        raise DataError(
            f"The training set is empty (columns {dataset.column_names}). Pass at least one row with a `prompt`."
        )


def check_model(model: nn.Module, tokenizer: Any) -> None:
    """Refuse a model whose weights are not in memory, or that has no embedding for some of the tokenizer's tokens."""
    absent = [name for name, parameter in model.named_parameters() if parameter.device.type == "meta"]
    if absent:
        raise HostError(
            f"{len(absent)} of the model's weights are not in memory (first: {absent[0]}), as after loading with a "
            "device map that offloads to disk. Training and the teacher need them all: load the model without offload."
        )
    embeddings = getattr(model, "get_input_embeddings", lambda: None)()
    rows = getattr(embeddings, "num_embeddings", None)
    largest = max(tokenizer.get_vocab().values(), default=-1)
    if rows is not None and rows > 0 and largest >= rows:
        raise DataError(
            f"The tokenizer has token ids up to {largest}, but the model has only {rows} embeddings. They do not "
            "belong together; load both from the same checkpoint, or call `model.resize_token_embeddings`."
        )


def check_prompts_of(dataset: Any, tokenizer: Any, config: SDPOConfig, chat_template: str | None) -> None:
    """Refuse prompts that SDPO cannot put a teacher context behind.

    Args:
        dataset: A dataset with a `prompt` column. Of a large one the first rows are read; every prompt is checked again
            when its turn comes.
        tokenizer: Only read.
        config: The SDPO options.
        chat_template: The trainer's own template, or None for the tokenizer's.
    """
    if not isinstance(dataset, Dataset) or "prompt" not in dataset.column_names:
        return
    rows = dataset.select(range(min(len(dataset), _ROWS_READ)))["prompt"]
    for notice in check_prompts(list(rows), tokenizer, config, chat_template=chat_template):
        warnings.warn(notice, stacklevel=4)


_ROWS_READ = 512
