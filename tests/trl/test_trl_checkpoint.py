"""A resumed run is the run that was never stopped, to the bit; damaged and foreign checkpoints are refused."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from trl import GRPOConfig, GRPOTrainer

from sdpo_plugins.errors import ConfigError, TeacherError
from sdpo_trl import SDPOTrainer
from tiny_trl import questions, tiny_model

Made = Callable[..., Any]


@pytest.fixture
def run(make_trainer: Made, tmp_path: Path) -> Made:
    """Train 8 steps, with a checkpoint after the 4th; `resume` continues one in a new trainer with another folder."""

    def go(resume: str | None = None, seed: int = 0, model: Any = None, **options: Any) -> SDPOTrainer:
        kwargs = {key: options.pop(key) for key in ("train_dataset", "peft_config", "reward_funcs") if key in options}
        folder = tmp_path / ("resumed" if resume else "out")
        args = {"output_dir": str(folder), "max_steps": 8, "save_strategy": "steps", "save_steps": 4, **options}
        trainer = make_trainer(tiny_model(seed) if model is None else model, args=args, **kwargs)
        trainer.train(resume_from_checkpoint=resume and str(tmp_path / "out" / resume))
        return trainer

    return go


def held(trainer: SDPOTrainer) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in trainer._strategies.teacher.state_dict()["tensors"].items()}


def timeless(trainer: Any) -> list[dict[str, Any]]:
    """The logged rows without times and without the summary, which the host makes of the steps since the restart."""
    return [
        {key: value for key, value in row.items() if "time" not in key and "second" not in key}
        for row in trainer.state.log_history
        if "train_runtime" not in row
    ]


def assert_same_run(one: SDPOTrainer, other: SDPOTrainer) -> None:
    theirs = other.model.state_dict()
    for name, value in one.model.state_dict().items():
        assert torch.equal(value, theirs[name]), name
    first, second = held(one), held(other)
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
    assert one._clock.state_dict() == other._clock.state_dict()
    assert one._strategies.teacher.updates == other._strategies.teacher.updates
    assert one._health.state_dict() == other._health.state_dict()
    rows, others = timeless(one), timeless(other)
    assert len(rows) == len(others)
    for row, another in zip(rows, others, strict=True):
        assert row == another


LORA = {"r": 4, "target_modules": ["q_proj", "v_proj"]}

RUNS: dict[str, dict[str, Any]] = {
    "ema": {},
    "frozen": {"teacher": "frozen"},
    "trust region": {"teacher": "trust_region", "teacher_update_rate": 0.3},
    "live": {"teacher": "live"},
    "cosine, accumulated": {
        "lr_scheduler_type": "cosine",
        "warmup_steps": 2,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
    },
    # A rollout batch serves 3 steps, so step 4 ends amid the second one.
    "amid a rollout batch, iterations": {"num_iterations": 3},
    "amid a rollout batch, slices": {"per_device_train_batch_size": 4, "steps_per_generation": 3, "num_iterations": 2},
    "amid a rollout batch, accumulated": {
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "steps_per_generation": 6,
        "num_iterations": 2,
        "teacher_update_unit": "optimizer_step",
    },
    # An epoch is 3 steps, so the resumed run starts in the second epoch and goes on into the third.
    "later epochs": {"train_dataset": questions(6)},
    "at the end of an epoch": {"train_dataset": questions(8)},
    "slow clock": {"teacher_update_every": 3, "teacher_update_rate": 0.5},
    "logged between": {"logging_steps": 2, "save_steps": 2, "teacher_accuracy_every": 3},
    "hybrid": {"grpo_weight": 0.3, "num_iterations": 3},
    "sequence mean, random": {"loss_agg_mode": "seq-mean-token-mean", "selector": "random"},
}


@pytest.mark.parametrize("name", RUNS)
def test_defect_04_resumed_run_is_the_run_never_stopped(run: Made, name: str) -> None:
    """Weights, teacher, counters and every logged number; the new trainer starts from other weights."""
    unbroken = run(**RUNS[name])
    initial = tiny_model().state_dict()
    moved = [k for k, v in held(unbroken).items() if k in initial and not torch.equal(v, initial[k])]
    assert bool(moved) == (unbroken.sdpo_config.teacher == "ema")
    assert_same_run(unbroken, run(resume="checkpoint-4", seed=1, **RUNS[name]))


@pytest.mark.parametrize("teacher", ["lora_ema", "ema", "frozen"])
def test_defect_05_resumed_lora_run_is_the_run_never_stopped(run: Made, teacher: str) -> None:
    options = {"teacher": teacher, "num_iterations": 3, "beta": 0.02, "learning_rate": 1e-2}
    unbroken = run(peft_config=LoraConfig(**LORA), **options)
    # Full EMA and frozen teachers also hold buffers; no strategy holds the frozen base.
    assert all("lora_" in name or name.endswith("inv_freq") for name in held(unbroken))
    assert_same_run(unbroken, run(resume="checkpoint-4", peft_config=LoraConfig(**LORA), **options))


def test_resumed_run_in_bfloat16_keeps_the_float32_teacher(run: Made) -> None:
    options = {"learning_rate": 1e-2, "teacher_update_rate": 0.01}
    unbroken = run(model=tiny_model().bfloat16(), **options)
    assert {value.dtype for value in held(unbroken).values()} == {torch.float32}
    assert any(not torch.equal(value, value.bfloat16().float()) for value in held(unbroken).values())
    assert_same_run(unbroken, run(resume="checkpoint-4", model=tiny_model(1).bfloat16(), **options))


def test_saving_changes_nothing(run: Made) -> None:
    with_checkpoints = run(num_iterations=3, save_steps=1)
    assert_same_run(with_checkpoints, run(num_iterations=3, save_strategy="no"))


def test_a_trainer_that_trained_further_can_go_back(run: Made, tmp_path: Path) -> None:
    """Nothing of its later steps may stay: no buffered rollouts, no position, no pending metrics."""
    trainer = run(num_iterations=3, logging_steps=3)
    again = run(resume="checkpoint-4", num_iterations=3, logging_steps=3)
    trainer.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-4"))
    assert_same_run(trainer, again)
    boundary = run(save_steps=3, num_iterations=3)
    after = run(resume="checkpoint-3", num_iterations=3)
    boundary.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-3"))
    assert_same_run(boundary, after)


def test_warnings_count_on_and_are_not_repeated(run: Made) -> None:
    def nothing(completions: list[Any], **_: Any) -> list[float]:
        return [0.0] * len(completions)

    def told(resume: str | None, until: int) -> list[str]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            run(resume=resume, reward_funcs=nothing, save_steps=3 if resume is None else 100, max_steps=until)
        return [str(item.message) for item in caught if "No rollout has succeeded" in str(item.message)]

    assert len(told(None, 6)) == 1
    # Three bad batches before the restart and two after it make five.
    assert len(told("checkpoint-3", 5)) == 1
    # The fifth batch was before this checkpoint: it has been said.
    assert told("checkpoint-6", 12) == []


def test_only_the_newest_checkpoint_is_kept_and_it_is_whole(run: Made, tmp_path: Path) -> None:
    unbroken = run(save_steps=2, save_total_limit=1, max_steps=6)
    assert [path.name for path in (tmp_path / "out").glob("checkpoint-*")] == ["checkpoint-6"]
    resumed = run(resume="checkpoint-6", max_steps=8)
    assert resumed.state.global_step == 8
    assert resumed._strategies.teacher.updates == 8
    assert timeless(resumed)[:6] == timeless(unbroken)


def test_older_checkpoints_go_only_when_the_new_one_is_whole(
    run: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sdpo_trl.resume as ours

    def full_disk(checkpoint: Path, *args: Any) -> None:
        if checkpoint.name == "checkpoint-4":
            raise OSError("no space left on device")
        write(checkpoint, *args)

    write = ours.save_run_state
    monkeypatch.setattr(ours, "save_run_state", full_disk)
    with pytest.raises(OSError, match="no space left"):
        run(save_steps=2, save_total_limit=1)
    monkeypatch.undo()
    assert run(resume="checkpoint-2", max_steps=4).state.global_step == 4


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "teacher cut short": (lambda c: cut_short(c / "sdpo/teacher/teacher-00000-of-00001.safetensors"), "is damaged"),
    "teacher's description cut short": (lambda c: cut_short(c / "sdpo/teacher/teacher-00000-of-00001.json"), "JSON"),
    "teacher gone": (lambda c: (c / "sdpo/teacher/teacher-00000-of-00001.safetensors").unlink(), "does not exist"),
    "description gone": (lambda c: (c / "sdpo/teacher/teacher-00000-of-00001.json").unlink(), "holds no"),
    "nothing of ours": (lambda c: shutil.rmtree(c / "sdpo"), "holds no SDPO teacher"),
    "state gone": (lambda c: (c / "sdpo/state-0.json").unlink(), "state of rank 0"),
    "state cut short": (lambda c: cut_short(c / "sdpo/state-0.json"), "state of rank 0"),
    "state of another kind": (lambda c: (c / "sdpo/state-0.json").write_text("null") and None, "state of rank 0"),
    "rollouts gone": (lambda c: (c / "sdpo/rollouts-0.pt").unlink(), "state of rank 0"),
    "rollouts cut short": (lambda c: cut_short(c / "sdpo/rollouts-0.pt"), "state of rank 0"),
    "rollouts of another kind": (lambda c: (c / "sdpo/rollouts-0.pt").write_bytes(b"x" * 99) and None, "rank 0"),
}


@pytest.fixture(scope="module")
def amid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint amid a rollout batch, to be copied and damaged."""
    from transformers import AutoTokenizer

    from sdpo_plugins.embedded import checkpoint_path
    from tiny_trl import digits_reward, tiny_arguments

    folder = tmp_path_factory.mktemp("amid")
    trainer = SDPOTrainer(
        tiny_model(),
        reward_funcs=digits_reward,
        args=tiny_arguments(folder, max_steps=1, num_iterations=2, save_strategy="steps", save_steps=1),
        train_dataset=questions(),
        processing_class=AutoTokenizer.from_pretrained(checkpoint_path()),
    )
    trainer.train()
    return folder / "checkpoint-1"


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_checkpoint_is_refused(make_trainer: Made, amid: Path, tmp_path: Path, name: str) -> None:
    damage, message = DAMAGE[name]
    checkpoint = tmp_path / amid.name
    shutil.copytree(amid, checkpoint)
    damage(checkpoint)
    trainer = make_trainer(args={"num_iterations": 2})
    with pytest.raises(TeacherError, match=message) as caught:
        trainer.train(resume_from_checkpoint=str(checkpoint))
    assert str(tmp_path) in str(caught.value)
    assert trainer.state.global_step == 1 and not [row for row in trainer.state.log_history if row["step"] > 1]


def test_a_half_written_file_does_not_stand_in_for_the_whole_one(
    make_trainer: Made, amid: Path, tmp_path: Path
) -> None:
    """A process that dies while it writes leaves a name of its own behind; the complete files still count."""
    checkpoint = tmp_path / amid.name
    shutil.copytree(amid, checkpoint)
    (checkpoint / "sdpo" / "state-0.json.tmp").write_text('{"st')
    trainer = make_trainer(args={"num_iterations": 2})
    trainer.train(resume_from_checkpoint=str(checkpoint))
    assert trainer.state.global_step == 2


def test_another_strategy_is_refused(make_trainer: Made, amid: Path) -> None:
    trainer = make_trainer(args={"num_iterations": 2, "teacher": "frozen"})
    with pytest.raises(TeacherError, match=r"'ema'.*teacher='frozen'"):
        trainer.train(resume_from_checkpoint=str(amid))


def test_another_cut_amid_a_rollout_batch_is_refused(make_trainer: Made, amid: Path) -> None:
    trainer = make_trainer(args={"num_iterations": 3})
    with pytest.raises(ConfigError, match=r"num_iterations=2; this run has 1 and 3"):
        trainer.train(resume_from_checkpoint=str(amid))


def test_a_checkpoint_of_grpo_is_refused(make_trainer: Made, tmp_path: Path) -> None:
    donor = make_trainer()
    args = GRPOConfig(
        str(tmp_path / "grpo"),
        per_device_train_batch_size=8,
        num_generations=4,
        max_completion_length=6,
        max_steps=1,
        save_strategy="steps",
        save_steps=1,
        use_cpu=True,
        bf16=False,
        report_to="none",
        disable_tqdm=True,
    )
    grpo = GRPOTrainer(
        tiny_model(),
        lambda completions, **_: [float(len(completion[0]["content"]) % 2) for completion in completions],
        args,
        train_dataset=donor.train_dataset,
        processing_class=donor.processing_class,
    )
    grpo.train()
    with pytest.raises(TeacherError, match=r"holds no SDPO teacher.*without `resume_from_checkpoint`"):
        make_trainer().train(resume_from_checkpoint=str(tmp_path / "grpo" / "checkpoint-1"))


def test_an_sdpo_checkpoint_continues_as_grpo_where_sdpo_is_off(make_trainer: Made, amid: Path) -> None:
    trainer = make_trainer(args={"num_iterations": 2, "enabled": False})
    trainer.train(resume_from_checkpoint=str(amid))
    assert trainer.state.global_step == 2


def test_completion_tables_survive_a_restart_amid_a_rollout_batch(
    make_trainer: Made, amid: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = make_trainer(args={"num_iterations": 2, "log_completions": True, "max_steps": 3})
    trainer.train(resume_from_checkpoint=str(amid))
    capsys.readouterr()
    assert trainer.state.global_step == 3


def test_what_a_checkpoint_holds(amid: Path) -> None:
    files = sorted(str(path.relative_to(amid / "sdpo")) for path in (amid / "sdpo").rglob("*") if path.is_file())
    assert files == [
        "rollouts-0.pt",
        "state-0.json",
        "teacher/teacher-00000-of-00001.json",
        "teacher/teacher-00000-of-00001.safetensors",
    ]
    assert json.loads((amid / "sdpo" / "state-0.json").read_text())["clock"] == {"batches": 0, "steps": 1}
