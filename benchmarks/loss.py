"""The loss alone, from hidden states to gradients of hidden states and head, by every method side by side."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from benchmarks.methods import METHODS, OBJECTIVES, why_not
from benchmarks.problem import Shape, make_problem
from benchmarks.process import in_fresh_process, measured, medians, with_cost

__all__ = ["Row", "check_agreement", "cost_of", "run_loss"]

_AGREE = {"float32": 1e-3, "float64": 1e-9}


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Args:
        method: Name of the method.
        label: What the table calls it.
        objective: Key of `OBJECTIVES`.
        masked: Share of tokens that were masked.
        values: What `cost_of` gave, medians over the repeats; empty if it could not run.
        reason: Why it could not run.
    """

    method: str
    label: str
    objective: str
    masked: float
    values: dict[str, Any]
    reason: str | None = None


def cost_of(method: str, shape: dict[str, Any], threads: int | None = None) -> dict[str, Any]:
    """Run one method forward and backward; return its loss, the norms of its gradients, and its cost."""
    if threads:
        torch.set_num_threads(threads)
    chosen = METHODS[method]
    # What a first call loads and sets up is no part of the figures.
    chosen.loss(make_problem(Shape(2, 4, 8, 256, 4, dtype=shape.get("dtype", "float32")))).backward()
    problem = make_problem(Shape(**shape))

    def work() -> float:
        loss = chosen.loss(problem)
        loss.backward()
        return loss.item()

    loss, cost = measured(work, problem.hidden.device)
    assert problem.hidden.grad is not None and problem.weight.grad is not None
    norms = {
        "hidden_gradient": problem.hidden.grad.norm().item(),
        "head_gradient": problem.weight.grad.norm().item(),
    }
    return with_cost({"loss": loss, **norms}, cost)


def check_agreement(rows: Sequence[Row], tolerance: float) -> None:
    """Raise AssertionError unless all methods of one objective found the same loss and gradients.

    Example:
        >>> rows = [Row(n, n, "tail", 0.0, {"loss": v, "hidden_gradient": 1.0, "head_gradient": 1.0})
        ...         for n, v in (("a", 1.0), ("b", 1.2))]
        >>> check_agreement(rows, 1e-3)
        Traceback (most recent call last):
            ...
        AssertionError: b found another loss than a (tail, 0% masked): 1.2 and 1
    """
    first: dict[tuple[str, float], Row] = {}
    for row in rows:
        if not row.values:
            continue
        other = first.setdefault((row.objective, row.masked), row)
        for name in ("loss", "hidden_gradient", "head_gradient"):
            ours, theirs = row.values[name], other.values[name]
            if not math.isclose(ours, theirs, rel_tol=tolerance):
                raise AssertionError(
                    f"{row.method} found another {name} than {other.method} ({row.objective}, "
                    f"{row.masked:.0%} masked): {ours:g} and {theirs:g}"
                )


def run_loss(
    shape: Shape,
    repeats: int = 3,
    only: Iterable[str] | None = None,
    threads: int | None = None,
    tell: Callable[[str], None] = print,
    call: Callable[..., dict[str, Any]] = in_fresh_process,
) -> list[Row]:
    """Measure every method, the top-K + tail also with 20% of the tokens masked.

    Args:
        shape: Of the problem.
        repeats: Fresh processes for each figure; the methods take turns, so that a busy spell meets all.
        only: Names of methods; None: all.
        threads: Of each process; None: PyTorch's choice.
        tell: Gets a line for each figure.
        call: Runs `cost_of`; replaced where no process is wanted.

    Returns:
        Rows in the order of the table.

    Raises:
        AssertionError: Two methods of one objective disagree.
    """
    wanted = list(METHODS) if only is None else list(only)
    jobs = [(name, masked) for masked in (0.0, 0.2) for name in wanted if _measured_with(name, masked)]
    found: dict[tuple[str, float], list[dict[str, Any]]] = {job: [] for job in jobs}
    reasons = {name: why_not(METHODS[name]) for name in wanted}
    for turn in range(repeats):
        for number, (name, masked) in enumerate(jobs):
            if reasons[name] is not None:
                continue
            values = call("loss", "cost_of", method=name, shape=asdict(replace(shape, masked=masked)), threads=threads)
            found[name, masked].append(values)
            tell(
                f"loss {turn + 1}/{repeats} {number + 1}/{len(jobs)} {name}"
                f"{f' {masked:.0%} masked' if masked else ''}: {values['cpu_seconds']:.1f} s CPU, {_mb(values)}"
            )
    rows = [
        Row(name, METHODS[name].label, METHODS[name].objective, masked, medians(found[name, masked]), reasons[name])
        for name, masked in jobs
    ]
    order = list(OBJECTIVES)
    rows.sort(key=lambda row: (order.index(row.objective), row.masked))
    check_agreement(rows, _AGREE[shape.dtype])
    return rows


def _measured_with(name: str, masked: float) -> bool:
    return masked == 0.0 or METHODS[name].objective == "tail"


def _mb(values: dict[str, Any]) -> str:
    return "memory unknown" if values["peak_mb"] is None else f"{values['peak_mb']:.0f} MiB"
