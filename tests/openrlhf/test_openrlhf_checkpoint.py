"""Checkpoints of the policy actor: a run that was resumed is the run that never stopped, teacher included."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from launch import RanksFailed, run_ranks
from openrlhf_lives import checkpoint_files
from recorded import write_student

OPTIONS = {"teacher": "ema", "teacher_update_rate": 0.2, "grpo_weight": 0.3}
CASES = {
    "ZeRO-2": (1, "--ds.zero_stage 2"),
    "ZeRO-2, two ranks": (2, "--ds.zero_stage 2"),
    "ZeRO-3, two ranks": (2, "--ds.zero_stage 3 --ds.packing_samples"),
}


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_student(tmp_path_factory.mktemp("student"))


@pytest.fixture(scope="module")
def lives(student: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """`lives(name)`: what was found by the run that went on, by the resumed one, and their folder."""
    known: dict[str, Any] = {}

    def of(name: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]], Path]:
        if name not in known:
            world, flags = CASES[name]
            folder = tmp_path_factory.mktemp("checkpoints")
            common = {"folder": str(folder), "model": student, "options": OPTIONS, "flags": flags}
            whole = live(world, common, batches=(1, 2, 3, 4), save_after=2)
            resumed = live(world, common, batches=(3, 4))
            known[name] = whole, resumed, folder
        return known[name]

    return of


def live(world: int, common: dict[str, Any], **more: Any) -> list[dict[str, Any]]:
    return run_ranks("openrlhf_lives:life", world, options={**common, **more}, time_limit=300)


@pytest.mark.parametrize("name", CASES)
def test_resuming_equals_never_having_stopped(lives: Any, name: str) -> None:
    whole, resumed, _ = lives(name)
    for one, other in zip(whole, resumed, strict=True):
        assert other["state"]["global_step"] == 2
        for part in ("weights", "teacher"):
            assert one[part].keys() == other[part].keys() and len(one[part]) > 10
            for tensor in one[part]:
                assert torch.equal(one[part][tensor], other[part][tensor]), (part, tensor)
        assert one["updates"] == other["updates"] == 4
        for batch in (3, 4):
            assert one["statuses"][batch] == other["statuses"][batch]


@pytest.mark.parametrize("name", CASES)
def test_the_teacher_of_a_checkpoint_is_not_todays_student(lives: Any, name: str) -> None:
    whole, resumed, _ = lives(name)
    for one, other in zip(whole, resumed, strict=True):
        # At the start of a run it is an exact copy; a resumed one's lags behind the policy.
        assert all(torch.equal(one["first_teacher"][key], value) for key, value in one["first_weights"].items())
        assert not all(torch.equal(other["first_teacher"][key], value) for key, value in other["first_weights"].items())


def test_files_of_a_checkpoint(lives: Any) -> None:
    assert checkpoint_files(str(lives("ZeRO-2, two ranks")[2]), "global_step2") == [
        "random-00000.safetensors",
        "random-00001.safetensors",
        "teacher-00000-of-00001.json",
        "teacher-00000-of-00001.safetensors",
    ]
    assert checkpoint_files(str(lives("ZeRO-3, two ranks")[2]), "global_step2") == [
        "random-00000.safetensors",
        "random-00001.safetensors",
        "teacher-00000-of-00002.json",
        "teacher-00000-of-00002.safetensors",
        "teacher-00001-of-00002.json",
        "teacher-00001-of-00002.safetensors",
    ]


def test_the_teacher_is_there_before_deepspeed_names_the_checkpoint(student: str, tmp_path: Path) -> None:
    # The host makes room for the new checkpoint first; with one place the old one must go, and the teacher stay.
    common = {"folder": str(tmp_path), "model": student, "options": OPTIONS, "flags": "--ckpt.max_num 1"}
    live(1, common, batches=(1,), save_after=1)
    live(1, common, batches=(2,), save_after=2)
    kept = sorted(path.name for path in (tmp_path / "_actor").iterdir() if path.is_dir())
    assert kept == ["global_step2"]
    assert (tmp_path / "_actor" / "latest").read_text() == "global_step2"
    files = [path.stat().st_mtime_ns for path in (tmp_path / "_actor" / "global_step2" / "sdpo").iterdir()]
    assert max(files) <= (tmp_path / "_actor" / "latest").stat().st_mtime_ns


def refused(student: str, folder: Path, **more: Any) -> str:
    common = {"folder": str(folder), "model": student, "options": OPTIONS, "flags": "", "batches": (3,)}
    with pytest.raises(RanksFailed) as caught:
        live(1, {**common, **more})
    return str(caught.value)


def test_a_checkpoint_without_a_teacher_is_refused(student: str, tmp_path: Path) -> None:
    common = {"folder": str(tmp_path), "model": student, "options": {"enabled": False}, "flags": ""}
    live(1, common, batches=(1,), save_after=1)
    message = refused(student, tmp_path)
    assert "holds no SDPO teacher, so resuming would silently start a new one" in message
    assert "`--ckpt.save_hf`" in message


def test_a_damaged_teacher_is_refused(lives: Any, student: str, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(lives("ZeRO-2")[2], folder)
    weights = folder / "_actor" / "global_step2" / "sdpo" / "teacher-00000-of-00001.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert "is damaged: its checksum is not the one that was saved" in refused(student, folder)


def test_another_strategy_is_refused(lives: Any, student: str) -> None:
    message = refused(student, lives("ZeRO-2")[2], options={**OPTIONS, "teacher": "frozen"})
    assert "TeacherError" in message and "'ema'" in message and "'frozen'" in message


def test_a_missing_random_state_is_refused(lives: Any, student: str, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(lives("ZeRO-2")[2], folder)
    (folder / "_actor" / "global_step2" / "sdpo" / "random-00000.safetensors").unlink()
    assert "the checkpoint is not whole, or more ranks resume than wrote it" in refused(student, folder)


def test_the_saved_model_is_the_student(student: str, tmp_path: Path) -> None:
    common = {"folder": str(tmp_path), "model": student, "options": OPTIONS}
    (found,) = live(1, {**common, "flags": "--ckpt.save_hf"}, batches=(1, 2), save_after=2)
    saved = load_file(tmp_path / "global_step2_hf" / "model.safetensors")
    assert json.loads((tmp_path / "global_step2_hf" / "config.json").read_text())["model_type"] == "qwen3"
    for name, value in found["weights"].items():
        assert torch.equal(saved[name].float(), value.float()), name
    assert not all(torch.equal(saved[name].float(), value) for name, value in found["teacher"].items())
