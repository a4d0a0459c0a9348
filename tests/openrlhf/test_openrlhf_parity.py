"""The recorded batch through OpenRLHF's own policy actor: loss and gradient are those of plain transformers and core.

Its replay buffer, training loop and DeepSpeed engine run as they are, in one process and in two; only Ray is left out.
"""

from __future__ import annotations

from typing import Any

import pytest

from launch import run_ranks
from openrlhf_direct import Case
from recorded import Expected, expected, write_student
from sdpo_plugins.embedded import checkpoint_path

TOLERANCE = 1e-5

OBJECTIVES: dict[str, dict[str, Any]] = {
    "top-K": {},
    "whole vocabulary": {"distillation_topk": None, "alpha": 0.0},
    "hybrid": {"grpo_weight": 0.3},
}
EVERYWHERE = {
    f"{objective}, ZeRO-{stage}, {'packed' if packed else 'padded'}, {'whole' if parts == 1 else 'four parts'}": Case(
        options=options, stage=stage, packed=packed, micro_batches=parts
    )
    for objective, options in OBJECTIVES.items()
    for stage in (2, 3)
    for packed in (False, True)
    for parts in (1, 4)
}
# Without feedback more than half of the rows have nothing to learn from.
SILENT = {"include_environment_feedback": False}
CASES: dict[int, dict[str, Case]] = {
    1: {
        **EVERYWHERE,
        "ZeRO-0": Case(stage=0, micro_batches=4),
        "ZeRO-1": Case(stage=1, micro_batches=4),
        "sequences weigh the same": Case(options={"loss_agg_mode": "seq-mean-token-mean"}, micro_batches=4),
        "renormalised": Case(options={"distillation_add_tail": False, "alpha": 1.0}, packed=True),
        "sampled token": Case(options={"full_logit_distillation": False, "alpha": 1.0}, micro_batches=4),
        "another teacher": Case(other_teacher=True),
        "activations recomputed": Case(micro_batches=4, flags="--actor.gradient_checkpointing_enable"),
        # The host loses the gradient of all but the last of these micro-batches; ours must not.
        **{
            f"micro-batches by tokens, ZeRO-{stage}": Case(stage=stage, packed=True, tokens=120)
            for stage in (0, 1, 2, 3)
        },
        "hybrid, micro-batches by tokens": Case(options=OBJECTIVES["hybrid"], packed=True, tokens=120),
    },
    2: {
        **EVERYWHERE,
        "ZeRO-0": Case(stage=0, micro_batches=4),
        "another teacher, ZeRO-2": Case(other_teacher=True),
        "another teacher, ZeRO-3": Case(stage=3, packed=True, micro_batches=4, other_teacher=True),
        "activations recomputed, ZeRO-3": Case(stage=3, micro_batches=4, flags="--actor.gradient_checkpointing_enable"),
        "sequences weigh the same": Case(options={"loss_agg_mode": "seq-mean-token-mean"}, stage=3, micro_batches=4),
        "micro-batches by tokens, ZeRO-2": Case(packed=True, tokens=120),
        "micro-batches by tokens, ZeRO-3": Case(stage=3, packed=True, tokens=120),
        "a rank with nothing to learn, ZeRO-2": Case(options=SILENT, inactive_last=True),
        "a rank with nothing to learn, ZeRO-3": Case(
            options=SILENT, stage=3, packed=True, micro_batches=4, inactive_last=True
        ),
        "hybrid, a rank with nothing to distil": Case(
            options={**SILENT, **OBJECTIVES["hybrid"]}, packed=True, micro_batches=4, inactive_last=True
        ),
    },
}
ALL = [(world, name) for world, cases in CASES.items() for name in cases]


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_student(tmp_path_factory.mktemp("student"))


@pytest.fixture(scope="module")
def found(student: str) -> dict[int, list[dict[str, Any]]]:
    """What each rank found, by the number of ranks; all cases of one number in one start of the ranks."""
    models = {"student": student, "teacher": str(checkpoint_path())}
    return {
        world: run_ranks("openrlhf_direct:steps", world, options={"cases": cases, **models}, time_limit=900)
        for world, cases in CASES.items()
    }


@pytest.fixture(scope="module")
def wanted(student: str) -> Any:
    """`wanted(case)`: the plain computation, done once for each objective."""
    known: dict[str, Expected] = {}

    def of(case: Case) -> Expected:
        key = repr((case.options, case.other_teacher))
        if key not in known:
            known[key] = expected(case.config, student, checkpoint_path() if case.other_teacher else None)
        return known[key]

    return of


@pytest.mark.parametrize(("world", "name"), ALL, ids=[f"{world} rank(s): {name}" for world, name in ALL])
def test_loss_and_gradient_are_those_of_the_core_alone(
    found: dict[int, list[dict[str, Any]]], wanted: Any, world: int, name: str
) -> None:
    case = CASES[world][name]
    plain = wanted(case)
    for rank in found[world]:
        result = rank[name]
        assert result["loss"] == pytest.approx(plain.loss, rel=TOLERANCE)
        norm = sum(float(value.double().square().sum()) for value in result["gradients"].values()) ** 0.5
        assert norm == pytest.approx(plain.gradient_norm, rel=TOLERANCE)
        assert plain.distance(result["gradients"]) <= TOLERANCE
        assert result["micro_batches"] == case.micro_batches if case.tokens is None else result["micro_batches"] > 1
        assert result["status"]["self_distillation/active_tokens"] == plain.active_tokens
    active = [int(rank[name]["active"].sum()) for rank in found[world]]
    assert (active[-1] == 0) is case.inactive_last and active[0] > 0
