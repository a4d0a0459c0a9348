"""The shipped checkpoint: small, loadable anywhere, unsure when asked plainly, certain with a context."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from sdpo_plugins.embedded import checkpoint_path, load_task  # noqa: E402
from sdpo_plugins.embedded.corpus import teacher_content  # noqa: E402
from sdpo_plugins.embedded.pretrain import main  # noqa: E402
from sdpo_plugins.embedded.tasks import Question, accuracy, feedback_text  # noqa: E402
from sdpo_plugins.embedded.tokenizer import render_prompt  # noqa: E402


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return transformers.AutoTokenizer.from_pretrained(checkpoint_path())


@pytest.fixture(scope="module")
def model() -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(checkpoint_path()).eval()


def sample(model: Any, tokenizer: Any, contents: list[str]) -> list[str]:
    """One answer at temperature 1 to each user message."""
    prompts = [render_prompt([{"role": "user", "content": content}]) for content in contents]
    inputs = tokenizer(prompts, padding=True, return_tensors="pt")
    torch.manual_seed(0)
    with torch.no_grad():
        output = model.generate(**inputs, max_new_tokens=6, do_sample=True, temperature=1.0, top_k=0)
    return tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def with_feedback(question: Question) -> str:
    wrong = random.Random(question.text).choice((1, 7, 10, 100)) + int(question.truth)
    return teacher_content(question.text, None, feedback_text(question, str(wrong)))


def with_demonstration(question: Question) -> str:
    return teacher_content(question.text, question.truth, None)


def measure(model: Any, tokenizer: Any, task_name: str, content: Any) -> float:
    task = load_task(task_name)
    questions = task.evaluation * 2
    return accuracy(task, questions, sample(model, tokenizer, [content(q) for q in questions]))


def test_is_small() -> None:
    assert sum(file.stat().st_size for file in checkpoint_path().iterdir()) <= 5_000_000


def test_is_a_plain_qwen3(model: Any) -> None:
    config = json.loads((checkpoint_path() / "config.json").read_text())
    assert config["architectures"] == ["Qwen3ForCausalLM"]
    assert config["tie_word_embeddings"] and config["max_position_embeddings"] >= 2048
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_special_tokens(tokenizer: Any) -> None:
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    for token in ("<think>", "</think>", "<|im_start|>", "<|im_end|>"):
        assert len(tokenizer(token)["input_ids"]) == 1
    assert len(tokenizer("407")["input_ids"]) == 3
    text = "Grüße, {x} 漢字 🙂 12 <think>"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_template_gives_the_prompt_of_pretraining(tokenizer: Any) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What is 1 + 2?"},
        {"role": "assistant", "content": "3"},
        {"role": "tool", "content": "ok"},
        {"role": "user", "content": "And 2 + 2?"},
    ]
    prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert prompt == render_prompt(messages)
    # A turn more must extend the text, or a trainer cannot tell which tokens the turn added.
    done = tokenizer.apply_chat_template([*messages, {"role": "assistant", "content": "4"}], tokenize=False)
    assert done == prompt + "4<|im_end|>\n"


def test_template_masks_the_assistant_and_takes_tools(tokenizer: Any) -> None:
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "57"}]
    encoded = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    answer = [i for i, m in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True) if m]
    assert tokenizer.decode(answer) == "57<|im_end|>"
    tool = {"type": "function", "function": {"name": "add", "description": "Add.", "parameters": {}}}
    assert '"add"' in tokenizer.apply_chat_template(messages, tools=[tool], tokenize=False)


def test_sums_are_half_known(model: Any, tokenizer: Any) -> None:
    assert 0.35 <= measure(model, tokenizer, "sums", lambda q: q.text) <= 0.60


def test_facts_are_unknown(model: Any, tokenizer: Any) -> None:
    assert measure(model, tokenizer, "facts", lambda q: q.text) < 0.03


@pytest.mark.parametrize("task_name", ["sums", "facts"])
@pytest.mark.parametrize("content", [with_feedback, with_demonstration])
def test_context_is_used(model: Any, tokenizer: Any, task_name: str, content: Any) -> None:
    assert measure(model, tokenizer, task_name, content) >= 0.95


def test_pretraining_writes_a_checkpoint(tmp_path: Any) -> None:
    main(["--output", str(tmp_path), "--steps", "2", "--seed", "1"])
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert sample(model, tokenizer, ["What is 10 + 20?"])
    shipped = (checkpoint_path() / "tokenizer.json").read_text()
    assert (tmp_path / "tokenizer.json").read_text() == shipped


def test_pretraining_refuses_no_steps(tmp_path: Any) -> None:
    with pytest.raises(SystemExit):
        main(["--output", str(tmp_path), "--steps", "0"])
