"""What GRPOTrainer can do beyond plain chat prompts keeps working: own rollouts, templates, datasets, rewards."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from datasets import Dataset, IterableDataset
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForSequenceClassification

from sdpo_plugins.embedded import checkpoint_path
from tiny_trl import digits_reward, questions, tiny_model
from watched_loss import Scripted, Spying, core_loss

FROZEN = {"max_steps": 1, "learning_rate": 0.0}


def in_turn(*answers: str) -> Callable[[Sequence[str]], list[str]]:
    """A script that gives the answers to the rows of a batch in turn."""
    return lambda prompts: [answers[row % len(answers)] for row in range(len(prompts))]


def right_if(text: str) -> Any:
    """A reward that is 1 for answers with a text in them, without feedback."""

    def grade(completions: Sequence[Any], **_: Any) -> list[float]:
        said = [answer if isinstance(answer, str) else answer[-1]["content"] for answer in completions]
        return [float(text in answer) for answer in said]

    return grade


def test_fields_of_a_rollout_func_reach_rewards_and_its_mask_the_loss(make_trainer: Any) -> None:
    tokenizer = AutoTokenizer.from_pretrained(checkpoint_path())
    given: dict[str, Any] = {}

    def rollout(prompts: list[Any], trainer: Any) -> dict[str, Any]:
        answers = [tokenizer(f"{row} is it")["input_ids"] + [tokenizer.eos_token_id] for row in range(len(prompts))]
        return {
            "prompt_ids": [
                tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False)
                for prompt in prompts
            ],
            "completion_ids": answers,
            "logprobs": None,
            # The first token of each answer is the environment's.
            "env_mask": [[0] + [1] * (len(answer) - 1) for answer in answers],
            "score": [float(row % 4 == 1) for row in range(len(prompts))],
            "feedback": [f"Not {row}." if row % 4 == 2 else None for row in range(len(prompts))],
        }

    def grade(prompts: Any, completions: Any, score: list[float], **columns: Any) -> list[float]:
        given.update(columns)
        return score

    trainer = make_trainer(
        args={**FROZEN, "max_completion_length": 12}, cls=Spying, rollout_func=rollout, reward_funcs=grade
    )
    trainer.train()
    assert given["feedback"] == [None, None, "Not 2.", None, None, None, "Not 6.", None]
    rows = trainer.rows()
    assert sum(row["success"] for row in rows) == 2
    for row in rows:
        number = int(row["answer"].split()[0])
        demonstrated = number % 4 != 1
        assert row["active"] == demonstrated
        assert (f"\n{number // 4 * 4 + 1} is it\n" in row["teacher"]) == demonstrated
        assert row["learnt"].tolist() == [False] + [True] * (len(row["answer_ids"]) - 1)
    masked = trainer.losses[0]
    assert masked == pytest.approx(float(core_loss(trainer)), rel=2e-5)
    # The mask matters: with the first tokens learnt, the loss is another.
    for batch in trainer.seen:
        del batch["tool_mask"]
    assert abs(float(core_loss(trainer)) - masked) > 1e-3 * masked


def test_string_prompts_need_no_chat_template(make_trainer: Any) -> None:
    tokenizer = AutoTokenizer.from_pretrained(checkpoint_path())
    tokenizer.chat_template = None
    trainer = make_trainer(
        args=FROZEN,
        cls=Scripted,
        script=in_turn(" 12", " 31", " 5", " 7"),
        reward_funcs=right_if("31"),
        processing_class=tokenizer,
        train_dataset=Dataset.from_dict({"prompt": [f"{i} + 11 =" for i in range(8)]}),
    )
    trainer.train()
    rows = trainer.rows()
    assert [row["active"] for row in rows].count(True) == 6
    for row in rows:
        shown = row["prompt"] + "\nCorrect solution:\n\n 31\n\nCorrectly solve the original question."
        assert row["teacher"].strip() == (shown.strip() if row["active"] else "")
    assert trainer.losses[0] == pytest.approx(float(core_loss(trainer)), rel=2e-5)


def test_answers_cut_short_teach_nothing_where_trl_masks_them(make_trainer: Any) -> None:
    trainer = make_trainer(
        args={**FROZEN, "mask_truncated_completions": True, "max_completion_length": 8},
        cls=Scripted,
        script=in_turn("It is 31", "It is 5 or…", "It is 6 or…", "It is 7"),
        reward_funcs=right_if("31"),
    )
    trainer.train()
    assert sorted(len(row["answer_ids"]) > 0 for row in trainer.rows()) == [False] * 4 + [True] * 4
    kept = [row for row in trainer.rows() if len(row["answer_ids"])]
    assert sorted(row["active"] for row in kept) == [False, False, True, True]
    # Nothing but the two whole, active answers is counted: masked ones are no zeros in the mean.
    trainer.seen = [
        {
            name: value[[len(row["answer_ids"]) > 0 for row in trainer.rows()]] if value.dim() else value
            for name, value in trainer.seen[0].items()
            if torch.is_tensor(value)
        }
    ]
    assert trainer.losses[0] == pytest.approx(float(core_loss(trainer)), rel=2e-5)


def test_answers_cut_short_are_learnt_where_trl_keeps_them(make_trainer: Any) -> None:
    trainer = make_trainer(
        args={**FROZEN, "max_completion_length": 8},
        cls=Scripted,
        script=in_turn("It is 31", "It is 5 or…", "It is 6 or…", "It is 7"),
        reward_funcs=right_if("31"),
    )
    trainer.train()
    assert sum(row["active"] for row in trainer.rows()) == 6
    assert all(row["learnt"].all() and len(row["answer_ids"]) for row in trainer.rows())
    assert trainer.losses[0] == pytest.approx(float(core_loss(trainer)), rel=2e-5)


def test_masked_answers_are_no_sign_of_collapsing_length(make_trainer: Any) -> None:
    ends = iter(["", *["…"] * 7])

    def script(prompts: Sequence[str]) -> list[str]:
        return ["one two three four five six seven eight nine" + next(ends)] * len(prompts)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        make_trainer(
            args={"max_steps": 8, "mask_truncated_completions": True, "max_completion_length": 30},
            cls=Scripted,
            script=script,
            reward_funcs=digits_reward,
        ).train()
    assert not [str(warning.message) for warning in caught if "collapsing" in str(warning.message)]


THINKING_TEMPLATE = """\
{%- for message in messages %}<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% if enable_thinking is not defined or enable_thinking %}<think>
{% else %}<think>

</think>

{% endif %}{% endif %}"""


def thinking_tokenizer(special: bool) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(checkpoint_path())
    tokenizer.add_tokens(["<think>", "</think>"])
    if special:
        tokenizer.add_special_tokens({"extra_special_tokens": ["<think>", "</think>"]})
    assert special == (tokenizer.convert_tokens_to_ids("<think>") in tokenizer.all_special_ids)
    tokenizer.chat_template = THINKING_TEMPLATE
    return tokenizer


@pytest.mark.parametrize("special", [False, True], ids=["added tokens", "special tokens"])
def test_demonstrations_have_no_thinking_part_where_the_template_opens_it(make_trainer: Any, special: bool) -> None:
    """The answer begins inside of the thinking part: its opening tag stands in the prompt."""
    tokenizer = thinking_tokenizer(special)
    trainer = make_trainer(
        tiny_model(vocab_size=len(tokenizer)),
        args={**FROZEN, "max_completion_length": 32},
        cls=Scripted,
        script=in_turn("hm, seven</think>\nIt is 31", "no idea</think>\nIt is 9", "endless 31…", "<think>x</think>\n8"),
        reward_funcs=right_if("31"),
        processing_class=tokenizer,
    )
    trainer.train()
    rows = trainer.rows()
    assert all(row["prompt"].endswith("<think>\n") for row in rows)
    shown = [row for row in rows if row["active"]]
    assert len(shown) == 8
    for row in shown:
        demonstration = row["teacher"].split("Correct solution:\n\n")[1].split("\n\nCorrectly solve")[0]
        first = "seven" not in row["answer"]
        # The other success never closes its thinking part; all of it is shown rather than nothing.
        assert demonstration == ("It is 31" if first else "endless 31")
        assert row["teacher"].endswith("<think>\n")
    # Only where the prompt is known to open the tag is the third answer one that never comes to its end.
    assert trainer.state.log_history[0]["self_distillation/unclosed_thinking_fraction"] == 0.25
    assert trainer.losses[0] == pytest.approx(float(core_loss(trainer)), rel=2e-5)


def test_template_arguments_are_the_students_and_the_teacher_may_have_its_own(make_trainer: Any) -> None:
    def run(**args: Any) -> list[dict[str, Any]]:
        trainer = make_trainer(
            tiny_model(vocab_size=1026),
            args={**FROZEN, "max_completion_length": 32, **args},
            cls=Scripted,
            script=in_turn("It is 31", "It is 9"),
            reward_funcs=right_if("31"),
            processing_class=thinking_tokenizer(False),
        )
        trainer.train()
        return [row for row in trainer.rows() if row["active"]]

    opened, closed = "<think>\n", "<think>\n\n</think>\n\n"
    for row in run(chat_template_kwargs={"enable_thinking": False}):
        assert row["prompt"].endswith(closed)
        assert row["teacher"].endswith(closed)
    for row in run(apply_chat_template_kwargs={"enable_thinking": False}):
        assert row["prompt"].endswith(opened)
        assert row["teacher"].endswith(closed)
    for row in run(
        chat_template_kwargs={"enable_thinking": False}, apply_chat_template_kwargs={"enable_thinking": True}
    ):
        assert row["prompt"].endswith(closed)
        assert row["teacher"].endswith(opened)


def test_padding_and_temperature_enter_as_in_the_core(make_trainer: Any) -> None:
    trainer = make_trainer(args={**FROZEN, "pad_to_multiple_of": 16, "temperature": 1.7}, cls=Spying)
    trainer.train()
    assert trainer.seen[0]["prompt_ids"].size(1) % 16 == 0
    assert trainer.seen[0]["completion_ids"].size(1) % 16 == 0
    assert any(row["active"] for row in trainer.rows())
    assert trainer.losses[0] == pytest.approx(float(core_loss(trainer, temperature=1.7)), rel=2e-5)
    assert abs(float(core_loss(trainer, temperature=1.0)) - trainer.losses[0]) > 1e-3 * trainer.losses[0]


def test_evaluation_has_groups_of_its_own_size(make_trainer: Any) -> None:
    trainer = make_trainer(
        args={**FROZEN, "num_generations": 4, "num_generations_eval": 2, "per_device_eval_batch_size": 4},
        cls=Scripted,
        script=in_turn("It is 31", "It is 9", "It is 8", "It is 7"),
        reward_funcs=right_if("31"),
        eval_dataset=questions(4),
    )
    metrics = trainer.evaluate()
    # Of two questions a batch, one has a success; in training groups of four, all rows would be one group.
    assert [row["active"] for row in trainer.rows()] == [False, True, False, False] * 2
    assert metrics["eval_self_distillation/success_group_fraction"] == 0.5
    assert metrics["eval_loss"] == pytest.approx(sum(trainer.losses) / 2, rel=1e-5)
    assert metrics["eval_loss"] > 0


def test_streamed_datasets(make_trainer: Any) -> None:
    trainer = make_trainer(
        args={"max_steps": 2},
        cls=Scripted,
        script=in_turn("It is 31", "It is 9", "It is 8", "It is 7"),
        reward_funcs=right_if("31"),
        train_dataset=IterableDataset.from_generator(lambda: iter(questions(8))),
    )
    trainer.train()
    assert trainer.state.global_step == 2
    assert len({row["prompt"] for row in trainer.rows()}) == 4
    assert sum(row["active"] for row in trainer.rows()) == 12


def format_bonus(completions: Sequence[Any], **_: Any) -> list[float | None]:
    """Judges only some answers."""
    return [None if "9" in answer[0]["content"] else 1.0 for answer in completions]


@pytest.mark.parametrize(
    ("weights", "successes"), [([1.0, 0.5], ["It is 31", "It is 8"]), ([1.0, 0.2], ["It is 31"])], ids=str
)
def test_success_is_judged_by_the_weighted_rewards(
    make_trainer: Any, weights: list[float], successes: list[str]
) -> None:
    with pytest.warns(UserWarning, match="weighted sum of the rewards"):
        trainer = make_trainer(
            args={**FROZEN, "reward_weights": weights, "success_reward_threshold": 0.5},
            cls=Scripted,
            script=in_turn("It is 31", "It is 9", "It is 8", "It is 9"),
            reward_funcs=[right_if("31"), format_bonus],
        )
    trainer.train()
    judged = {row["answer"].removesuffix("<|im_end|>"): row["success"] for row in trainer.rows()}
    assert sorted(answer for answer, success in judged.items() if success) == sorted(successes)


def test_an_answer_that_no_reward_judges_is_no_success_even_at_threshold_zero(make_trainer: Any) -> None:
    trainer = make_trainer(
        args={**FROZEN, "success_reward_threshold": 0.0},
        cls=Scripted,
        script=in_turn("It is 9", "It is 8"),
        reward_funcs=format_bonus,
    )
    trainer.train()
    assert {row["answer"].removesuffix("<|im_end|>"): row["success"] for row in trainer.rows()} == {
        "It is 9": False,
        "It is 8": True,
    }


def test_a_reward_model_judges(make_trainer: Any) -> None:
    tokenizer = AutoTokenizer.from_pretrained(checkpoint_path())
    torch.manual_seed(3)
    judge = Qwen3ForSequenceClassification(
        Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=1,
            num_key_value_heads=1,
            head_dim=16,
            num_labels=1,
            pad_token_id=tokenizer.pad_token_id,
            initializer_range=0.5,
        )
    ).eval()
    asked = questions(1)[0]["prompt"]

    def opinion(answer: str) -> float:
        said = [*asked, {"role": "assistant", "content": answer}]
        ids = tokenizer.apply_chat_template(said, return_dict=False)
        with torch.no_grad():
            return float(judge(input_ids=torch.tensor([ids])).logits[0, 0])

    answers = ["It is 31", "It is 9", "8", "I do not know"]
    opinions = {answer: opinion(answer) for answer in answers}
    threshold = sorted(opinions.values())[-2] - 1e-4
    trainer = make_trainer(
        args={**FROZEN, "success_reward_threshold": threshold, "max_completion_length": 12},
        cls=Scripted,
        script=in_turn(*answers),
        reward_funcs=judge,
        reward_processing_classes=AutoTokenizer.from_pretrained(checkpoint_path()),
        train_dataset=Dataset.from_list([{"prompt": asked}] * 4),
    )
    trainer.train()
    for row in trainer.rows():
        assert row["success"] == (opinions[row["answer"].removesuffix("<|im_end|>")] >= threshold)
    assert sum(row["success"] for row in trainer.rows()) == 4
