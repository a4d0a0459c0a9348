"""Host settings in OpenRLHF's flags."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sdpo_plugins.conversion.hosts import Written, batch_shape, whole_number, write_by_name
from sdpo_plugins.conversion.values import Found

__all__ = ["write_openrlhf"]

_CORRECTION = "algo.advantage.is_correction_"


def write_openrlhf(settings: Mapping[str, Found], gpus: int) -> Written:
    """Say settings in OpenRLHF's flags, with what a run on one node needs beside them.

    Args:
        settings: By our names.
        gpus: GPUs of the one node, which DeepSpeed and vLLM share in turn.

    Returns:
        Flags without dashes, and what could not be said. True stands for a flag without a value.
    """
    written = write_by_name(settings, "openrlhf")
    pairs, notes = written.pairs, written.notes
    rollouts = settings["rollouts_per_question"].value if "rollouts_per_question" in settings else None
    shape = batch_shape(settings, rollouts or 1)
    if shape is not None:
        rollouts = rollouts or 8
        pairs["rollout.n_samples_per_prompt"] = rollouts
        batch, mini = shape
        written.put("questions_per_batch", {"rollout.batch_size": int(batch)})
        count = whole_number("mini_batch_size", mini * rollouts, "rollouts", notes)
        written.put("mini_batch_size", {"train.batch_size": count})
    pairs.setdefault("train.micro_batch_size", 1)
    # OpenRLHF's pass for old log-probabilities holds float32 logits of whole sequences.
    pairs["rollout.micro_batch_size"] = pairs["train.micro_batch_size"]
    share, step = pairs["train.micro_batch_size"] * gpus, pairs.get("train.batch_size")
    if step is not None and step % share:
        notes.append(
            f"`--train.batch_size {step}` is no multiple of {gpus} GPUs times `--train.micro_batch_size` "
            f"{pairs['train.micro_batch_size']}: change one of them."
        )
    _lengths(written, settings)
    _epochs(written, settings)
    weight = settings.get("kl_coefficient")
    if weight is not None:
        used = {"algo.kl.use_loss": True} if weight.value > 0 else {}
        written.put("kl_coefficient", {"algo.kl.init_coef": weight.value, **used})
    threshold = settings.get("rollout_is_threshold")
    if pairs.get(_CORRECTION + "level") == "token":
        cut = threshold.value if threshold is not None else 2.0
        pairs[_CORRECTION + "mode"] = "clip"
        written.put("rollout_is_threshold", {_CORRECTION + "threshold": (0.0, cut)})
    warmup = settings.get("warmup_steps")
    if warmup is not None and warmup.value == 0:
        notes[:] = [note for note in notes if not note.startswith("`warmup_steps`")]
        pairs.setdefault("actor.lr_warmup_ratio", 0.0)
    if pairs.get("actor.lr_scheduler") == "constant" and pairs.get("actor.lr_warmup_ratio") != 0.0:
        pairs["actor.lr_scheduler"] = "constant_with_warmup"
    if pairs.get("actor.gradient_checkpointing_enable") is False:
        del pairs["actor.gradient_checkpointing_enable"]
    written.put("gpus", {"actor.num_nodes": 1, "actor.num_gpus_per_node": gpus})
    parallel = pairs.setdefault("vllm.tensor_parallel_size", 1)
    pairs |= _SHARED | {"vllm.num_engines": max(gpus // parallel, 1)}
    return written


# All GPUs belong to both: while one works, the other's states are out of the way.
_SHARED: dict[str, Any] = {"train.colocate_all": True, "vllm.enable_sleep": True, "ds.enable_sleep": True}


def _lengths(written: Written, settings: Mapping[str, Found]) -> None:
    question, answer = settings.get("max_prompt_length"), settings.get("max_response_length")
    if question is not None and answer is not None:
        written.put("max_prompt_length", {"data.max_len": question.value + answer.value})
    elif answer is not None:
        # OpenRLHF's data.max_len, 2048, holds question and answer together.
        written.pairs["data.max_len"] = max(2048, answer.value + 1024)
    elif question is not None:
        written.lacks("max_prompt_length", question, "`--data.max_len` is the sum with the longest response.")


def _epochs(written: Written, settings: Mapping[str, Found]) -> None:
    batches, batch = settings.get("rollout_batches"), written.pairs.get("rollout.batch_size")
    if batches is not None and batch is not None:
        written.put("rollout_batches", {"data.max_samples": batches.value * batch, "train.num_episodes": 1})
        written.notes.append(
            f"`rollout_batches` = {batches.value} became the first {batches.value * batch} questions once: data with "
            "fewer questions need more `--train.num_episodes`."
        )
    elif "epochs" in settings:
        value = whole_number("epochs", settings["epochs"].value, "epochs", written.notes)
        written.put("epochs", {"train.num_episodes": value})
