"""Records of a TRL run: they hold what the models say, once each, and the run does not notice that they are written."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from fixed_run import train
from launch import RanksFailed, run_ranks
from sdpo_plugins.errors import ConfigError
from sdpo_plugins.losses import per_token_losses
from sdpo_plugins.records import RunRecords, read_lines, read_run
from sdpo_trl import RecordCallback, SDPOTrainer
from tiny_trl import questions, tiny_model

Made = Callable[..., Any]


def records_of(trainer: Any) -> RunRecords:
    return read_run(trainer.args.output_dir)


# What the records hold


class Snapshots(SDPOTrainer):
    """Keeps what reaches the loss, with the weights of student and teacher at that moment."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.seen: list[tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = []
        super().__init__(*args, **kwargs)

    def _compute_loss(self, model: Any, inputs: Any) -> Any:
        self.seen.append(
            (
                {name: value.clone() for name, value in inputs.items() if torch.is_tensor(value)},
                copied(self.model.state_dict()),
                copied(self._strategies.teacher.state_dict()["tensors"]),
            )
        )
        return super()._compute_loss(model, inputs)


def copied(tensors: Any) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in tensors.items()}


@torch.no_grad()
def whole_logits(weights: dict[str, torch.Tensor], prompt: torch.Tensor, answer: torch.Tensor) -> torch.Tensor:
    """The logits `[T, V]` of an answer, from one plain unpadded pass in float64."""
    model = tiny_model().double().eval()
    missing = model.load_state_dict(weights, strict=False).missing_keys
    assert set(missing) <= {"lm_head.weight"}
    model.tie_weights()
    return model(input_ids=torch.cat([prompt, answer])[None]).logits[0, len(prompt) - 1 : -1]


def close(recorded: list[Any], expected: torch.Tensor) -> None:
    # Five digits are recorded.
    assert recorded == pytest.approx(expected.tolist(), abs=3e-5, rel=1e-5)


CASES: dict[str, dict[str, Any]] = {
    "an average as the teacher": {"teacher_update_rate": 0.3},
    "a frozen teacher, hot": {"teacher": "frozen", "temperature": 1.7},
    "two passes, cold": {"teacher": "trust_region", "teacher_update_rate": 0.3, "temperature": 0.6},
    "a renormalised top-K": {"distillation_topk": 3, "distillation_add_tail": False},
    "sampled tokens": {"full_logit_distillation": False, "alpha": 1.0, "distillation_topk": None},
    "hybrid": {"grpo_weight": 0.5},
    "several passes over a batch": {"num_iterations": 3, "max_steps": 6},
    "slices": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "steps_per_generation": 4},
}


@pytest.mark.slow
@pytest.mark.parametrize("path", ["fused", "logits"])
@pytest.mark.parametrize("case", CASES)
def test_token_values_are_what_the_models_say(make_trainer: Made, case: str, path: str) -> None:
    args = {"max_steps": 3, "learning_rate": 1e-2, "record_rollouts": 5, "loss_path": path, **CASES[case]}
    trainer = make_trainer(args=args, cls=Snapshots)
    trainer.train()
    assert (trainer._distiller.fused is None) == (path == "logits")
    recorded = {rollout.id: rollout for rollout in records_of(trainer).rollouts}
    config, temperature = trainer.sdpo_config, trainer.temperature
    initial, checked = tiny_model().state_dict(), set()
    for inputs, student_weights, teacher_weights in trainer.seen:
        for row, record in enumerate(inputs["sdpo_record"].tolist()):
            if record < 0 or record in checked or not inputs["sdpo_active"][row]:
                continue
            checked.add(record)
            answer = inputs["completion_ids"][row][inputs["completion_mask"][row].bool()]
            asked = inputs["prompt_ids"][row][inputs["prompt_mask"][row].bool()]
            told = inputs["sdpo_prompt_ids"][row][inputs["sdpo_prompt_mask"][row].bool()]
            student = whole_logits(student_weights, asked, answer)
            teacher = whole_logits(teacher_weights or initial, told, answer)
            if config.teacher == "trust_region":
                share = config.teacher_update_rate
                teacher = (1 - share) * teacher + share * whole_logits(student_weights, told, answer)
            log_probs, theirs = ((logits / temperature).log_softmax(-1) for logits in (student, teacher))
            divergence = per_token_losses(
                student[None], teacher[None], answer[None], config, temperature=temperature
            ).divergence[0]
            tokens = recorded[record].tokens
            assert tokens is not None
            assert tokens["ids"] == answer.tolist() and tokens["mask"] == [1] * len(answer)
            close(tokens["student"], log_probs.gather(-1, answer[:, None])[:, 0])
            close(tokens["teacher"], theirs.gather(-1, answer[:, None])[:, 0])
            close(tokens["divergence"], divergence)
            close(tokens["entropy"], -(log_probs.exp() * log_probs).sum(-1))
            for name, values in (("student_top", log_probs), ("teacher_top", theirs)):
                for pairs, best in zip(tokens[name], values, strict=True):
                    close([value for _, value in pairs], best.topk(5).values)
                    close([value for _, value in pairs], best[[token for token, _ in pairs]])
            used = {
                *tokens["ids"],
                *(token for name in ("student_top", "teacher_top") for pair in tokens[name] for token, _ in pair),
            }
            assert tokens["pieces"].keys() == {str(token) for token in used}
    assert len(checked) >= 6
    # Nothing else is there, and nothing twice.
    assert checked == {rollout.id for rollout in recorded.values() if rollout.tokens is not None}
    lines, _ = read_lines(Path(trainer.args.output_dir, "records", "rollouts-00000.jsonl"))
    for kind in ("rollout", "tokens"):
        ids = [line["id"] for line in lines if line["kind"] == kind]
        assert len(ids) == len(set(ids))


def test_rollouts_are_recorded_as_they_were_sampled_and_shown(make_trainer: Made) -> None:
    trainer = make_trainer(args={"max_steps": 3, "record_rollouts": 5}, cls=Snapshots)
    trainer.train()
    run = records_of(trainer)
    (header,) = run.headers
    assert (header["host"], header["method"], header["step"], header["ranks"]) == ("trl", "sdpo", 0, 1)
    assert header["config"]["record_rollouts"] == 5
    assert run.end is not None and (run.end["reason"], run.end["step"]) == ("finished", 3)
    assert [len([r for r in run.rollouts if r.step == step]) for step in (1, 2, 3)] == [5, 5, 5]
    seen: dict[int, tuple[Any, int]] = {}
    for inputs, _, _ in trainer.seen:
        seen.update({record: (inputs, row) for row, record in enumerate(inputs["sdpo_record"].tolist()) if record >= 0})
    assert seen.keys() == {rollout.id for rollout in run.rollouts}
    assert {rollout.line["active"] for rollout in run.rollouts} == {True, False}
    for rollout in run.rollouts:
        inputs, row = seen[rollout.id]
        line = rollout.line
        answer = inputs["completion_ids"][row][inputs["completion_mask"][row].bool()]
        assert line["response"] == trainer._tokenizer.decode(answer, skip_special_tokens=True)
        assert line["response_tokens"] == len(answer)
        assert line["cut_off"] == (int(answer[-1]) != trainer._tokenizer.eos_token_id)
        good = sum(map(ord, line["response"])) % 2 == 0
        assert (line["reward"], line["rewards"]) == (float(good), {"digits_reward": float(good)})
        assert line["success"] == good == bool(inputs["sdpo_success"][row])
        assert line["feedback"] == (None if good else f"Wrong: {len(line['response'])} characters.")
        assert line["active"] == bool(inputs["sdpo_active"][row]) == (rollout.tokens is not None)
        told = trainer._tokenizer.decode(inputs["sdpo_prompt_ids"][row], skip_special_tokens=True)
        if not line["active"]:
            assert line["teacher_prompt"] is None
            continue
        (message,) = line["teacher_prompt"]
        assert "".join(part["text"] for part in message["parts"]) in told
        assert message["parts"][0] == {"kind": "question", "text": line["prompt"][-1]["content"]}
        kinds = {part["kind"] for part in message["parts"]}
        assert ("demonstration" in kinds) == (line["demonstration_index"] is not None)
        assert ("feedback" in kinds) == line["feedback_used"]
        assert line["group"] == line["row"] // 4


def test_metrics_are_those_of_the_log(make_trainer: Made) -> None:
    trainer = make_trainer(args={"max_steps": 3, "eval_strategy": "steps", "eval_steps": 3}, eval_dataset=questions(4))
    trainer.train()
    run = records_of(trainer)
    assert [step.step for step in run.steps] == [1, 2, 3]
    logged: dict[int, dict[str, Any]] = {}
    for row in trainer.state.log_history:
        logged.setdefault(row["step"], {}).update(row)
    for step in run.steps:
        # The host's own printer takes one out of what the callbacks behind it see.
        foreign = {"step", "total_flos"}
        assert step.metrics == {name: value for name, value in logged[step.step].items() if name not in foreign}
    assert "self_distillation/divergence" in run.steps[0].metrics and "eval_reward" in run.steps[2].metrics
    # What is sampled for an evaluation is no rollout that anybody learns from.
    assert len(run.rollouts) == 3 * 4


def test_warnings_stand_at_their_step(make_trainer: Made) -> None:
    def nothing(completions: list[Any], **_: Any) -> list[float]:
        return [0.0] * len(completions)

    trainer = make_trainer(args={"max_steps": 6}, reward_funcs=nothing)
    with pytest.warns(UserWarning, match="No rollout has succeeded"):
        trainer.train()
    run = records_of(trainer)
    assert [step for step, text in run.warnings if "No rollout has succeeded" in text] == [5]
    assert all(rollout.tokens is None and not rollout.line["active"] for rollout in run.rollouts)


# A run does not notice


def everything_of(trainer: Any) -> dict[str, Any]:
    kept = ("time", "second", "runtime")
    return {
        "weights": copied(trainer.model.state_dict()),
        "teacher": copied(trainer._strategies.teacher.state_dict()["tensors"]),
        "optimizer": trainer.optimizer.state_dict()["state"],
        "logs": [
            {name: value for name, value in row.items() if not any(word in name for word in kept)}
            for row in trainer.state.log_history
        ],
        "answers": list(trainer._logs["completion"]),
        "random": (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()),
    }


def assert_equal(one: Any, other: Any) -> None:
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for name in one:
            assert_equal(one[name], other[name])
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other)
        for mine, theirs in zip(one, other, strict=True):
            assert_equal(mine, theirs)
    else:
        assert one == other


@pytest.mark.parametrize("teacher", ["ema", "frozen"])
@pytest.mark.parametrize("path", ["fused", "logits"])
def test_a_run_with_records_is_the_run_without(make_trainer: Made, teacher: str, path: str, tmp_path: Path) -> None:
    def run(record: bool) -> dict[str, Any]:
        args = {"max_steps": 4, "learning_rate": 1e-2, "teacher": teacher, "loss_path": path, "record": record}
        trainer = make_trainer(args={**args, "output_dir": str(tmp_path / str(record)), "log_completions": True})
        trainer.train()
        return everything_of(trainer)

    with_records = run(True)
    assert_equal(with_records, run(False))
    assert read_run(tmp_path / "True").rollouts
    assert not (tmp_path / "False" / "records").exists()


@pytest.mark.parametrize("off", [{"enabled": False}, {"grpo_weight": 1.0}])
def test_grpo_leaves_rollouts_without_a_teacher(make_trainer: Made, off: dict[str, Any], tmp_path: Path) -> None:
    def run(record: bool) -> Any:
        folder = tmp_path / str(record)
        trainer = make_trainer(args={**off, "max_steps": 3, "record": record, "output_dir": str(folder)})
        trainer.train()
        return trainer

    trainer, plain = run(True), run(False)
    assert_equal(copied(trainer.model.state_dict()), copied(plain.model.state_dict()))
    found = records_of(trainer)
    assert found.headers[0]["method"] == "grpo" and len(found.rollouts) == 12
    assert {rollout.line["success"] for rollout in found.rollouts} == {True, False}
    for rollout in found.rollouts:
        assert rollout.tokens is None and rollout.line["teacher_prompt"] is None and not rollout.line["active"]


# Restarts


class Stops(TrainerCallback):
    """Ends the training early, in one way or another."""

    def __init__(self, step: int, how: Callable[[], None]) -> None:
        self.step, self.how = step, how

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            self.how()


def raises(error: type[BaseException]) -> Callable[[], None]:
    def stop() -> None:
        raise error

    return stop


RESTARTS: dict[str, dict[str, Any]] = {
    "between rollout batches": {},
    "amid one, slices": {"per_device_train_batch_size": 4, "steps_per_generation": 3, "num_iterations": 2},
    "amid one, a second pass": {"num_iterations": 3},
    "several batches a step": {
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 4,
        "steps_per_generation": 2,
    },
    "grpo": {"enabled": False, "teacher": "frozen"},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", RESTARTS)
def test_a_resumed_run_leaves_the_records_of_the_run_never_stopped(
    make_trainer: Made, tmp_path: Path, name: str
) -> None:
    args = {"max_steps": 8, "save_strategy": "steps", "save_steps": 4, "learning_rate": 1e-2, **RESTARTS[name]}

    def go(folder: str, resume: bool = False, **kwargs: Any) -> RunRecords:
        trainer = make_trainer(args={**args, "output_dir": str(tmp_path / folder)}, **kwargs)
        try:
            trainer.train(resume_from_checkpoint=str(tmp_path / folder / "checkpoint-4") if resume else None)
        finally:
            return records_of(trainer)  # noqa: B012 - the stop is what is tested

    whole = go("whole")
    stopped = go("stopped", callbacks=[Stops(7, raises(RuntimeError))])
    assert stopped.end is not None and stopped.end["reason"] == "failed"
    assert max(rollout.step for rollout in stopped.rollouts) > 4
    resumed = go("stopped", resume=True)
    assert [header["step"] for header in resumed.headers] == [0, 4]
    assert resumed.end is not None and resumed.end["reason"] == "finished"
    if name == "grpo":  # TRL samples other answers after a restart
        assert [rollout.id for rollout in resumed.rollouts] == [rollout.id for rollout in whole.rollouts]
        return
    assert [rollout.line for rollout in resumed.rollouts] == [rollout.line for rollout in whole.rollouts]
    assert [rollout.tokens for rollout in resumed.rollouts] == [rollout.tokens for rollout in whole.rollouts]
    assert any(rollout.tokens for rollout in whole.rollouts if rollout.step > 4)
    assert [timeless(step.metrics) for step in resumed.steps] == [timeless(step.metrics) for step in whole.steps]


def timeless(metrics: Any) -> dict[str, Any]:
    # The means and counts that the host makes of all steps begin anew with the restart.
    words = ("time", "second", "train_loss", "flos")
    return {name: value for name, value in metrics.items() if not any(word in name for word in words)}


@pytest.mark.slow
def test_a_killed_run_goes_on_without_a_seam(tmp_path: Path) -> None:
    job, one, two = "recorded_run:train_or_die", str(tmp_path / "one"), str(tmp_path / "two")
    with pytest.raises(RanksFailed, match=r"exit codes \[-9\]"):
        run_ranks(job, 1, options={"folder": one, "dies": True})
    broken = read_run(one)
    assert broken.end is None and [step.step for step in broken.steps] == [1, 2, 3, 4, 5, 6]
    run_ranks(job, 1, options={"folder": one, "resume": True})
    run_ranks(job, 1, options={"folder": two})
    whole, resumed = read_run(tmp_path / "two"), read_run(tmp_path / "one")
    assert resumed.problems == () and resumed.end is not None
    assert [step.step for step in resumed.steps] == list(range(1, 9))
    assert [(r.line, r.tokens) for r in resumed.rollouts] == [(r.line, r.tokens) for r in whole.rollouts]


@pytest.mark.parametrize(("error", "reason"), [(KeyboardInterrupt, "interrupted"), (RuntimeError, "failed")])
def test_a_training_that_ends_early_says_how(make_trainer: Made, error: Any, reason: str) -> None:
    trainer = make_trainer(callbacks=[Stops(1, raises(error))])
    with pytest.raises(error):
        trainer.train()
    run = records_of(trainer)
    assert run.end is not None and (run.end["reason"], run.end["step"]) == (reason, 1)


# Several processes


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> RunRecords:
    folder = tmp_path_factory.mktemp("alone")
    train({"output_dir": str(folder), "max_steps": 3, "record_rollouts": 6})
    return read_run(folder)


RANKS: dict[str, dict[str, Any]] = {
    "ddp, accumulated": {"args": {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}},
    "ddp, logits": {"args": {"loss_path": "logits"}},
    "fsdp2": {"fsdp2": {"reshard_after_forward": True}},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", RANKS)
def test_two_processes_leave_the_records_of_one(alone: RunRecords, tmp_path: Path, name: str) -> None:
    options = dict(RANKS[name])
    args = {"per_device_train_batch_size": 4, "max_steps": 3, "record_rollouts": 6, "output_dir": str(tmp_path)}
    run_ranks("fixed_run:train", options={**options, "args": {**args, **options.get("args", {})}})
    names = sorted(path.name for path in (tmp_path / "records").iterdir())
    assert names == ["rollouts-00000.jsonl", "rollouts-00001.jsonl", "steps.jsonl"]
    assert all((tmp_path / "records" / name).stat().st_size > 0 for name in names)
    run = read_run(tmp_path)
    assert run.problems == () and run.headers[0]["ranks"] == 2 and len(run.headers) == 1
    assert [step.step for step in run.steps] == [1, 2, 3]
    losses = alone.series("loss")[1]
    assert run.series("loss")[1] == pytest.approx(losses, rel=1e-4)
    assert [rollout.line for rollout in run.rollouts] == [rollout.line for rollout in alone.rollouts]
    assert any(rollout.tokens for rollout in run.rollouts)
    for rollout, other in zip(run.rollouts, alone.rollouts, strict=True):
        if other.tokens is None:
            assert rollout.tokens is None
            continue
        assert rollout.tokens is not None and rollout.tokens["ids"] == other.tokens["ids"]
        for values in ("student", "teacher", "divergence", "entropy"):
            assert rollout.tokens[values] == pytest.approx(other.tokens[values], rel=1e-3, abs=1e-4)
    lines = [line for name in names[:2] for line in read_lines(tmp_path / "records" / name)[0]]
    assert len({(line["kind"], line["id"]) for line in lines}) == len(lines)


# Trouble with files


def test_a_folder_that_cannot_be_written_is_one_warning(make_trainer: Made, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    trainer = make_trainer(args={"max_steps": 3, "record_dir": str(tmp_path / "file" / "records")})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.train()
    assert sum("records can no longer be written" in str(warning.message) for warning in caught) == 1
    assert trainer.state.global_step == 3


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_one_warning(make_trainer: Made) -> None:
    trainer = make_trainer(args={"max_steps": 4})

    def fill() -> None:
        path = Path(trainer.args.output_dir, "records", "rollouts-00000.jsonl")
        path.unlink()
        path.symlink_to("/dev/full")

    trainer.add_callback(Stops(1, fill))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.train()
    told = [str(warning.message) for warning in caught if "records can no longer be written" in str(warning.message)]
    assert len(told) == 1 and "No space left" in told[0]
    assert trainer.state.global_step == 4


def test_records_stay_within_their_size(make_trainer: Made) -> None:
    trainer = make_trainer(args={"max_steps": 24, "record_max_mb": 0.03})
    trainer.train()
    files = sorted(Path(trainer.args.output_dir, "records").iterdir())
    assert [file.name for file in files] == ["rollouts-00000.jsonl", "steps.jsonl"]
    assert all(file.stat().st_size <= 0.03 * 2**20 for file in files)
    run = records_of(trainer)
    assert run.problems == () and run.end is not None
    steps = {rollout.step for rollout in run.rollouts}
    assert 1 in steps and 1 < len(steps) < 24
    for rollout in run.rollouts:
        assert (rollout.tokens is not None) == rollout.line["active"]


# Options


def test_metrics_alone(make_trainer: Made) -> None:
    trainer = make_trainer(args={"record_rollouts": 0}, cls=Snapshots)
    trainer.train()
    assert [file.name for file in Path(trainer.args.output_dir, "records").iterdir()] == ["steps.jsonl"]
    assert all("sdpo_record" not in inputs for inputs, _, _ in trainer.seen)


def test_another_folder_fewer_tokens_no_alternatives(make_trainer: Made, tmp_path: Path) -> None:
    folder = tmp_path / "elsewhere"
    args = {"record_dir": str(folder), "record_tokens": 2, "record_alternatives": 0, "record_rollouts": 8}
    trainer = make_trainer(args=args)
    trainer.train()
    assert not Path(trainer.args.output_dir, "records").exists()
    found = [rollout for rollout in read_run(folder).rollouts if rollout.tokens is not None]
    assert found
    for rollout in found:
        assert len(rollout.tokens["student"]) == min(2, rollout.tokens["length"])
        assert rollout.tokens["length"] == rollout.line["response_tokens"]
        assert all(top == [] for top in rollout.tokens["student_top"])


# Pictures


def images_of(trainer: Any) -> list[Any]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (folder,) = Path(trainer.args.output_dir, "runs").iterdir()
    events = EventAccumulator(str(folder), size_guidance={"images": 0})
    events.Reload()
    assert "train/reward" in events.Tags()["scalars"]
    return events.Images("sdpo/tokens") if "sdpo/tokens" in events.Tags()["images"] else []


def test_tensorboard_gets_pictures_of_tokens(make_trainer: Made) -> None:
    args = {"max_steps": 5, "report_to": "tensorboard", "record_picture_every": 2}
    trainer = make_trainer(args=args)
    trainer.train()
    images = images_of(trainer)
    assert [image.step for image in images] == [1, 3, 5]
    for image in images:
        assert image.encoded_image_string.startswith(b"\x89PNG") and image.width == 900 and image.height > 100


def test_no_picture_is_logged_where_none_is_wanted(make_trainer: Made) -> None:
    trainer = make_trainer(args={"report_to": "tensorboard", "record_picture_every": 0})
    trainer.train()
    assert images_of(trainer) == []


# GRPO's own trainer


def grpo(folder: Path, donor: Any, callbacks: list[Any], **changes: Any) -> GRPOTrainer:
    names = {field for field in GRPOConfig.__dataclass_fields__ if GRPOConfig.__dataclass_fields__[field].init}
    settings = {name: getattr(donor.args, name) for name in names - {"output_dir", "generation_batch_size"}}
    return GRPOTrainer(
        tiny_model(),
        lambda completions, **_: [float(len(completion[0]["content"]) % 2) for completion in completions],
        GRPOConfig(output_dir=str(folder), **{**settings, **changes}),
        train_dataset=donor.train_dataset,
        processing_class=donor.processing_class,
        callbacks=callbacks,
    )


def test_any_trainer_can_be_recorded_to_compare_with(make_trainer: Made, tmp_path: Path) -> None:
    donor = make_trainer()
    callback = RecordCallback()
    trainer = grpo(tmp_path / "grpo", donor, [callback])
    trainer.train()
    run = read_run(tmp_path / "grpo")
    assert (run.headers[0]["method"], run.headers[0]["host"]) == ("grpo", "trl")
    assert [step.step for step in run.steps] == [1, 2]
    assert run.series("reward")[1] == [row["reward"] for row in trainer.state.log_history if "reward" in row]
    assert run.end is not None and run.rollouts == ()
    other = grpo(tmp_path / "other", donor, [RecordCallback(tmp_path / "place")])
    other.train()
    assert len(read_run(tmp_path / "place").steps) == 2
    assert not (tmp_path / "other" / "records").exists()


def test_two_recorders_of_one_run_are_refused(make_trainer: Made) -> None:
    with pytest.raises(ConfigError, match="RecordCallback was given to SDPOTrainer"):
        make_trainer(callbacks=[RecordCallback()])
