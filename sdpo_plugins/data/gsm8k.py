"""GSM8K: grade-school maths, with a number as the answer."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdpo_plugins._options import option
from sdpo_plugins.data.sources import TEST, TRAIN, Example, Facts, Source, Split, message
from sdpo_plugins.errors import ConfigError, DataError

if TYPE_CHECKING:
    from sdpo_plugins.data.loading import Loader

__all__ = ["CALCULATOR", "EQUATIONS", "NO_THINKING", "SOURCE", "GSM8KOptions", "final_number"]

HUB = "openai/gsm8k"
EQUATIONS = (
    "Solve the problem step by step. Write every calculation as an equation in numbers, such as 12 * 7 = 84. End with "
    "the answer, a number alone, in a box: \\boxed{84}."
)
CALCULATOR = (
    "Solve the problem step by step. You have a calculator: to use it, end your message with "
    "<calculator>12 * 7</calculator>, and the result comes with the next message. Once you know the answer, write it, "
    "a number alone, in a box: \\boxed{84}."
)
# Qwen3's own switch, for hosts that give chat templates no arguments.
NO_THINKING = " /no_think"


@dataclass(frozen=True)
class GSM8KOptions:
    """Options of `gsm8k`."""

    calculator: bool = option(False, "Describe a calculator in the system prompt, for an agent that has one.")
    no_think: bool = option(False, "Add Qwen3's /no_think: for OpenRLHF, which gives chat templates no arguments.")
    reveal: bool = option(
        False, "With --calculator: let the agent's feedback name the answer, by `reveal` in the rows."
    )
    seed: int | None = option(None, "Shuffle the questions to train on; by default they keep their order.", low=0)


def facts(options: GSM8KOptions, place: Path | None) -> Facts:
    """Describe the data.

    Raises:
        ConfigError: `reveal` without `calculator`.
    """
    if options.reveal and not options.calculator:
        raise ConfigError(
            "`--reveal` is read by the agent of `--calculator` alone. Without it, let the scorer name the answer: its "
            "option `reveal_truth`."
        )
    form = "with a calculator to call" if options.calculator else "with every calculation as an equation in numbers"
    return Facts(
        task="gsm8k_calculator" if options.calculator else "gsm8k",
        data_source="gsm8k",
        scorer="math",
        origin=f"{HUB}, configuration main",
        link=f"https://huggingface.co/datasets/{HUB}",
        license="mit",
        prompt=f"a system message that asks for steps {form} and the answer in \\boxed{{}}"
        f"{', and turns off the thinking of Qwen3' if options.no_think else ''}; then the question",
        split="the data set's own",
    )


def read(options: GSM8KOptions, loader: Loader) -> dict[str, Split]:
    """Read both splits."""
    system = (CALCULATOR if options.calculator else EQUATIONS) + (NO_THINKING if options.no_think else "")
    extra = {"reveal": options.reveal} if options.calculator else {}
    found = {}
    for split in (TRAIN, TEST):
        rows = loader.table(HUB, split, ("question", "answer"), "main")
        rows = rows.add_column("place", list(range(len(rows))))
        if split == TRAIN and options.seed is not None:
            rows = rows.shuffle(seed=options.seed)
        found[split] = Split(len(rows), _examples(rows, system, extra), (extra,))
    return found


def final_number(row: Mapping[str, Any]) -> str:
    """Return the number behind `####`, without commas.

    Args:
        row: With `question` and `answer`.

    Raises:
        DataError: There is no number at the end.

    Example:
        >>> final_number({"question": "…", "answer": "A thousand times.\\n#### 1,250"})
        '1250'
    """
    number: str = row["answer"].rpartition("####")[2].strip().replace(",", "")
    if not re.fullmatch(r"-?\d+(\.\d+)?", number):
        raise DataError(
            f"the answer of the question {row['question'][:80]!r} must end with `#### ` and a number, got "
            f"{row['answer'][-80:]!r}."
        )
    return number


def _examples(rows: Any, system: str, extra: Mapping[str, Any]) -> Iterator[Example]:
    for row in rows:
        prompt = [message("system", system), message("user", row["question"].strip())]
        yield Example(prompt, final_number(row), row["place"], extra)


SOURCE = Source("gsm8k", "Grade-school maths: the answer is a number.", GSM8KOptions, facts, read)
