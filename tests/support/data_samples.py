"""Small data sets in the schemas of the real ones, and for each source one right answer to one of its questions."""

from __future__ import annotations

import base64
import json
import pickle
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

GSM8K_ANSWERS = (
    "It is 6 * 7 = <<6*7=42>>42.\n#### 42",
    "A thousand times.\n#### 1,250",
    "Less.\n#### -3",
    "Half.\n#### 0.5",
)
CALLS = [{"Action": "find", "Action_Input": '{"text": "axolotl"}'}]


def write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def chemistry_question(number: int, **changes: Any) -> dict[str, Any]:
    return {
        "question": f"What weighs {number}?",
        "choices": {"text": ["gold", "iron", "tin", "zinc"], "label": ["A", "B", "C", "D"]},
        "answerKey": "ABCD"[number % 4],
        "type": "mcq-4-choices",
        "domain": "Chemistry",
        "details": {"level": "L3", "task": "weight", "subtask": "weight", "source": "none"},
        **changes,
    }


def chemistry(folder: Path) -> Path:
    """Twenty questions that fit, one of them with two choices, and three that do not."""
    other = [
        chemistry_question(1, domain="Physics"),
        chemistry_question(2, type="open-ended-qa"),
        chemistry_question(3, details={"level": "L1", "task": "", "subtask": "", "source": ""}),
    ]
    two = chemistry_question(0, type="mcq-2-choices", choices={"text": ["yes", "no"], "label": ["A", "B"]})
    return write_lines(folder / "all.jsonl", [*other, two, *(chemistry_question(number) for number in range(1, 20))])


def tool_question(index: int, answer: Any, system: str | None = None) -> dict[str, Any]:
    return {
        "prompt": f"Use the tools. Question: {index}?",
        "description": "",
        "idx": index,
        "dataset": "tooluse",
        "system": system,
        "answer": answer if isinstance(answer, str) else json.dumps(answer),
        "tests": None,
        "kind": "tooluse",
        "elo": 1500,
    }


def tools(folder: Path) -> Path:
    """Seven questions to train on and one to test; in each file one whose right calls cannot be read."""
    rows = [tool_question(index, CALLS) for index in range(6)]
    write_lines(folder / "train.json", [*rows, tool_question(6, "[]"), tool_question(7, CALLS, system="Be brief.")])
    broken = [{"Action": "find", "Action_Input": "{text"}]
    write_lines(folder / "test.json", [tool_question(8, CALLS), tool_question(9, broken)])
    return folder


def encoded(tests: list[dict[str, str]]) -> str:
    """Encode tests as LiveCodeBench does."""
    return base64.b64encode(zlib.compress(pickle.dumps(json.dumps(tests)))).decode()


def code_question(number: int, **changes: Any) -> dict[str, Any]:
    """A program that adds the two numbers of a line."""
    cases = [{"input": f"{number} {case}", "output": str(number + case), "testtype": "stdin"} for case in range(5)]
    return {
        "question_title": "Sums",
        "question_content": "Add the numbers.",
        "platform": "none",
        "question_id": f"q{number}",
        "contest_id": "c",
        "contest_date": "2025-03-01T00:00:00",
        "starter_code": "",
        "difficulty": "easy",
        "public_test_cases": "[]",
        "private_test_cases": encoded(cases),
        "metadata": "{}",
        **changes,
    }


def contests(folder: Path) -> Path:
    """Three questions of the paper's months, the second with a function to write; one before and one behind them."""
    function = code_question(
        1,
        starter_code="class Solution:\n    def add(self, a: int, b: int) -> int:\n        ",
        metadata='{"func_name": "add"}',
        private_test_cases=json.dumps([{"input": "1\n2", "output": "3", "testtype": "functional"}]),
    )
    old = code_question(8, contest_date="2025-01-31T23:59:59")
    new = code_question(9, contest_date="2025-05-01T00:00:00")
    return write_lines(folder / "all.jsonl", [old, code_question(0), function, code_question(2), new])


def word_problems(folder: Path, answers: Iterable[str] = GSM8K_ANSWERS) -> Path:
    answers = list(answers)
    for split in ("train", "test"):
        rows = [{"question": f"{split} {at}: how many? ", "answer": answer} for at, answer in enumerate(answers)]
        write_lines(folder / f"{split}.jsonl", rows)
    return folder


def short_programs(folder: Path) -> Path:
    """MBPP's configuration sanitized."""
    for split, first in (("train", 600), ("test", 10)):
        rows = [
            {
                "source_file": "none",
                "task_id": first + number,
                "prompt": f"Write a function to add {number}.",
                "code": f"def add(n):\n    return n + {number}",
                "test_imports": ["import math"],
                "test_list": [
                    f"assert add(1) == {1 + number}",
                    f"assert add({{'a': 2}}['a']) == {2 + number}",
                    f"assert math.isclose(add(3), {3 + number})",
                ],
            }
            for number in range(3)
        ]
        write_lines(folder / f"{split}.jsonl", rows)
    return folder


def full_programs(folder: Path) -> Path:
    """MBPP's configuration full."""
    row = {
        "task_id": 1,
        "text": "Write a function to double.",
        "code": "def double(n):\n    return 2 * n",
        "test_setup_code": "",
        "test_list": ["assert double(1) == 2", "assert double(2) == 4"],
        "challenge_test_list": ["assert double(-1) == -2"],
    }
    for split in ("train", "test"):
        write_lines(folder / f"{split}.jsonl", [row, {**row, "task_id": 2, "challenge_test_list": []}])
    return folder


def own_questions(folder: Path) -> Path:
    rows = [
        {"question": f"{number} + 1?", "answer": number + 1, "level": number % 3, "about": {"topic": f"{number}"}}
        for number in range(10)
    ]
    return write_lines(folder / "mine.jsonl", rows)


@dataclass(frozen=True)
class Sample:
    """A source on its sample.

    Args:
        place: Writes the sample into a folder and returns what `--from` takes.
        options: Words behind the source's name.
        counts: Rows to train and to test.
        right: A right answer to the question of the first row to test.
    """

    place: Any
    options: tuple[str, ...]
    counts: tuple[int, int]
    right: Any


def _letter(prompt: str, truth: Any) -> str:
    return f"<reasoning>so</reasoning>\n<answer>\n{truth}\n</answer>"


def _call(prompt: str, truth: Any) -> str:
    return 'Action: find\nAction Input: {"text": "axolotl"}'


def _program(prompt: str, truth: Any) -> str:
    return "```python\nprint(sum(map(int, input().split())))\n```"


def _box(prompt: str, truth: Any) -> str:
    return f"6 * 7 = 42, so \\boxed{{{truth}}}"


def _function(prompt: str, truth: Any) -> str:
    number = int(prompt.split("to add ")[1].split(".")[0])
    return f"```python\ndef add(n):\n    return n + {number}\n```"


MINE = ("--prompt-column", "question", "--truth-column", "answer", "--scorer", "math")
SAMPLES = {
    "sciknoweval": Sample(chemistry, (), (18, 2), _letter),
    "livecodebench": Sample(contests, (), (3, 3), _program),
    "tooluse": Sample(tools, (), (7, 1), _call),
    "gsm8k": Sample(word_problems, (), (4, 4), _box),
    "mbpp": Sample(short_programs, (), (3, 3), _function),
    "jsonl": Sample(own_questions, MINE, (9, 1), _box),
}
HOSTS = ("trl", "verl", "openrlhf")
