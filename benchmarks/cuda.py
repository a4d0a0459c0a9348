"""What only a GPU can tell: the share of its matrix units' speed, the peak at full size, whole models, chunk sizes."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.methods import METHODS, config_of, fused_loss
from benchmarks.problem import Shape, make_problem
from benchmarks.process import Cost, measured
from sdpo_plugins.losses import fused_self_distillation_loss, self_distillation_loss

__all__ = ["MODELS", "ModelShape", "matmul_speed", "run_cuda", "sweep_chunks", "time_loss", "time_models"]

LARGE = Shape(batch=4, length=2048, width=4096, dtype="bfloat16", device="cuda")
"""N = 8192, H = 4096, V = 151,936."""

CHUNKS_MB = (128, 256, 512, 1024, 2048, 4096)


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a decoder.

    Args:
        name: What the table calls it.
        width: Of the hidden states.
        layers: Number of them.
        inner: Width inside of the feed-forward part.
        heads: Of attention.
        kv_heads: Of keys and values.
        vocabulary: V.
        prompt: Tokens before the response; the teacher's prompt is half as long again.
        response: Tokens that are learnt.
        batch: Rows.
    """

    name: str
    width: int
    layers: int
    inner: int
    heads: int
    kv_heads: int
    vocabulary: int = 151_936
    prompt: int = 512
    response: int = 1024
    batch: int = 4


MODELS = (
    ModelShape("0.5B", 896, 24, 4864, 14, 2),
    ModelShape("1.5B", 1536, 28, 8960, 12, 2),
    ModelShape("3B", 2048, 36, 11008, 16, 2),
    ModelShape("7B", 3584, 28, 18944, 28, 4),
)


def matmul_speed(size: int, dtype: torch.dtype, device: torch.device, repeats: int = 5) -> float:
    """Return the floating-point operations a second that one large square product reaches here: the roof.

    Example:
        >>> matmul_speed(64, torch.float32, torch.device("cpu")) > 0.0
        True
    """
    left, right = (torch.randn(size, size, dtype=dtype, device=device) for _ in range(2))
    seconds = _seconds(lambda: left @ right, device, repeats)
    return 2.0 * size**3 / seconds[0]


def time_loss(shape: Shape, method: str, repeats: int = 3, chunk_memory_mb: float | None = None) -> dict[str, float]:
    """Return seconds and peak of one forward and backward pass, and the peak net of the head's gradient.

    Args:
        shape: Of the problem.
        method: "fused" or "plain", on top-K + tail.
        repeats: After one that is not counted.
        chunk_memory_mb: Of the fused loss.
    """
    problem = make_problem(shape)

    def run() -> None:
        problem.hidden.grad = problem.weight.grad = None
        if method == "fused":
            fused_loss(problem, "tail", chunk_memory_mb).backward()
        else:
            METHODS["ours_plain_tail"].loss(problem).backward()

    seconds, peak = _seconds(run, problem.hidden.device, repeats)
    # The fused loss sums the head's gradient in float32, the plain one in the head's own type.
    item = 4 if method == "fused" else problem.weight.element_size()
    head = shape.vocabulary * shape.width * item / (1 << 20)
    # Student, teacher, and two products back; each a multiplication and an addition.
    work = 8.0 * shape.tokens * shape.width * shape.vocabulary
    return {"seconds": seconds, "peak_mb": peak, "net_mb": peak - head, "flops": work / seconds}


def sweep_chunks(shape: Shape, budgets: Iterable[float] = CHUNKS_MB, repeats: int = 3) -> dict[float, dict[str, float]]:
    """Return `time_loss` of the fused loss for each memory budget in MiB."""
    return {budget: time_loss(shape, "fused", repeats, budget) for budget in budgets}


def time_models(
    shape: ModelShape, fused: bool, device: str = "cuda", dtype: str = "bfloat16", repeats: int = 3
) -> dict[str, float]:
    """Return seconds and peak of one training step of a student with a teacher of its shape, both of random weights.

    The peak is above the weights of both models; the optimizer is plain gradient descent, which keeps nothing.
    """
    student, teacher = (_decoder(shape, device, dtype) for _ in range(2))
    teacher.requires_grad_(False)
    draw = torch.Generator().manual_seed(0)
    longer = shape.prompt + shape.prompt // 2
    ids = torch.randint(0, shape.vocabulary, (shape.batch, longer + shape.response), generator=draw).to(device)
    answers, mask = ids[:, longer:], torch.ones(shape.batch, shape.response, device=device)
    config = config_of("tail", min(100, shape.vocabulary))
    optimizer = torch.optim.SGD(student.parameters(), lr=1e-6)

    def before_answers(model: Any, prompt: int) -> Tensor:
        states: Tensor = model.model(ids[:, longer - prompt :]).last_hidden_state
        return states[:, prompt - 1 : -1]

    def step() -> None:
        states = before_answers(student, shape.prompt)
        with torch.no_grad():
            told = before_answers(teacher, longer)
        if fused:
            heads = student.lm_head.weight, teacher.lm_head.weight
            loss, _ = fused_self_distillation_loss(states, heads[0], told, heads[1], answers, mask, config)
        else:
            with torch.no_grad():
                expected = teacher.lm_head(told)
            loss, _ = self_distillation_loss(student.lm_head(states), expected, answers, mask, config)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    seconds, peak = _seconds(step, torch.device(device), repeats)
    return {"seconds": seconds, "peak_mb": peak}


def run_cuda(
    large: Shape = LARGE,
    models: Sequence[ModelShape] = MODELS,
    chunks: Iterable[float] = CHUNKS_MB,
    product: int = 8192,
    tell: Callable[[str], None] = print,
) -> dict[str, Any] | None:
    """Measure everything of this module; None, and one line, where there is no such device."""
    if large.device == "cuda" and not torch.cuda.is_available():
        tell("cuda: this machine has no CUDA device; nothing of this part was measured")
        return None
    device = torch.device(large.device)
    found: dict[str, Any] = {"roof": matmul_speed(product, getattr(torch, large.dtype), device)}
    for method in ("plain", "fused"):
        found[method] = time_loss(large, method)
        tell(f"cuda loss {method}: {found[method]['seconds']:.3f} s, {found[method]['peak_mb']:.0f} MiB")
    found["roofline"] = found["fused"]["flops"] / found["roof"]
    found["net_ratio"] = found["fused"]["net_mb"] / max(found["plain"]["net_mb"], 1e-9)
    found["chunks"] = sweep_chunks(large, chunks)
    found["models"] = {}
    for shape in models:
        for fused in (False, True):
            name = f"{shape.name} {'fused' if fused else 'on logits'}"
            try:
                found["models"][name] = time_models(shape, fused, large.device, large.dtype)
            except torch.OutOfMemoryError:
                found["models"][name] = {"seconds": None, "peak_mb": None}
            tell(f"cuda step {name}: {found['models'][name]}")
            if device.type == "cuda":
                torch.cuda.empty_cache()
    return found


def _decoder(shape: ModelShape, device: str, dtype: str) -> Any:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.width // shape.heads,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    with torch.device(device):
        return Qwen3ForCausalLM(config).to(getattr(torch, dtype))


def _seconds(work: Callable[[], Any], device: torch.device, repeats: int) -> tuple[float, float]:
    """Return the median of seconds on the clock, and the largest peak in MiB (0 where unknown), after a first run."""
    work()
    costs: list[Cost] = [measured(work, device)[1] for _ in range(repeats)]
    return statistics.median(cost.wall_seconds for cost in costs), max(cost.peak_mb or 0.0 for cost in costs)
