"""Check by hand that SDPO learns under DeepSpeed ZeRO-2 and ZeRO-3 what it learns in one process.

DeepSpeed compiles on first use and takes a minute to install, so this is no part of `make test`. In an environment of
the project, with a C++ compiler:

    DS_BUILD_OPS=0 pip install --no-build-isolation deepspeed ninja
    PYTHONPATH=tests/support python tests/support/check_deepspeed.py

Two processes train on the CPU with gloo; each line it prints is one comparison, and it ends with an error at the first
that fails.
"""

from __future__ import annotations

import os
import tempfile
from typing import Any

import torch

from fixed_run import train
from launch import run_ranks
from tiny_trl import tiny_model

ARGS = {"max_steps": 4, "teacher_update_rate": 0.25}


def zero(stage: int) -> dict[str, Any]:
    """A DeepSpeed configuration for plain gradient descent in float32."""
    return {
        "zero_optimization": {"stage": stage, "overlap_comm": False},
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": 0.0,
        "zero_allow_untested_optimizer": True,
    }


def two_ranks(stage: int, args: dict[str, Any], **options: Any) -> list[dict[str, Any]]:
    return run_ranks(
        "fixed_run:train",
        options={"args": {**ARGS, "per_device_train_batch_size": 4, **args, "deepspeed": zero(stage)}, **options},
        environment={"DS_ACCELERATOR": "cpu"},
        time_limit=600,
    )


def worst(got: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """Largest difference, relative to how far training moved that tensor from its start, after float32's rounding."""
    before = tiny_model().state_dict()
    found = 0.0
    for name, value in expected.items():
        if name in before:
            rounding = 8 * torch.finfo(value.dtype).eps * float(value.abs().max())
            difference = max(float((got[name] - value).abs().max()) - rounding, 0.0)
            found = max(found, difference / float((value - before[name]).abs().max()))
    return found


def check(title: str, results: list[dict[str, Any]], expected: dict[str, Any]) -> None:
    for result in results:
        assert result["kind"] == "DEEPSPEED", result["kind"]
        student, teacher = (worst(result[part], expected[part]) for part in ("weights", "teacher"))
        share = result["held_elements"] / expected["held_elements"]
        print(
            f"{title}, rank {result['rank']}: weights {student:.1e}, teacher {teacher:.1e}, held {share:.0%}",
            flush=True,
        )
        assert student <= 2e-5 and teacher <= 2e-5


def main() -> None:
    for rule in ("mixed", "alternating"):
        alone = train(dict(ARGS), rule=rule)
        for stage in (2, 3):
            check(f"ZeRO-{stage}, {rule}", two_ranks(stage, {}, rule=rule), alone)
            cut = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
            check(f"ZeRO-{stage}, {rule}, two micro-batches", two_ranks(stage, cut, rule=rule), alone)
    alone = train(dict(ARGS))
    for stage in (2, 3):
        with tempfile.TemporaryDirectory() as folder:
            two_ranks(stage, {"max_steps": 2, "output_dir": folder, "save_strategy": "steps", "save_steps": 2})
            checkpoint = os.path.join(folder, "checkpoint-2")
            check(f"ZeRO-{stage}, resumed", two_ranks(stage, {}, resume_from=checkpoint), alone)


if __name__ == "__main__":
    main()
