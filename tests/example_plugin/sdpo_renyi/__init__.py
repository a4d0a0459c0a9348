"""The Rényi divergence, the longest success as demonstration, a scorer of numbers: a plug-in to copy."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sdpo_plugins import (
    DataError,
    Divergence,
    Rollout,
    Score,
    Scorer,
    SDPOConfig,
    Selector,
    TeacherContexts,
    hookimpl,
    option,
)

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class RenyiOptions:
    """Options under `divergence_options`."""

    order: float = option(0.5, "Order of the divergence; near 1 it is the forward KL.", low=0.0, exclusive=True)

    def __post_init__(self) -> None:
        if self.order == 1.0:
            raise ValueError("`order` must not be 1, where the formula divides by zero; use divergence='forward_kl'.")


def build_renyi(config: SDPOConfig, options: RenyiOptions) -> Callable[[Tensor, Tensor], Tensor]:
    r"""Rényi divergence of the teacher from the student.

    Formula:
        D_a(T‖S) = 1/(a−1) · log Σ_v T_v^a · S_v^(1−a); a → 1 gives KL(T‖S).
    """
    from sdpo_plugins.losses.divergences import floor_log_probs  # torch only when the divergence is built

    order = options.order

    def renyi(student_logp: Tensor, teacher_logp: Tensor) -> Tensor:
        student, teacher = floor_log_probs(student_logp), floor_log_probs(teacher_logp)
        return (order * teacher + (1.0 - order) * student).logsumexp(-1) / (order - 1.0)

    return renyi


def longest(index: int, candidates: Sequence[int], rollouts: Sequence[Rollout]) -> int | None:
    """Choose the successful rollout with the longest response, the first of equals."""
    return max(candidates, key=lambda candidate: len(rollouts[candidate].response))


@dataclass(frozen=True)
class EstimateOptions:
    """Options of the scorer `estimate`."""

    tolerance: float = option(0.1, "How far off a right estimate may be, as a share of the truth.", low=0.0)


def build_estimate(config: SDPOConfig, options: EstimateOptions) -> Callable[[str, Mapping[str, Any]], Score]:
    """Give 1 if the last number of the answer is near the row's, else 0 and whether it is too high or too low."""

    def estimate(response: str, sample: Mapping[str, Any]) -> Score:
        try:
            truth = float(sample["ground_truth"])
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"the scorer 'estimate' needs a number as `ground_truth`, got {dict(sample)!r}.") from error
        numbers = re.findall(r"-?\d{1,15}(?:\.\d{1,15})?", response[-200:])
        if not numbers:
            return Score(0.0, "There is no number in the answer.", {"acc": 0.0})
        off = float(numbers[-1]) - truth
        if abs(off) <= options.tolerance * abs(truth):
            return Score(1.0, None, {"acc": 1.0})
        return Score(0.0, f"{numbers[-1]} is too {'high' if off > 0 else 'low'}.", {"acc": 0.0})

    return estimate


@hookimpl
def sdpo_divergences() -> list[Divergence]:
    return [Divergence("renyi", "Rényi's D_a(T‖S), with an order.", build_renyi, RenyiOptions)]


@hookimpl
def sdpo_selectors() -> list[Selector]:
    return [Selector("longest", "The success with the longest response.", lambda config, options: longest)]


@hookimpl
def sdpo_scorers() -> list[Scorer]:
    return [Scorer("estimate", "A number near enough to the truth.", build_estimate, EstimateOptions)]


@hookimpl
def sdpo_validate(config: SDPOConfig) -> list[str]:
    if config.divergence == "renyi" and config.alpha != SDPOConfig().alpha:
        return [f"`alpha={config.alpha}` has no effect with divergence='renyi'; set divergence_options.order instead."]
    return []


@hookimpl
def sdpo_metrics(contexts: TeacherContexts) -> dict[str, float]:
    chosen = {context.demonstration_index for context in contexts.contexts} - {None}
    return {"renyi/distinct_demonstrations": float(len(chosen))}
