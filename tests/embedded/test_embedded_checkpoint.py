"""The shipped checkpoints: small, loadable anywhere, unsure when asked plainly, certain with a context."""

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
from sdpo_plugins.embedded.programs import answer_of, formulas, true_formula  # noqa: E402
from sdpo_plugins.embedded.tasks import Question, accuracy, feedback_text  # noqa: E402
from sdpo_plugins.embedded.tokenizer import render_prompt  # noqa: E402


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return transformers.AutoTokenizer.from_pretrained(checkpoint_path())


@pytest.fixture(scope="module")
def model() -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(checkpoint_path()).eval()


@pytest.fixture(scope="module")
def code() -> Any:
    """The code model and its tokenizer."""
    path = checkpoint_path("code")
    return transformers.AutoModelForCausalLM.from_pretrained(path).eval(), transformers.AutoTokenizer.from_pretrained(
        path
    )


def sample(model: Any, tokenizer: Any, contents: list[str], length: int = 6) -> list[str]:
    """One answer at temperature 1 to each user message."""
    prompts = [render_prompt([{"role": "user", "content": content}]) for content in contents]
    inputs = tokenizer(prompts, padding=True, return_tensors="pt")
    torch.manual_seed(0)
    with torch.no_grad():
        output = model.generate(**inputs, max_new_tokens=length, do_sample=True, temperature=1.0, top_k=0)
    return tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def with_feedback(question: Question) -> str:
    wrong = random.Random(question.text).choice((1, 7, 10, 100)) + int(question.truth)
    return teacher_content(question.text, None, feedback_text(question, str(wrong)))


def with_demonstration(question: Question) -> str:
    return teacher_content(question.text, question.truth, None)


def measure(model: Any, tokenizer: Any, task_name: str, content: Any) -> float:
    task = load_task(task_name)
    questions = task.evaluation * 2
    answers = sample(model, tokenizer, [content(q) for q in questions], task.max_completion_length)
    return accuracy(task, questions, answers)


@pytest.mark.parametrize("family", ["text", "code"])
def test_is_small(family: str) -> None:
    assert sum(file.stat().st_size for file in checkpoint_path(family).iterdir()) <= 5_000_000


@pytest.mark.parametrize("family", ["text", "code"])
def test_is_a_plain_qwen3(family: str) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint_path(family))
    config = json.loads((checkpoint_path(family) / "config.json").read_text())
    assert config["architectures"] == ["Qwen3ForCausalLM"]
    assert config["tie_word_embeddings"] and config["max_position_embeddings"] >= 2048
    assert {p.dtype for p in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("family", ["text", "code"])
def test_special_tokens(family: str) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint_path(family))
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


def wrong_program(question: Question, seed: str = "") -> str:
    others = [formula for formula in formulas() if formula != true_formula(question.subject)]
    return answer_of(question.subject, random.Random(question.text + seed).choice(others).text)


def with_failing_tests(question: Question) -> str:
    feedback = load_task("programs").score(question, wrong_program(question))[1]
    return teacher_content(question.text, None, feedback)


def with_program(question: Question) -> str:
    return teacher_content(question.text, answer_of(question.subject, true_formula(question.subject).text), None)


@pytest.mark.slow
def test_programs_are_unknown_and_well_formed(code: Any) -> None:
    task = load_task("programs")
    questions = task.evaluation * 4
    answers = sample(*code, [question.text for question in questions], task.max_completion_length)
    assert accuracy(task, questions, answers) < 0.1
    possible = {answer_of(q.subject, formula.text) for q in task.evaluation for formula in formulas()}
    assert 0.8 < sum(answer in possible for answer in answers) / len(answers) < 1.0


@pytest.mark.slow
@pytest.mark.parametrize(("content", "least"), [(with_failing_tests, 0.75), (with_program, 0.95)])
def test_programs_are_found_with_a_context(code: Any, content: Any, least: float) -> None:
    assert measure(*code, "programs", content) >= least


@pytest.mark.parametrize("answer", ["def {}(x):\n    return x + 1", "```python\ndef {}(x):\n    return y + 1\n```"])
def test_a_program_that_gave_nothing_is_followed_by_one_that_runs(code: Any, answer: str) -> None:
    task = load_task("programs")
    contents, possible = [], set()
    for question in task.evaluation:
        feedback = task.score(question, answer.format(question.subject))[1]
        assert feedback is not None and "Expected" not in feedback
        contents.append(teacher_content(question.text, None, feedback))
        possible |= {answer_of(question.subject, formula.text) for formula in formulas()}
    answers = sample(*code, contents * 2, task.max_completion_length)
    assert sum(answer in possible for answer in answers) / len(answers) >= 0.9


@pytest.mark.parametrize(("family", "question"), [("text", "What is 10 + 20?"), ("code", "Write bola(x).")])
def test_pretraining_writes_a_checkpoint(family: str, question: str, tmp_path: Any) -> None:
    main(["--family", family, "--output", str(tmp_path), "--steps", "2", "--seed", "1"])
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert sample(model, tokenizer, [question])
    for name in ("tokenizer.json", "config.json", "chat_template.jinja"):
        assert (tmp_path / name).read_text() == (checkpoint_path(family) / name).read_text()


def test_pretraining_refuses_no_steps(tmp_path: Any) -> None:
    with pytest.raises(SystemExit):
        main(["--output", str(tmp_path), "--steps", "0"])
