"""Teacher checkpoints: bit-identical when whole, refused with a reason when anything is off."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from sdpo_plugins.errors import TeacherError
from sdpo_plugins.teacher import (
    Ema,
    Frozen,
    Live,
    LocalTensors,
    Teacher,
    TrustRegion,
    load_teacher,
    local_tensors,
    save_teacher,
)

STEM = "teacher-00000-of-00001"


def make(kind: type[Teacher]) -> Teacher:
    return kind(0.1, "rollout_batch", 1)


def student(dtype: torch.dtype = torch.bfloat16, width: int = 4) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width), nn.Linear(width, 2)).to(dtype)


def trained(kind: type[Teacher], model: nn.Module, updates: int = 2) -> Teacher:
    """A teacher some updates from its start, with rollout batches and steps counted."""
    teacher = make(kind)
    tensors = local_tensors(model)
    teacher.start(tensors)
    for update in range(1, updates + 1):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
        assert teacher.due(update, 4 * update)
        teacher.update(tensors)
    return teacher


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, LocalTensors, Teacher]:
    model = student()
    teacher = trained(Ema, model)
    save_teacher(teacher, tmp_path)
    return tmp_path, local_tensors(model), teacher


def contents(teacher: Teacher) -> dict[str, Tensor]:
    return teacher.state_dict()["tensors"]


def bits(value: Tensor) -> bytes:
    return value.contiguous().flatten().view(torch.uint8).numpy().tobytes() if value.numel() else b""


@pytest.mark.parametrize("kind", [Ema, Frozen, TrustRegion, Live])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_round_trip_is_bit_identical(kind: type[Teacher], dtype: torch.dtype, tmp_path: Path) -> None:
    model = student(dtype)
    teacher = trained(kind, model)
    path = save_teacher(teacher, tmp_path / "checkpoint-2" / "teacher")
    assert path.name == f"{STEM}.json"
    assert sorted(os.listdir(path.parent)) == [f"{STEM}.json", f"{STEM}.safetensors"]
    other = make(kind)
    load_teacher(other, path.parent, local_tensors(model))
    before, after = contents(teacher), contents(other)
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert (after[name].dtype, after[name].shape, bits(after[name])) == (value.dtype, value.shape, bits(value))
    assert {key: value for key, value in other.state_dict().items() if key != "tensors"} == {
        key: value for key, value in teacher.state_dict().items() if key != "tensors"
    }


def test_training_on_after_a_load_equals_never_having_stopped(tmp_path: Path) -> None:
    model = student()
    tensors = local_tensors(model)
    teacher = trained(Ema, model)
    save_teacher(teacher, tmp_path)
    resumed = make(Ema)
    load_teacher(resumed, tmp_path, tensors)
    with torch.no_grad():
        model[0].weight.add_(0.5)
    assert teacher.due(3, 12) and resumed.due(3, 12)
    assert teacher.update(tensors) == resumed.update(tensors)
    for name, value in contents(teacher).items():
        assert bits(value) == bits(contents(resumed)[name])


def test_odd_tensors_survive(tmp_path: Path) -> None:
    """A rank whose shard is empty, scalars, whole numbers, not contiguous, not-a-number and infinity."""
    live = {
        "empty": torch.empty(0, 5),
        "scalar": torch.tensor(-0.0),
        "count": torch.tensor(7),
        "mask": torch.tensor([True, False]),
        "transposed": torch.arange(6.0).reshape(2, 3).T,
        "strange": torch.tensor([torch.nan, torch.inf, -torch.inf, 1e-45]),
    }
    teacher, other = make(Frozen), make(Frozen)
    teacher.start(live)
    save_teacher(teacher, tmp_path, rank=1, world_size=3)
    load_teacher(other, tmp_path, live, rank=1, world_size=3)
    for name, value in live.items():
        assert bits(contents(other)[name]) == bits(value)
        assert contents(other)[name].shape == value.shape


def test_the_description_can_be_read_by_people(saved: tuple[Path, LocalTensors, Teacher]) -> None:
    described = json.loads((saved[0] / f"{STEM}.json").read_text())
    assert (described["name"], described["format"], described["updates"]) == ("ema", 1, 2)
    assert (described["rank"], described["world_size"], described["reached"]) == (0, 1, [2, 8])
    assert described["tensors"]["0.weight"] == {"shape": [4, 3], "dtype": "float32"}


def test_a_save_that_fails_leaves_the_last_one_whole(
    saved: tuple[Path, LocalTensors, Teacher], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, tensors, teacher = saved
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def full_disk(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="no space"):
        save_teacher(teacher, folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    load_teacher(make(Ema), folder, tensors)


def test_a_teacher_that_has_not_started_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(TeacherError, match="cannot save the teacher 'ema' before it has weights"):
        save_teacher(make(Ema), tmp_path)
    assert list(tmp_path.iterdir()) == []


def edit(**changes: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / f"{STEM}.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def cut_short(folder: Path) -> None:
    path = folder / f"{STEM}.safetensors"
    path.write_bytes(path.read_bytes()[:-5])


def flip_a_bit(folder: Path) -> None:
    path = folder / f"{STEM}.safetensors"
    content = bytearray(path.read_bytes())
    content[-7] ^= 1
    path.write_bytes(content)


def spoil_with_a_matching_checksum(folder: Path) -> None:
    import zlib

    content = b"this was never a safetensors file"
    (folder / f"{STEM}.safetensors").write_bytes(content)
    edit(size=len(content), crc32=zlib.crc32(content))(folder)


def halve_the_json(folder: Path) -> None:
    path = folder / f"{STEM}.json"
    path.write_text(path.read_text()[:40])


def rename_a_tensor(folder: Path) -> None:
    path = folder / f"{STEM}.json"
    path.write_text(path.read_text().replace('"0.weight"', '"0.wait"'))


def rename_to_another_rank(folder: Path) -> None:
    for path in list(folder.iterdir()):
        path.rename(path.with_name(path.name.replace("of-00001", "of-00002")))


@pytest.mark.parametrize(
    ("damage", "arguments", "message"),
    [
        (cut_short, {}, r"safetensors is damaged: it has \d+ bytes, \d+ were saved"),
        (flip_a_bit, {}, "safetensors is damaged: its checksum is not the one"),
        (spoil_with_a_matching_checksum, {}, "is no safetensors file"),
        (lambda folder: (folder / f"{STEM}.safetensors").unlink(), {}, "does not exist, though its JSON file does"),
        (halve_the_json, {}, "is no valid JSON"),
        (lambda folder: (folder / f"{STEM}.json").write_text("[]"), {}, "does not describe a teacher: name, format"),
        (lambda folder: (folder / f"{STEM}.json").write_text('{"name": "ema"}'), {}, "teacher: format, updates"),
        (rename_a_tensor, {}, r"do not describe the same tensors; 0\.wait, 0\.weight differ"),
        (edit(name="frozen"), {}, r"is a 'frozen' teacher, but this run .* teacher='ema'\. Set teacher='frozen'"),
        (edit(format=2), {}, "has format 2, this version of sdpo-plugins reads 1"),
        (lambda folder: None, {"rank": 1, "world_size": 2}, "was saved by 1 rank.s., this run has 2"),
        (rename_to_another_rank, {"rank": 0, "world_size": 2}, "says it is rank 0 of 1, but its name says rank 0 of 2"),
        (lambda folder: (folder / f"{STEM}.json").unlink(), {}, rf"holds no {STEM}\.json; found: {STEM}\.safetensors"),
    ],
)
def test_damage_and_strangers_are_refused_and_nothing_changes(
    saved: tuple[Path, LocalTensors, Teacher],
    damage: Callable[[Path], None],
    arguments: dict[str, int],
    message: str,
) -> None:
    folder, tensors, _ = saved
    damage(folder)
    teacher = make(Ema)
    teacher.start(tensors)
    before = {name: value.clone() for name, value in contents(teacher).items()}
    with pytest.raises(TeacherError, match=message) as caught:
        load_teacher(teacher, folder, tensors, **arguments)
    assert str(folder) in str(caught.value)
    assert "new teacher" in str(caught.value)
    assert teacher.updates == 0
    assert all(torch.equal(value, before[name]) for name, value in contents(teacher).items())


def test_a_missing_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TeacherError, match=r"directory .*nowhere does not exist"):
        load_teacher(make(Ema), tmp_path / "nowhere", local_tensors(student()))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda: student(width=5), r"0\.weight \(teacher \[4, 3\], student \[5, 3\]\)"),
        (lambda: nn.Linear(3, 2), "2 missing from the teacher: weight, bias"),
    ],
)
def test_another_models_teacher_is_refused(
    saved: tuple[Path, LocalTensors, Teacher], other: Callable[[], nn.Module], message: str
) -> None:
    with pytest.raises(TeacherError, match=message) as caught:
        load_teacher(make(Ema), saved[0], local_tensors(other()))
    assert STEM in str(caught.value)


def test_a_reference_in_another_dtype_is_refused_but_an_average_is_float32_anyway(tmp_path: Path) -> None:
    for kind in (Ema, Frozen):
        save_teacher(trained(kind, nn.Linear(2, 2).bfloat16()), tmp_path / kind.name)
    wide = local_tensors(nn.Linear(2, 2))
    load_teacher(make(Ema), tmp_path / "ema", wide)
    with pytest.raises(TeacherError, match=r"holds 'weight' as torch\.bfloat16, .* needs torch\.float32"):
        load_teacher(make(Frozen), tmp_path / "frozen", wide)


def test_a_rank_outside_the_world_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TeacherError, match="rank=2, world_size=2"):
        save_teacher(trained(Ema, student()), tmp_path, rank=2, world_size=2)
