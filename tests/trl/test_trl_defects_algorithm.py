"""Defects of other trainers in what is computed: each test carries the number of the defect it would show.

The others of the list (several processes, checkpoints, teacher weights) are tested in files of their own.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoTokenizer, Qwen3ForCausalLM, TrainerCallback

from scripted_rollouts import buffered_rows, scripted, watch_gradients
from sdpo_plugins.embedded import checkpoint_path
from sdpo_plugins.errors import ConfigError, PluginError
from sdpo_trl import SDPOConfig, SDPOTrainer
from tiny_trl import questions, tiny_model

STILL = {"max_steps": 1, "learning_rate": 0.0, "max_grad_norm": 0.0}


def text_of(completion: Any) -> str:
    return completion if isinstance(completion, str) else completion[-1]["content"]


def fails_with_feedback_unless_silent(completions: Any, **_: Any) -> list[dict[str, Any]]:
    """Nothing succeeds; every answer but 'silent' gets feedback, and only these are active."""
    texts = [text_of(completion) for completion in completions]
    return [{"score": 0.0, "feedback": None if text == "silent" else f"Not {text}."} for text in texts]


def test_defect_3_feedback_depends_on_the_rollout(make_trainer: Any, tokenizer: Any) -> None:
    """Answers to one and the same question get remarks of their own, also in later batches."""
    rounds: list[int] = []

    def remark(completions: Any, **_: Any) -> list[dict[str, Any]]:
        rounds.append(len(rounds))
        return [{"score": 0.0, "feedback": f"Round {rounds[-1]}: not {text_of(row)}."} for row in completions]

    trainer = make_trainer(
        args={**STILL, "max_steps": 3},
        reward_funcs=remark,
        train_dataset=questions(1).select([0] * 4),
        rollout_func=scripted(tokenizer, ("alpha", "beta", "gamma", "delta")),
    )
    trainer.train()
    rows = buffered_rows(trainer)
    assert len(rows) == 8 and len({row["teacher"] for row in rows}) == 4
    for row in rows:
        assert f"Round 2: not {row['answer']}." in row["teacher"]
        assert row["teacher"].count("Round") == 1


@pytest.mark.parametrize("objective", [{}, {"alpha": 1.0, "full_logit_distillation": False}], ids=["top-k", "token"])
@pytest.mark.parametrize("mode", ["token-mean", "seq-mean-token-mean"])
def test_defect_7_gradient_does_not_shrink_with_inactive_rows(
    make_trainer: Any, tokenizer: Any, objective: dict[str, Any], mode: str
) -> None:
    """Two active rows of eight give the gradient that they give alone."""
    gradients, losses = [], []
    for answers, count, size in ((("alpha one", "beta"), 2, 2), (("alpha one", "beta", "silent", "silent"), 4, 4)):
        for cut in (1, 2) if size == 4 else (1,):
            trainer = make_trainer(
                args={
                    **STILL,
                    **objective,
                    "loss_agg_mode": mode,
                    "num_generations": count,
                    "per_device_train_batch_size": size // cut,
                    "gradient_accumulation_steps": cut,
                    "selector": "none",
                },
                reward_funcs=fails_with_feedback_unless_silent,
                train_dataset=questions(1).select([0] * 4),
                rollout_func=scripted(tokenizer, answers),
            )
            seen = watch_gradients(trainer)
            trainer.train()
            active = sum(row["active"] for row in buffered_rows(trainer))
            assert active == 2
            gradients.append(seen)
            losses.append(trainer.state.log_history[0]["loss"])
    assert losses[0] != 0
    for other, loss in zip(gradients[1:], losses[1:], strict=True):
        assert loss == pytest.approx(losses[0], rel=1e-4, abs=1e-4)
        for name, gradient in gradients[0].items():
            scale = float(gradient.abs().max())
            assert torch.allclose(other[name], gradient, rtol=1e-4, atol=1e-5 * scale + 1e-9), name


def test_defect_10_truncation_spares_question_system_and_generation_prompt(make_trainer: Any, tokenizer: Any) -> None:
    long = " ".join(f"line {i} was bad" for i in range(200))
    data = Dataset.from_list(
        [
            {"prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": f"What is {i} + {i}?"}]}
            for i in range(4)
        ]
    )
    trainer = make_trainer(
        args={**STILL, "max_reprompt_len": 120, "selector": "none"},
        reward_funcs=lambda completions, **_: [{"score": 0.0, "feedback": long} for _ in completions],
        train_dataset=data,
        rollout_func=scripted(tokenizer, ("alpha", "beta")),
    )
    with pytest.warns(UserWarning, match=r"100% of the teacher prompts .* were cut"):
        trainer.train()
    rows = buffered_rows(trainer)
    assert all(row["active"] for row in rows)
    for row in rows:
        text = row["teacher"]
        assert len(tokenizer(text, add_special_tokens=False)["input_ids"]) <= 120
        assert "Be brief." in text and "line 0 was bad" in text and "line 199" not in text
        assert any(f"What is {i} + {i}?" in text for i in range(4))
        assert "Correctly solve the original question." in text
        # The generation prompt is where the student's ends, too.
        assert text.endswith(row["prompt"][row["prompt"].rindex("<|im_start|>") :])
    logged = trainer.state.log_history[0]
    assert logged["self_distillation/truncated_fraction"] == 1.0
    assert logged["self_distillation/truncated_feedback_tokens_mean"] > 100
    assert logged["self_distillation/teacher_prompt_length_max"] <= 120


@pytest.mark.parametrize("adapter", [False, True], ids=["full", "lora"])
def test_defect_11_beta_is_no_dead_option(make_trainer: Any, tmp_path: Any, tokenizer: Any, adapter: bool) -> None:
    """Nothing is active, so SDPO's loss is zero: what moves the student is the KL to the reference alone.

    The gradient is compared with its formula in the tests of bad input.
    """
    tiny_model().save_pretrained(tmp_path / "model")
    norms = {}
    for beta in (0.0, 0.1):
        trainer = make_trainer(
            model=Qwen3ForCausalLM.from_pretrained(tmp_path / "model"),
            args={**STILL, "beta": beta},
            reward_funcs=fails_with_feedback_unless_silent,
            rollout_func=scripted(tokenizer, ("silent",)),
            peft_config=LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False) if adapter else None,
        )
        if not adapter:
            with torch.no_grad():
                trainer.model.lm_head.weight.mul_(1.1)
        seen = watch_gradients(trainer)
        trainer.train()
        norms[beta] = sum(float(gradient.square().sum()) for gradient in seen.values())
        logged = trainer.state.log_history[0]
        assert logged["self_distillation/active_tokens"] == 0
        assert ("kl" in logged) == (beta > 0)
    assert norms[0.0] == 0.0 and norms[0.1] > 1e-8
    assert logged["kl"] > 1e-4
    assert logged["loss"] == pytest.approx(0.1 * logged["kl"], rel=1e-2, abs=2e-4)


def test_defect_12_case_range_vocabulary_no_arguments(make_trainer: Any, tmp_path: Any, monkeypatch: Any) -> None:
    with pytest.raises((ConfigError, PluginError), match=r"'EMA'.*Did you mean 'ema'"):
        make_trainer(args={"teacher": "EMA"})
    with pytest.raises(ConfigError, match=r"`teacher_mode` must be one of 'ema'.*got 'EMA'.*Did you mean 'ema'"):
        SDPOConfig(teacher_mode="EMA")
    with pytest.raises(ConfigError, match=r"`alpha` must lie in \[0, 1\], got 1.7"):
        make_trainer(args={"alpha": 1.7})
    trainer = make_trainer(args={"distillation_topk": 10**6, "max_steps": 1})
    trainer.train()
    assert 0 < trainer.state.log_history[0]["loss"] < 10
    monkeypatch.chdir(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint_path())
    reward = fails_with_feedback_unless_silent
    bare = SDPOTrainer(tiny_model(), reward, train_dataset=questions(), processing_class=tokenizer)
    assert bare.sdpo_config == SDPOConfig()


@pytest.mark.parametrize("named", [False, True])
def test_defect_13_a_format_bonus_makes_no_demonstration(make_trainer: Any, tokenizer: Any, named: bool) -> None:
    def correct(completions: Any, **_: Any) -> list[float]:
        return [float(text_of(row) == "right") for row in completions]

    def tidy(completions: Any, **_: Any) -> list[float]:
        return [1.0] * len(completions)

    trainer = make_trainer(
        args={**STILL, **({"success_reward_name": "correct"} if named else {})},
        reward_funcs=[tidy, correct],
        rollout_func=scripted(tokenizer, ("tidy but false", "false too", "right", "false again")),
    )
    trainer.train()
    behind = [row["teacher"].partition("Correct solution:\n\n")[2] for row in buffered_rows(trainer)]
    shown = [text.partition("\n\n")[0] for text in behind]
    # Without a name the sum decides, and the warning that the trainer gave says so.
    assert set(shown) == ({"right", ""} if named else {"tidy but false", "false too"})
    assert sum(row["active"] for row in buffered_rows(trainer)) == (6 if named else 8)


def count_from_the_second_step(trainer: Any, count: Any, read: list[Any]) -> None:
    """The first step also tries the model's parts on a few tokens."""

    class Forget(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            read.clear()

    trainer.model.model.register_forward_pre_hook(count, with_kwargs=True)
    trainer.add_callback(Forget())


@pytest.mark.parametrize("loss_path", ["fused", "logits"])
def test_defect_14_inactive_rows_pay_no_forward(make_trainer: Any, tokenizer: Any, loss_path: str) -> None:
    """Tokens that the model reads in the loss: two active rows twice (student, teacher), six silent rows not at all."""
    options = {"num_generations": 8, "selector": "none", "teacher": "frozen", "share_teacher_prefix": False}
    trainer = make_trainer(
        args={**STILL, **options, "loss_path": loss_path, "max_steps": 2},
        reward_funcs=fails_with_feedback_unless_silent,
        rollout_func=scripted(tokenizer, ("alpha one", "silent", "silent", "silent")),
    )
    read: list[tuple[int, int, bool]] = []

    def count(module: Any, args: Any, kwargs: Any) -> None:
        mask = kwargs["attention_mask"]
        read.append((mask.size(0), int(mask.sum()), torch.is_grad_enabled()))

    count_from_the_second_step(trainer, count, read)
    trainer.train()
    rows = [row for row in buffered_rows(trainer) if row["active"]]
    assert len(rows) == 2

    def tokens(name: str) -> int:
        texts = [row[name] + row["answer"] + tokenizer.eos_token for row in rows]
        return sum(len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts)

    student = [(size, total) for size, total, graded in read if graded]
    teacher = [(size, total) for size, total, graded in read if not graded]
    assert student == [(2, tokens("prompt"))]
    assert teacher == [(2, tokens("teacher"))]


@pytest.mark.parametrize("loss_path", ["fused", "logits"])
def test_defect_14_a_batch_without_active_rows_costs_two_tokens(
    make_trainer: Any, tokenizer: Any, loss_path: str
) -> None:
    trainer = make_trainer(
        args={**STILL, "loss_path": loss_path, "max_steps": 2},
        reward_funcs=fails_with_feedback_unless_silent,
        rollout_func=scripted(tokenizer, ("silent",)),
    )
    read: list[int] = []
    count_from_the_second_step(trainer, lambda module, args, kwargs: read.append(kwargs["input_ids"].numel()), read)
    seen = watch_gradients(trainer)
    trainer.train()
    assert read == [2]
    assert all(torch.count_nonzero(gradient) == 0 for gradient in seen.values())


OPENS_THINKING = "{%- if add_generation_prompt %}\n    {{- '<|im_start|>assistant\\n<think>\\n' }}"


@pytest.mark.parametrize("opened", [False, True], ids=["model opens", "template opens"])
def test_defect_15_thinking_is_stripped_however_it_began_or_ended(make_trainer: Any, opened: bool) -> None:
    tokenizer = AutoTokenizer.from_pretrained(checkpoint_path())
    if opened:
        plain = "{%- if add_generation_prompt %}\n    {{- '<|im_start|>assistant\\n' }}"
        assert plain in tokenizer.chat_template
        tokenizer.chat_template = tokenizer.chat_template.replace(plain, OPENS_THINKING)
    begin = "" if opened else "<think>"
    answers = (f"{begin}secret plan</think>The answer is 7.", "wrong a", "wrong b", "wrong c")
    cut_off = ("Answer: 8.<think>let me check", "wrong a", "wrong b", "wrong c")
    for given, demonstration in ((answers, "The answer is 7."), (cut_off, "Answer: 8.")):
        # Behind a template's opening tag, an answer that never closes it is all thought: "strict" does not show it.
        all_thought = opened and given is cut_off
        trainer = make_trainer(
            args={**STILL, "thinking_removal": "strict" if all_thought else "tolerant"},
            reward_funcs=lambda completions, **_: [float("wrong" not in text_of(row)) for row in completions],
            rollout_func=scripted(tokenizer, given),
            processing_class=tokenizer,
        )
        trainer.train()
        rows = buffered_rows(trainer)
        active = [row for row in rows if row["active"]]
        assert len(active) == (0 if all_thought else 6)
        for row in active:
            assert row["prompt"].endswith("<think>\n") == row["teacher"].endswith("<think>\n") == opened
            question = row["teacher"].removesuffix("<think>\n")
            assert f"Correct solution:\n\n{demonstration}\n\nCorrectly solve" in question
            for leak in ("secret plan", "let me check", "think>"):
                assert leak not in question
