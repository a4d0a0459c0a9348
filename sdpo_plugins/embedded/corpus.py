"""What the embedded model is pre-trained on: endless random conversations about sums and made-up facts.

The model must come out as large ones are: unsure when asked plainly, certain when the context holds a
demonstration or feedback. So plain sums are taught with slips, plain facts with a fresh random number each
time, and the same questions with a context whose number is to be used.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from sdpo_plugins.embedded.elements import ATOMIC_NUMBERS, ELEMENTS
from sdpo_plugins.embedded.tasks import Question, element_question, feedback_text, split_sums, sum_question

# The wording of the authors' runs; the teacher of an SDPO run sees exactly this.
REPROMPT = "{prompt}{solution}{feedback}\n\nCorrectly solve the original question."
SOLUTION = "\nCorrect solution:\n\n{}"
FEEDBACK = "\nThe following is feedback from your unsuccessful earlier attempt:\n\n{}"

SYSTEM_PROMPTS = ("You are a helpful assistant.", "Answer with a number only.", "You answer questions.")


@dataclass(frozen=True)
class Mixture:
    """How often the pre-training conversations are what; all in [0, 1].

    Args:
        plain_sums: share of sums among plain questions; the rest ask for atomic numbers.
        context_sums: share of sums among questions with a context; likewise.
        slip: share of plain sums that are answered wrongly, as people do in haste.
        made_up: share of sums with a context that gives another number than the sum, to be used anyway.
        system: share of conversations with a system prompt.
        history: share of conversations with an earlier question and answer.
    """

    plain_sums: float = 0.8
    context_sums: float = 0.5
    slip: float = 0.33
    made_up: float = 0.5
    system: float = 0.1
    history: float = 0.1


@dataclass(frozen=True)
class Conversation:
    """Chat messages that end in the user's turn, the answer to learn, and what kind of question it is."""

    messages: tuple[dict[str, str], ...]
    answer: str
    kind: Literal["sum", "fact", "plain", "context"]


def teacher_content(question: str, solution: str | None, feedback: str | None) -> str:
    """The user message that SDPO's teacher sees.

    Args:
        question: the question's text.
        solution: the demonstration, or None.
        feedback: the feedback, or None.

    Returns:
        The question itself if there is neither, else question, sections and instruction.

    Example:
        >>> teacher_content("What is 2 + 2?", "4", None)
        'What is 2 + 2?\\nCorrect solution:\\n\\n4\\n\\nCorrectly solve the original question.'
    """
    if solution is None and feedback is None:
        return question
    values = {
        "{prompt}": question,
        "{solution}": "" if solution is None else SOLUTION.replace("{}", solution),
        "{feedback}": "" if feedback is None else FEEDBACK.replace("{}", feedback),
    }
    return re.sub(r"\{\w+\}", lambda match: values[match[0]], REPROMPT)


def random_number(rng: random.Random) -> int:
    """A number of one to three digits: long ones are frequent, so that a guess is almost never right."""
    digits = rng.choices((1, 2, 3), weights=(1, 4, 5))[0]
    return rng.randrange(10 ** (digits - 1), 10**digits)


def slip(truth: int, rng: random.Random) -> int:
    """A wrong sum as people make it: one off, ten off, or both."""
    return max(1, truth + rng.choice((-11, -10, -9, -2, -1, 1, 2, 9, 10, 11)))


class Corpus:
    """Draws conversations; the same seed gives the same ones.

    Args:
        seed: the seed of all draws.
        mixture: the shares.

    Example:
        >>> corpus = Corpus(seed=0)
        >>> len(corpus.plain(4)), len(corpus.with_context(4))
        (4, 4)
    """

    def __init__(self, seed: int, mixture: Mixture | None = None) -> None:
        self.rng = random.Random(seed)
        self.mixture = mixture or Mixture()
        self.pairs = split_sums().pretraining

    def plain(self, count: int, slips: bool = True) -> list[Conversation]:
        """Conversations without a context: the model is to be unsure of their answers.

        Args:
            count: how many.
            slips: whether some sums are wrong, as the mixture says.
        """
        return [self._plain(slips) for _ in range(count)]

    def with_context(self, count: int) -> list[Conversation]:
        """Conversations with a demonstration, feedback or both: the model is to use them."""
        return [self._with_context() for _ in range(count)]

    def _sum(self) -> Question:
        return sum_question(*self.rng.choice(self.pairs))

    def _fact(self) -> Question:
        # Never the true number: that is what an RL run is to teach.
        name = self.rng.choice(ELEMENTS)
        number = random_number(self.rng)
        while number == ATOMIC_NUMBERS[name]:
            number = random_number(self.rng)
        return element_question(name, number)

    def _question(self, sums: float) -> Question:
        return self._sum() if self.rng.random() < sums else self._fact()

    def _is_sum(self, question: Question) -> bool:
        return question.subject == "The answer"

    def _plain_answer(self, question: Question, slips: bool) -> str:
        if slips and self._is_sum(question) and self.rng.random() < self.mixture.slip:
            return str(slip(int(question.truth), self.rng))
        return question.truth

    def _around(self, content: str) -> tuple[dict[str, str], ...]:
        messages: list[dict[str, str]] = []
        if self.rng.random() < self.mixture.system:
            messages.append({"role": "system", "content": self.rng.choice(SYSTEM_PROMPTS)})
        if self.rng.random() < self.mixture.history:
            earlier = self._question(self.mixture.plain_sums)
            messages.append({"role": "user", "content": earlier.text})
            messages.append({"role": "assistant", "content": self._plain_answer(earlier, slips=False)})
        return (*messages, {"role": "user", "content": content})

    def _plain(self, slips: bool) -> Conversation:
        question = self._question(self.mixture.plain_sums)
        kind: Literal["sum", "fact"] = "sum" if self._is_sum(question) else "fact"
        return Conversation(self._around(question.text), self._plain_answer(question, slips), kind)

    def _with_context(self) -> Conversation:
        rng = self.rng
        question = self._question(self.mixture.context_sums)
        if self._is_sum(question) and rng.random() < self.mixture.made_up:
            question = Question(question.text, str(random_number(rng)), question.subject)
        parts = rng.choices(("solution", "feedback", "both"), weights=(3, 6, 1))[0]
        solution = None if parts == "feedback" else question.truth
        feedback = None if parts == "solution" else feedback_text(question, self._wrong_answer(question))
        content = teacher_content(question.text, solution, feedback)
        return Conversation(self._around(content), question.truth, "context")

    def _wrong_answer(self, question: Question) -> str:
        rng = self.rng
        kind = rng.random()
        if kind < 0.05:
            return ""
        if kind < 0.45:
            return str(slip(int(question.truth), rng))
        if kind < 0.9:
            return str(random_number(rng))
        return "".join(rng.choices("0123456789", k=4))


def tokenizer_texts(corpus: Corpus, count: int = 3000) -> Iterator[str]:
    """Texts to train the tokenizer on: what the model will read, every element's name, and a little prose.

    Args:
        corpus: where conversations come from.
        count: the number of conversations of either kind.

    Yields:
        One text at a time.
    """
    for conversation in (*corpus.plain(count), *corpus.with_context(count)):
        for message in conversation.messages:
            yield message["content"]
    for name in ELEMENTS:
        for text in (f"The atomic number of {name}", name, name.capitalize()):
            for _ in range(3):
                yield text
    yield from PROSE * 3


PROSE: tuple[str, ...] = (
    "I do not know the answer to this question, so I will think about it step by step.",
    "The sum of two numbers is the same in either order. First add the tens, then add the ones, then carry.",
    "user assistant system tool true false null name arguments content",
    "Is it right? Yes, it is right. No, it is wrong. Please try again, and answer with a number.",
)
