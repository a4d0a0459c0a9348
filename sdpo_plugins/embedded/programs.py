"""The task ``programs``: Python functions with made-up names, whose meaning only failing tests reveal.

``Write the Python function bola(x).`` cannot be answered from the question. What ``bola`` computes is drawn once and
for all from a small set of formulas; a wrong program's failing tests say enough to find it. Nothing here needs torch.
"""

from __future__ import annotations

import functools
import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from sdpo_plugins.embedded.tasks import Question, Task

__all__ = [
    "FUNCTION_NAMES",
    "Formula",
    "answer_of",
    "formulas",
    "inputs_for",
    "program_question",
    "programs_task",
    "true_formula",
]

# What the functions of a run compute belongs to the shipped checkpoint, which must not have seen it: never move it.
_SEED = 2601
_TESTS = 5
# More of them need more answers than an example can spend.
_RUN_FUNCTIONS = 16
INPUTS: tuple[int, ...] = tuple(range(1, 10))

_SYLLABLES = ("ba", "de", "fi", "go", "ku", "la", "me", "ni", "po", "ru", "sa", "te", "vi", "wo", "zu")

# One line a form: how it is written, what it computes, and the constants it comes with.
_FORMS: Mapping[str, tuple[Callable[[int, int], int], range]] = {
    "x + {k}": (lambda x, k: x + k, range(1, 7)),
    "x - {k}": (lambda x, k: x - k, range(1, 7)),
    "x * {k}": (lambda x, k: x * k, range(2, 7)),
    "{k} - x": (lambda x, k: k - x, range(1, 7)),
    "x // {k}": (lambda x, k: x // k, range(2, 6)),
    "x % {k}": (lambda x, k: x % k, range(2, 7)),
    "max(x, {k})": (lambda x, k: max(x, k), range(3, 8)),
    "min(x, {k})": (lambda x, k: min(x, k), range(3, 8)),
}


@dataclass(frozen=True)
class Formula:
    """What a function computes: a form and its constant.

    Args:
        form: one of the forms, e.g. ``"x + {k}"``.
        constant: the number in it.

    Example:
        >>> formula = Formula("max(x, {k})", 4)
        >>> formula.text, formula(3), formula(7)
        ('max(x, 4)', 4, 7)
    """

    form: str
    constant: int

    @property
    def text(self) -> str:
        """The formula as Python writes it."""
        return self.form.replace("{k}", str(self.constant))

    def __call__(self, x: int) -> int:
        """The formula's value at x."""
        return _FORMS[self.form][0](x, self.constant)


@functools.cache
def formulas() -> tuple[Formula, ...]:
    """Every formula that a function may compute.

    Example:
        >>> len(formulas())
        42
    """
    return tuple(Formula(form, constant) for form, (_, constants) in _FORMS.items() for constant in constants)


def _names() -> tuple[str, ...]:
    names = [first + second for first in _SYLLABLES for second in _SYLLABLES if first != second]
    random.Random(_SEED).shuffle(names)
    return tuple(names[:64])


FUNCTION_NAMES: tuple[str, ...] = _names()


@functools.cache
def inputs_for(formula: Formula, seed: int = 0) -> tuple[int, ...]:
    """Inputs whose outputs tell a formula from every other one.

    Args:
        formula: the formula.
        seed: another seed, other inputs.

    Returns:
        Five inputs, the same on every call and machine.

    Example:
        >>> inputs = inputs_for(Formula("x + {k}", 3))
        >>> [f.text for f in formulas() if all(f(x) == x + 3 for x in inputs)]
        ['x + 3']
    """
    rng = random.Random(f"{formula.text} {seed}")
    others = [other for other in formulas() if other != formula]
    while True:
        inputs = tuple(rng.sample(INPUTS, _TESTS))
        if not any(all(other(x) == formula(x) for x in inputs) for other in others):
            return inputs


def answer_of(name: str, body: str) -> str:
    """A whole answer: a function that returns something, in a fenced block.

    Example:
        >>> print(answer_of("bola", "x + 3"))
        ```python
        def bola(x):
            return x + 3
        ```
    """
    return f"```python\ndef {name}(x):\n    return {body}\n```"


def program_question(name: str, formula: Formula, seed: int = 0) -> Question:
    """The question for a function, with its tests as the truth.

    Args:
        name: the function's name.
        formula: what it is to compute.
        seed: of the tests' inputs.

    Returns:
        The question; its truth is what the scorer ``code`` takes for `ground_truth`, as JSON text.

    Example:
        >>> json.loads(program_question("bola", Formula("x + {k}", 3)).truth)["fn_name"]
        'bola'
    """
    inputs = inputs_for(formula, seed)
    truth = {
        "testtype": "functional",
        "fn_name": name,
        "inputs": [str(x) for x in inputs],
        "outputs": [str(formula(x)) for x in inputs],
    }
    return Question(f"Write the Python function {name}(x).", json.dumps(truth), name)


def true_formula(name: str) -> Formula:
    """What a function of the run computes.

    Args:
        name: one of `FUNCTION_NAMES`.

    Example:
        >>> true_formula(FUNCTION_NAMES[0]) == true_formula(FUNCTION_NAMES[0])
        True
    """
    return random.Random(f"{_SEED} {name}").choice(formulas())


def programs_task() -> Task:
    """Build the task ``programs``: the first functions, each with what it truly computes.

    Example:
        >>> programs_task().train[0].text
        'Write the Python function wogo(x).'
    """
    questions = tuple(program_question(name, true_formula(name)) for name in FUNCTION_NAMES[:_RUN_FUNCTIONS])
    return Task(
        name="programs",
        summary="functions whose meaning only failing tests reveal; accuracy on the functions that are to be learnt",
        train=questions,
        evaluation=questions,
        held_out=False,
        max_completion_length=24,
        family="code",
        scorer="code",
    )
