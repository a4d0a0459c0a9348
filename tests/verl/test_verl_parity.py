"""The recorded batch through verl's own worker: loss and gradient are those of plain transformers and the core alone.

verl's `train_mini_batch` runs as it is, on its FSDP2 engine, in this process and in two; only Ray is left out.
"""

from __future__ import annotations

from typing import Any

import pytest

from launch import run_ranks
from recorded import Expected, expected, recorded, tokenizer, write_student
from sdpo_plugins.embedded import checkpoint_path
from sdpo_verl.rollouts import rollouts_of
from verl_recorded import Case, rows_as_verl_has_them, steps

TOLERANCE = 1e-5

OBJECTIVES: dict[str, dict[str, Any]] = {
    "top-K": {},
    "whole vocabulary": {"distillation_topk": None, "alpha": 0.0},
    "hybrid": {"grpo_weight": 0.3},
}
PACKED = {"removes_padding": True}
EVERYWHERE = {
    f"{objective}, {layout}, {'whole' if parts == 1 else 'four parts'}": Case(
        options=options, model={"removes_padding": layout == "packed"}, micro_batches=parts
    )
    for objective, options in OBJECTIVES.items()
    for layout in ("padded", "packed")
    for parts in (1, 4)
}
# Without feedback more than half of the rows have nothing to learn from.
SILENT = {"include_environment_feedback": False}
CASES: dict[int, dict[str, Case]] = {
    1: {
        **EVERYWHERE,
        "another teacher": Case(other_teacher=True),
        "micro-batches by tokens": Case(tokens=100),
        "activations recomputed": Case(model={**PACKED, "gradient_checkpointing": True}, micro_batches=4),
        "hybrid, activations recomputed": Case(
            options=OBJECTIVES["hybrid"], model={**PACKED, "gradient_checkpointing": True}, micro_batches=4
        ),
    },
    2: {
        **EVERYWHERE,
        "another teacher": Case(model=PACKED, micro_batches=4, other_teacher=True),
        "micro-batches by tokens": Case(tokens=100),
        "hybrid, micro-batches by tokens": Case(options=OBJECTIVES["hybrid"], model=PACKED, tokens=100),
        "activations recomputed": Case(model={**PACKED, "gradient_checkpointing": True}, micro_batches=4),
        "a rank with nothing to learn": Case(options=SILENT, inactive_last=True),
        "a rank with nothing to learn, packed": Case(options=SILENT, model=PACKED, micro_batches=4, inactive_last=True),
        "hybrid, a rank with nothing to distil": Case(
            options={**SILENT, **OBJECTIVES["hybrid"]}, model=PACKED, micro_batches=4, inactive_last=True
        ),
        # The last: they replace the forward of the model's class.
        "fused kernels, padded": Case(model={"removes_padding": False, "fused_kernels": True}),
        "fused kernels, packed": Case(model={**PACKED, "fused_kernels": True}, micro_batches=4),
        "hybrid, fused kernels": Case(
            options=OBJECTIVES["hybrid"], model={**PACKED, "fused_kernels": True}, micro_batches=4
        ),
    },
}
ALL = [(world, name) for world, cases in CASES.items() for name in cases]


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_student(tmp_path_factory.mktemp("student"))


@pytest.fixture(scope="module")
def found(one_rank: None, student: str) -> dict[int, list[dict[str, Any]]]:
    """What each rank found, by the number of ranks; all cases of two ranks in one start of them."""
    models = {"student": student, "teacher": str(checkpoint_path())}
    ranks = run_ranks("verl_recorded:steps", 2, options={"cases": CASES[2], **models}, time_limit=400)
    return {1: [steps(CASES[1], **models)], 2: ranks}


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


def test_the_adapter_reads_the_recorded_rollouts() -> None:
    rows = recorded().rows
    padding = [row.is_padding for row in rows]
    read = rollouts_of(rows_as_verl_has_them(rows), padding, tokenizer(), Case().config)
    for one, other in zip(read, recorded().rollouts, strict=True):
        for name in ("group_id", "prompt", "response", "reward", "feedback", "is_padding"):
            assert getattr(one, name) == getattr(other, name)


@pytest.mark.parametrize(("world", "name"), ALL, ids=[f"{world} rank(s): {name}" for world, name in ALL])
def test_loss_and_gradient_are_those_of_the_core_alone(
    found: dict[int, list[dict[str, Any]]], wanted: Any, world: int, name: str
) -> None:
    case = CASES[world][name]
    plain = wanted(case)
    for rank in found[world]:
        result = rank[name]
        assert result["loss"] == pytest.approx(plain.loss, rel=TOLERANCE)
        assert result["grad_norm"] == pytest.approx(plain.gradient_norm, rel=TOLERANCE)
        assert plain.distance(result["gradients"]) <= TOLERANCE
        assert result["micro_batches"] == case.micro_batches if case.tokens is None else result["micro_batches"] > 1
    active = [int(rank[name]["active"].sum()) for rank in found[world]]
    assert (active[-1] == 0) is case.inactive_last and active[0] > 0


@pytest.mark.parametrize(("world", "name"), ALL, ids=[f"{world} rank(s): {name}" for world, name in ALL])
def test_active_tokens_are_those_of_all_ranks(
    found: dict[int, list[dict[str, Any]]], wanted: Any, world: int, name: str
) -> None:
    plain = wanted(CASES[world][name])
    for rank in found[world]:
        assert rank[name]["metrics"]["self_distillation/active_tokens"] == plain.active_tokens
