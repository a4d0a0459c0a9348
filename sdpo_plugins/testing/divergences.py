"""The contract of a per-token divergence."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from sdpo_plugins._catalogues import DIVERGENCES
from sdpo_plugins.config import SDPOConfig
from sdpo_plugins.testing._common import build_entry
from sdpo_plugins.types import Divergence

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["check_divergence"]

_SHAPES = ((5,), (3, 7), (2, 3, 11), (1, 1), (0, 4))


def check_divergence(
    entry: Divergence, *, config: SDPOConfig | None = None, options: Mapping[str, Any] | None = None
) -> None:
    """Check that f(student_logp, teacher_logp) is a divergence that training can use.

    Log-probabilities [..., K] → nats [...]: shape and floating type, never negative beyond rounding, zero for equal
    distributions and positive for different ones, rows independent, gradient right in float64 and finite at −inf,
    no NaN at −inf, inputs unchanged, the same result twice.

    Args:
        entry: The catalogue entry.
        config: The configuration to build it with; by default `SDPOConfig()`.
        options: The strategy's own options as a plain mapping.

    Raises:
        AssertionError: Says what does not hold.

    Example:
        >>> from sdpo_plugins.plugins import catalogue
        >>> check_divergence(catalogue("divergence")["js"])
    """
    import torch

    function = build_entry(entry, DIVERGENCES, config, options)
    name = f"the divergence {entry.name!r}"
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).mul(2.0).log_softmax(-1).to(dtype)

    _check_shapes(name, function, draw)
    _check_values(name, function, draw)
    _check_gradient(name, function, draw)
    _check_impossible_entries(name, function, draw)


def _check_shapes(name: str, function: Callable[..., Any], draw: Callable[..., Tensor]) -> None:
    import torch

    for shape in _SHAPES:
        student, teacher = draw(*shape), draw(*shape)
        before = student.clone(), teacher.clone()
        result = function(student, teacher)
        assert isinstance(result, torch.Tensor), f"{name} must return a tensor, got {type(result).__name__}"
        assert result.shape == shape[:-1], (
            f"{name} must sum over the last dimension: inputs {list(shape)} must give {list(shape[:-1])}, got "
            f"{list(result.shape)}"
        )
        unchanged = torch.equal(student, before[0]) and torch.equal(teacher, before[1])
        assert unchanged, f"{name} changed its inputs in place"
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        result = function(draw(3, 7, dtype=dtype), draw(3, 7, dtype=dtype))
        wanted = (dtype,) if dtype in (torch.float64, torch.float32) else (torch.float32, dtype)
        assert result.dtype in wanted, f"{name} must give {wanted[0]} for inputs of {dtype}, got {result.dtype}"
        assert bool(torch.isfinite(result).all()), f"{name} is not finite for inputs of {dtype}: {result.tolist()}"


def _check_values(name: str, function: Callable[..., Any], draw: Callable[..., Tensor]) -> None:
    import torch

    student, teacher = draw(64, 9), draw(64, 9)
    result = function(student, teacher)
    assert bool(torch.isfinite(result).all()), f"{name} must be finite for distributions without zeros"
    lowest = float(result.min())
    assert lowest >= -1e-9, f"{name} must not be negative, got {lowest} for two random distributions"
    assert float(result.max()) > 1e-6, f"{name} must tell different distributions apart, got zero for all of 64 pairs"
    # Near equality, where cancellation decides the sign, and in the type of training.
    near = (student + 1e-4 * torch.randn(student.shape, generator=torch.Generator().manual_seed(1))).log_softmax(-1)
    lowest = float(function(student.float(), near.float()).min())
    assert lowest >= -1e-5, f"{name} must not be negative beyond rounding in float32, got {lowest}"
    at_equality = float(function(student, student.clone()).abs().max())
    assert at_equality <= 1e-9, f"{name} must be zero where student and teacher are equal, got {at_equality}"
    assert torch.equal(result, function(student, teacher)), f"{name} gave different results for the same inputs"
    alone = torch.stack([function(student[row], teacher[row]) for row in range(len(student))])
    assert torch.allclose(alone, result, rtol=1e-9, atol=1e-12), (
        f"{name} mixes tokens: a row alone gives another value than the same row in a batch"
    )


def _check_gradient(name: str, function: Callable[..., Any], draw: Callable[..., Tensor]) -> None:
    import torch

    logits, teacher = draw(3, 5).requires_grad_(), draw(3, 5)
    result = function(logits.log_softmax(-1), teacher)
    assert result.requires_grad, f"{name} must be differentiable in `student_logp`; its result has no gradient"
    try:
        torch.autograd.gradcheck(lambda free: function(free.log_softmax(-1), teacher), (logits,), raise_exception=True)
    except RuntimeError as error:
        raise AssertionError(f"{name} has a gradient that differs from finite differences: {error}") from error
    at_equality = draw(4, 6).requires_grad_()
    function(at_equality.log_softmax(-1), at_equality.detach().log_softmax(-1)).sum().backward()
    assert at_equality.grad is not None
    largest = float(at_equality.grad.abs().max())
    assert largest <= 1e-7, f"{name} must have its minimum where both are equal, but the gradient there is {largest}"


def _check_impossible_entries(name: str, function: Callable[..., Any], draw: Callable[..., Tensor]) -> None:
    import torch

    logits, others = draw(4, 6), draw(4, 6)
    logits[:, 0] = others[:, 0] = float("-inf")  # excluded by both, e.g. a padded vocabulary entry
    logits[1, 1] = float("-inf")  # by the student alone
    others[2, 1] = float("-inf")  # by the teacher alone
    student = logits.log_softmax(-1).requires_grad_()
    result = function(student, others.log_softmax(-1))
    assert not bool(torch.isnan(result).any()), f"{name} is NaN where a log-probability is −inf: {result.tolist()}"
    shared = result[[0, 3]]
    assert bool(torch.isfinite(shared).all()), (
        f"{name} must be finite where both exclude the same entry, got {shared.tolist()}"
    )
    shared.sum().backward()
    assert student.grad is not None
    assert not bool(torch.isnan(student.grad).any()), f"{name} has a NaN gradient where a log-probability is −inf"
