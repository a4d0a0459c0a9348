r"""Divergences between two distributions given as log-probabilities: pure functions of `[..., K]` tensors.

One orientation everywhere: S is the student, T the teacher, the arguments stand in the order `(student, teacher)`, and
KL(A‖B) = Σ_v A_v·(log A_v − log B_v).

| function | value | name in the literature |
|---|---|---|
| `forward_kl` | KL(T‖S) | forward: the expectation is the teacher's (the target's) |
| `reverse_kl` | KL(S‖T) | reverse: the expectation is the student's |
| `generalized_jsd` | (1−α)·KL(S‖M) + α·KL(T‖M), M = (1−α)·S + α·T | generalized Jensen–Shannon |
| `js` | ½·KL(S‖M) + ½·KL(T‖M), M = ½·S + ½·T | Jensen–Shannon |

The generalized form does **not** tend to the KLs at its ends: for small α it is ≈ α·KL(T‖S), for α near 1 it is
≈ (1−α)·KL(S‖T), hence it vanishes at both (divide by α·(1−α) to have limits). The authors define the two endpoints
separately, as the KLs themselves, and so does this module: the loss jumps between α = 0 and α = 0.001.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sdpo_plugins.errors import ConfigError

if TYPE_CHECKING:
    from sdpo_plugins.config import SDPOConfig

__all__ = [
    "LOG_PROB_FLOOR",
    "DivergenceFunction",
    "accumulation_dtype",
    "build_forward_kl",
    "build_generalized_jsd",
    "build_js",
    "build_reverse_kl",
    "floor_log_probs",
    "forward_kl",
    "generalized_jsd",
    "js",
    "jsd_alpha",
    "reverse_kl",
]

DivergenceFunction = Callable[[Tensor, Tensor], Tensor]
"""`f(student_logp, teacher_logp)`: log-probs `[..., K]` twice → divergence in nats `[...]`."""

LOG_PROB_FLOOR = -1e4
"""Log-probabilities below this (e^−10000 is 0 in every float format) count as this, with zero gradient."""


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the type to compute in: float64 stays float64, everything else becomes float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def floor_log_probs(log_probs: Tensor) -> Tensor:
    """Replace −inf by a finite value whose probability is still exactly 0, so that 0·log 0 is 0 and never NaN.

    Formula:
        max(log p, −10⁴), in float32 or float64; the gradient of a floored entry is 0.

    Args:
        log_probs: Log-probs of any shape; −inf is allowed, NaN passes through.

    Returns:
        The same shape, in float32 (float64 if that was given).

    Example:
        >>> floor_log_probs(torch.tensor([-1.0, float("-inf")]))
        tensor([-1.0000e+00, -1.0000e+04])
    """
    return log_probs.to(accumulation_dtype(log_probs.dtype)).clamp(min=LOG_PROB_FLOOR)


def forward_kl(student_logp: Tensor, teacher_logp: Tensor) -> Tensor:
    """Forward KL divergence, from the teacher to the student.

    Formula:
        KL(T‖S) = Σ_v T_v·(log T_v − log S_v). Gradient with respect to the student's logits: S − T.

    Args:
        student_logp: Log-probs `[..., K]`; −inf marks an impossible entry.
        teacher_logp: Log-probs `[..., K]`.

    Returns:
        Nats `[...]`, ≥ 0 up to rounding for normalised inputs, float32 (float64 for float64 inputs). Where the student
        excludes an entry that the teacher gives mass q, the value is about q·10⁴, standing in for infinity.

    Example:
        >>> S, T = torch.tensor([0.5, 0.5]).log(), torch.tensor([1.0, 0.0]).log()
        >>> forward_kl(S, T)
        tensor(0.6931)

    Source: arXiv 2601.20802, the authors' `alpha = 0`.
    """
    student, teacher = floor_log_probs(student_logp), floor_log_probs(teacher_logp)
    return (teacher.exp() * (teacher - student)).sum(-1)


def reverse_kl(student_logp: Tensor, teacher_logp: Tensor) -> Tensor:
    """Reverse KL divergence, from the student to the teacher.

    Formula:
        KL(S‖T) = Σ_v S_v·(log S_v − log T_v). Gradient with respect to the student's logits:
        S_v·(log S_v − log T_v − KL(S‖T)).

    Args:
        student_logp: Log-probs `[..., K]`; −inf marks an impossible entry.
        teacher_logp: Log-probs `[..., K]`.

    Returns:
        Nats `[...]`, ≥ 0 up to rounding for normalised inputs, float32 (float64 for float64 inputs). Where the teacher
        excludes an entry that the student gives mass p, the value is about p·10⁴, standing in for infinity.

    Example:
        >>> S, T = torch.tensor([1.0, 0.0]).log(), torch.tensor([0.5, 0.5]).log()
        >>> reverse_kl(S, T)
        tensor(0.6931)

    Source: arXiv 2601.20802, the authors' `alpha = 1`.
    """
    return forward_kl(teacher_logp, student_logp)


def generalized_jsd(student_logp: Tensor, teacher_logp: Tensor, alpha: float) -> Tensor:
    """Generalized Jensen–Shannon divergence, with the two KLs at the ends as the authors have it.

    Formula:
        α = 0: KL(T‖S). α = 1: KL(S‖T). Between: (1−α)·KL(S‖M) + α·KL(T‖M) with M = (1−α)·S + α·T, which does not tend
        to the ends: it is ≈ α·KL(T‖S) as α → 0 and ≈ (1−α)·KL(S‖T) as α → 1.

    Args:
        student_logp: Log-probs `[..., K]`; −inf marks an impossible entry.
        teacher_logp: Log-probs `[..., K]`.
        alpha: α in [0, 1], the teacher's share of the mixture.

    Returns:
        Nats `[...]`, ≥ 0 up to rounding; between the ends never above −α·log α − (1−α)·log(1−α).

    Raises:
        ConfigError: α lies outside [0, 1].

    Example:
        >>> S, T = torch.tensor([1.0, 0.0]).log(), torch.tensor([0.0, 1.0]).log()
        >>> generalized_jsd(S, T, 0.5)
        tensor(0.6931)

    Source: arXiv 2601.20802, `compute_self_distillation_loss` of its authors' code.
    """
    if not 0.0 <= alpha <= 1.0:
        raise ConfigError(f"`alpha` must lie in [0, 1] (0: forward KL, 1: reverse KL), got {alpha!r}.")
    if alpha == 0.0:
        return forward_kl(student_logp, teacher_logp)
    if alpha == 1.0:
        return reverse_kl(student_logp, teacher_logp)
    student, teacher = floor_log_probs(student_logp), floor_log_probs(teacher_logp)
    mixture = torch.logaddexp(student + math.log1p(-alpha), teacher + math.log(alpha))
    from_student = (student.exp() * (student - mixture)).sum(-1)
    from_teacher = (teacher.exp() * (teacher - mixture)).sum(-1)
    return (1.0 - alpha) * from_student + alpha * from_teacher


def js(student_logp: Tensor, teacher_logp: Tensor) -> Tensor:
    """Jensen–Shannon divergence, symmetric in its arguments.

    Formula:
        ½·KL(S‖M) + ½·KL(T‖M), M = ½·S + ½·T.

    Args:
        student_logp: Log-probs `[..., K]`; −inf marks an impossible entry.
        teacher_logp: Log-probs `[..., K]`.

    Returns:
        Nats `[...]` between 0 and log 2, up to rounding.

    Example:
        >>> S, T = torch.tensor([1.0, 0.0]).log(), torch.tensor([0.0, 1.0]).log()
        >>> js(S, T)
        tensor(0.6931)

    Source: Lin, "Divergence measures based on the Shannon entropy", 1991.
    """
    return generalized_jsd(student_logp, teacher_logp, 0.5)


def build_generalized_jsd(config: SDPOConfig, options: Any = None) -> DivergenceFunction:
    """Build `generalized_jsd` at `config.alpha`; it has no options of its own."""
    return partial(generalized_jsd, alpha=config.alpha)


def jsd_alpha(divergence: DivergenceFunction) -> float | None:
    """Return the α at which `generalized_jsd` is this divergence, or None if it is another's.

    Args:
        divergence: What a `build_*` function returned, or any other.

    Example:
        >>> jsd_alpha(forward_kl), jsd_alpha(js), jsd_alpha(lambda s, t: s.sum(-1))
        (0.0, 0.5, None)
    """
    if isinstance(divergence, partial) and divergence.func is generalized_jsd:
        return float(divergence.keywords["alpha"])
    ends: dict[DivergenceFunction, float] = {forward_kl: 0.0, js: 0.5, reverse_kl: 1.0}
    return ends.get(divergence)


def build_forward_kl(config: SDPOConfig, options: Any = None) -> DivergenceFunction:
    """Build `forward_kl`, KL(T‖S); `config.alpha` plays no part in it."""
    return forward_kl


def build_reverse_kl(config: SDPOConfig, options: Any = None) -> DivergenceFunction:
    """Build `reverse_kl`, KL(S‖T); `config.alpha` plays no part in it."""
    return reverse_kl


def build_js(config: SDPOConfig, options: Any = None) -> DivergenceFunction:
    """Build `js`; `config.alpha` plays no part in it."""
    return js
