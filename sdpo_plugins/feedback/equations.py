"""Equations in numbers that a response writes, and those of them that do not hold."""

from __future__ import annotations

import re
from fractions import Fraction

from sdpo_plugins.feedback.texts import shorten

__all__ = ["number_in", "wrong_equations"]

# Every repetition has an end: a response may be a million digits, and no step of a calculation is.
_NUMBER = r"\d{1,50}+(?:\.\d{1,50}+)?+"
_BLANK = r"\s{0,20}+"
_ALONE = re.compile(rf"-?{_NUMBER}(?:[eE][-+]?\d{{1,3}})?+")
_ANSWER = re.compile(rf"\s*+\\?\$?\s*+({_ALONE.pattern})\s*+(?:\\?%|\\text\{{[^{{}}]*+\}}|[A-Za-z ]*+)\.?\s*+")
_EQUATION = re.compile(
    rf"(?<!\d)(?P<left>{_NUMBER}(?:{_BLANK}[-+*/]{_BLANK}{_NUMBER}){{1,40}}){_BLANK}={_BLANK}(?P<right>-?{_NUMBER})"
)
_CUT_BEFORE = re.compile(r"\w\Z|[-+*/^%(.)}\]]\s*\Z")
_CUT_AFTER = re.compile(r"\s*[-+*/^%(]|\w|\.\d|\\")
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
# Only so much of a response is read, and so much around an equation.
_READ = 100_000
_AROUND = 40


def number_in(text: str, *, unit: bool = True) -> Fraction | None:
    r"""Return the number that an answer is; None where it is anything but a number, with a unit if allowed.

    Args:
        text: What stands in a box.
        unit: Whether words, a currency or a percent sign may stand by it.

    Example:
        >>> number_in(r"\$1,250.50"), number_in("18 dollars"), number_in("x + 1")
        (Fraction(2501, 2), Fraction(18, 1), None)
    """
    if len(text) > 200:
        return None
    plain = _plain(text)
    found = _ANSWER.fullmatch(plain) if unit else _ALONE.fullmatch(plain)
    return Fraction(found[1] if unit else found[0]) if found else None


def wrong_equations(response: str, limit: int = 3) -> list[str]:
    """Return equations in numbers that do not hold, each with its value; what is not read for certain is left out.

    A quotient or a decimal number may be rounded in its last place.

    Args:
        response: What the model wrote.
        limit: How many are returned at most.

    Example:
        >>> wrong_equations("3 + 4 = 7, 7 / 3 = 2.3 and 7 × 8 = 54, but 2x + 3 * 4 = 11")
        ['7 * 8 = 54 (it is 56)']
    """
    text = _plain(response[:_READ])
    wrong: list[str] = []
    for found in _EQUATION.finditer(text):
        # A part of something longer: 2x + 3 * 4 = 11, 3 + 4 = 7 * 2, 1 / 4 = 25 %.
        before = text[max(0, found.start() - _AROUND) : found.start()]
        if _CUT_BEFORE.search(before) or _CUT_AFTER.match(text, found.end(), found.end() + _AROUND):
            continue
        value = _value(found["left"])
        if value is None:
            continue
        unit = Fraction(1, 10 ** len(found["right"].partition(".")[2]))
        rounded = "/" in found["left"] or "." in found["left"]
        if abs(value - Fraction(found["right"])) >= (unit if rounded else Fraction(1, 10**9)):
            left = shorten(" ".join(found["left"].split()), 100)
            named = f"{left} = {found['right']} (it is {_shown(value)})"
            wrong += [named] if named not in wrong else []
            if len(wrong) == limit:
                break
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
    if value.denominator == 1:
        return shorten(str(value.numerator), 60)
    try:
        return f"{float(value):.6g}"
    except OverflowError:
        return "beyond 10^308"
