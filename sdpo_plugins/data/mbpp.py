"""MBPP: short Python programs, each with a few assertions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdpo_plugins._options import option
from sdpo_plugins.data.sources import TEST, TRAIN, Example, Facts, Source, Split, message
from sdpo_plugins.errors import DataError

if TYPE_CHECKING:
    from sdpo_plugins.data.loading import Loader

__all__ = ["SOURCE", "MBPPOptions", "prompt_text", "tests_of"]

HUB = "google-research-datasets/mbpp"
# The task's column in each configuration.
TASKS = {"full": "text", "sanitized": "prompt"}


@dataclass(frozen=True)
class MBPPOptions:
    """Options of `mbpp`."""

    subset: str = option("sanitized", "The data set's configuration.", choices=tuple(TASKS))
    shown: int = option(
        1, "How many of a task's tests its prompt shows; the others are hidden, and feedback keeps them so.", low=1
    )
    seed: int | None = option(None, "Shuffle the questions to train on; by default they keep their order.", low=0)


def facts(options: MBPPOptions, place: Path | None) -> Facts:
    """Describe the data."""
    return Facts(
        task="mbpp" if options.subset == "sanitized" else f"mbpp_{options.subset}",
        data_source="mbpp",
        scorer="code",
        origin=f"{HUB}, configuration {options.subset}",
        link=f"https://huggingface.co/datasets/{HUB}",
        license="cc-by-4.0",
        prompt=f"one message that asks for a code block, with the task and its first {options.shown} test(s), which "
        "tell the function's name; the other tests are hidden",
        split="the data set's own splits train and test; validation and prompt are not used",
    )


def read(options: MBPPOptions, loader: Loader) -> dict[str, Split]:
    """Read both splits."""
    task = TASKS[options.subset]
    setup = "test_setup_code" if options.subset == "full" else "test_imports"
    found = {}
    for split in (TRAIN, TEST):
        rows = loader.table(HUB, split, ("task_id", task, "test_list", setup), options.subset)
        if split == TRAIN and options.seed is not None:
            rows = rows.shuffle(seed=options.seed)
        found[split] = Split(len(rows), _examples(rows, task, options.shown))
    return found


def tests_of(row: Mapping[str, Any], shown: int) -> dict[str, Any]:
    """Return a task's tests as the scorer `code` takes them: assertions, and which of them are hidden.

    Args:
        row: Of either configuration.
        shown: How many are not hidden.

    Raises:
        DataError: There is none.

    Example:
        >>> tests_of({"task_id": 2, "test_list": ["assert f(1) == 1", "assert f(2) == 4"]}, 1)["hidden"]
        [False, True]
    """
    tests = [*row["test_list"], *(row.get("challenge_test_list") or [])]
    if not tests:
        raise DataError(f"task {row['task_id']} has no test.")
    given = row.get("test_imports") or row.get("test_setup_code") or ""
    # With each test, since a program need not import what its tests use.
    before = (given if isinstance(given, str) else "\n".join(given)).strip()
    return {
        "inputs": [f"{before}\n{test}" if before else test for test in tests],
        "outputs": [""] * len(tests),
        "testtype": "code",
        "hidden": [place >= shown for place in range(len(tests))],
    }


def prompt_text(task: str, tests: Mapping[str, Any]) -> str:
    """Return the user message: the task and the tests that are not hidden."""
    visible = [test for test, hidden in zip(tests["inputs"], tests["hidden"], strict=True) if not hidden]
    shown = "\n".join(visible)
    which = "this test" if len(visible) == 1 else "these tests"
    others = ", among others" if any(tests["hidden"]) else ""
    return (
        "Write a Python function for this task, and put all of your code in one code block enclosed with ```python and "
        f"```.\n\n{task.strip()}\n\nYour code has to pass {which}{others}:\n```python\n{shown}\n```"
    )


def _examples(rows: Any, task: str, shown: int) -> Iterator[Example]:
    for row in rows:
        tests = tests_of(row, shown)
        yield Example([message("user", prompt_text(row[task], tests))], tests, row["task_id"])


SOURCE = Source(
    "mbpp",
    "Short Python functions with assertions, most of them hidden.",
    MBPPOptions,
    facts,
    read,
)
