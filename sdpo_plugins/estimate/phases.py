"""The parts put together: what each phase of a training step holds, and the largest of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sdpo_plugins.estimate.facts import ModelFacts, RunFacts
from sdpo_plugins.estimate.held import (
    gradient_bytes,
    held_parts,
    shards,
    targets,
    teacher_bytes,
    teacher_passes,
)
from sdpo_plugins.estimate.loss import is_fused, kept_logits_bytes, loss_parts, teacher_result_bytes
from sdpo_plugins.estimate.passes import (
    activation_bytes,
    cache_bytes,
    cast_bytes,
    forward_bytes,
    gathered_bytes,
    largest_weight,
    student_tokens,
    teacher_tokens,
)
from sdpo_plugins.estimate.precision import precision_of

__all__ = ["GIB", "Estimate", "Phase", "estimate"]

GIB = 1 << 30
"""Bytes of a gibibyte."""

# Rows of logits in float32 that sampling one token makes: raw, scaled, filtered, probabilities, …; measured.
_SAMPLING = 8


@dataclass(frozen=True)
class Phase:
    """What is held at the peak of one phase.

    Args:
        name: Of the phase.
        parts: Name of a part → bytes on one GPU.
        share: Of the whole GPU, that vLLM takes in addition.
    """

    name: str
    parts: Mapping[str, int]
    share: float = 0.0

    @property
    def total(self) -> int:
        """Bytes of all parts, without vLLM's share."""
        return sum(self.parts.values())


@dataclass(frozen=True)
class Estimate:
    """Memory of a run on one GPU.

    Args:
        model: The model.
        run: The run.
        phases: In the order of a step.
        allowance: Bytes that CUDA, libraries and allocator take besides.
    """

    model: ModelFacts
    run: RunFacts
    phases: tuple[Phase, ...]
    allowance: int

    @property
    def peak(self) -> Phase:
        """The phase that takes most, vLLM's share of a GPU left aside."""
        return max(self.phases, key=lambda phase: phase.total)

    def needs(self, card_bytes: int) -> int:
        """Return what is needed on a GPU of this size; more than it has means that it does not fit."""
        return self.allowance + max(phase.total + int(phase.share * card_bytes) for phase in self.phases)


def estimate(model: ModelFacts, run: RunFacts) -> Estimate:
    """Estimate the memory of a run on each GPU.

    Args:
        model: See `read_model`.
        run: Its facts.

    Raises:
        ConfigError: LoRA targets that the model has not, a chunk below one token's row.

    Example:
        >>> from sdpo_plugins.estimate.facts import Linear
        >>> layers = (Linear("q_proj", 64, 64, 4),)
        >>> tiny = ModelFacts("tiny", "qwen2", 1 << 20, 4096, 64, 192, 4, 4, 2, 16, True, False, layers)
        >>> estimate(tiny, RunFacts(batch_size=1)).peak.name
        'loss'
    """
    held = held_parts(model, run)
    accumulated = {"gradients": gradient_bytes(model, run)} if run.gradient_accumulation > 1 else {}
    always = 0.0
    if run.generation == "vllm" and run.host != "verl" and not run.vllm_sleep:
        always = run.vllm_gpu_memory_utilization
    phases = [_generation(model, run, held)]
    if run.host != "trl":
        phases.append(Phase("log-probs", {**held, **_host_pass(model, run)}, always))
    phases += [
        Phase("teacher", {**held, **accumulated, **_teacher_pass(model, run)}, always),
        Phase("loss", {**held, **accumulated, **_student_pass(model, run)}, always),
        Phase("backward", {**held, **_backward(model, run)}, always),
        Phase("optimizer", {**held, "gradients": gradient_bytes(model, run)}, always),
        Phase("update", {**held, **_update(model, run)}, always),
    ]
    cleaned = [Phase(p.name, {name: size for name, size in p.parts.items() if size}, p.share) for p in phases]
    return Estimate(model, run, tuple(cleaned), int(run.allowance_gib * GIB))


def _generation(model: ModelFacts, run: RunFacts, held: Mapping[str, int]) -> Phase:
    if run.generation == "vllm":
        return Phase("generation", held, run.vllm_gpu_memory_utilization)
    if run.generation == "elsewhere":
        return Phase("generation", held)
    rows = run.generation_batch or run.batch_size * run.gradient_accumulation
    tokens, row = rows * (run.prompt_length + run.completion_length), run.prompt_length + run.completion_length
    prompt = forward_bytes(model, run, rows * run.prompt_length, run.prompt_length)
    step = forward_bytes(model, run, rows, row) + _SAMPLING * 4 * rows * model.vocabulary
    # A step of generation copies a layer's keys and values to make room for one more token.
    grown = cache_bytes(model, run, tokens) + cache_bytes(model, run, tokens) // (2 * model.layers)
    prefilled = cache_bytes(model, run, rows * run.prompt_length)
    parts = {"weights, cast": cast_bytes(model, run), "weights, gathered": gathered_bytes(model, run)}
    if prefilled + prompt > grown + step:
        parts |= {"keys and values": prefilled, "work of a layer": prompt}
    else:
        parts |= {"keys and values": grown, "work of a layer": step}
    return Phase("generation", {**held, **parts})


def _host_pass(model: ModelFacts, run: RunFacts) -> dict[str, int]:
    """verl's and OpenRLHF's own pass for old log-probabilities, which makes whole logits."""
    tokens, row = student_tokens(run)
    item = 6 if run.host == "verl" else 8
    return {
        "weights, gathered": gathered_bytes(model, run),
        "work of a layer": forward_bytes(model, run, tokens, row),
        "the host's logits": tokens * model.vocabulary * item,
    }


def _teacher_pass(model: ModelFacts, run: RunFacts) -> dict[str, int]:
    tokens, row = teacher_tokens(run)
    passes = teacher_passes(run)
    result = teacher_result_bytes(model, run)
    state = tokens * model.width * precision_of(run).residual
    parts = {
        "student, set aside": teacher_bytes(model, run)[2],
        "weights, cast": cast_bytes(model, run),
        "weights, gathered": gathered_bytes(model, run),
        "work of a layer": forward_bytes(model, run, tokens, row),
        # Of the passes before; the last one's result takes the place of the layer's work.
        "teacher's hidden states" if is_fused(run) else "logits of student and teacher": result
        * (passes - 1)
        // passes,
    }
    if run.host == "trl" and is_fused(run) and run.sharding not in ("fsdp2", "zero3") and run.sdpo.share_teacher_prefix:
        parts["keys and values"] = cache_bytes(model, run, min(run.batch_size, 2) * run.teacher_prompt)
    if not is_fused(run) and result > parts["work of a layer"]:
        parts["work of a layer"], parts["logits of student and teacher"] = state, result
    return parts


def _student_pass(model: ModelFacts, run: RunFacts) -> dict[str, int]:
    kept, _ = activation_bytes(model, run)
    return {
        "activations": kept + _masks(run),
        "weights, cast": cast_bytes(model, run, graph=not run.gradient_checkpointing),
        "weights, gathered": gathered_bytes(model, run),
        **loss_parts(model, run),
    }


def _backward(model: ModelFacts, run: RunFacts) -> dict[str, int]:
    """The largest of its moments: gradient of the logits, last layer, first layer, embeddings."""
    precision, tokens = precision_of(run), student_tokens(run)[0]
    kept, again = activation_bytes(model, run)
    state = tokens * model.width * precision.residual
    head = model.head_entries * precision.gradient if run.lora_rank is None else 0
    known = gradient_bytes(model, run)
    # Of earlier micro-batches; then a gradient of this one is there besides, until it is added.
    before = known if run.gradient_accumulation > 1 else 0
    gathered = {"weights, gathered": gathered_bytes(model, run)}
    layer = {
        **gathered,
        "work of a layer": tokens * 2 * model.intermediate * precision.compute + state,
        # With checkpointing, a layer's are made again when the layer is computed again.
        "weights, cast": cast_bytes(model, run, graph=True) // (model.layers if run.gradient_checkpointing else 1),
    }
    moments = [
        {**layer, "activations": kept + again + _masks(run), "gradients": before, "gradient of the head": head},
        {
            **layer,
            "activations": (again or kept // model.layers) + _masks(run),
            # A head that is tied waits for the embeddings' gradient; one that is not is among the known ones.
            "gradients": before or known - head,
            "gradient of the head": head if model.tied or not before else 0,
        },
        {
            **gathered,
            "activations": state,
            "gradients": known,
            # Dense, though few of its rows are not zero; tied to a head, both and their sum are there at once.
            "gradient of the embeddings": head * ((3 if before else 2) if model.tied else (1 if before else 0)),
        },
    ]
    if not is_fused(run):
        logits = {"activations": kept + _masks(run), "gradients": before, "weights, cast": layer["weights, cast"]}
        moments.append({**gathered, **logits, "logits and their gradient": kept_logits_bytes(model, run)})
    return max(moments, key=lambda parts: sum(parts.values()))


def _update(model: ModelFacts, run: RunFacts) -> dict[str, int]:
    """The teacher follows and is compared with the student, weight by weight, in float32."""
    precision = precision_of(run)
    if not teacher_bytes(model, run)[0]:
        return {}
    if run.lora_rank is None:
        largest = max(model.head_entries, largest_weight(model))
    else:
        largest = run.lora_rank * max((max(one.inputs, one.outputs) for one in targets(model, run)), default=0)
    return {"a weight, compared": 4 * largest // shards(run, "weights") * (2 if precision.trained == 4 else 3)}


def _masks(run: RunFacts) -> int:
    """The mask of a micro-batch, made once: of numbers for eager attention, else of bits that take a byte."""
    tokens, row = student_tokens(run)
    if run.attention == "flash" or (run.attention == "sdpa" and not run.padding):
        return 0
    return tokens * row * (precision_of(run).compute if run.attention == "eager" else 1)
