"""How the peak of memory grows with the tokens and with the vocabulary, ours and on logits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from benchmarks.methods import fused_loss
from benchmarks.problem import Problem, Shape, make_problem
from benchmarks.process import in_fresh_process, measured, with_cost

__all__ = ["CHUNK_MB", "Growth", "fused_cost", "run_growth"]

CHUNK_MB = 32
"""Working memory of a chunk here: small, so that even the smaller problem is cut into several."""

_METHODS = {"ours_tail": "ours, fused", "trl_tail": "TRL experimental.sdpo"}


@dataclass(frozen=True)
class Growth:
    """How one method's peak answers to one size.

    Args:
        method: Name of the method.
        label: What the table calls it.
        size: "tokens" or "vocabulary".
        small: The smaller number.
        large: The larger one.
        peaks_mb: Peaks at both, in MiB; None where the system does not tell.
        unavoidable_mb: By how much what must be kept grows: a copy of the hidden states, or the head's gradient.
    """

    method: str
    label: str
    size: str
    small: int
    large: int
    peaks_mb: tuple[float | None, float | None]
    unavoidable_mb: float

    @property
    def growth_mb(self) -> float | None:
        """By how much the peak grew."""
        small, large = self.peaks_mb
        return None if small is None or large is None else large - small


def fused_cost(shape: dict[str, Any], chunk_memory_mb: float = CHUNK_MB, threads: int | None = None) -> dict[str, Any]:
    """Run our top-K + tail loss in chunks of a given memory, forward and backward; return its cost."""
    if threads:
        torch.set_num_threads(threads)

    def run(p: Problem) -> float:
        loss = fused_loss(p, "tail", chunk_memory_mb)
        loss.backward()
        return loss.item()

    run(make_problem(Shape(2, 4, 8, 256, 4)))
    problem = make_problem(Shape(**shape))
    loss, cost = measured(lambda: run(problem), problem.hidden.device)
    return with_cost({"loss": loss}, cost)


def run_growth(
    small: Shape,
    threads: int | None = None,
    tell: Callable[[str], None] = print,
    call: Callable[..., dict[str, Any]] = in_fresh_process,
) -> list[Growth]:
    """Measure at `small`, at eight times its tokens, and at four times its vocabulary.

    Args:
        small: The smaller problem.
        threads: Of each process; None: PyTorch's choice.
        tell: Gets a line for each figure.
        call: Runs a function of this package; replaced where no process is wanted.
    """
    found = []
    for method, label in _METHODS.items():

        def peak(shape: Shape, method: str = method) -> float | None:
            if method == "ours_tail":
                values = call("growth", "fused_cost", shape=asdict(shape), threads=threads)
            else:
                values = call("loss", "cost_of", method=method, shape=asdict(shape), threads=threads)
            tell(f"growth {method} N={shape.tokens} V={shape.vocabulary}: {values['peak_mb']} MiB")
            value: float | None = values["peak_mb"]
            return value

        before = peak(small)
        longer, wider = replace(small, length=8 * small.length), replace(small, vocabulary=4 * small.vocabulary)
        hidden = (longer.tokens - small.tokens) * small.width * 4 / (1 << 20)
        head = (wider.vocabulary - small.vocabulary) * small.width * 4 / (1 << 20)
        found.append(Growth(method, label, "tokens", small.tokens, longer.tokens, (before, peak(longer)), hidden))
        found.append(
            Growth(method, label, "vocabulary", small.vocabulary, wider.vocabulary, (before, peak(wider)), head)
        )
    return found
