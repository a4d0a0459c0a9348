"""The demo's tasks and settings: data that must not move, and what feedback says. No torch."""

from __future__ import annotations

import subprocess
import sys

import pytest

from sdpo_plugins.embedded import load_task, task_names
from sdpo_plugins.embedded.corpus import Corpus, Mixture, teacher_content
from sdpo_plugins.embedded.elements import ATOMIC_NUMBERS, ELEMENTS
from sdpo_plugins.embedded.settings import SETTINGS, run_settings
from sdpo_plugins.embedded.tasks import accuracy, element_question, question_of, split_sums, sum_question


def test_import_needs_no_torch() -> None:
    code = "import sys, sdpo_plugins.embedded, sdpo_plugins.embedded.settings; sys.exit('torch' in sys.modules)"
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
    for name in task_names():
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
    with pytest.raises(ValueError, match="sums, facts"):
        load_task("products")
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
    assert {(s.task, s.method) for s in SETTINGS} == {(t, m) for t in task_names() for m in ("grpo", "sdpo")}
    for task in task_names():
        assert run_settings(task, "grpo").generations == run_settings(task, "sdpo").generations
