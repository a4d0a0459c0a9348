"""Every teacher with all weights, LoRA and 4 bits, in one table."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sdpo_plugins.estimate.facts import ModelFacts, RunFacts
from sdpo_plugins.estimate.phases import Estimate, estimate

__all__ = ["TEACHERS", "Row", "comparison"]

TEACHERS = ("ema", "frozen", "live", "trust_region", "lora_ema")
RANK = 16
"""Rank of the adapters in a comparison that names none: that of the usual recipes for LoRA."""


@dataclass(frozen=True)
class Row:
    """One run of a comparison.

    Args:
        teacher: Its teacher.
        trained: "all weights", "LoRA" or "4-bit LoRA".
        found: The estimate.
    """

    teacher: str
    trained: str
    found: Estimate


def comparison(model: ModelFacts, run: RunFacts) -> tuple[Row, ...]:
    """Estimate each teacher × what is trained that exists on the run's host; the rest is as in `run`.

    Args:
        model: See `read_model`.
        run: Its LoRA rank is taken where it has one, else 16.
    """
    return tuple(_rows(model, run))


def _rows(model: ModelFacts, run: RunFacts) -> Iterator[Row]:
    rank = run.lora_rank or RANK
    lora: dict[str, Any] = {"lora_rank": rank, "load_in_4bit": False, "double_quant": False}
    ways: dict[str, dict[str, Any]] = {
        "all weights": {
            "lora_rank": None,
            "load_in_4bit": False,
            "double_quant": False,
            "lora_targets": ("all-linear",),
        },
    }
    if not (run.host == "openrlhf" and run.sharding == "zero3"):
        ways["LoRA"] = lora
    if run.host == "trl" and run.sharding not in ("zero3", "fsdp2"):
        ways["4-bit LoRA"] = {**lora, "load_in_4bit": True, "double_quant": run.double_quant, "dtype": "bfloat16"}
    for teacher in TEACHERS:
        sdpo = run.sdpo.replace(teacher=teacher)
        for trained, changes in ways.items():
            if teacher == "lora_ema" and trained == "all weights":
                continue
            yield Row(teacher, trained, estimate(model, run.replace(sdpo=sdpo, **changes)))
