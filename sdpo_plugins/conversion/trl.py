"""Host settings of a recipe for TRL: what `sdpo train` reads, and TRL's `GRPOConfig`."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction

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
from sdpo_plugins.conversion.values import Found, converted

__all__ = ["RECIPE_KEYS", "TRL_KEYS", "read_trl", "write_trl"]

RECIPE_KEYS = (
    "host",
    "task",
    "dataset_name",
    "dataset_config",
    "dataset_split",
    "reward_functions",
    "scorer",
    "scorer_options",
    "teacher_accuracy_every",
)
"""What a recipe has beside TRL's arguments and SDPO's options."""

_BATCH = ("per_device_train_batch_size", "gradient_accumulation_steps", "generation_batch_size", "steps_per_generation")
_COUNTS = (*_BATCH, "max_steps")

TRL_KEYS = frozenset(
    {*(key for row in SETTINGS.values() for key in row.key("trl").split(",") if key), *_COUNTS, "use_peft", "use_vllm"}
)
"""Names of TRL's arguments that tell a recipe from a file of SDPO's options alone."""

_DATA = "data are in each host's own format: `sdpo data NAME --host HOST` writes them."
_REASONS = {
    "host": "the target is the host.",
    "task": "tasks of the embedded model run on TRL alone; name data and a scorer.",
    "dataset_name": _DATA,
    "dataset_config": _DATA,
    "dataset_split": _DATA,
    "reward_functions": "they have TRL's form: write one of the host's, or use a scorer of `sdpo list`.",
    "teacher_accuracy_every": "the TRL adapter alone measures it.",
    "use_vllm": "verl and OpenRLHF always sample with vLLM.",
    "bf16": "each host has a precision of its own; look at the target's.",
    "remove_unused_columns": "it concerns TRL's data alone.",
    "optim": "the hosts' optimizer is AdamW.",
    "report_to": "each host has loggers of its own.",
}
_DEVICE_BATCH, _STEPS = 8, 1


def read_trl(given: Mapping[str, Given], gpus: int) -> Read:
    """Read TRL's arguments.

    Args:
        given: By TRL's names.
        gpus: Processes of the run, which TRL's arguments do not say.

    Returns:
        Settings, problems, and what has no counterpart.
    """
    counts = {name: given[name] for name in _COUNTS if name in given and given[name].value is not None}
    read = read_by_name({name: one for name, one in given.items() if name not in _COUNTS}, "trl")
    settings = read.settings
    if settings.get("lora_rank") and not getattr(given.get("use_peft"), "value", False):
        for name in ("lora_rank", "lora_alpha"):
            if name in settings:
                read.rest[settings.pop(name).written] = "it has no effect without `use_peft: true`."
    read.rest.pop("use_peft", None)
    positive(read, ("rollouts_per_question", "passes", "max_response_length"))
    numbers: dict[str, int] = {}
    for name, one in counts.items():
        try:
            numbers[name] = converted(SETTINGS["passes"], one.value)
        except ValueError as problem:
            read.problems.append(f"`{name}` ({place_of(one)}) {problem}.")
            continue
        if numbers[name] < 1 and name != "max_steps":
            read.problems.append(f"`{name}` ({place_of(one)}) must be at least 1, got {numbers[name]}.")
    if read.problems:
        return read
    settings["gpus"] = Found(gpus, "--gpus")
    _batches(read, counts, numbers, gpus)
    without(read, _REASONS)
    return read


def _batches(read: Read, counts: Mapping[str, Given], numbers: Mapping[str, int], gpus: int) -> None:
    rollouts = read.settings["rollouts_per_question"].value if "rollouts_per_question" in read.settings else 8
    said = [name for name in _BATCH if name in counts]
    origin = place_of(counts[said[0]]) if said else "TRL's default"
    device, accumulation = numbers.get(_BATCH[0], _DEVICE_BATCH), numbers.get(_BATCH[1], _STEPS)
    step = device * accumulation * gpus
    batch = numbers.get("generation_batch_size") or device * gpus * numbers.get("steps_per_generation", accumulation)
    if batch % rollouts:
        read.problems.append(
            f"A rollout batch of {batch} rollouts is no multiple of `num_generations` = {rollouts}; TRL refuses that. "
            f"Say with --gpus on how many GPUs the run goes, here {gpus}."
        )
        return
    put = read.settings.__setitem__
    put("questions_per_batch", Found(batch // rollouts, origin, ", ".join(said)))
    put("mini_batch_size", Found(Fraction(step, rollouts), origin, ", ".join(said)))
    put("micro_batch_size", Found(device, origin, _BATCH[0] if _BATCH[0] in said else ""))
    steps = numbers.get("max_steps", -1)
    if steps > 0:
        passes = read.settings["passes"].value if "passes" in read.settings else 1
        batches = Fraction(steps * step, batch * passes)
        put("rollout_batches", Found(-(-batches // 1), place_of(counts["max_steps"]), "max_steps"))


def write_trl(settings: Mapping[str, Found], gpus: int) -> Written:
    """Say settings in TRL's arguments.

    Args:
        settings: By our names.
        gpus: Processes of the run.

    Returns:
        Entries of a recipe, and what could not be said.
    """
    written = write_by_name(settings, "trl")
    pairs = written.pairs
    rollouts = settings["rollouts_per_question"].value if "rollouts_per_question" in settings else 8
    shape = batch_shape(settings, rollouts)
    micro = settings.get("micro_batch_size")
    if shape is not None:
        batch, mini = shape
        step = whole_number("mini_batch_size", mini * rollouts, "rollouts", written.notes)
        each, lost = divmod(step, gpus)
        if lost:
            written.notes.append(
                f"An optimizer step of {step} rollouts cannot be shared by {gpus} GPUs; it became {(each + 1) * gpus}."
            )
            each += 1
        device = _divisor(each, micro.value if micro else _DEVICE_BATCH)
        written.put(
            "mini_batch_size", {"per_device_train_batch_size": device, "gradient_accumulation_steps": each // device}
        )
        written.became["micro_batch_size"] = "per_device_train_batch_size"
        whole = int(batch * rollouts)
        if whole != each * gpus:
            written.put("questions_per_batch", {"generation_batch_size": whole})
        else:
            written.became["questions_per_batch"] = "per_device_train_batch_size, gradient_accumulation_steps"
        if "rollout_batches" in settings:
            passes = settings["passes"].value if "passes" in settings else 1
            steps = Fraction(settings["rollout_batches"].value * whole * passes, each * gpus)
            written.put("rollout_batches", {"max_steps": whole_number("max_steps", steps, "steps", written.notes)})
    elif micro is not None:
        written.put("micro_batch_size", {"per_device_train_batch_size": micro.value})
    if pairs.get("lora_r") == 0:
        del pairs["lora_r"]
        pairs.pop("lora_alpha", None)
    elif "lora_r" in pairs:
        pairs["use_peft"] = True
    written.became["gpus"] = "accelerate launch"
    warmup = settings.get("warmup_steps")
    if pairs.get("lr_scheduler_type") == "constant" and warmup is not None and warmup.value > 0:
        pairs["lr_scheduler_type"] = "constant_with_warmup"
    if pairs.get("warmup_steps", 0) < 0:
        del pairs["warmup_steps"]
    return written


def _divisor(number: int, at_most: int) -> int:
    return max(one for one in range(1, min(number, max(at_most, 1)) + 1) if number % one == 0)
