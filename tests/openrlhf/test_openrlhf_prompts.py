"""Questions are found again behind the host's templated prompts, and teacher prompts are rendered as the host does."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from openrlhf.trainer.ppo_trainer import prepare_datasets
from openrlhf.utils import get_strategy
from openrlhf.utils.utils import get_tokenizer

from openrlhf_direct import arguments
from sdpo_openrlhf.prompts import PromptStyle, prompt_style
from sdpo_plugins import SDPOConfig
from sdpo_plugins.embedded import checkpoint_path
from sdpo_plugins.errors import ConfigError, DataError

MESSAGES = [
    {"role": "system", "content": "Answer briefly."},
    {"role": "user", "content": "What is 2+2?"},
    {"role": "assistant", "content": "4"},
    {"role": "user", "content": "And {2}+3?"},
]
TEXT = "What is 7+{1}?"
TEMPLATE = "Question: {}\nAnswer:"


def run_of(folder: Path, questions: Sequence[Any], flags: str = "", name: str = "data") -> tuple[Any, Any]:
    """Return strategy and tokenizer of a run on a data file with these questions."""
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps({"asked": asked, "label": ""}) + "\n" for asked in questions), encoding="utf-8")
    own = f"--data.prompt_dataset {path} --data.input_key asked {flags}"
    strategy = get_strategy(arguments(str(checkpoint_path()), own, SDPOConfig()))
    return strategy, get_tokenizer(str(checkpoint_path()), None, "left", strategy)


def host_prompts(strategy: Any, tokenizer: Any) -> list[str]:
    """What the host itself makes of the data, for its vLLM engines."""
    loader, _, _ = prepare_datasets(strategy, tokenizer)
    return list(loader.dataset.prompts)


def host_ids(tokenizer: Any, prompt: str) -> list[int]:
    """As `openrlhf.utils.agent` tokenises a prompt."""
    ids: list[int] = tokenizer(text=prompt, add_special_tokens=False, return_tensors="pt")["input_ids"][0].tolist()
    return ids


LAYOUTS: Mapping[str, tuple[Any, str, Any]] = {
    "text, chat template": (TEXT, "--data.apply_chat_template", [{"role": "user", "content": TEXT}]),
    "messages, chat template": (MESSAGES, "--data.apply_chat_template", MESSAGES),
    "text, input template": (TEXT, f"--data.input_template '{TEMPLATE}'", TEXT),
    "plain text": (TEXT, "", TEXT),
    "both templates": (
        TEXT,
        f"--data.apply_chat_template --data.input_template '{TEMPLATE}'",
        [{"role": "user", "content": TEXT}],
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_prompt_of_the_host_leads_back_to_its_question_and_forth_to_its_tokens(
    layout: str, tmp_path: Path
) -> None:
    asked, flags, question = LAYOUTS[layout]
    strategy, tokenizer = run_of(tmp_path, [asked], flags)
    style = prompt_style(strategy, tokenizer)
    (prompt,) = host_prompts(strategy, tokenizer)
    assert style.question(prompt) == question
    ids = host_ids(tokenizer, prompt)
    assert style.render(SDPOConfig())(question) == ids
    assert style.unlike([prompt], [ids]) == (0, 0)


def test_the_teachers_text_stands_where_the_question_stood(tmp_path: Path) -> None:
    for flags, expected in (
        (f"--data.input_template '{TEMPLATE}'", "Question: {what} I know\nAnswer:"),
        ("", "{what} I know"),
    ):
        strategy, tokenizer = run_of(tmp_path, [TEXT], flags)
        ids = prompt_style(strategy, tokenizer).render(SDPOConfig())("{what} I know")
        assert ids == tokenizer(expected, add_special_tokens=False)["input_ids"]


def test_several_files_and_a_limit_are_read_as_the_host_reads_them(tmp_path: Path) -> None:
    run_of(tmp_path, [f"a{number}" for number in range(6)], name="first")
    run_of(tmp_path, [f"b{number}" for number in range(6)], name="second")
    both = f"{tmp_path}/first.jsonl,{tmp_path}/second.jsonl"
    for flags in ("", "--data.prompt_probs 0.2,0.8", "--data.max_samples 4 --data.prompt_probs 0.5,0.5"):
        strategy, tokenizer = run_of(tmp_path, [], f"--data.prompt_dataset {both} {flags}")
        prompts = host_prompts(strategy, tokenizer)
        assert len(prompts) > 3
        assert set(prompt_style(strategy, tokenizer).questions) == set(prompts)


def test_the_configurations_template_arguments_are_the_teachers_alone(tmp_path: Path) -> None:
    strategy, tokenizer = run_of(tmp_path, [TEXT], "--data.apply_chat_template")
    tokenizer.chat_template = (
        "{% for message in messages %}{{ message.content }}{% endfor %}{% if calm %} Calmly.{% endif %}"
    )
    style = prompt_style(strategy, tokenizer)
    (prompt,) = style.questions
    told = style.render(SDPOConfig(apply_chat_template_kwargs={"calm": True}))(style.question(prompt))
    assert tokenizer.decode(told) == TEXT + " Calmly." and prompt == TEXT
    assert style.unlike([prompt], [host_ids(tokenizer, prompt)]) == (0, 0)
    with pytest.raises(ConfigError, match="add_generation_prompt"):
        style.render(SDPOConfig(apply_chat_template_kwargs={"add_generation_prompt": False}))


def test_prompts_that_the_student_read_in_another_way_are_counted(tmp_path: Path) -> None:
    strategy, tokenizer = run_of(tmp_path, [TEXT, MESSAGES[1]["content"]], "--data.apply_chat_template")
    style = prompt_style(strategy, tokenizer)
    first, second = style.questions
    ids, others = host_ids(tokenizer, first), host_ids(tokenizer, second)
    changed = [*others[:-1], others[0]]
    longer = [others[0], *others]
    seen = [ids, ids[3:], others[1:], changed, longer, others]
    assert style.unlike([first, first, second, second, second, second], seen) == (2, 2)


def test_an_unknown_prompt_is_an_error_that_names_it() -> None:
    with pytest.raises(DataError, match=r"The prompt 'Who\?' is none of those in `--data.prompt_dataset`"):
        PromptStyle(None, {"What?": "What?"}).question("Who?")


@pytest.mark.parametrize(
    ("asked", "flags", "message"),
    [
        (MESSAGES, "", r"must be a text, got .* \(list\). For chat messages add `--data.apply_chat_template`"),
        (MESSAGES, f"--data.input_template '{TEMPLATE}'", r"must be a text, got .* \(list\). For chat messages add"),
        (7, "--data.apply_chat_template", r"must be a text or a list of chat messages, got '7' \(int\)"),
    ],
)
def test_a_question_of_the_wrong_type_is_an_error_that_names_its_row(
    asked: Any, flags: str, message: str, tmp_path: Path
) -> None:
    strategy, tokenizer = run_of(tmp_path, [asked], flags)
    with pytest.raises(DataError, match="Row 0 of `--data.prompt_dataset`: 'asked' " + message):
        prompt_style(strategy, tokenizer)
