r"""Grade-school maths as a reward file of OpenRLHF: 1 for the right number in the last `\boxed{}`, else 0 and a text.

The text says what is wrong: that there is no number, which written equations do not hold, or that the answer is another
one. It names the right answer only where the label says so.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import torch

__all__ = ["final_number", "grade", "reward_func", "wrong_equations"]

_NUMBER = r"\d+(?:\.\d+)?"
_BOX = re.compile(r"\\boxed\{((?:[^{}]|\{[^{}]*\})*)\}")
_ANSWER = re.compile(rf"\s*\\?\$?\s*(-?{_NUMBER})\s*(?:\\?%|\\text\{{[^{{}}]*\}}|[A-Za-z ]*)\.?\s*")
_EQUATION = re.compile(rf"({_NUMBER}(?:\s*[-+*/]\s*{_NUMBER})+)\s*=\s*(-?{_NUMBER})")
_SIGNS = {
    r"\times": "*",
    r"\cdot": "*",
    "×": "*",
    "·": "*",
    r"\div": "/",
    "÷": "/",
    "−": "-",
    "–": "-",
    r"\$": "",
    "$": "",
}
# At most so many wrong equations are named.
_NAMED = 3


def reward_func(queries: Sequence[str], prompts: Sequence[str], labels: Sequence[str], **_: Any) -> dict[str, Any]:
    """Score responses; what `--reward.remote_url` names.

    Args:
        queries: Prompts with responses, special tokens included.
        prompts: The prompts alone.
        labels: JSON with `answer`, a number, and `reveal`.

    Returns:
        `rewards` and `scores` (float tensors), and `extra_logs` with `acc` (the same), `boxed` (1 where there is a
        number in a box) and `feedback` (texts, "" for a right answer).

    Raises:
        ValueError: A query does not begin with its prompt.
    """
    scores, boxed, texts = [], [], []
    for query, prompt, label in zip(queries, prompts, labels, strict=True):
        if not query.startswith(prompt):
            raise ValueError(
                "a query does not begin with its prompt, because OpenRLHF cut the prompt: raise `--data.max_len`. The "
                f"prompt: {prompt[:200]!r}"
            )
        truth, response = json.loads(label), query[len(prompt) :]
        score, text = grade(response, truth["answer"], reveal=truth["reveal"])
        scores.append(score)
        boxed.append(float(final_number(response) is not None))
        texts.append(text)
    rewards = torch.tensor(scores)
    return {
        "rewards": rewards,
        "scores": rewards,
        "extra_logs": {"acc": rewards, "boxed": torch.tensor(boxed), "feedback": texts},
    }


def grade(response: str, answer: str, *, reveal: bool = False) -> tuple[float, str]:
    r"""Return 1 or 0, and what is wrong.

    Args:
        response: What the model wrote.
        answer: The right number.
        reveal: Whether the text names it.

    Example:
        >>> grade(r"12 * 7 = 94, so \boxed{94}", "84")
        (0.0, 'The answer 94 is wrong. These equations do not hold: 12 * 7 = 94 (it is 84).')
    """
    found = final_number(response)
    if found == Fraction(answer):
        return 1.0, ""
    wrong = wrong_equations(response)
    if found is None:
        said = ["There is no number alone in a \\boxed{} at the end."]
    else:
        said = [f"The answer {_shown(found)} is wrong."]
    if wrong:
        named = "; ".join(wrong[:_NAMED])
        said.append(f"These equations do not hold: {named}.")
    elif found is not None:
        said.append("No wrong equation was found: look at what is calculated, and whether a step is missing.")
    if reveal:
        said.append(f"The right answer is {answer}.")
    return 0.0, " ".join(said)


def final_number(response: str) -> Fraction | None:
    r"""Return the number in the last box; None where there is none, or more than a number with a unit.

    Example:
        >>> final_number(r"so \boxed{\$1,250.50}")
        Fraction(2501, 2)
    """
    boxes = _BOX.findall(response)
    found = _ANSWER.fullmatch(_plain(boxes[-1])) if boxes else None
    return Fraction(found[1]) if found else None


def wrong_equations(response: str) -> list[str]:
    """Return the equations in numbers that do not hold, each with its value; what is not read for certain is left out.

    A quotient or a decimal number may be rounded in its last place.

    Example:
        >>> wrong_equations("3 + 4 = 7, 7 / 3 = 2.3 and 7 × 8 = 54, but 2x + 3 * 4 = 11")
        ['7 * 8 = 54 (it is 56)']
    """
    text = _plain(response)
    wrong = []
    for found in _EQUATION.finditer(text):
        before, after = text[: found.start()].rstrip(), text[found.end() :]
        # A part of something longer: 2x + 3 * 4 = 11, 3 + 4 = 7 * 2, 1 / 4 = 25 %.
        if re.search(r"[-+*/^%(.)}\]]$", before) or re.match(r"\s*[-+*/^%(]|\w|\.\d|\\", after):
            continue
        if re.search(r"\w$", text[: found.start()]):
            continue
        expression, shown = found[1], found[2]
        value = _value(expression)
        if value is None:
            continue
        unit = Fraction(1, 10 ** len(shown.partition(".")[2]))
        rounded = "/" in expression or "." in expression
        if abs(value - Fraction(shown)) >= (unit if rounded else Fraction(1, 10**9)):
            wrong.append(f"{' '.join(expression.split())} = {shown} (it is {_shown(value)})")
    return wrong


def _plain(text: str) -> str:
    for sign, plain in _SIGNS.items():
        text = text.replace(sign, plain)
    return re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text)


def _value(expression: str) -> Fraction | None:
    """Return the value of numbers with signs between them; None for a division by zero."""
    words = re.findall(rf"{_NUMBER}|[-+*/]", expression)
    total, product, sign = Fraction(0), Fraction(words[0]), 1
    for operator, word in zip(words[1::2], words[2::2], strict=True):
        number = Fraction(word)
        if operator == "*":
            product *= number
        elif operator == "/":
            if number == 0:
                return None
            product /= number
        else:
            total, product, sign = total + sign * product, number, 1 if operator == "+" else -1
    return total + sign * product


def _shown(value: Fraction) -> str:
    return str(value.numerator) if value.denominator == 1 else f"{float(value):.6g}"
