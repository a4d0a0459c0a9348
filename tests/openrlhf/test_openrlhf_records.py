"""Records of a run in OpenRLHF: token values of the step that trains, and what a controller writes."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from launch import run_ranks
from openrlhf_direct import Case
from recorded import Row, recorded, tokenizer, write_student
from sdpo_plugins import SDPOConfig
from sdpo_plugins.embedded import checkpoint_path
from sdpo_plugins.records import NOT_RECORDED, record_id
from sdpo_plugins.reprompt import build_teacher_contexts, encode_contexts

# The token values of a step ----------------------------------------------------------------------------------------

ROWS = 16
BATCH = 3
IDS = tuple(record_id(BATCH, row) for row in range(ROWS))
SOME = tuple(record if row % 3 else NOT_RECORDED for row, record in enumerate(IDS))
LORA = "--ds.lora.rank 4 --ds.lora.alpha 8"

WATCHED: dict[int, dict[str, Case]] = {
    1: {
        "padded": Case(),
        "packed, ZeRO-3, hybrid, some rows": Case(
            options={"grpo_weight": 0.3}, stage=3, packed=True, micro_batches=4, records=SOME
        ),
        "micro-batches by tokens": Case(packed=True, tokens=120),
        "ZeRO-0, another teacher, few tokens": Case(
            options={"record_tokens": 3, "record_alternatives": 0}, stage=0, other_teacher=True
        ),
        "LoRA, two epochs": Case(flags=f"{LORA} --train.max_epochs 2"),
    },
    2: {
        "ZeRO-3, a rank with nothing to learn": Case(
            options={"include_environment_feedback": False}, stage=3, inactive_last=True
        ),
    },
}
WATCHED = {
    world: {name: replace(case, records=case.records or IDS) for name, case in cases.items()}
    for world, cases in WATCHED.items()
}
ALL = [(world, name) for world, cases in WATCHED.items() for name in cases]
NAMES = [f"{world} rank(s): {name}" for world, name in ALL]


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_student(tmp_path_factory.mktemp("student"))


@pytest.fixture(scope="module")
def steps(student: str) -> dict[int, list[dict[str, Any]]]:
    """What each rank found, by the number of ranks: each case once recorded and once not, by `record: false`."""
    found = {}
    for world, cases in WATCHED.items():
        silent = {
            f"{name}, not recorded": replace(case, options={**case.options, "record": False})
            for name, case in cases.items()
        }
        options = {"cases": cases | silent, "student": student, "teacher": str(checkpoint_path())}
        found[world] = run_ranks("openrlhf_direct:steps", world, options=options, time_limit=300)
    return found


@pytest.mark.parametrize(("world", "name"), ALL, ids=NAMES)
def test_recording_changes_nothing(steps: dict[int, list[dict[str, Any]]], world: int, name: str) -> None:
    for rank in steps[world]:
        with_records, without = rank[name], rank[f"{name}, not recorded"]
        assert without["recorded"] == []
        assert with_records["loss"] == without["loss"]
        assert with_records["status"] == without["status"]
        for weight, gradient in with_records["gradients"].items():
            assert torch.equal(gradient, without["gradients"][weight]), weight


@pytest.mark.parametrize(("world", "name"), ALL, ids=NAMES)
def test_token_values_are_those_of_both_models(
    steps: dict[int, list[dict[str, Any]]], student: str, world: int, name: str
) -> None:
    case = WATCHED[world][name]
    found = [values for rank in steps[world] for values in rank[name]["recorded"]]
    wanted = plain(case, student)
    # Each once, whichever rank had it and however often it was trained on.
    assert sorted(values["id"] for values in found) == sorted(wanted)
    assert 3 < len(found) < ROWS
    for values in found:
        row, student_log_probs, teacher_log_probs = wanted[values["id"]]
        length = min(case.config.record_tokens, len(row.response_ids))
        assert values["length"] == len(row.response_ids)
        assert values["ids"] == row.response_ids[:length]
        assert values["mask"] == row.response_mask[:length]
        for at, (token, sampled) in enumerate(zip(values["ids"], values["mask"], strict=True)):
            pairs = {"student": student_log_probs[at], "teacher": teacher_log_probs[at]}
            for side, log_probs in pairs.items():
                if not sampled:
                    assert values[side][at] is None and values[f"{side}_top"][at] is None
                    continue
                assert values[side][at] == pytest.approx(float(log_probs[token]), abs=2e-4)
                top = log_probs.topk(case.config.record_alternatives).values.tolist()
                assert [value for _, value in values[f"{side}_top"][at]] == pytest.approx(top, abs=2e-4)
            if sampled:
                entropy = -float((student_log_probs[at].exp() * student_log_probs[at]).sum())
                assert values["entropy"][at] == pytest.approx(entropy, abs=2e-4)


def test_divergences_are_those_of_the_metrics(steps: dict[int, list[dict[str, Any]]]) -> None:
    result = steps[1][0]["padded"]
    divergences = [value for values in result["recorded"] for value in values["divergence"] if value is not None]
    assert len(divergences) == result["status"]["self_distillation/active_tokens"]
    mean = sum(divergences) / len(divergences)
    assert mean == pytest.approx(result["status"]["self_distillation/divergence"], rel=1e-5)


def plain(case: Case, student: str) -> dict[int, tuple[Row, Tensor, Tensor]]:
    """Return, for each active row that is recorded, the row and both models' log-probs of its response, [T, V]."""
    contexts = build_teacher_contexts(recorded().rollouts, case.config)
    encoded = encode_contexts(contexts, tokenizer(), SDPOConfig(), skip_inactive=True)
    models = model_of(student), model_of(str(checkpoint_path()) if case.other_teacher else student)
    assert case.records is not None
    found = {}
    for row, context, record in zip(recorded().rows, encoded.contexts, case.records, strict=True):
        if record != NOT_RECORDED and context.active:
            sides = [log_probs(*pair, row) for pair in zip(models, (row.prompt_ids, context.ids), strict=True)]
            found[record] = (row, sides[0], sides[1])
    return found


@functools.cache
def model_of(folder: str) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@torch.no_grad()
def log_probs(model: Any, prompt: list[int], row: Row) -> Tensor:
    logits = model(torch.tensor([[*prompt, *row.response_ids]])).logits[0, len(prompt) - 1 : -1]
    return (logits / recorded().temperature).log_softmax(-1)
