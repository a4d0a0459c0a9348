"""The teacher's prompts are rendered as verl's agent loops render the student's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from transformers import AutoTokenizer

from sdpo_plugins import SDPOConfig
from sdpo_plugins.embedded import checkpoint_path
from sdpo_plugins.reprompt import build_teacher_contexts
from sdpo_plugins.types import Rollout
from sdpo_verl.prompts import PromptStyle, prompt_style
from sdpo_verl.rollouts import idle_rows, teacher_fields

TEMPLATE = (
    "{% if tools %}tools:{% for tool in tools %} {{ tool.function.name }}{% endfor %} | {% endif %}"
    "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{{ ' (' + mood + ')' if mood else '' }} {% endif %}"
)
TOOLS = '''
from verl.tools.function_tool import function_tool


@function_tool
def add(first: int, second: int) -> int:
    """Add two numbers.

    Args:
        first: One.
        second: The other.
    """
    return first + second


@function_tool
def negate(number: int) -> int:
    """Turn a number's sign.

    Args:
        number: Any.
    """
    return -number
'''
QUESTION = [{"role": "user", "content": "What is 2+2?"}]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(checkpoint_path())


def style(tokenizer: Any, folder: Path | None = None) -> PromptStyle:
    tools = {}
    if folder is not None:
        path = folder / "tools_of_a_user.py"
        path.write_text(TOOLS, encoding="utf-8")
        tools = {"function_tool_path": str(path)}
    settings = {
        "data": {"apply_chat_template_kwargs": {"mood": "calm"}},
        "actor_rollout_ref": {"model": {"custom_chat_template": TEMPLATE}, "rollout": {"multi_turn": tools}},
    }
    return prompt_style(OmegaConf.create(settings), tokenizer)


def rollouts(*padding: bool) -> list[Rollout]:
    answers = [("4", 1.0), *[("5", 0.0)] * (len(padding) - 1)]
    return [
        Rollout(group_id="a", prompt=QUESTION, response=text, reward=reward, is_padding=skip)
        for (text, reward), skip in zip(answers, padding, strict=True)
    ]


def ids(tokenizer: Any, text: str) -> list[int]:
    found: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return found


def test_template_and_arguments_are_the_runs(tokenizer: Any) -> None:
    rendered = style(tokenizer).render(SDPOConfig())(QUESTION)
    assert tokenizer.decode(rendered) == "user: What is 2+2?\nassistant: (calm) "


def test_every_row_shows_the_teacher_the_tools_that_it_showed_the_student(tokenizer: Any, tmp_path: Path) -> None:
    made, config = style(tokenizer, tmp_path), SDPOConfig()
    end = "user: What is 2+2?\nassistant: (calm) "
    said = [
        "tools: add negate | " + end,
        "tools: add negate | " + end,
        "tools: negate | " + end,
        end,
        "x",
        "of its own",
    ]
    batch = rollouts(False, False, False, False, True, False)
    extra = [{}, None, {"tool_selection": ["negate"]}, {}, {}, {}]
    renders, unknown = made.renders(batch, [ids(tokenizer, text) for text in said], extra, config)
    assert unknown == 1  # padding is not looked at
    contexts = build_teacher_contexts(batch, config)
    responses = [tokenizer(row.response, return_tensors="pt")["input_ids"][0] for row in batch]
    fields, _ = teacher_fields(batch, contexts, responses, tokenizer, config, renders)
    texts = [tokenizer.decode(row.tolist()) for row in fields["teacher_input_ids"].unbind()]
    assert fields["sdpo_active"].tolist() == [0.0, 1.0, 1.0, 1.0, 0.0, 1.0]
    starts = {1: "tools: add negate | user:", 2: "tools: negate | user:", 3: "user:", 5: "user:"}
    for row, start in starts.items():
        assert texts[row].startswith(start), texts[row]
        assert "Correct solution:\n\n4\n" in texts[row] and texts[row].endswith("assistant: (calm) 5")


def test_only_the_last_output_of_a_session_is_an_answer() -> None:
    keys = ["a_0_0", "a_0_1", "a_0_10", "a_1_0", "b_0_0", "padding_3_0"]
    assert idle_rows(keys, [False] * 5 + [True]) == [True, True, False, False, False, True]
