"""Hard questions for the embedded code model: each comes with a bug report that is out of date.

The report shows failing tests of what the function *used to* compute. The model reads it and writes that, with
certainty; the scorer's tests want what the function computes now. Only their failing cases, as feedback, tell.
"""

from __future__ import annotations

import dataclasses
import random

from sdpo_plugins.embedded.programs import Formula, formulas, inputs_for, program_question, true_formula
from sdpo_plugins.embedded.tasks import Question
from sdpo_plugins.feedback.texts import Case, Show, cases_text

__all__ = ["former_formula", "stale_question"]

_SEED = 2601


def former_formula(name: str) -> Formula:
    """What a function used to compute.

    Args:
        name: one of `FUNCTION_NAMES`.

    Example:
        >>> former_formula("wogo") != true_formula("wogo")
        True
    """
    return _draws(name)[0]


def stale_question(name: str) -> Question:
    """The question for a function, with failing tests of its former meaning; the truth is the tests of today.

    Args:
        name: one of `FUNCTION_NAMES`.

    Returns:
        The question; its truth is what the scorer ``code`` takes for `ground_truth`.

    Example:
        >>> print(stale_question("wogo").text.partition("Expected")[0].strip())
        Write the Python function wogo(x).
        The following is feedback from your unsuccessful earlier attempt:
        <BLANKLINE>
        Test Case 1: Wrong Answer
        <BLANKLINE>
        Input
        1
        <BLANKLINE>
        Output
        3
    """
    former, tried = _draws(name)
    cases = [
        Case("passed" if tried(x) == former(x) else "wrong", str(x), str(tried(x)), str(former(x)))
        for x in inputs_for(former)
    ]
    today = program_question(name, true_formula(name))
    # The only form of examples that the model has learnt to read.
    text = (
        f"{today.text}\nThe following is feedback from your unsuccessful earlier attempt:\n\n"
        f"{cases_text(cases, Show())}\n\nCorrectly solve the original question."
    )
    return dataclasses.replace(today, text=text)


def _draws(name: str) -> tuple[Formula, Formula]:
    rng = random.Random(f"{_SEED} stale {name}")
    former, tried = rng.sample([each for each in formulas() if each != true_formula(name)], 2)
    return former, tried
