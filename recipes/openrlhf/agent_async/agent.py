r"""Grade-school maths with a calculator as an agent of OpenRLHF: several turns, then 1 for the right number, else 0.

A message that ends with `<calculator>12 * 7</calculator>` gets the result as the next message; one with `\boxed{84}`
ends the conversation. What went wrong comes back as `feedback`, for SDPO's teacher, who reads it before the first turn.
"""

from __future__ import annotations

import ast
import json
import operator
import re
from fractions import Fraction
from typing import Any

import torch
from openrlhf.utils.agent import AgentInstanceBase, MultiTurnAgentExecutor

__all__ = ["AgentExecutor", "CalculatorAgent", "calculate"]

MOST_TURNS = 8
# The end of the user's message and the beginning of the next answer, behind the token that ended the last: ChatML, as
# Qwen's. For a model with another chat template, write its form here.
MESSAGE = "\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"

_CALL = re.compile(r"<calculator>(.*?)</calculator>", re.DOTALL)
_BOX = re.compile(r"\\boxed\{\s*\\?\$?\s*(-?[\d,]*\.?\d+)\s*\\?%?\s*\}")
_OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}
_LONGEST = 200
_ALLOWED = "only numbers, + - * / and brackets are allowed"


class CalculatorAgent(AgentInstanceBase):
    """One conversation."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self._turns = 0
        self._calls = 0
        self._unreadable: list[str] = []

    async def step(self, state_dict: dict[str, Any], **_: Any) -> dict[str, Any]:
        """Answer a message of the model.

        Args:
            state_dict: OpenRLHF's: `action_text`, the message, and `label`, JSON with `ground_truth` and `reveal`.

        Returns:
            OpenRLHF's `rewards`, `scores`, `environment_feedback` (the next message) and `done`; in `extra_logs` the
            numbers of turns and calls, and `feedback`.
        """
        self._turns += 1
        message, truth = state_dict["action_text"], json.loads(state_dict["label"])
        boxes, calls = _BOX.findall(message), _CALL.findall(message)
        if boxes:
            right = Fraction(boxes[-1].replace(",", "")) == Fraction(truth["ground_truth"])
            said = "" if right else self._what_went_wrong(f"The answer {boxes[-1]} is wrong.", truth)
            return self._result(float(right), said)
        reply = "\n".join(self._answer(call) for call in calls)
        if not calls:
            reply = "Use the calculator, or write the answer, a number alone, in \\boxed{}."
        # OpenRLHF keeps what the last turn gave, and this may be the last: there is a limit of tokens, too.
        said = self._what_went_wrong("The conversation ended without a number alone in \\boxed{}.", truth)
        return self._result(0.0, said, None if self._turns >= MOST_TURNS else reply)

    def _answer(self, call: str) -> str:
        self._calls += 1
        try:
            return f"{call.strip()} = {calculate(call)}"
        except ValueError as error:
            self._unreadable.append(call.strip()[:80])
            return f"The calculator cannot compute {call.strip()[:80]!r}: {error}."

    def _what_went_wrong(self, first: str, truth: dict[str, Any]) -> str:
        said = [first]
        if self._unreadable:
            said.append(f"The calculator could not compute {', '.join(map(repr, self._unreadable[:3]))}.")
        if self._calls == 0:
            said.append("The calculator was not used.")
        if truth["reveal"]:
            said.append(f"The right answer is {truth['ground_truth']}.")
        return " ".join(said)

    def _result(self, reward: float, feedback: str, reply: str | None = None) -> dict[str, Any]:
        return {
            "rewards": torch.tensor(reward),
            "scores": torch.tensor(reward),
            "environment_feedback": "" if reply is None else MESSAGE.format(reply),
            "done": reply is None,
            "extra_logs": {"turns": self._turns, "calls": self._calls, "feedback": feedback},
        }


class AgentExecutor(MultiTurnAgentExecutor):
    """What `--train.agent_func_path` looks for."""

    def __init__(self) -> None:
        super().__init__(CalculatorAgent)


def calculate(text: str) -> str:
    """Compute numbers with + - * / and brackets, exactly; nothing else is read.

    Args:
        text: What a model wrote.

    Returns:
        The value, with at most ten digits where it is no whole number.

    Raises:
        ValueError: It is something else, or a division by zero.

    Example:
        >>> calculate("(1,200 - 300) / 8"), calculate("2 / 3")
        ('112.5', '0.6666666667')
    """
    plain = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text.strip()).replace("×", "*").replace("÷", "/").replace("$", "")
    if len(plain) > _LONGEST:
        raise ValueError(f"it is longer than {_LONGEST} characters")
    if not re.fullmatch(r"[\d\s.+\-*/()]+", plain):  # no exponents either: numbers stay as short as they are written
        raise ValueError(_ALLOWED)
    try:
        value = _value(ast.parse(plain, mode="eval").body)
    except (SyntaxError, RecursionError) as error:
        raise ValueError(_ALLOWED) from error
    except ZeroDivisionError as error:
        raise ValueError("it divides by zero") from error
    return str(value.numerator) if value.denominator == 1 else f"{float(value):.10g}"


def _value(node: ast.expr) -> Fraction:
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return Fraction(str(node.value))
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        return Fraction(_OPERATORS[type(node.op)](_value(node.left), _value(node.right)))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_value(node.operand)
    raise ValueError(_ALLOWED)
