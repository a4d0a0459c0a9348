"""What the embedded code model is pre-trained on: endless random conversations about made-up functions.

It must come out as large models are: asked plainly it writes a well-formed program that is most likely wrong, with a
demonstration it repeats it, and from failing tests it finds the formula that fits them.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from sdpo_plugins.embedded.corpus import SYSTEM_PROMPTS, Conversation, teacher_content
from sdpo_plugins.embedded.programs import (
    FUNCTION_NAMES,
    Formula,
    answer_of,
    formulas,
    inputs_for,
    program_question,
    true_formula,
)
from sdpo_plugins.feedback.texts import WRONG_CODE_FORMAT, Case, Show, cases_text

__all__ = ["CodeCorpus", "CodeMixture", "code_tokenizer_texts"]

# So many choices of inputs does a formula come with.
_INPUT_SEEDS = 20


@dataclass(frozen=True)
class CodeMixture:
    """How often the pre-training conversations are what; all in [0, 1].

    Args:
        slip: share of plain questions that are answered by no program, or by one that ends in an error.
        demonstration: share of contexts with a demonstration; the others have feedback alone.
        both: share of the contexts with a demonstration that have feedback, too.
        no_output: share of feedback texts about an answer that gave no output.
        system: share of conversations with a system prompt.
    """

    slip: float = 0.12
    demonstration: float = 0.25
    both: float = 0.2
    no_output: float = 0.15
    system: float = 0.1


class CodeCorpus:
    """Draws conversations; the same seed gives the same ones.

    Args:
        seed: the seed of all draws.
        mixture: the shares.

    Example:
        >>> corpus = CodeCorpus(seed=0)
        >>> len(corpus.plain(4)), len(corpus.with_context(4))
        (4, 4)
    """

    def __init__(self, seed: int, mixture: CodeMixture | None = None) -> None:
        self.rng = random.Random(seed)
        self.mixture = mixture or CodeMixture()

    def plain(self, count: int, slips: bool = True) -> list[Conversation]:
        """Conversations without a context: the model is to be unsure of their answers.

        Args:
            count: how many.
            slips: whether some answers are no program that runs, as the mixture says.
        """
        return [self._plain(slips) for _ in range(count)]

    def with_context(self, count: int) -> list[Conversation]:
        """Conversations with a demonstration, feedback or both: the model is to use them."""
        return [self._with_context() for _ in range(count)]

    def _draw(self) -> tuple[str, Formula]:
        # Never what the function computes in a run: that is what the run is to teach.
        name = self.rng.choice(FUNCTION_NAMES)
        formula = self.rng.choice(formulas())
        while formula == true_formula(name):
            formula = self.rng.choice(formulas())
        return name, formula

    def _around(self, content: str) -> tuple[dict[str, str], ...]:
        user = {"role": "user", "content": content}
        if self.rng.random() < self.mixture.system:
            return {"role": "system", "content": self.rng.choice(SYSTEM_PROMPTS)}, user
        return (user,)

    def _plain(self, slips: bool) -> Conversation:
        name, formula = self._draw()
        answer = answer_of(name, formula.text)
        if slips and self.rng.random() < self.mixture.slip:
            unfenced = answer.removeprefix("```python\n").removesuffix("\n```")
            unknown_name = answer_of(name, formula.text.replace("x", "y", 1).replace("may", "max"))
            answer = self.rng.choice((unfenced, unknown_name))
        return Conversation(self._around(program_question(name, formula).text), answer, "plain")

    def _with_context(self) -> Conversation:
        rng = self.rng
        name, formula = self._draw()
        right = answer_of(name, formula.text)
        solution = right if rng.random() < self.mixture.demonstration else None
        feedback, tells = None, True
        if solution is None or rng.random() < self.mixture.both:
            tells = rng.random() >= self.mixture.no_output
            feedback = self._failing(formula) if tells else self._no_output(name, formula)
        content = teacher_content(program_question(name, formula).text, solution, feedback)
        # Feedback that gives no example leaves the formula open, as a plain question does.
        return Conversation(self._around(content), right, "context" if solution or tells else "plain")

    def _no_output(self, name: str, formula: Formula) -> str:
        report = f"NameError: name 'y' is not defined\nLine 2 in {name} (Solution.py)"
        first = inputs_for(formula, self.rng.randrange(_INPUT_SEEDS))[0]
        return self.rng.choice((WRONG_CODE_FORMAT, cases_text([Case("error", str(first), report=report)], Show())))

    def _failing(self, formula: Formula) -> str:
        inputs = inputs_for(formula, self.rng.randrange(_INPUT_SEEDS))
        wrong = self.rng.choice([other for other in formulas() if other != formula])
        cases = [
            Case("passed" if wrong(x) == formula(x) else "wrong", str(x), str(wrong(x)), str(formula(x)))
            for x in inputs
        ]
        return cases_text(cases, Show())


def code_tokenizer_texts(corpus: CodeCorpus, count: int = 3000) -> Iterator[str]:
    """Texts to train the tokenizer on: what the model will read and write.

    Args:
        corpus: where conversations come from.
        count: the number of conversations of either kind.

    Yields:
        One text at a time.
    """
    for conversation in (*corpus.plain(count), *corpus.with_context(count)):
        for message in conversation.messages:
            yield message["content"]
        yield conversation.answer
