"""LiveCodeBench: contest programming, with the authors' questions, prompt, and tests to train and to validate on."""

from __future__ import annotations

import base64
import io
import json
import pickle
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdpo_plugins._options import option
from sdpo_plugins.data.sources import TEST, TRAIN, Example, Facts, Source, Split, message
from sdpo_plugins.errors import ConfigError, DataError

if TYPE_CHECKING:
    from sdpo_plugins.data.loading import Loader

__all__ = ["PROMPT", "SOURCE", "LiveCodeBenchOptions", "private_tests", "question_text"]

HUB = "livecodebench/code_generation_lite"
# The data as files; the main branch is a loading script, which datasets 4 and later refuse.
REVISION = "refs/pr/6"
TIME_LIMIT = 6.0

# The authors' prompt, as the paper shows it in appendix F.2.
PROMPT = (
    "You are a coding expert. You will be given a coding problem, and you need to write a correct Python program that "
    "matches the specification and passes all tests. The time limit is 1 second. You may start by outlining your "
    "thought process. In the end, please provide the complete code in a code block enclosed with ``` ```.\n\n"
)


@dataclass(frozen=True)
class LiveCodeBenchOptions:
    """Options of `livecodebench`."""

    since: str = option("2025-02-01", "First date of a contest, YYYY-MM-DD.")
    until: str = option("2025-05-01", "Date behind the last one.")
    train_share: float = option(
        0.5, "Share of each question's tests to train on, at least one.", low=0.0, high=1.0, exclusive=True
    )
    seed: int = option(0, "Of the choice of tests.", low=0)


def facts(options: LiveCodeBenchOptions, place: Path | None) -> Facts:
    """Describe the data."""
    authors = (options.since, options.until) == ("2025-02-01", "2025-05-01")
    return Facts(
        task="livecodebench_v6" if authors else f"livecodebench_{options.since}_{options.until}",
        data_source="livecodebench",
        scorer="code",
        origin=f"{HUB}, split test, contests from {options.since} to before {options.until}",
        link=f"https://huggingface.co/datasets/{HUB}",
        license="cc",
        prompt="the paper's (arXiv 2601.20802, appendix F.2) with the problem, its public tests and the function to "
        "write, in one message",
        split=f"the same questions in both files; to train on, a random {options.train_share:.0%} of each one's "
        f"private tests (at least one, numpy's RandomState({options.seed}), as the authors draw), to test, all of them",
        large=True,
    )


def read(options: LiveCodeBenchOptions, loader: Loader) -> dict[str, Split]:
    """Choose the questions by their contest's date."""
    since, until = _day(options.since, "since"), _day(options.until, "until")
    if loader.place is None and loader.revision is None:
        loader.revision = REVISION
    needed = ("question_content", "starter_code", "metadata", "private_test_cases", "contest_date", "question_id")
    questions = loader.table(HUB, TEST, needed)
    # The dates alone: the tests beside them are gigabytes.
    dates = [_date_of(value) for value in questions.select_columns(["contest_date"])["contest_date"]]
    chosen = questions.select([place for place, date in enumerate(dates) if since <= date < until])
    if len(chosen) == 0:
        raise DataError(
            f"none of {len(questions)} questions is of a contest from {since:%Y-%m-%d} to before {until:%Y-%m-%d}: "
            f"the dates here are {min(dates, default=since):%Y-%m-%d} to {max(dates, default=until):%Y-%m-%d}. Change "
            "--since and --until, or take a newer --revision."
        )
    return {
        name: Split(len(chosen), _examples(chosen, share, options.seed), ({"question": ""},))
        for name, share in ((TRAIN, options.train_share), (TEST, 1.0))
    }


def question_text(row: Mapping[str, Any]) -> str:
    """Return the user message: the problem, which shows the public tests, and the function to write, if any."""
    problem = row["question_content"]
    if row["starter_code"].strip():
        signature = "def " + row["starter_code"].split("def ")[1].split("Input\n")[0].strip()
        problem += f"\n\nYour solution should have the following signature: ```python\n{signature}\n```"
    # A function, not a method: no `self`.
    text: str = PROMPT + problem.replace("(self, ", "(")
    return text


def private_tests(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a question's private tests, decoded, as the scorer `code` takes them.

    Raises:
        DataError: They are something else than a text, or hold no test.
    """
    encoded = row["private_test_cases"]
    try:
        try:
            cases = json.loads(encoded)
        except ValueError:
            cases = json.loads(_Texts(io.BytesIO(zlib.decompress(base64.b64decode(encoded)))).load())
        described = json.loads(row["metadata"]) if row["metadata"].strip() else {}
        return {
            "inputs": [case["input"] for case in cases],
            "outputs": [case["output"] for case in cases],
            "testtype": cases[0]["testtype"],
            "fn_name": described.get("func_name") or "",
            "time_limit": TIME_LIMIT,
        }
    except DataError:
        raise
    # What base64, zlib, pickle and json raise for something else, and a list without tests or with other fields.
    except (ValueError, TypeError, LookupError, AttributeError, EOFError, zlib.error, pickle.UnpicklingError) as error:
        raise DataError(
            f"the private tests of question {row['question_id']!r} are neither JSON nor a compressed, pickled text of "
            f"it, with `input`, `output` and `testtype` for at least one test: {type(error).__name__}: {error}"
        ) from error


class _Texts(pickle.Unpickler):
    """Reads a pickled text, and nothing that could run code."""

    def find_class(self, module: str, name: str) -> Any:
        raise DataError(f"the tests of a question hold {module}.{name}, not a text: this file is not to be trusted.")


def _examples(questions: Any, share: float, seed: int) -> Iterator[Example]:
    """Give each question with a random share of its tests, at least one, in their order."""
    import numpy as np

    draw = np.random.RandomState(seed)  # the generator and order of draws of the authors' script
    for index, row in enumerate(questions):
        tests = private_tests(row)
        count = len(tests["inputs"])
        if share < 1.0:
            kept = np.sort(draw.choice(count, size=max(1, int(count * share)), replace=False))
            tests.update({name: [tests[name][place] for place in kept] for name in ("inputs", "outputs")})
        yield Example([message("user", question_text(row))], tests, index, {"question": str(row["question_id"])})


def _date_of(value: Any) -> datetime:
    if isinstance(value, datetime):
        return value
    try:
        return datetime.fromisoformat(str(value))
    except ValueError as error:
        raise DataError(f"`contest_date` must be a date such as 2025-02-01T00:00:00, got {value!r}.") from error


def _day(text: str, name: str) -> datetime:
    try:
        return datetime.fromisoformat(text)
    except ValueError as error:
        raise ConfigError(f"`{name}` must be a date such as 2025-02-01, got {text!r}.") from error


SOURCE = Source(
    "livecodebench",
    "The paper's programming contests (section 4), with hidden tests.",
    LiveCodeBenchOptions,
    facts,
    read,
)
