"""The autograd function of the fused loss: gradients are ready when the forward pass is over."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from sdpo_plugins.losses.divergences import jsd_alpha
from sdpo_plugins.losses.fused.budget import chunk_rows
from sdpo_plugins.losses.fused.chunk import ChunkResult, TeacherRows, Workspace, chunk_of, is_sparse
from sdpo_plugins.losses.fused.footprint import chunk_bytes
from sdpo_plugins.losses.fused.head import LMHead
from sdpo_plugins.losses.fused.matmul import Projection, product_dtype
from sdpo_plugins.losses.fused.objective import Objective
from sdpo_plugins.losses.sdpo import resolve_divergence

__all__ = ["FusedPass", "TeacherSide", "never_compiled", "run_fused"]

Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass(frozen=True)
class TeacherSide:
    """The teacher's hidden states `[M, H]`, heads and shares, one of each for every pass."""

    hidden: Sequence[Tensor]
    heads: Sequence[LMHead]
    shares: Sequence[float]


@dataclass
class FusedPass:
    """Everything of a call but the tensors that autograd follows; also where the rows' values are put.

    Args:
        objective: What is differentiated.
        head: The student's.
        token_ids: `[N]`.
        teacher: The teacher's side for the first M rows, or None.
        temperature: τ.
        entropies: Whether the student's entropies are wanted.
        chunk_memory_mb: Budget, None: the device's default.
        rows_per_chunk: Overrides the budget.
    """

    objective: Objective
    head: LMHead
    token_ids: Tensor
    teacher: TeacherSide | None
    temperature: float
    entropies: bool
    chunk_memory_mb: float | None
    rows_per_chunk: int | None

    def __post_init__(self) -> None:
        self.results: list[ChunkResult] = []

    @property
    def distilled(self) -> int:
        """M, the number of rows with a teacher."""
        return 0 if self.teacher is None else self.teacher.hidden[0].shape[0]

    def slices(self, student: Projection, device: torch.device) -> list[slice]:
        """Cut the rows into chunks, those with a teacher first."""
        cuts = []
        config = self.objective.config
        own = jsd_alpha(self.objective.divergence or resolve_divergence(config)) is not None
        passes = 0 if self.teacher is None else len(self.teacher.heads)
        for start, stop in ((0, self.distilled), (self.distilled, self.token_ids.shape[0])):
            if stop > start:
                size_of = partial(
                    chunk_bytes,
                    config=config,
                    student=student,
                    passes=passes,
                    distilled=start < self.distilled,
                    own_divergence=own,
                    sparse=is_sparse(config, self.objective),
                )
                step = self.rows_per_chunk or chunk_rows(stop - start, size_of, self.chunk_memory_mb, device)
                cuts += [slice(at, min(at + step, stop)) for at in range(start, stop, step)]
        return cuts


def never_compiled(function: Function) -> Function:
    """Have `torch.compile` call a function as it is: its chunks depend on the data, and it computes its own gradients.

    Unlike `torch.compiler.disable`, which does the same, it does not import the compiler where nobody compiles.
    """

    @functools.wraps(function)
    def call(*arguments: Any, **options: Any) -> Any:
        if not torch.compiler.is_compiling():
            return function(*arguments, **options)
        return torch.compiler.disable(function)(*arguments, **options)

    return cast(Function, call)


def run_fused(work: FusedPass, hidden: Tensor) -> Tensor:
    """Return the 0-dim loss of `work` over the student's `[N, H]` hidden states, with gradient; fill `work.results`."""
    loss: Tensor = _Fused.apply(hidden, work.head.weight, work.head.bias, work, torch.is_grad_enabled())
    return loss


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, work: FusedPass, wanted: bool) -> Tensor:
        needs = [wanted and flag for flag in ctx.needs_input_grad[:3]]
        dtype = product_dtype(hidden, weight)
        with torch.autocast(hidden.device.type, enabled=False):
            loss, gradients = _all_chunks(hidden, work, dtype, needs)
        inputs = (hidden, weight, bias)
        ctx.save_for_backward(*[g for g in gradients if g is not None])
        ctx.dtypes = [
            t.dtype if t is not None and g is not None else None for t, g in zip(inputs, gradients, strict=True)
        ]
        ctx.spent = False
        return loss

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.spent:
            raise RuntimeError(
                "the fused loss hands its gradients over once, to hold no second copy of the head's; call the loss "
                "again for another backward pass (`retain_graph` does not help)."
            )
        ctx.spent = True
        saved = list(ctx.saved_tensors)
        factor = upstream[0]
        # Reading the factor on a GPU would wait for it; on a CPU it saves a pass over the head's gradient.
        scale = factor.device.type != "cpu" or float(factor) != 1.0
        found: list[Tensor | None] = []
        for dtype in ctx.dtypes:
            gradient = None if dtype is None else saved.pop(0)
            if gradient is not None:
                gradient = (gradient.mul_(factor) if scale else gradient).to(dtype)
            found.append(gradient)
        return (*found, None, None)


def _all_chunks(
    hidden: Tensor, work: FusedPass, dtype: torch.dtype, needs: Sequence[bool]
) -> tuple[Tensor, list[Tensor | None]]:
    student = Projection(work.head, dtype, work.temperature)
    unit = _unit(work.objective.weights, work.token_ids.shape[0]) if dtype == torch.float16 else None
    wide, device = student.wide, hidden.device
    hidden_gradient = torch.zeros_like(hidden, dtype=_kept_as(hidden.dtype)) if needs[0] else None
    weight_gradient = None
    if needs[1]:
        weight_gradient = torch.zeros(work.head.weight.shape, dtype=wide, device=device)
    bias_gradient = torch.zeros(work.head.vocabulary, dtype=wide, device=device) if needs[2] else None
    teachers = [] if work.teacher is None else [Projection(h, dtype, work.temperature) for h in work.teacher.heads]
    cuts = work.slices(student, device)
    tallest = max((cut.stop - cut.start for cut in cuts), default=0)
    space = Workspace(tallest, work.head.vocabulary, wide, device)
    loss = torch.zeros((), dtype=wide, device=device)
    for rows in cuts:
        states = student.rows(hidden[rows])
        teacher = None
        if work.teacher is not None and rows.start < work.distilled:
            side = [p.rows(h[rows]) for p, h in zip(teachers, work.teacher.hidden, strict=True)]
            teacher = TeacherRows(side, teachers, work.teacher.shares)
        result = chunk_of(
            work.objective,
            student,
            states,
            work.token_ids[rows],
            rows,
            teacher,
            space,
            entropies=work.entropies,
            gradient=any(needs),
        )
        loss += result.loss
        if result.sparse is not None:
            ids, values = result.sparse
            if unit is not None:
                values = values * unit
            if hidden_gradient is not None:
                hidden_gradient[rows] = _over(student.sparse_hidden_gradient(ids, values), unit)
            if weight_gradient is not None:
                student.add_sparse_weight_gradient(weight_gradient, ids, values, states)
            if bias_gradient is not None:
                bias_gradient.index_add_(0, ids.reshape(-1), values.reshape(-1))
        elif result.dense is not None:
            if unit is not None:
                result.dense.mul_(unit)
            if hidden_gradient is not None:
                hidden_gradient[rows] = _over(student.hidden_gradient(result.dense), unit)
            if weight_gradient is not None:
                student.add_weight_gradient(weight_gradient, result.dense, states)
            if bias_gradient is not None:
                bias_gradient += result.dense.sum(0)
        result.dense = result.sparse = None
        work.results.append(result)
    if weight_gradient is not None:
        weight_gradient = _over(weight_gradient, unit).to(_kept_as(work.head.weight.dtype))
    if bias_gradient is not None and work.head.bias is not None:
        bias_gradient = _over(bias_gradient, unit).to(_kept_as(work.head.bias.dtype))
    return loss, [hidden_gradient, weight_gradient, bias_gradient]


def _kept_as(dtype: torch.dtype) -> torch.dtype:
    """Type in which a gradient waits for the backward pass: a loss scale comes too late for what float16 flushed."""
    return torch.float32 if dtype == torch.float16 else dtype


def _unit(weights: Tensor, rows: int) -> Tensor:
    """Return what float16 products run on multiples of: a mean's gradients are too small for its exponents."""
    if not weights.numel():
        return torch.full((), float(max(1, rows)), device=weights.device)
    largest = weights.abs().amax().to(torch.float32)
    return torch.where(largest > 0, largest.clamp(min=1e-30), torch.ones_like(largest)).reciprocal()


def _over(gradient: Tensor, unit: Tensor | None) -> Tensor:
    return gradient if unit is None else gradient.div_(unit)
