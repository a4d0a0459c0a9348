"""The ways in: the quick starts that users know, GRPOTrainer's own arguments, and what a run leaves behind."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from guides import SDPO_RL_CONFIGS, SDPO_RL_REWARD, SDPO_TRAINER, SDPO_TRAINER_CONFIG, SDPO_TRAINER_REWARD
from scripted_rollouts import buffered_rows, scripted
from sdpo_plugins.embedded import checkpoint_path
from sdpo_trl import SDPOTrainer
from tiny_trl import digits_reward, questions, tiny_arguments, tiny_model

# The quick starts as their authors publish them, with the reward functions and all the options that they show. The
# arguments that keep a run small and on the CPU stand in CPU.

GRPO_PART = SDPO_TRAINER[SDPO_TRAINER.index("# Configure GRPO") : SDPO_TRAINER.index("# Configure SDPO")]
CALL = SDPO_TRAINER[SDPO_TRAINER.index("trainer = SDPOTrainer(") :]
IMPORTS = """
from sdpo_trl import SDPOTrainer, SDPOConfig
from trl import GRPOConfig
"""
SCRIPTS = {
    "SDPO_TRAINER": IMPORTS + GRPO_PART + SDPO_TRAINER_CONFIG + SDPO_TRAINER_REWARD + CALL,
    "SDPO_RL": IMPORTS + SDPO_RL_CONFIGS + SDPO_RL_REWARD + CALL.replace("[reward_fn]", "MyReward()"),
}
RATE = "    learning_rate=1e-5,\n"

NAMES = {"SDPO_TRAINER": "reward_fn", "SDPO_RL": "MyReward"}
SHOWN = {"SDPO_TRAINER": "Wrong. The answer is 30.", "SDPO_RL": "Wrong: no digit"}


def is_correct(completion: Any) -> bool:
    return sum(map(ord, completion[0]["content"])) % 2 == 0


@pytest.mark.parametrize("script", NAMES)
def test_quick_starts_run_as_published(script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    given = {
        "CPU": {"use_cpu": True, "report_to": "none", "max_steps": 2, "logging_steps": 1},
        "model": tiny_model(),
        "tokenizer": AutoTokenizer.from_pretrained(checkpoint_path()),
        "your_dataset": questions().add_column("answer", ["30"] * 16),
        "is_correct": is_correct,
        "correct_answer": "30",
        "why": "no digit",
    }
    assert SCRIPTS[script].count(RATE) == 1
    exec(SCRIPTS[script].replace(RATE, f"{RATE}    **CPU,\n"), given)
    trainer = given["trainer"]
    assert isinstance(trainer, GRPOTrainer)
    logs = [row for row in trainer.state.log_history if "loss" in row]
    assert len(logs) == 2 and trainer.state.global_step == 2
    for row in logs:
        assert f"rewards/{NAMES[script]}/mean" in row
        assert row["self_distillation/active_tokens"] > 0
        assert row["self_distillation/feedback_available_fraction"] > 0
    config = trainer.sdpo_config
    assert (config.alpha, config.distillation_topk, config.teacher, config.teacher_update_rate) == (
        0.5,
        100,
        "ema",
        0.05,
    )
    # Their `is_coef=0` means no importance ratio at all.
    assert config.is_clip == (None if script == "SDPO_TRAINER" else 2.0)
    assert (tmp_path / "output").is_dir()
    rows = buffered_rows(trainer)
    failed = [row for row in rows if not row["success"]]
    assert any(SHOWN[script] in row["teacher"] or "Correct solution:" in row["teacher"] for row in failed)


def test_one_object_and_two_objects_train_alike(make_trainer: Any, tokenizer: Any) -> None:
    options = {"alpha": 0.25, "distillation_topk": 9, "teacher": "frozen"}
    one = make_trainer(args={**options})
    one.train()
    two = make_trainer(sdpo_config=options)
    two.train()
    assert one.sdpo_config == two.sdpo_config
    for name, value in one.model.state_dict().items():
        assert torch.equal(value, two.model.state_dict()[name]), name


def test_positional_arguments_are_those_of_grpo_trainer(tmp_path: Path, tokenizer: Any) -> None:
    steps: list[int] = []

    class Watch(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            steps.append(state.global_step)

    own = AutoTokenizer.from_pretrained(checkpoint_path())
    model = tiny_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    trainer = SDPOTrainer(
        model,
        digits_reward,
        tiny_arguments(tmp_path),
        questions(),
        questions(2),
        own,
        None,
        [Watch()],
        (optimizer, schedule),
        None,
        None,
        None,
        scripted(tokenizer, ("alpha", "beta", "gamma")),
    )
    trainer.train()
    assert steps == [1, 2]
    assert trainer.processing_class is own
    assert len(trainer.eval_dataset) == 2
    assert {row["answer"] for row in buffered_rows(trainer)} == {"alpha", "beta", "gamma"}
    assert isinstance(trainer.optimizer.optimizer, torch.optim.SGD)


@pytest.mark.parametrize("model", ["path", "object"])
def test_tokenizer_is_found_from_the_model(tmp_path: Path, model: str, make_trainer: Any) -> None:
    path = str(checkpoint_path())
    given = path if model == "path" else AutoModelForCausalLM.from_pretrained(path)
    trainer = make_trainer(model=given, args={"max_steps": 1}, processing_class=None)
    trainer.train()
    assert trainer.processing_class.get_vocab() == AutoTokenizer.from_pretrained(path).get_vocab()
    assert trainer.state.log_history[0]["self_distillation/active_tokens"] > 0


def state_of(tokenizer: Any, args: Any) -> dict[str, Any]:
    """Everything that a trainer could change behind the user's back, by value."""
    backend = {"backend": json.loads(tokenizer.backend_tokenizer.to_str())}
    hidden = {"_tokenizer", "distributed_state", "accelerator_config"}
    own = {
        name: copy.deepcopy(value) for name, value in {**vars(args), **vars(tokenizer)}.items() if name not in hidden
    }
    return {**own, **backend, "chat_template": tokenizer.chat_template, "padding_side": tokenizer.padding_side}


def plain_arguments(output: Path) -> GRPOConfig:
    return GRPOConfig(
        output_dir=str(output / "out"),
        num_generations=4,
        max_completion_length=6,
        max_steps=2,
        use_cpu=True,
        bf16=False,
        report_to="none",
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="no",
        disable_tqdm=True,
    )


def test_the_users_objects_stay_as_they_are(make_trainer: Any, tmp_path: Path) -> None:
    """After a run with everything on, only the model has changed, and no more of the rest than under plain GRPO."""
    options = {"alpha": 0.25, "apply_chat_template_kwargs": {"enable_thinking": False}}
    kept_options = copy.deepcopy(options)
    functions = [digits_reward]
    changes = {}
    for cls in (GRPOTrainer, SDPOTrainer):
        tokenizer = AutoTokenizer.from_pretrained(checkpoint_path())
        data, evaluation = questions().add_column("truth", ["1"] * 16), questions(4)
        args = plain_arguments(tmp_path)
        before, rows, fingerprint = state_of(tokenizer, args), data.to_list(), data._fingerprint
        ours = {"sdpo_config": options, "reward_funcs": functions}
        theirs = {"reward_funcs": lambda completions, **_: [0.0] * len(completions)}
        trainer: Any = cls(
            tiny_model(),
            args=args,
            train_dataset=data,
            eval_dataset=evaluation,
            processing_class=tokenizer,
            **(ours if cls is SDPOTrainer else theirs),
        )
        trainer.train()
        after = state_of(tokenizer, args)
        changes[cls] = {name: value for name, value in after.items() if value != before.get(name)}
        assert data.to_list() == rows and data._fingerprint == fingerprint
    assert changes[SDPOTrainer] == changes[GRPOTrainer]
    assert not {"padding_side", "chat_template", "backend", "alpha"} & set(changes[SDPOTrainer])
    assert options == kept_options
    assert functions == [digits_reward]


def test_model_card_metrics_and_callbacks(make_trainer: Any, tmp_path: Path) -> None:
    heard: dict[str, set[str]] = {}

    class Listen(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            heard.setdefault("eval" if "eval_reward" in logs else "train", set()).update(logs)

    trainer = make_trainer(
        args={
            "save_strategy": "steps",
            "save_steps": 1,
            "eval_strategy": "steps",
            "eval_steps": 1,
            "per_device_eval_batch_size": 4,
        },
        eval_dataset={"easy": questions(1), "hard": questions(2)},
        callbacks=[Listen()],
    )
    trainer.train()
    names = {
        "divergence",
        "active_tokens",
        "gap",
        "log_prob",
        "importance_ratio",
        "success_group_fraction",
        "success_sample_fraction",
        "success_rollout_fraction",
        "feedback_available_fraction",
        "feedback_used_fraction",
        "reprompt_sample_fraction",
        "truncated_fraction",
        "teacher_prompt_length_mean",
    }
    logged = [row for row in trainer.state.log_history if "loss" in row]
    assert len(logged) == 2
    for row in logged:
        assert {f"self_distillation/{name}" for name in names} <= set(row)
        assert row["self_distillation/divergence"] > 0
    assert {f"self_distillation/{name}" for name in names} <= heard["train"]
    evaluations = [row for row in trainer.state.log_history if "eval_easy_loss" in row or "eval_hard_loss" in row]
    assert len(evaluations) == 4
    for row in evaluations:
        assert {f"eval_self_distillation/{name}" for name in ("active_tokens", "reprompt_sample_fraction")} <= set(row)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "SDPO" in card and "2601.20802" in card and "- sdpo" in card
    assert "Reinforcement Learning via Self-Distillation" in card
    assert (tmp_path / "out" / "checkpoint-1").is_dir()


@pytest.mark.parametrize("teacher", ["ema", "frozen", "live", "trust_region", "lora_ema"])
def test_evaluation_before_and_after_training(make_trainer: Any, teacher: str, tokenizer: Any) -> None:
    lora = LoraConfig(r=2, target_modules=["q_proj", "v_proj"]) if teacher == "lora_ema" else None
    runs = []
    for evaluates in (True, False):
        trainer = make_trainer(
            args={"teacher": teacher, "per_device_eval_batch_size": 4, "optim": "sgd", "learning_rate": 0.1},
            eval_dataset=questions(2),
            peft_config=lora,
            # Known answers: training is the same with and without evaluation, but for the order of the rows.
            rollout_func=scripted(tokenizer, ("alpha", "beta", "gamma", "delta")),
        )
        if evaluates:
            first = trainer.evaluate()
            assert first["eval_self_distillation/active_tokens"] > 0
            assert first["eval_loss"] > 0
            assert "eval_self_distillation/divergence" in first
            assert not any("self_distillation" in key and key.startswith("self") for key in first)
        trainer.train()
        if evaluates:
            assert trainer.evaluate()["eval_loss"] != first["eval_loss"]
        runs.append({name: value.clone() for name, value in trainer.model.state_dict().items()})
    start = tiny_model().state_dict()
    moved = max(float((value - start[name]).abs().max()) for name, value in runs[1].items()) if lora is None else 1e-2
    for name, value in runs[0].items():
        assert torch.allclose(value, runs[1][name], rtol=0.0, atol=1e-3 * moved), name


def test_sdpo_off_takes_feedback_too(make_trainer: Any) -> None:
    """A user who switches SDPO off keeps the reward function; the feedback still shows in the table."""
    trainer = make_trainer(
        args={"enabled": False, "max_steps": 1, "log_completions": True, "num_completions_to_print": 1}
    )
    trainer.train()
    import pandas as pd

    table = pd.read_parquet(Path(trainer.args.output_dir) / "completions" / "completions_00001.parquet")
    assert any(text.startswith("Wrong:") for text in table["feedback"])
    assert not any(name.startswith("self_distillation") for row in trainer.state.log_history for name in row)


def test_a_dataset_of_its_own_columns(make_trainer: Any) -> None:
    """`remove_unused_columns=False` is the host's default here: what the reward needs arrives without a word."""
    data = Dataset.from_list(
        [{"prompt": [{"role": "user", "content": "2+2?"}], "truth": "4", "id": i} for i in range(8)]
    )
    seen: list[Any] = []

    def grade(completions: Any, truth: Any, id: Any, **_: Any) -> list[float]:
        seen.extend(zip(truth, id, strict=True))
        return [float(len(row[0]["content"]) % 2) for row in completions]

    make_trainer(reward_funcs=grade, train_dataset=data, args={"max_steps": 1}).train()
    assert len(seen) == 8 and {truth for truth, _ in seen} == {"4"}
