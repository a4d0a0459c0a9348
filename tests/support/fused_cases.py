"""Random cases for the fused loss, and the same loss on logits to compare it with."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from sdpo_plugins.config import SDPOConfig
from sdpo_plugins.losses import LMHead, fused_self_distillation_loss, self_distillation_loss


def on(mode: str, alpha: float = 0.5, **options: Any) -> SDPOConfig:
    """Configure a mode: full, tail, renormalised or sampled; `-teacher` behind it for the teacher's top-K."""
    kind, _, support = mode.partition("-")
    chosen: dict[str, Any] = {
        "full": {"distillation_topk": None},
        "tail": {"distillation_topk": 4},
        "renormalised": {"distillation_topk": 4, "distillation_add_tail": False},
        "sampled": {"full_logit_distillation": False},
    }[kind]
    alpha = 1.0 if kind == "sampled" else alpha
    return SDPOConfig(**{"alpha": alpha, "topk_support": support or "student", **chosen, **options})


MODES = {mode: on(mode) for mode in ("full", "tail", "tail-teacher", "renormalised", "renormalised-teacher", "sampled")}


@dataclass(frozen=True)
class Case:
    """Hidden states `[B, T, H]`, heads and what belongs to the tokens; the student's tensors are leaves."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    teacher_hidden: Tensor
    teacher_weight: Tensor
    teacher_bias: Tensor | None
    token_ids: Tensor
    mask: Tensor
    scale: float = 1.0
    soft_cap: float | None = None

    @property
    def head(self) -> LMHead:
        return LMHead(self.weight, self.bias, self.scale, self.soft_cap)

    @property
    def teacher_head(self) -> LMHead:
        return LMHead(self.teacher_weight, self.teacher_bias, self.scale, self.soft_cap)

    @property
    def leaves(self) -> dict[str, Tensor]:
        named = {"hidden": self.hidden, "weight": self.weight, "bias": self.bias}
        return {name: leaf for name, leaf in named.items() if leaf is not None and leaf.requires_grad}

    def per_token(self, seed: int = 7) -> dict[str, Tensor]:
        """Old log-probs and rollout weights; ratios on both sides of a clip at 1."""
        generator = torch.Generator().manual_seed(seed)
        shape = self.token_ids.shape
        own = self.head.logits(self.hidden).detach().double().log_softmax(-1)
        own = own.gather(-1, self.token_ids.clamp(0, self.weight.shape[0] - 1).unsqueeze(-1)).squeeze(-1)
        return {
            "old_log_probs": own + torch.randn(shape, generator=generator, dtype=torch.float64) * 0.5,
            "rollout_is_weights": torch.rand(shape, generator=generator, dtype=torch.float64) + 0.5,
        }

    def to(self, dtype: torch.dtype) -> Case:
        """Return the same values in another type, as leaves of their own."""
        named = {}
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, Tensor) and value.is_floating_point() and item.name != "mask":
                value = value.detach().to(dtype).requires_grad_(value.requires_grad)
            named[item.name] = value
        return Case(**named)

    def with_(self, **changes: Any) -> Case:
        return replace(self, **changes)


def draw(
    rows: int = 3,
    columns: int = 5,
    size: int = 23,
    width: int = 8,
    *,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    bias: bool = False,
    scale: float = 1.0,
    soft_cap: float | None = None,
) -> Case:
    """Draw a case; about a quarter of its tokens is masked."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int, by: float = 1.0) -> Tensor:
        return (torch.randn(*shape, generator=generator, dtype=torch.float64) * by).to(dtype)

    hidden, weight = normal(rows, columns, width), normal(size, width, by=0.5)
    biases = (normal(size, by=0.5), normal(size, by=0.5)) if bias else (None, None)
    return Case(
        hidden.clone().requires_grad_(),
        weight.clone().requires_grad_(),
        None if biases[0] is None else biases[0].requires_grad_(),
        hidden + normal(rows, columns, width, by=0.5),
        weight + normal(size, width, by=0.2),
        biases[1],
        torch.randint(size, (rows, columns), generator=generator),
        (torch.rand(rows, columns, generator=generator) < 0.75).float(),
        scale,
        soft_cap,
    )


Result = tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]


def plain(case: Case, config: SDPOConfig, **options: Any) -> Result:
    """Return loss, gradients and metrics of the loss on logits."""
    loss, metrics = self_distillation_loss(
        case.head.logits(case.hidden),
        case.teacher_head.logits(case.teacher_hidden),
        case.token_ids,
        case.mask,
        config,
        **options,
    )
    return loss.detach(), gradients(loss, case), metrics


def fused_loss(case: Case, config: SDPOConfig, **options: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the fused loss, with gradient, and its metrics."""
    return fused_self_distillation_loss(
        case.hidden, case.head, case.teacher_hidden, case.teacher_head, case.token_ids, case.mask, config, **options
    )


def fused(case: Case, config: SDPOConfig, **options: Any) -> Result:
    """Return the same of the fused loss."""
    loss, metrics = fused_loss(case, config, **options)
    return loss.detach(), gradients(loss, case), metrics


def gradients(loss: Tensor, case: Case) -> dict[str, Tensor]:
    """Return the gradient of each leaf of the case."""
    return dict(zip(case.leaves, torch.autograd.grad(loss, list(case.leaves.values())), strict=True))


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference over the largest expected value."""
    difference = (found.double() - expected.double()).abs().max().item() if expected.numel() else 0.0
    scale = expected.abs().max().item() if expected.numel() else 0.0
    return difference / scale if scale else difference


def assert_same(found: Result, expected: Result, tolerance: float) -> None:
    """Compare loss, every gradient, and every metric that the fused loss gives."""
    errors = {"loss": relative_error(found[0], expected[0])}
    assert found[1].keys() == expected[1].keys()
    for name, gradient in found[1].items():
        errors[name] = relative_error(gradient, expected[1][name])
    for name, value in found[2].items():
        # Means of differences, the gap for one, may be near 0 while their terms are not.
        errors[name] = (value.double() - expected[2][name].double()).abs().item() / max(1.0, expected[2][name].abs())
    bad = {name: error for name, error in errors.items() if not error <= tolerance}
    assert not bad, bad
