r"""The scorer `math`: 1 if the answer in the last `\boxed{}` equals the truth as mathematics, else 0."""

from __future__ import annotations

import importlib.util
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from sdpo_plugins._options import option
from sdpo_plugins.errors import ConfigError
from sdpo_plugins.feedback._math_process import same_in_process
from sdpo_plugins.feedback.equations import number_in, wrong_equations
from sdpo_plugins.feedback.rows import bad_truth, truth_in, was_truncated
from sdpo_plugins.feedback.texts import TRUNCATED, clean, shorten
from sdpo_plugins.types import Score

if TYPE_CHECKING:
    from sdpo_plugins.config import SDPOConfig

__all__ = ["MathOptions", "build_math", "last_box", "same_answer", "score_math"]

WRONG_FORMAT = r"Incorrect Format: Put your final answer in \boxed{}, as in \boxed{42}."
TIMED_OUT = "Your answer could not be checked in time: write it in a simpler form."

_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_BOX = re.compile(r"\\boxed\s{0,20}\{")
_WORDS = re.compile(r"[A-Za-z][A-Za-z ]{3,}")
# A longer answer is none; and of a response without a box, the end is read.
_LONGEST = 2000
_SHOWN = 100


@dataclass(frozen=True)
class MathOptions:
    """Options of the scorer `math`."""

    truth_field: str = option("ground_truth", "Field of the row that holds the right answer.")
    require_boxed: bool = option(
        True, "Only an answer in \\boxed{} counts; otherwise, without a box, the last expression of the response does."
    )
    reveal_truth: bool = option(False, "Name the right answer in the feedback of a wrong one.")
    check_equations: bool = option(
        False, "Name equations in numbers that the response writes and that do not hold, as in 12 * 7 = 94."
    )
    seconds: float = option(
        5.0, "Processor time for comparing an answer with the truth; then it is wrong.", low=0, exclusive=True
    )


def build_math(config: SDPOConfig, options: MathOptions) -> Callable[[str, Mapping[str, Any]], Score]:
    """Return score(response, sample) → `Score`.

    Args:
        config: Not needed.
        options: Of the scorer.

    Raises:
        ConfigError: math-verify is not installed.
    """
    if importlib.util.find_spec("math_verify") is None:
        raise ConfigError(
            "the scorer 'math' needs the library math-verify, which is not installed; install it with "
            "`pip install 'sdpo-plugins[math]'`."
        )

    def score(response: str, sample: Mapping[str, Any]) -> Score:
        return score_math(response, sample, options)

    return score


def score_math(response: str, sample: Mapping[str, Any], options: MathOptions) -> Score:
    r"""Score one response.

    Args:
        response: What the model wrote.
        sample: The row; its truth is LaTeX or a number, possibly in dollar signs or a box.
        options: Of the scorer.

    Returns:
        Reward 1 for the right answer. Details: `acc` (the reward), `incorrect_format`, `truncated`, `timed_out` (0 or
        1) and `pred` (the answer).

    Raises:
        DataError: The row's truth is empty, or neither a text nor a number.

    Example:
        >>> score_math(r"So it is \boxed{0.5}.", {"ground_truth": r"\frac{1}{2}"}, MathOptions()).reward
        1.0
    """
    truth = _truth(truth_in(sample, options.truth_field, "math"))
    answer, unfinished = last_box(response)
    if answer is not None or options.require_boxed:
        right = answer is not None and same_answer(answer, truth, options.seconds)
    else:
        right = same_in_process(truth, response[-_LONGEST:], options.seconds)
    wrong_format = answer is None and options.require_boxed
    truncated = was_truncated(sample) or unfinished
    details = {
        "acc": float(right is True),
        "incorrect_format": int(wrong_format),
        "truncated": int(truncated),
        "timed_out": int(right is None),
        "pred": clean(shorten(answer or "", _SHOWN)),
    }
    if right:
        return Score(1.0, None, details)
    said = []
    if truncated:
        said.append(TRUNCATED)
    elif wrong_format:
        said.append(WRONG_FORMAT)
    elif right is None:
        said.append(TIMED_OUT)
    return Score(0.0, clean(" ".join(said + _mistakes(response, truth, answer, bool(said), options))) or None, details)


def last_box(text: str) -> tuple[str | None, bool]:
    r"""Return what stands in the last `\boxed{}`, and whether that box was begun and not ended.

    Example:
        >>> last_box(r"\boxed{1}, no: \boxed{\frac{1}{2}}."), last_box(r"\boxed{1}, no: \boxed{\frac{1")
        (('\\frac{1}{2}', False), (None, True))
    """
    place = text.rfind("\\boxed")
    while place >= 0 and not (opening := _BOX.match(text, place)):
        place = text.rfind("\\boxed", 0, place)
    if place < 0:
        return None, False
    assert opening is not None
    depth = 1
    for brace in _BRACE.finditer(text, opening.end()):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if depth == 0:
            content = text[opening.end() : brace.start()].strip()
            return (content or None), False
    return None, True


def same_answer(answer: str, truth: str, seconds: float) -> bool | None:
    r"""Return whether an answer equals the truth; None if that could not be found out in time.

    Equal texts and equal numbers are; also 18\text{ apples} and 18. Truths of words are compared as texts, without
    regard to capitals, since to a computer algebra system they are products of letters. All else is for math-verify.

    Args:
        answer: What stood in the box.
        truth: The right answer.
        seconds: The limit.

    Example:
        >>> same_answer("2, 1", r"\{1, 2\}", 10.0), same_answer("seat", "east", 10.0)
        (True, False)
    """
    if len(answer) > _LONGEST:
        return False
    mine, theirs = _plain(answer), _plain(truth)
    if mine == theirs:
        return True
    number = number_in(theirs, unit=False)
    if number is not None and number == number_in(mine):
        return True
    if _WORDS.fullmatch(theirs):
        return mine.casefold() == theirs.casefold()
    return same_in_process(truth, f"\\boxed{{{answer.strip().removesuffix('.')}}}", seconds)


def _truth(truth: Any) -> str:
    valid = "the right answer as a text (LaTeX) or a number"
    if isinstance(truth, bool) or not isinstance(truth, (str, int, float)):
        bad_truth("math", valid, truth, f"it is a {type(truth).__name__}")
    if isinstance(truth, float) and not math.isfinite(truth):
        bad_truth("math", valid, truth, "it is no finite number")
    # 1e-07 would be read as a product with Euler's number.
    text = (format(Decimal(repr(truth)), "f") if isinstance(truth, float) else str(truth)).strip()
    box, unfinished = last_box(text)
    if unfinished:
        bad_truth("math", valid, truth, "its box is not closed")
    text = (box if box is not None else text.strip("$")).strip()
    if not text:
        bad_truth("math", valid, truth, "it is empty")
    return text


def _plain(text: str) -> str:
    text = re.sub(r"\\(?:text|textbf|mathrm|mathbf)\{([^{}\\]*)\}", r"\1", text)
    return " ".join(text.replace("$", "").split()).removesuffix(".").strip()


def _mistakes(response: str, truth: str, answer: str | None, explained: bool, options: MathOptions) -> list[str]:
    said = []
    if answer is not None and not explained and (options.check_equations or options.reveal_truth):
        said.append(f"The answer {shorten(answer, _SHOWN)} is wrong.")
    if options.check_equations:
        wrong = wrong_equations(response)
        if wrong:
            said.append(f"These equations do not hold: {'; '.join(wrong)}.")
        elif answer is not None:
            said.append("No wrong equation was found: look at what is calculated, and whether a step is missing.")
    if options.reveal_truth:
        said.append(f"The right answer is {shorten(truth, _LONGEST)}.")
    return said
