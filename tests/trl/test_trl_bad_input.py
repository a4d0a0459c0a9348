"""What cannot work is refused before the first step: what was wrong, what was given, what is valid, what to do."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, IterableDataset
from peft import LoraConfig
from transformers import AutoTokenizer, Qwen3ForCausalLM, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from scripted_rollouts import scripted, watch_gradients
from sdpo_plugins.embedded import checkpoint_path
from sdpo_plugins.errors import ConfigError, DataError, HostError, PluginError, RewardError, TeacherError
from sdpo_plugins.losses import support
from sdpo_trl import SDPOConfig, SDPOTrainer, SDPOTrainingArguments
from tiny_trl import digits_reward, questions, tiny_arguments, tiny_model


@pytest.fixture
def refused(make_trainer: Any, tmp_path: Path) -> Callable[..., None]:
    """Make a trainer that must be refused; what its output folder held stays, and nothing was generated."""

    def check(error: type[Exception], message: str, args: Any = None, **kwargs: Any) -> None:
        kept = tmp_path / "out" / "results.txt"
        kept.parent.mkdir(exist_ok=True)
        kept.write_text("precious")
        generated: list[Any] = []

        def rollout(prompts: Any, trainer: Any) -> Any:
            generated.append(prompts)
            raise AssertionError("generated before the refusal")

        with pytest.raises(error, match=f"(?s){message}"):
            make_trainer(args=args, **{"rollout_func": rollout, **kwargs}).train()
        assert not generated
        assert [path.name for path in kept.parent.iterdir()] == ["results.txt"]
        assert kept.read_text() == "precious"

    return check


OPTIONS = {
    "misspelt": ({"alhpa": 0.5}, r"Unknown option `alhpa`. Did you mean 'alpha'\?"),
    "alpha above": ({"alpha": 1.7}, r"`alpha` must lie in \[0, 1\], got 1.7"),
    "alpha below": ({"alpha": -0.1}, r"`alpha` must lie in \[0, 1\], got -0.1"),
    "alpha nan": ({"alpha": float("nan")}, r"`alpha` must be a finite number, got nan"),
    "K zero": ({"distillation_topk": 0}, r"`distillation_topk` must be at least 1, got 0"),
    "K negative": ({"distillation_topk": -5}, r"`distillation_topk` must be at least 1, got -5"),
    "K fraction": ({"distillation_topk": 2.5}, r"`distillation_topk` must be a whole number or null, got 2.5"),
    "sampled token": ({"full_logit_distillation": False, "alpha": 0.5}, r"needs `alpha=1.0`, got alpha=0.5. Set alpha"),
    "template": (
        {"reprompt_template": "{prompt} {solution}"},
        r"\{feedback\} is missing from '\{prompt\} \{solution\}'",
    ),
    "solution": ({"solution_template": "Look:"}, r"`solution_template` must contain \{successful_previous_attempt\}"),
    "feedback": (
        {"feedback_template": "{feedbck_raw}"},
        r"unknown placeholder \{feedbck_raw\}; valid are \{feedback_raw\}",
    ),
    "number as text": ({"alpha": "half"}, r"`alpha` must be a number, got 'half'"),
    "rate": ({"teacher_update_rate": 2}, r"`teacher_update_rate` must lie in \[0, 1\], got 2"),
}


@pytest.mark.parametrize("case", OPTIONS)
def test_invalid_options_in_either_form(refused: Any, tmp_path: Path, case: str) -> None:
    options, message = OPTIONS[case]
    plain = GRPOConfig(output_dir=str(tmp_path / "out"), use_cpu=True, bf16=False, report_to="none")
    for sdpo_config in (options, {"preset": "paper", **options}):
        with pytest.raises(ConfigError, match=message):
            SDPOTrainer(tiny_model(), digits_reward, plain, questions(), sdpo_config=sdpo_config)
    with pytest.raises(ConfigError, match=message):
        SDPOConfig(**options)
    refused(ConfigError, message, args=options)


def test_another_projects_name_gets_its_translation(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"`ema_tau`: in SDPOTrainingArguments it is `teacher_update_rate=0.1`"):
        SDPOTrainingArguments(output_dir=str(tmp_path), ema_tau=0.1)
    with pytest.raises(ConfigError, match=r"Unknown option `learning_rte`. Did you mean 'learning_rate'\?"):
        SDPOTrainingArguments(output_dir=str(tmp_path), learning_rte=0.1)


def test_all_problems_are_told_at_once(refused: Any) -> None:
    refused(
        ConfigError,
        r"3 problems.*`alpha` must lie in.*`distillation_topk` must be.*`loss_agg_mode` must be one of",
        args={"alpha": 1.7, "distillation_topk": 0, "loss_agg_mode": "mean"},
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"teacher": "emma"}, r"teacher.*'emma'.*Did you mean 'ema'"),
        ({"teacher": "EMA"}, r"teacher.*'EMA'.*Did you mean 'ema'"),
        ({"divergence": "reverse_lk"}, r"divergence.*'reverse_lk'.*Did you mean 'reverse_kl'"),
        ({"selector": "frist"}, r"selector.*'frist'.*Did you mean 'first'"),
        ({"reprompter": "tamplate"}, r"reprompter.*'tamplate'.*Did you mean 'template'"),
        ({"teacher": "ema", "teacher_options": {"speed": 1}}, r"speed"),
        ({"plugins": ["not_installed_anywhere"]}, r"not_installed_anywhere"),
        ({"preset": "papper"}, r"`preset` must be one of.*got 'papper'.*Did you mean 'paper'"),
    ],
    ids=str,
)
def test_unknown_strategies(refused: Any, options: Any, message: str) -> None:
    refused((PluginError, ConfigError), message, args=options)


GRPO_ONLY = {
    "entropy_coef": 0.01,
    "use_adaptive_entropy": True,
    "top_entropy_quantile": 0.5,
    "off_policy_mask_threshold": 1.0,
    "delta": 2.0,
}


@pytest.mark.parametrize("name", GRPO_ONLY)
def test_terms_of_grpos_loss_are_refused_where_they_would_do_nothing(
    refused: Any, make_trainer: Any, name: str
) -> None:
    value = GRPO_ONLY[name]
    refused(
        ConfigError, rf"`{name}={value}` belongs to GRPO's policy loss.*Leave it at .*grpo_weight", args={name: value}
    )
    # In the hybrid objective, and with SDPO off, they have their effect.
    make_trainer(args={name: value, "grpo_weight": 0.5})
    make_trainer(args={name: value, "enabled": False})


def test_settings_of_grpos_loss_without_effect_are_named_in_one_warning(make_trainer: Any) -> None:
    with pytest.warns(
        UserWarning, match=r"loss_type='dr_grpo', epsilon=0.1, scale_rewards='none'.*no effect.*grpo_weight"
    ):
        make_trainer(args={"loss_type": "dr_grpo", "epsilon": 0.1, "scale_rewards": False})
    for quiet in ({}, {"loss_type": "dr_grpo", "epsilon": 0.1, "grpo_weight": 0.5}, {"epsilon": 0.1, "enabled": False}):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            make_trainer(args=quiet)
        assert not [warning for warning in caught if "no effect" in str(warning.message)]


def test_k_above_the_vocabulary_is_clamped_with_one_notice(
    make_trainer: Any, monkeypatch: pytest.MonkeyPatch, tokenizer: Any
) -> None:
    monkeypatch.setattr(support, "_notices_given", set())
    runs = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for k in (100_000, len(tokenizer)):
            trainer = make_trainer(args={"distillation_topk": k})
            trainer.train()
            runs.append([row["loss"] for row in trainer.state.log_history if "loss" in row])
    notices = [str(warning.message) for warning in caught if "distillation_topk" in str(warning.message)]
    assert len(notices) == 1
    assert f"`distillation_topk`=100000 is larger than the vocabulary ({len(tokenizer)})" in notices[0]
    assert runs[0] == runs[1] and runs[0][0] > 0


ASSISTANT_LAST = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (ASSISTANT_LAST, r"1 of 3 prompts.*Row 1: the prompt ends in a message of role 'assistant'.*user or tool turn"),
        ([], r"Row 1: the prompt has no messages"),
        ([{"role": "system", "content": "Be brief."}], r"Row 1: .*role 'system'"),
    ],
    ids=["assistant", "empty", "system"],
)
def test_prompts_that_no_one_can_answer(refused: Any, prompt: Any, message: str) -> None:
    good = [{"role": "user", "content": "2+2?"}]
    data = Dataset.from_list([{"prompt": good}, {"prompt": prompt}, {"prompt": good}])
    refused(DataError, message, train_dataset=data)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (lambda: questions().select([]), r"training set is empty \(columns \['prompt'\]\)"),
        (lambda: IterableDataset.from_generator(lambda: iter(())), r"training set is empty"),
        (lambda: None, r"`train_dataset` is required"),
        (lambda: questions().rename_column("prompt", "question"), r"no column `prompt`.*\['question'\]"),
        (
            lambda: questions().rename_column("prompt", "question").to_iterable_dataset(),
            r"no column `prompt`.*\['question'\]",
        ),
        (
            lambda: Dataset.from_list([{"prompt": ASSISTANT_LAST}]).to_iterable_dataset(),
            r"Row 0: the prompt ends in a message of role 'assistant'",
        ),
    ],
    ids=["empty", "empty stream", "none", "no prompt", "stream without prompt", "stream with an answer"],
)
def test_datasets_that_cannot_be_trained_on(refused: Any, data: Callable[[], Any], message: str) -> None:
    refused((DataError, ValueError), message, train_dataset=data())


def test_a_prompt_that_a_transform_makes_is_a_prompt(make_trainer: Any) -> None:
    data = questions().rename_column("prompt", "question").with_transform(lambda rows: {"prompt": rows["question"]})
    make_trainer(train_dataset=data)
    answered = Dataset.from_list([{"question": ASSISTANT_LAST}])
    with pytest.raises(DataError, match="Row 0: the prompt ends in a message of role 'assistant'"):
        make_trainer(train_dataset=answered.with_transform(lambda rows: {"prompt": rows["question"]}))


def test_a_tokenizer_without_chat_template(refused: Any) -> None:
    bare = AutoTokenizer.from_pretrained(checkpoint_path())
    bare.chat_template = None
    refused(
        DataError, r"chat messages, but the tokenizer .* has no chat template.*plain strings", processing_class=bare
    )


def test_string_prompts_need_no_chat_template(make_trainer: Any) -> None:
    bare = AutoTokenizer.from_pretrained(checkpoint_path())
    bare.chat_template = None
    data = questions().map(lambda row: {"prompt": row["prompt"][0]["content"]})
    trainer = make_trainer(processing_class=bare, train_dataset=data, args={"max_steps": 1})
    trainer.train()
    assert trainer.state.log_history[0]["self_distillation/active_tokens"] > 0


def test_lora_ema_needs_lora(refused: Any, make_trainer: Any) -> None:
    refused(
        TeacherError,
        r"'lora_ema' needs a model with trainable LoRA adapters.*peft_config.*teacher='ema'",
        {"teacher": "lora_ema"},
    )
    make_trainer(args={"teacher": "lora_ema"}, peft_config=LoraConfig(r=2, target_modules=["q_proj"]))


def test_a_model_that_is_not_in_memory(refused: Any) -> None:
    config = tiny_model().config
    with torch.device("meta"):
        absent = Qwen3ForCausalLM(config)
    refused(
        HostError, r"weights are not in memory \(first: model\.embed_tokens\.weight\).*without offload", model=absent
    )
    half = tiny_model()
    half.model.layers[1].to("meta")
    refused(HostError, r"not in memory \(first: model\.layers\.1\.", model=half)


def test_a_tokenizer_of_another_model(refused: Any) -> None:
    refused(DataError, r"token ids up to \d+, but the model has only 100 embeddings", model=tiny_model(vocab_size=100))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"args": {"output_dir": "x"}}, r"`args` must be a trl.GRPOConfig or sdpo_trl.SDPOTrainingArguments, got dict"),
        ({"sdpo_config": 0.5}, r"`sdpo_config` must be an SDPOConfig or a mapping of its options, got float"),
    ],
)
def test_objects_of_the_wrong_type(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    given = {"args": GRPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to="none"), **change}
    with pytest.raises(ConfigError, match=message):
        SDPOTrainer(tiny_model(), digits_reward, train_dataset=questions(), **given)


def test_options_in_both_places(tmp_path: Path) -> None:
    args = tiny_arguments(tmp_path, alpha=1.0)
    with pytest.raises(ConfigError, match=r"given twice: in `args` \(alpha\) and as `sdpo_config`"):
        SDPOTrainer(tiny_model(), digits_reward, args, questions(), sdpo_config=SDPOConfig())
    # Arguments without any SDPO option leave the place to the other object.
    trainer = SDPOTrainer(
        tiny_model(),
        digits_reward,
        tiny_arguments(tmp_path),
        questions(),
        processing_class=AutoTokenizer.from_pretrained(checkpoint_path()),
        sdpo_config=SDPOConfig(alpha=0.25),
    )
    assert trainer.sdpo_config.alpha == 0.25


@pytest.mark.parametrize("rewards", [3, [digits_reward, {"score": 1}], [None]], ids=str)
def test_reward_functions_that_are_none(refused: Any, rewards: Any) -> None:
    refused(RewardError, r"reward function.*must be callable.*got (3|\{'score': 1\}|None)", reward_funcs=rewards)


def test_a_mistake_in_the_first_rewards_costs_no_step(make_trainer: Any, tokenizer: Any) -> None:
    trainer = make_trainer(
        reward_funcs=lambda completions, **_: [0.0, "bad"] * 4, rollout_func=scripted(tokenizer, ("alpha", "beta"))
    )
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    with pytest.raises(RewardError, match=r"'<lambda>' gave 'bad' \(str\) as the reward of completion 1"):
        trainer.train()
    assert trainer.state.global_step == 0
    assert all(torch.equal(value, before[name]) for name, value in trainer.model.state_dict().items())


class StopAfterOne(TrainerCallback):
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop = True


def test_no_arguments_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokenizer: Any) -> None:
    """The peer crashes on `args=None`; here it means every default."""
    monkeypatch.chdir(tmp_path)
    trainer = SDPOTrainer(
        tiny_model(),
        digits_reward,
        train_dataset=questions(),
        processing_class=AutoTokenizer.from_pretrained(checkpoint_path()),
        rollout_func=scripted(tokenizer, ("alpha", "beta", "gamma")),
        callbacks=[StopAfterOne()],
    )
    assert trainer.sdpo_config == SDPOConfig()
    assert isinstance(trainer.args, SDPOTrainingArguments) and trainer.args.output_dir == "model-SDPO"
    trainer.train()
    assert trainer.state.global_step == 1


# Checkpoints that cannot be resumed from


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint after one step of two, in the middle of a rollout batch."""
    output = tmp_path_factory.mktemp("run")
    tokenizer = AutoTokenizer.from_pretrained(checkpoint_path())
    SDPOTrainer(
        tiny_model(),
        digits_reward,
        tiny_arguments(output, save_strategy="steps", save_steps=1, max_steps=1, num_iterations=2),
        questions(),
        processing_class=tokenizer,
        rollout_func=scripted(tokenizer, ("alpha", "beta", "gamma")),
    ).train()
    return output / "checkpoint-1"


def flip_a_byte(folder: Path) -> None:
    file = folder / "sdpo" / "teacher" / "teacher-00000-of-00001.safetensors"
    raw = bytearray(file.read_bytes())
    raw[-3] ^= 0xFF
    file.write_bytes(bytes(raw))


def cut_short(folder: Path) -> None:
    file = folder / "sdpo" / "teacher" / "teacher-00000-of-00001.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def foreign_names(folder: Path) -> None:
    file = folder / "sdpo" / "teacher" / "teacher-00000-of-00001.json"
    state = json.loads(file.read_text())
    state["name"] = "frozen"
    file.write_text(json.dumps(state))


def other_model(folder: Path) -> None:
    from sdpo_plugins.teacher import Ema, local_tensors, save_teacher

    teacher = Ema(rate=0.05, unit="rollout_batch", every=1)
    teacher.start(local_tensors(tiny_model(num_hidden_layers=1)))
    shutil.rmtree(folder / "sdpo" / "teacher")
    save_teacher(teacher, folder / "sdpo" / "teacher")


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "byte": (flip_a_byte, r"is damaged: its checksum"),
    "short": (cut_short, r"is damaged: it has \d+ bytes, \d+ were saved"),
    "strategy": (foreign_names, r"saved teacher is a 'frozen' teacher, but this run is configured with teacher='ema'"),
    "model": (other_model, r"model\.layers\.1\."),
    "no weights": (
        lambda folder: next((folder / "sdpo" / "teacher").glob("*.safetensors")).unlink(),
        r"does not exist",
    ),
    "no json": (lambda folder: next((folder / "sdpo" / "teacher").glob("*.json")).unlink(), r"holds no teacher-00000"),
    "no teacher": (lambda folder: shutil.rmtree(folder / "sdpo" / "teacher"), r"holds no SDPO teacher"),
    "another trainer's": (lambda folder: shutil.rmtree(folder / "sdpo"), r"holds no SDPO teacher.*another trainer"),
    "no state": (lambda folder: (folder / "sdpo" / "state-0.json").unlink(), r"SDPO state of rank 0 .* cannot be read"),
    "bad state": (lambda folder: (folder / "sdpo" / "state-0.json").write_text("{}"), r"SDPO state .* cannot be read"),
    "half a state": (
        lambda folder: (folder / "sdpo" / "state-0.json").write_text('{"has_rollouts": false}'),
        r"SDPO state",
    ),
    "no rollouts": (lambda folder: (folder / "sdpo" / "rollouts-0.pt").unlink(), r"SDPO state .* cannot be read"),
    "bad rollouts": (
        lambda folder: (folder / "sdpo" / "rollouts-0.pt").write_bytes(b"no"),
        r"SDPO state .* cannot be read",
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_checkpoint_that_cannot_be_trusted_is_not_resumed_from(
    make_trainer: Any, checkpoint: Path, tmp_path: Path, kind: str
) -> None:
    damage, message = DAMAGE[kind]
    folder = tmp_path / "checkpoint-1"
    shutil.copytree(checkpoint, folder)
    damage(folder)
    files = {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}

    def rollout(prompts: Any, trainer: Any) -> Any:
        raise AssertionError("generated before the refusal")

    trainer = make_trainer(args={"num_iterations": 2}, rollout_func=rollout)
    with pytest.raises(TeacherError, match=f"(?s){message}"):
        trainer.train(resume_from_checkpoint=str(folder))
    assert {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()} == files


def test_the_undamaged_checkpoint_is_resumed_from(make_trainer: Any, checkpoint: Path) -> None:
    trainer = make_trainer(args={"num_iterations": 2})
    trainer.train(resume_from_checkpoint=str(checkpoint))
    assert trainer.state.global_step == 2


def test_a_checkpoint_of_plain_grpo_is_foreign(make_trainer: Any, tmp_path: Path, tokenizer: Any) -> None:
    args = tiny_arguments(tmp_path / "grpo", save_strategy="steps", save_steps=1, max_steps=1)
    GRPOTrainer(
        tiny_model(),
        lambda completions, **_: [float(len(row[0]["content"])) for row in completions],
        args,
        train_dataset=questions(),
        processing_class=AutoTokenizer.from_pretrained(checkpoint_path()),
        rollout_func=scripted(tokenizer, ("alpha", "be")),
    ).train()
    trainer = make_trainer()
    with pytest.raises(TeacherError, match=r"holds no SDPO teacher.*another trainer.*without `resume_from_checkpoint`"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "grpo" / "checkpoint-1"))


# beta: the KL to the reference


@pytest.mark.parametrize("adapter", [False, True], ids=["full", "lora"])
def test_beta_pulls_towards_the_reference(make_trainer: Any, tmp_path: Path, adapter: bool, tokenizer: Any) -> None:
    """The gradient with beta minus that without is beta times the KL's own, recomputed here from the two models."""
    tiny_model().save_pretrained(tmp_path / "model")
    gradients, logs, inputs = {}, {}, {}
    for beta in (0.0, 0.5):
        model: Any = Qwen3ForCausalLM.from_pretrained(tmp_path / "model")
        lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False) if adapter else None
        trainer = make_trainer(
            model=model,
            args={"beta": beta, "max_steps": 1, "learning_rate": 0.0, "max_grad_norm": 0.0, "temperature": 0.7},
            rollout_func=scripted(tokenizer, ("alpha", "beta", "gamma", "delta delta")),
            peft_config=lora,
        )
        if not adapter:
            # The reference is what was loaded; the student has moved on.
            with torch.no_grad():
                for parameter in trainer.model.parameters():
                    parameter.add_(0.05 * torch.sin(torch.arange(parameter.numel())).view_as(parameter))
        seen = watch_gradients(trainer)
        trainer.train()
        gradients[beta], logs[beta], inputs[beta] = seen, trainer.state.log_history[0], trainer._buffered_inputs[0]
    batch, model = inputs[0.5], trainer.model
    assert "kl" not in logs[0.0] and "ref_per_token_logps" not in inputs[0.0]
    assert logs[0.5]["kl"] > 1e-3
    # The rows are the same in another order: the mean over all tokens does not see it.
    total, count = torch.zeros(()), batch["completion_mask"].sum()
    model.zero_grad()
    for row in range(8):
        kept = [batch[f"{part}_ids"][row][batch[f"{part}_mask"][row].bool()] for part in ("prompt", "completion")]
        logits = model(input_ids=torch.cat(kept)[None]).logits[0, len(kept[0]) - 1 : -1] / 0.7
        own = logits.log_softmax(-1).gather(-1, kept[1][:, None])[:, 0]
        if adapter:
            with torch.no_grad(), model.disable_adapter():
                reference = model(input_ids=torch.cat(kept)[None]).logits[0, len(kept[0]) - 1 : -1] / 0.7
        else:
            with torch.no_grad():
                reference = trainer.ref_model(input_ids=torch.cat(kept)[None]).logits[0, len(kept[0]) - 1 : -1] / 0.7
        difference = reference.log_softmax(-1).gather(-1, kept[1][:, None])[:, 0] - own
        # TRL's default (`use_bias_correction_kl`): times the ratio, which makes it the reverse KL's gradient.
        total = total + ((difference.exp() - difference - 1) * (own - own.detach()).exp()).sum()
    assert logs[0.5]["kl"] == pytest.approx(float(total / count), rel=1e-3)
    (0.5 * total / count).backward()
    largest = max(float(p.grad.abs().max()) for p in model.parameters() if p.grad is not None)
    for name, parameter in model.named_parameters():
        if parameter.grad is None:
            continue
        difference = gradients[0.5][name] - gradients[0.0][name]
        assert torch.allclose(difference, parameter.grad, rtol=2e-3, atol=2e-5 * largest), name
