"""The estimate of `sdpo estimate` against runs: bytes of tensors alive in each phase of SDPOTrainer's steps.

python -m benchmarks.estimate            # every case; a table in Markdown
python -m benchmarks.estimate --only "LoRA, bfloat16"
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.estimate_run import PHASES, Case, config_of
from benchmarks.process import in_fresh_process
from sdpo_plugins.config import SDPOConfig
from sdpo_plugins.estimate import Estimate, RunFacts, estimate, facts_of_config

__all__ = ["CASES", "Case", "Comparison", "compare", "comparison_of", "run_cases"]

_MIB = 1 << 20


CASES: dict[str, Case] = {
    "float32": Case(),
    "float32, gradient checkpointing": Case(checkpointing=True),
    "float32 in autocast, gradient checkpointing, shared prefixes": Case(bf16=True, checkpointing=True, share=True),
    "bfloat16, frozen": Case(bf16=True, dtype="bfloat16", teacher="frozen"),
    "bfloat16, ema, gradient checkpointing": Case(bf16=True, dtype="bfloat16", checkpointing=True),
    "Qwen2, untied, eager attention": Case(kind="qwen2", tied=False, attention="eager"),
    "live, two micro-batches a step": Case(teacher="live", accumulation=2),
    "trust_region": Case(teacher="trust_region"),
    "on logits": Case(loss_path="logits"),
    "on logits, whole vocabulary": Case(loss_path="logits", top_k=None),
    "reference": Case(beta=0.1),
    "LoRA, float32": Case(lora=16),
    "LoRA, float32 in autocast": Case(lora=16, bf16=True, teacher="frozen"),
    "LoRA, bfloat16, lora_ema": Case(lora=16, bf16=True, dtype="bfloat16", teacher="lora_ema"),
    "LoRA, bfloat16, lora_ema, gradient checkpointing": Case(
        lora=16, bf16=True, dtype="bfloat16", teacher="lora_ema", checkpointing=True
    ),
    "78 million parameters, vocabulary of Qwen": Case(
        width=384, intermediate=1536, heads=6, layers=8, vocabulary=151_936, answers=2, checkpointing=True
    ),
}


@dataclass(frozen=True)
class Comparison:
    """Estimated and measured bytes of a case.

    Args:
        phases: Phase → (estimated, measured).
        parts: Part → (estimated, measured), of those that are held.
        held: Bytes that were held between the steps.
    """

    phases: Mapping[str, tuple[int, int]]
    parts: Mapping[str, tuple[int, int]]
    held: int

    def moved(self, phase: str) -> float:
        """Return by how much the estimate is off, relative to what the phase takes beyond what is always held."""
        estimated, measured = self.phases[phase]
        return (estimated - measured) / max(1, measured - self.held)


def compare(case: Case, call: Callable[..., dict[str, Any]] = in_fresh_process) -> Comparison:
    """Measure a case and estimate it; `call` runs `measured_run`, in a fresh process unless it is replaced."""
    measured = call("estimate_run", "measured_run", case=asdict(case))
    found = comparison_of(case, measured["lengths"])
    held = {name: size for phase in found.phases for name, size in phase.parts.items()}
    gradients = next(phase.parts for phase in found.phases if phase.name == "optimizer")["gradients"]
    held["gradients"] = gradients
    return Comparison(
        {phase.name: (phase.total, measured["phases"][phase.name]) for phase in found.phases},
        {name: (held.get(name, 0), size) for name, size in measured["parts"].items()},
        measured["held"],
    )


def comparison_of(case: Case, lengths: Mapping[str, Any]) -> Estimate:
    """Estimate a case with the lengths that it had."""
    config = SDPOConfig(
        teacher=case.teacher,
        loss_path=case.loss_path,
        distillation_topk=case.top_k,
        share_teacher_prefix=case.share,
    )
    run = RunFacts(
        sdpo=config,
        lora_rank=case.lora,
        dtype=case.dtype,
        bf16=case.bf16,
        gradient_checkpointing=case.checkpointing,
        attention=case.attention,
        padding=False,  # one question, answers of one length
        batch_size=case.answers,
        generation_batch=case.answers * case.accumulation,
        gradient_accumulation=case.accumulation,
        reference=case.beta > 0.0,
        device="cpu",
        allowance_gib=0.0,
        **lengths,
    )
    return estimate(facts_of_config(config_of(case)), run)


def run_cases(
    only: str | None = None,
    tell: Callable[[str], None] = print,
    call: Callable[..., dict[str, Any]] = in_fresh_process,
) -> dict[str, Comparison]:
    """Measure the cases whose name holds `only`, and print their rows."""
    found = {}
    tell("| run | " + " | ".join(PHASES) + " |")
    tell("|---|" + "---:|" * len(PHASES))
    for name, case in CASES.items():
        if only is None or only in name:
            one = found[name] = compare(case, call)
            cells = [f"{e / _MIB:.1f} / {m / _MIB:.1f} ({_percent(e, m)})" for e, m in one.phases.values()]
            tell(f"| {name} | " + " | ".join(cells) + " |")
    return found


def _percent(estimated: int, measured: int) -> str:
    rounded = round(100 * (estimated / measured - 1))
    return f"{rounded:+d}%" if rounded else "0%"


def _main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.estimate", description=__doc__)
    parser.add_argument("--only", help="cases whose name holds this text")
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    given = parser.parse_args()
    found = run_cases(given.only)
    if given.output:
        given.output.write_text(json.dumps({name: asdict(one) for name, one in found.items()}, indent=2))


if __name__ == "__main__":
    _main()
