"""Tools and environments under SDPO: TRL's own tool loop runs, the model's turns are learnt, the tools' are not."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from datasets import Dataset
from transformers import AutoTokenizer
from trl.chat_template_utils import qwen3_chat_template, qwen3_template

from sdpo_plugins.embedded import checkpoint_path
from sdpo_plugins.errors import ConfigError
from sdpo_plugins.records import read_run
from tiny_trl import tiny_model
from watched_loss import Scripted, core_loss

ARGS = {"max_steps": 1, "learning_rate": 0.0, "max_completion_length": 200, "shuffle_dataset": False}

TEMPLATE = """\
{%- if tools %}<|im_start|>system
You may call:{% for tool in tools %} {{ tool.function.name }}({{ tool.function.parameters.properties | join(", ") }})
{%- endfor %}<|im_end|>
{% endif %}
{%- for message in messages %}<|im_start|>{{ message.role }}
{% if message.role == "tool" %}[{{ message.name }}] {% endif %}{{ message.content }}
{%- for call in message.tool_calls or [] %}<tool_call>{{ call.function | tojson }}</tool_call>{% endfor %}<|im_end|>
{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def tool_tokenizer(template: str) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(checkpoint_path())
    tokenizer.chat_template = template
    if template == TEMPLATE:
        tokenizer.response_template = qwen3_template
    return tokenizer


def model() -> Any:
    return tiny_model(max_position_embeddings=4096)


def add(a: int, b: int) -> int:
    """Add two numbers.

    Args:
        a: The first.
        b: The second.
    """
    return a + b


def call(name: str, **arguments: Any) -> str:
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


def sums(count: int = 4) -> Dataset:
    rows = [(10 + i, 20 + 3 * i) for i in range(count)]
    return Dataset.from_list([{"prompt": [{"role": "user", "content": f"{a} + {b}?"}]} for a, b in rows])


def calling(asked: Callable[[int, int], str], told: Callable[[str], str]) -> Any:
    """Of each two answers the first calls `add` and then says what the tool told; the second just guesses."""

    def script(prompts: Sequence[str]) -> list[str]:
        answers = []
        for row, prompt in enumerate(prompts):
            result = re.search(r"(?:\[add\] |<tool_response>\n)(\d+)", prompt)
            a, b = map(int, re.search(r"(\d+) \+ (\d+)\?", prompt).groups())
            answers.append(told(result[1]) if result else asked(a, b) if row % 2 == 0 else "I guess 5")
        return answers

    return script


def says_the_sum(prompts: Sequence[Any], completions: Sequence[Any], **_: Any) -> list[dict[str, Any]]:
    results = []
    for prompt, completion in zip(prompts, completions, strict=True):
        a, b = map(int, re.search(r"(\d+) \+ (\d+)\?", prompt[-1]["content"]).groups())
        good = completion[-1]["content"].strip() == f"It is {a + b}"
        results.append({"score": float(good), "feedback": None if good else "Use the tool."})
    return results


@pytest.mark.parametrize("template", [TEMPLATE, qwen3_chat_template], ids=["own template", "one that TRL replaces"])
def test_what_a_tool_said_is_read_but_not_learnt(make_trainer: Any, template: str) -> None:
    trainer = make_trainer(
        model(),
        args=ARGS,
        cls=Scripted,
        script=calling(lambda a, b: "Let me see. " + call("add", a=a, b=b), lambda result: f"It is {result}"),
        reward_funcs=says_the_sum,
        tools=[add],
        processing_class=tool_tokenizer(template),
        train_dataset=sums(),
    )
    # TRL trains with a template of its own where the tokenizer's rewrites earlier turns.
    assert (trainer.chat_template is not None) == (template == qwen3_chat_template)
    trainer.train()
    assert trainer.state.log_history[0]["tools/call_frequency"] == 0.5
    assert trainer.state.log_history[0]["tools/failure_frequency"] == 0.0
    rows = trainer.rows()
    tokenizer = trainer.processing_class
    assert sum(row["success"] for row in rows) == 4
    for row in rows:
        a, b = map(int, re.search(r"(\d+) \+ (\d+)\?", row["prompt"]).groups())
        own = tokenizer.decode(row["answer_ids"][row["learnt"]])
        foreign = tokenizer.decode(row["answer_ids"][~row["learnt"]])
        if row["success"]:
            assert own == f"Let me see. {call('add', a=a, b=b)}<|im_end|>It is {a + b}<|im_end|>"
            assert str(a + b) in foreign
            assert foreign.endswith("<|im_start|>assistant\n")
        else:
            assert (own, foreign) == ("I guess 5<|im_end|>", "")
        # The teacher reads the schema that the student reads, ahead of everything that SDPO adds.
        schema, _, question = row["prompt"].partition("<|im_start|>user\n")
        assert "add" in schema
        assert row["teacher"].startswith(f"{schema}<|im_start|>user\n{a} + {b}?\nCorrect solution:\n\nLet me see.")
        assert row["active"]
        assert question.endswith("<|im_start|>assistant\n") and row["teacher"].endswith("<|im_start|>assistant\n")
    recorded = {rollout.id: rollout.tokens for rollout in read_run(trainer.args.output_dir).rollouts}
    marks = [mark for batch in trainer.seen for mark in batch["sdpo_record"].tolist()]
    for mark, row in zip(marks, rows, strict=True):
        if mark >= 0:
            assert recorded[mark]["ids"] == row["answer_ids"].tolist()
            assert recorded[mark]["mask"] == row["learnt"].int().tolist()
            assert [value is not None for value in recorded[mark]["student"]] == row["learnt"].tolist()
    assert any(0 in tokens["mask"] for tokens in recorded.values())
    assert trainer.losses[0] == pytest.approx(float(core_loss(trainer)), rel=2e-5)
    for batch in trainer.seen:
        del batch["tool_mask"]
    assert abs(float(core_loss(trainer)) - trainer.losses[0]) > 1e-3 * trainer.losses[0]


class Sheet:
    """An environment that says where things are, lets the model add, and judges the answer itself."""

    def reset(self, prompt: Any, secret: int, **_: Any) -> str:
        """Begin anew."""
        self.secret, self.sum = secret, None
        return f" The sheet says {self.secret}."

    def add(self, a: int, b: int) -> int:
        """Add two numbers.

        Args:
            a: The first.
            b: The second.
        """
        self.sum = a + b
        return self.sum

    def get_reward(self) -> float:
        """Judge."""
        return float(self.sum == self.secret + 1)


class Lookup(Sheet):
    """Another environment with another tool."""

    add = None  # type: ignore[assignment]

    def find(self, word: str) -> str:
        """Find a word.

        Args:
            word: The word.
        """
        self.sum = self.secret + 1
        return f"{word}: here"


def secrets(**columns: Any) -> Dataset:
    rows = [{"prompt": [{"role": "user", "content": f"Question {i}."}], "secret": 30 + i} for i in range(4)]
    return Dataset.from_list([{**row, **{name: of[i] for name, of in columns.items()}} for i, row in enumerate(rows)])


def sheet_script(prompts: Sequence[str]) -> list[str]:
    answers = []
    for row, prompt in enumerate(prompts):
        secret = int(re.search(r"The sheet says (\d+)\.", prompt)[1])
        use = call("add", a=secret, b=1) if "You may call: add" in prompt else call("find", word="x")
        answers.append("Done." if "<|im_start|>tool" in prompt else use if row % 2 == 0 else f"No {row}.")
    return answers


def feedback_of_environments(environments: Sequence[Any], completions: Sequence[Any], **_: Any) -> list[dict[str, Any]]:
    """The environment judges; this adds only what it knows."""
    return [
        {"score": None, "feedback": f"Nothing was added to {environment.secret}." if environment.sum is None else None}
        for environment in environments
    ]


def test_an_environments_observation_and_tools_reach_the_teacher(make_trainer: Any) -> None:
    trainer = make_trainer(
        model(),
        args={**ARGS, "success_reward_name": "Sheet"},
        cls=Scripted,
        script=sheet_script,
        reward_funcs=feedback_of_environments,
        environment_factory=Sheet,
        processing_class=tool_tokenizer(TEMPLATE),
        train_dataset=secrets(),
    )
    trainer.train()
    rows = trainer.rows()
    assert sum(row["success"] for row in rows) == 4
    for row in rows:
        index = int(re.search(r"Question (\d)", row["prompt"])[1])
        asked = f"<|im_start|>user\nQuestion {index}. The sheet says {30 + index}."
        assert asked in row["prompt"]
        assert row["teacher"].startswith(
            f"<|im_start|>system\nYou may call: add(a, b)<|im_end|>\n{asked}\nCorrect solution:\n\n<tool_call>"
        )
    logged = trainer.state.log_history[0]
    assert logged["rewards/Sheet/mean"] == 0.5
    assert trainer.losses[0] == pytest.approx(float(core_loss(trainer)), rel=2e-5)


def test_feedback_may_come_from_the_environment(make_trainer: Any) -> None:
    trainer = make_trainer(
        model(),
        args={**ARGS, "include_environment_feedback": True, "success_reward_name": "Sheet"},
        cls=Scripted,
        script=lambda prompts: ["I do not know."] * len(prompts),
        reward_funcs=feedback_of_environments,
        environment_factory=Sheet,
        processing_class=tool_tokenizer(TEMPLATE),
        train_dataset=secrets(),
    )
    trainer.train()
    for row in trainer.rows():
        secret = 30 + int(re.search(r"Question (\d)", row["prompt"])[1])
        assert row["active"]
        assert f"Nothing was added to {secret}." in row["teacher"]


def test_each_row_shows_the_teacher_its_own_environments_tools(make_trainer: Any) -> None:
    trainer = make_trainer(
        model(),
        args={**ARGS, "per_device_train_batch_size": 16, "generation_batch_size": 16},
        cls=Scripted,
        script=sheet_script,
        reward_funcs=None,
        environment_factory={"sheet": Sheet, "lookup": Lookup},
        processing_class=tool_tokenizer(TEMPLATE),
        train_dataset=secrets(environment=["sheet", "lookup", "sheet", "lookup"]),
    )
    trainer.train()
    rows = trainer.rows()
    assert len(rows) == 16
    assert sum(row["success"] for row in rows) == 8
    for row in rows:
        even = int(re.search(r"Question (\d)", row["prompt"])[1]) % 2 == 0
        schema = f"<|im_start|>system\nYou may call: {'add(a, b)' if even else 'find(word)'}<|im_end|>\n"
        assert row["prompt"].startswith(schema)
        assert row["active"]
        assert row["teacher"].startswith(schema)
        assert f'"name": "{"add" if even else "find"}"' in row["teacher"]
    assert trainer.losses[0] == pytest.approx(float(core_loss(trainer)), rel=2e-5)


class Riddle(Sheet):
    """An environment that brings the questions, too."""

    def reset(self, **_: Any) -> str:
        """Begin anew."""
        self.secret, self.sum = 40, None
        return "The sheet says 40."


def test_an_environment_may_bring_the_questions(make_trainer: Any) -> None:
    trainer = make_trainer(
        model(),
        args=ARGS,
        cls=Scripted,
        script=sheet_script,
        reward_funcs=None,
        environment_factory=Riddle,
        processing_class=tool_tokenizer(TEMPLATE),
        train_dataset=None,
    )
    trainer.train()
    for row in trainer.rows():
        assert "<|im_start|>user\nThe sheet says 40.\nCorrect solution:" in row["teacher"]
    assert trainer.losses[0] > 0


@pytest.mark.parametrize(
    ("uses", "named"),
    [({"tools": [add]}, "tools"), ({"environment_factory": Sheet}, "environments")],
    ids=["tools", "environments"],
)
def test_the_teachers_accuracy_is_refused_where_one_plain_answer_says_nothing(
    make_trainer: Any, uses: dict[str, Any], named: str
) -> None:
    with pytest.raises(ConfigError, match=f"teacher_accuracy_every=2.*{named}"):
        make_trainer(
            model(),
            args={**ARGS, "teacher_accuracy_every": 2},
            processing_class=tool_tokenizer(TEMPLATE),
            train_dataset=secrets(),
            **uses,
        )
