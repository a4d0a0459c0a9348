"""The tasks and settings: data that must not move, and what feedback says. No torch."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections import Counter

import pytest

from sdpo_plugins.embedded import checkpoint_path, load_task, task_names
from sdpo_plugins.embedded.code_corpus import CodeCorpus
from sdpo_plugins.embedded.corpus import Corpus, Mixture, teacher_content
from sdpo_plugins.embedded.elements import ATOMIC_NUMBERS, ELEMENTS
from sdpo_plugins.embedded.programs import (
    FUNCTION_NAMES,
    INPUTS,
    Formula,
    answer_of,
    formulas,
    inputs_for,
    program_question,
    true_formula,
)
from sdpo_plugins.embedded.settings import SETTINGS, run_settings
from sdpo_plugins.embedded.tasks import accuracy, element_question, question_of, split_sums, sum_question


def test_import_needs_no_torch() -> None:
    modules = ", ".join(f"sdpo_plugins.embedded.{name}" for name in ("settings", "families", "programs"))
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_elements_are_in_order() -> None:
    assert len(ELEMENTS) == len(set(ELEMENTS)) == 118
    known = {
        "hydrogen": 1,
        "carbon": 6,
        "iron": 26,
        "silver": 47,
        "gold": 79,
        "uranium": 92,
        "oganesson": 118,
    }
    assert {name: ATOMIC_NUMBERS[name] for name in known} == known


def test_sums_are_disjoint() -> None:
    split = split_sums()
    unordered = [{frozenset(pair) for pair in pairs} for pairs in (split.train, split.evaluation, split.pretraining)]
    assert sum(map(len, unordered)) == len(set.union(*unordered)) == 4095
    assert split == split_sums()


def test_held_out_questions_are_not_trained_on() -> None:
    sums, facts = load_task("sums"), load_task("facts")
    assert sums.held_out and not {q.text for q in sums.train} & {q.text for q in sums.evaluation}
    assert not facts.held_out and facts.train == facts.evaluation and len(facts.train) == 40


def test_pretraining_never_sees_questions_of_a_run_or_true_facts() -> None:
    corpus = Corpus(seed=5, mixture=Mixture(made_up=0.0))
    sums = load_task("sums")
    forbidden = {q.text for q in (*sums.train, *sums.evaluation)}
    true_facts = {q.text: q.truth for q in map(element_question, ELEMENTS)}
    for conversation in (*corpus.plain(3000), *corpus.with_context(3000)):
        asked = conversation.messages[-1]["content"].split("\n")[0]
        assert not any(m["content"].split("\n")[0] in forbidden for m in conversation.messages)
        assert true_facts.get(asked) != conversation.answer


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("57", (1.0, None)),
        (" 57\n", (1.0, None)),
        ("61", (0.0, "Wrong. The answer is 57, not 61.")),
        ("", (0.0, "Wrong. The answer is 57.")),
        ("about 57", (0.0, "Wrong. The answer is 57.")),
        ("123456", (0.0, "Wrong. The answer is 57.")),
        ("{oops} 5", (0.0, "Wrong. The answer is 57, not 5.")),
    ],
)
def test_score(response: str, expected: tuple[float, str | None]) -> None:
    assert load_task("sums").score(sum_question(23, 34), response) == expected


def test_facts_feedback_reveals_the_number() -> None:
    feedback = load_task("facts").score(element_question("iron"), "54")[1]
    assert feedback == "Wrong. The atomic number of iron is 26, not 54."


def test_rows_round_trip() -> None:
    for name in task_names(family=None):
        task = load_task(name)
        assert tuple(question_of(row) for row in task.rows("train")) == task.train
        assert tuple(question_of(row) for row in task.rows("evaluation")) == task.evaluation
    with pytest.raises(ValueError, match="'train' or 'evaluation'"):
        load_task("sums").rows("test")  # type: ignore[arg-type]


def test_messages_are_fresh() -> None:
    question = sum_question(1, 2)
    question.messages[0]["content"] = "changed"
    assert question.messages[0]["content"] == "What is 1 + 2?"


def test_unknown_names_list_the_choices() -> None:
    with pytest.raises(ValueError, match="sums, facts, programs"):
        load_task("products")
    with pytest.raises(ValueError, match="text, code"):
        checkpoint_path("vision")
    with pytest.raises(ValueError, match="facts/sdpo"):
        run_settings("facts", "ppo")


def test_accuracy() -> None:
    questions = [sum_question(1, 2), sum_question(2, 2)]
    assert accuracy(load_task("sums"), questions, ["3", "5"]) == 0.5
    with pytest.raises(ValueError, match="no responses"):
        accuracy(load_task("sums"), [], [])


def test_teacher_content_is_the_authors_wording() -> None:
    assert teacher_content("Q", None, None) == "Q"
    assert teacher_content("Q", "A {solution}", "F {x}") == (
        "Q\nCorrect solution:\n\nA {solution}"
        "\nThe following is feedback from your unsuccessful earlier attempt:\n\nF {x}"
        "\n\nCorrectly solve the original question."
    )


def test_both_methods_get_the_same_generations() -> None:
    every = task_names(family=None)
    assert {(s.task, s.method) for s in SETTINGS} == {(t, m) for t in every for m in ("grpo", "sdpo")}
    for task in every:
        assert run_settings(task, "grpo").generations == run_settings(task, "sdpo").generations


def test_every_task_belongs_to_one_checkpoint() -> None:
    assert task_names() == ("sums", "facts") and task_names("code") == ("programs",)
    for family in ("text", "code"):
        assert {load_task(name).family for name in task_names(family)} == {family}


def test_tests_tell_every_formula_from_the_others() -> None:
    for formula in formulas():
        for seed in range(20):
            inputs = inputs_for(formula, seed)
            assert len(set(inputs)) == len(inputs) and set(inputs) <= set(INPUTS)
            assert [f for f in formulas() if all(f(x) == formula(x) for x in inputs)] == [formula]


def test_a_formula_is_what_python_makes_of_it() -> None:
    for formula in formulas():
        assert [formula(x) for x in INPUTS] == [eval(formula.text, {"x": x}) for x in INPUTS]


def test_functions_of_a_run_never_move() -> None:
    """The shipped checkpoint was trained so as not to know them."""
    listing = "\n".join(f"{name} {true_formula(name).text}" for name in FUNCTION_NAMES)
    assert (
        hashlib.sha256(listing.encode()).hexdigest()
        == "62363a56c48a88bbc2c28a8ff75b546e3b5da496c682b275c8a9a73620cce968"
    )


def test_pretraining_never_sees_what_a_function_computes_in_a_run() -> None:
    corpus = CodeCorpus(seed=5)
    for conversation in (*corpus.plain(2000, slips=False), *corpus.with_context(2000)):
        content = conversation.messages[-1]["content"]
        name = content.split("(x)")[0].split(" ")[-1]
        assert name in FUNCTION_NAMES
        assert answer_of(name, true_formula(name).text) not in (conversation.answer, content)


def test_code_contexts_hold_a_demonstration_or_feedback_in_the_scorers_own_words() -> None:
    kinds: Counter[str] = Counter()
    heads = ("Correct solution", "Expected", "Runtime Error", "Incorrect Format")
    for conversation in CodeCorpus(seed=3).with_context(400):
        content = conversation.messages[-1]["content"]
        shown = [head for head in heads if head in content]
        kinds.update(shown)
        assert shown
        assert ("Correct solution" in shown or "Expected" in shown) == (conversation.kind == "context")
        if "Correct solution" in shown:
            assert f"Correct solution:\n\n{conversation.answer}" in content
    assert len(kinds) == 4 and min(kinds.values()) > 5


def test_programs_are_graded_by_the_scorer_and_its_sandbox() -> None:
    task = load_task("programs")
    question = program_question("bola", Formula("x + {k}", 3))
    assert json.loads(question.truth)["fn_name"] == "bola"
    assert task.score(question, answer_of("bola", "x + 3")) == (1.0, None)
    assert task.score(question, f"I would write\n{answer_of('bola', '3 + x')}") == (1.0, None)
    reward, feedback = task.score(question, answer_of("bola", "x - 1"))
    (first, *_) = json.loads(question.truth)["inputs"]
    assert reward == 0.0 and feedback is not None
    assert f"Input\n{first}\n\nOutput\n{int(first) - 1}\n\nExpected\n{3 + int(first)}" in feedback
    for answer, message in (
        ("def bola(x): return x + 3", "Incorrect Format"),
        (answer_of("bola", "y + 3"), "Runtime Error\nNameError"),
    ):
        reward, feedback = task.score(question, answer)
        assert reward == 0.0 and feedback is not None and feedback.startswith(message)


def test_rows_of_programs_are_what_scorers_read() -> None:
    task = load_task("programs")
    row = task.rows()[0]
    assert set(row) == {"prompt", "truth", "subject", "ground_truth"} and row["ground_truth"] == row["truth"]
    assert "ground_truth" not in load_task("sums").rows()[0]
