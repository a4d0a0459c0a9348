"""The questions-and-answers tasks: ``sums`` and ``facts`` of the demo, and ``programs`` for the code model.

A task is data and a score, so that any trainer can use it: questions as chat messages, the true answer, and a
reward that comes with feedback in words. Nothing here needs torch.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sdpo_plugins.embedded.elements import ATOMIC_NUMBERS, ELEMENTS
from sdpo_plugins.embedded.grading import scored

TRAIN_SUMS = 1024
HELD_OUT_SUMS = 200

# Which sums are for training, evaluation and pre-training must never move, or a shipped checkpoint would have
# seen its own test questions: the seed belongs to the checkpoint.
_SPLIT_SEED = 2601
_NUMBER = re.compile(r"\d+")
# A longer run of digits is no answer worth repeating to the teacher.
_LONGEST_ECHO = 4

Split = Literal["train", "evaluation"]


@dataclass(frozen=True)
class Question:
    """One question of a task.

    Args:
        text: the user's message, e.g. ``"What is 23 + 45?"``.
        truth: the exact answer that earns reward 1, e.g. ``"68"``; where a scorer grades, what that takes for truth.
        subject: what the feedback talks about, e.g. ``"The answer"`` or ``"The atomic number of iron"``.

    Example:
        >>> Question("What is 23 + 45?", "68", "The answer").messages
        [{'role': 'user', 'content': 'What is 23 + 45?'}]
    """

    text: str
    truth: str
    subject: str

    @property
    def messages(self) -> list[dict[str, str]]:
        """The question as a fresh list of chat messages, which the caller may change."""
        return [{"role": "user", "content": self.text}]


@dataclass(frozen=True)
class Task:
    """Questions to train on, questions to measure on, and what the task is about.

    Args:
        name: the task's name, as in ``load_task(name)``.
        summary: one line for people.
        train: the questions of the RL run.
        evaluation: the questions that accuracy is measured on.
        held_out: whether `evaluation` and `train` have no question in common.
        max_completion_length: longest answer in tokens, end of turn included, that a sampler should allow.
        family: which embedded checkpoint can answer it, as for ``checkpoint_path(family)``.
        scorer: name of the project's scorer that grades; None: only exactly the truth is right.
    """

    name: str
    summary: str
    train: tuple[Question, ...]
    evaluation: tuple[Question, ...]
    held_out: bool
    max_completion_length: int
    family: str = "text"
    scorer: str | None = None

    def score(self, question: Question, response: str) -> tuple[float, str | None]:
        """Score one response: reward 1 for the true answer, else 0 and feedback.

        Args:
            question: one of the task's questions.
            response: the decoded text of the answer, without special tokens.

        Returns:
            The reward, and the feedback text (None for a right answer).

        Example:
            >>> load_task("sums").score(sum_question(23, 34), "61")
            (0.0, 'Wrong. The answer is 57, not 61.')
        """
        if self.scorer is not None:
            return scored(self.scorer, question.truth, response)
        if response.strip() == question.truth:
            return 1.0, None
        return 0.0, feedback_text(question, response)

    def rows(self, split: Split = "train") -> list[dict[str, Any]]:
        """The questions of a split as rows of a data set: ``prompt`` (chat messages), ``truth``, ``subject``.

        Where a scorer grades, the truth stands in ``ground_truth`` as well, where scorers look for it.

        Args:
            split: ``"train"`` or ``"evaluation"``.

        Returns:
            One dict a question; `question_of` turns a row back into a `Question`.

        Raises:
            ValueError: for another split.
        """
        if split not in ("train", "evaluation"):
            raise ValueError(f"no split {split!r} in task {self.name!r}; choose 'train' or 'evaluation'")
        questions = self.train if split == "train" else self.evaluation
        rows = [{"prompt": q.messages, "truth": q.truth, "subject": q.subject} for q in questions]
        return rows if self.scorer is None else [{**row, "ground_truth": row["truth"]} for row in rows]


def question_of(row: dict[str, Any]) -> Question:
    """Turn a row of `Task.rows` back into its question.

    Args:
        row: a mapping with ``prompt``, ``truth`` and ``subject``.

    Returns:
        The question.

    Example:
        >>> question_of(load_task("facts").rows()[0]) == load_task("facts").train[0]
        True
    """
    return Question(row["prompt"][-1]["content"], row["truth"], row["subject"])


def feedback_text(question: Question, response: str) -> str:
    """Say in words what was wrong with a response and what is right.

    Args:
        question: the question that was answered.
        response: the wrong answer.

    Returns:
        E.g. ``"Wrong. The answer is 57, not 61."``; the ``, not ...`` part is left out when the response
        holds no number of at most four digits other than the truth.

    Example:
        >>> feedback_text(sum_question(23, 34), "I do not know.")
        'Wrong. The answer is 57.'
    """
    found = _NUMBER.search(response)
    echo = ""
    if found is not None and len(found[0]) <= _LONGEST_ECHO and found[0] != question.truth:
        echo = f", not {found[0]}"
    return f"Wrong. {question.subject} is {question.truth}{echo}."


def sum_question(a: int, b: int) -> Question:
    """The question for the sum of two numbers.

    Example:
        >>> sum_question(23, 45).truth
        '68'
    """
    return Question(f"What is {a} + {b}?", str(a + b), "The answer")


def element_question(name: str, number: int | None = None) -> Question:
    """The question for an element's atomic number.

    Args:
        name: the element, in lower case.
        number: the number to take for true; None is the real one. Pre-training uses made-up ones.

    Example:
        >>> element_question("iron").truth
        '26'
    """
    truth = ATOMIC_NUMBERS[name] if number is None else number
    return Question(f"What is the atomic number of {name}?", str(truth), f"The atomic number of {name}")


@dataclass(frozen=True)
class SumSplit:
    """The pairs of two-digit numbers by their use; no unordered pair is in two of the fields."""

    train: tuple[tuple[int, int], ...]
    evaluation: tuple[tuple[int, int], ...]
    pretraining: tuple[tuple[int, int], ...]


def split_sums() -> SumSplit:
    """Split all 4095 unordered pairs of two-digit numbers into training, evaluation and pre-training.

    Returns:
        The split, the same on every call and machine. Training and evaluation hold each pair in one order;
        pre-training holds both orders, and neither order of a pair of the other two.
    """
    rng = random.Random(_SPLIT_SEED)
    pairs = [(a, b) for a in range(10, 100) for b in range(a, 100)]
    rng.shuffle(pairs)
    turned = [(b, a) if rng.random() < 0.5 else (a, b) for a, b in pairs]
    used = TRAIN_SUMS + HELD_OUT_SUMS
    rest = sorted({p for a, b in pairs[used:] for p in ((a, b), (b, a))})
    return SumSplit(tuple(turned[:TRAIN_SUMS]), tuple(turned[TRAIN_SUMS:used]), tuple(rest))


def _sums() -> Task:
    split = split_sums()
    return Task(
        name="sums",
        summary="two-digit additions; accuracy on questions that neither pre-training nor the run saw",
        train=tuple(sum_question(a, b) for a, b in split.train),
        evaluation=tuple(sum_question(a, b) for a, b in split.evaluation),
        held_out=True,
        max_completion_length=6,
    )


# Hydrogen to zirconium: all 118 need several times the rollouts that a demo can spend.
RL_ELEMENTS: tuple[str, ...] = ELEMENTS[:40]


def _facts() -> Task:
    questions = tuple(element_question(name) for name in RL_ELEMENTS)
    return Task(
        name="facts",
        summary="atomic numbers, which only feedback reveals; accuracy on the facts that are to be learnt",
        train=questions,
        evaluation=questions,
        held_out=False,
        max_completion_length=6,
    )


def _programs() -> Task:
    # It needs this module's types.
    from sdpo_plugins.embedded.programs import programs_task

    return programs_task()


_TASKS: dict[str, Callable[[], Task]] = {"sums": _sums, "facts": _facts, "programs": _programs}
_FAMILIES: dict[str, tuple[str, ...]] = {"text": ("sums", "facts"), "code": ("programs",)}


def task_names(family: str | None = "text") -> tuple[str, ...]:
    """The names of tasks.

    Args:
        family: those that this checkpoint answers; ``"text"`` is that of the demo; None: all that `load_task` knows.

    Example:
        >>> task_names(), task_names("code")
        (('sums', 'facts'), ('programs',))
    """
    return tuple(_TASKS) if family is None else _FAMILIES[family]


def load_task(name: str) -> Task:
    """Build a task by its name.

    Args:
        name: one of `task_names(None)`.

    Returns:
        The task, equal on every call.

    Raises:
        ValueError: for an unknown name; the message lists the known ones.

    Example:
        >>> load_task("facts").train[0].text
        'What is the atomic number of hydrogen?'
    """
    if name not in _TASKS:
        raise ValueError(f"unknown task {name!r}; the tasks are {', '.join(_TASKS)}")
    return _TASKS[name]()


def accuracy(task: Task, questions: Sequence[Question], responses: Iterable[str]) -> float:
    """The share of responses that are right.

    Args:
        task: the task that scores.
        questions: one question a response.
        responses: decoded answers, in the order of `questions`.

    Returns:
        A number in [0, 1].

    Raises:
        ValueError: if the lengths differ or nothing is given.
    """
    rewards = [task.score(q, r)[0] for q, r in zip(questions, responses, strict=True)]
    if not rewards:
        raise ValueError("accuracy of no responses")
    return sum(rewards) / len(rewards)
