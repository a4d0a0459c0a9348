"""The policy actor over several rollout batches: teachers, optimizer steps, LoRA, what it reports."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from launch import RanksFailed, run_ranks
from recorded import write_student

NAMES = ("ema", "frozen", "live", "trust_region")
LORA = "--ds.lora.rank 4 --ds.lora.alpha 8 --actor.adam.lr 1e-2"
WHOLE = "--train.batch_size 16"
RATE = {"teacher_update_rate": 0.2}
# Name → SDPO's options, the host's flags, ranks.
LIVES: dict[str, tuple[dict[str, Any], str, int]] = {
    **{
        f"{teacher}, ZeRO-{stage}": ({"teacher": teacher, **RATE}, f"--ds.zero_stage {stage}", 1)
        for teacher in NAMES
        for stage in (2, 3)
    },
    "every step": ({"teacher": "ema", "teacher_update_unit": "optimizer_step", **RATE}, "", 1),
    "rate 1": ({"teacher": "ema", "teacher_update_rate": 1.0}, "", 1),
    "one rank": ({"teacher": "frozen"}, f"--ds.zero_stage 2 {WHOLE}", 1),
    "two ranks, ZeRO-2": ({"teacher": "frozen"}, f"--ds.zero_stage 2 {WHOLE}", 2),
    "two ranks, ZeRO-3": ({"teacher": "frozen"}, f"--ds.zero_stage 3 {WHOLE}", 2),
    "LoRA, ema": ({"teacher": "ema", **RATE}, LORA, 1),
    "LoRA, lora_ema": ({"teacher": "lora_ema", **RATE}, LORA, 1),
}


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_student(tmp_path_factory.mktemp("student"))


@pytest.fixture(scope="module")
def live(student: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """`live(name)`: what the first rank found in three rollout batches."""
    found: dict[str, dict[str, Any]] = {}
    for world in (1, 2):
        cases = {
            name: {
                "folder": str(tmp_path_factory.mktemp("run")),
                "model": student,
                "options": options,
                "flags": flags,
                "batches": (1, 2, 3),
            }
            for name, (options, flags, ranks) in LIVES.items()
            if ranks == world
        }
        found |= run_ranks("openrlhf_lives:lives", world, options={"cases": cases}, time_limit=600)[0]
    return found.__getitem__


@pytest.mark.parametrize("stage", [2, 3])
@pytest.mark.parametrize("teacher", NAMES)
def test_every_teacher_trains(live: Any, teacher: str, stage: int) -> None:
    statuses = live(f"{teacher}, ZeRO-{stage}")["statuses"]
    # Feedback is in the teacher's prompt alone: so the two differ, and the policy comes closer.
    assert statuses[1]["self_distillation/divergence"] > statuses[3]["self_distillation/divergence"] > 0
    assert statuses[3]["actor_grad_norm"] > 0


@pytest.mark.parametrize("teacher", NAMES)
def test_shards_train_like_whole_weights(live: Any, teacher: str) -> None:
    whole, shards = (live(f"{teacher}, ZeRO-{stage}") for stage in (2, 3))
    for name, value in whole["weights"].items():
        torch.testing.assert_close(shards["weights"][name], value, rtol=1e-3, atol=2e-5)
    for batch, status in whole["statuses"].items():
        for name, value in status.items():
            if name.startswith(("self_distillation/", "teacher/")):
                assert shards["statuses"][batch][name] == pytest.approx(value, rel=1e-3, abs=1e-6), name


@pytest.mark.parametrize("stage", [2, 3])
def test_the_average_follows_once_a_rollout_batch(live: Any, stage: int) -> None:
    # Two optimizer steps a batch, one update.
    statuses = live(f"ema, ZeRO-{stage}")["statuses"]
    assert [statuses[batch]["teacher/updates"] for batch in (1, 2, 3)] == [1.0, 2.0, 3.0]


def test_the_average_follows_each_optimizer_step_if_asked_to(live: Any) -> None:
    assert live("every step")["updates"] == 6


def test_the_average_is_that_of_the_weights(live: Any) -> None:
    # With rate 1 the teacher is the policy as it was at the end of the batch.
    found = live("rate 1")
    for name, value in found["weights"].items():
        assert torch.equal(found["teacher"][name], value.float()), name
    assert found["statuses"][3]["teacher/distance"] == 0.0


def test_a_frozen_teacher_stays(live: Any) -> None:
    found = live("frozen, ZeRO-2")
    assert all(torch.equal(found["first_teacher"][name], value) for name, value in found["teacher"].items())
    assert not all(torch.equal(found["first_weights"][name], value) for name, value in found["weights"].items())


@pytest.mark.parametrize("name", ["two ranks, ZeRO-2", "two ranks, ZeRO-3"])
def test_ranks_train_like_one(live: Any, name: str) -> None:
    one, other = live("one rank"), live(name)
    for weight, value in one["weights"].items():
        torch.testing.assert_close(other["weights"][weight], value, rtol=1e-3, atol=2e-5)
    for key in ("divergence", "entropy", "gap", "active_tokens"):
        first = one["statuses"][1][f"self_distillation/{key}"]
        assert other["statuses"][1][f"self_distillation/{key}"] == pytest.approx(first, rel=1e-5)


def test_metrics_are_those_of_the_other_hosts(live: Any) -> None:
    status = live("ema, ZeRO-2")["statuses"][2]
    own = {"active_tokens", "divergence", "log_prob", "entropy", "importance_ratio", "gap"}
    assert {f"self_distillation/{name}" for name in own} <= status.keys()
    assert {"teacher/distance", "teacher/relative_distance", "teacher/updates"} <= status.keys()
    # The host's own stay, and none of SDPO's fields is taken for one.
    assert {"policy_loss", "actor_lr", "actor_grad_norm", "ppo_kl", "reward", "response_length"} <= status.keys()
    assert not [name for name in status if name.startswith("sdpo_")]


# LoRA -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("teacher", ["ema", "lora_ema"])
def test_lora_trains_with_teachers_of_adapters(live: Any, teacher: str) -> None:
    found = live(f"LoRA, {teacher}")
    trained = {name for name in found["weights"] if "lora_" in name}
    assert trained == {name for name in found["teacher"] if name in found["weights"]} and trained
    statuses = found["statuses"]
    assert statuses[1]["self_distillation/divergence"] > statuses[3]["self_distillation/divergence"] > 0


def test_vllm_gets_merged_weights_under_the_models_own_names(student: str, tmp_path: Any) -> None:
    given = {"folder": str(tmp_path), "model": student, "flags": LORA}
    (found,) = run_ranks("openrlhf_lives:synced", 1, options=given, time_limit=200)
    assert found["sent"].keys() == found["merged"].keys()
    for name, value in found["merged"].items():
        torch.testing.assert_close(found["sent"][name], value, rtol=1e-5, atol=1e-6)
    assert (tmp_path / "model" / "adapter_model.safetensors").is_file()


def test_lora_in_shards_is_refused(student: str, tmp_path: Any) -> None:
    given = {"folder": str(tmp_path), "model": student, "flags": f"{LORA} --ds.zero_stage 3"}
    with pytest.raises(RanksFailed, match="LoRA adapters cannot be merged for vLLM from ZeRO-3's shards"):
        run_ranks("openrlhf_lives:synced", 1, options=given, time_limit=200)
