"""SciKnowEval: the reasoning level's multiple-choice questions of one science, with the authors' split and prompt."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdpo_plugins._options import option
from sdpo_plugins.data.sources import TEST, TRAIN, Example, Facts, Source, Split, message
from sdpo_plugins.errors import DataError, nearest

if TYPE_CHECKING:
    from datasets import Dataset

    from sdpo_plugins.data.loading import Loader

__all__ = ["SOURCE", "SYSTEM_PROMPT", "SciKnowEvalOptions"]

HUB = "hicai-zju/SciKnowEval"
LEVEL = "L3"
TYPES = ("mcq-4-choices", "mcq-2-choices")
DOMAINS = ("Biology", "Chemistry", "Material", "Physics")

# The paper's prompt (appendix E.3, listing 1), with its line breaks.
SYSTEM_PROMPT = """
Given a question and four options, please select the right answer. Respond in the following format:
<reasoning>
...
</reasoning>
<answer>
...
</answer>

For the answer, only output the letter corresponding to the correct option (A, B, C, or D), and nothing else. Do not \
restate the answer text. For example, if the answer is "A", just output:
<answer>
A
</answer>
"""


@dataclass(frozen=True)
class SciKnowEvalOptions:
    """Options of `sciknoweval`."""

    domain: str = option("Chemistry", "The science.", choices=DOMAINS)
    test_share: float = option(0.1, "Share of the questions that is held out.", low=0.0, high=1.0, exclusive=True)
    seed: int = option(42, "Of the split.", low=0)


def facts(options: SciKnowEvalOptions, place: Path | None) -> Facts:
    """Describe the data."""
    return Facts(
        task=f"sciknoweval_{options.domain.lower()}",
        data_source="sciknoweval",
        scorer="multiple_choice",
        origin=f"{HUB}, split test, {options.domain}, level {LEVEL}, types {' and '.join(TYPES)}",
        link=f"https://huggingface.co/datasets/{HUB}",
        license="mit",
        prompt="the paper's system message (arXiv 2601.20802, appendix E.3), which asks for <reasoning> and a letter "
        "in <answer>; then the question with its lettered choices and `Please reason step by step.`",
        split=f"the authors': train_test_split({options.test_share:g}, seed={options.seed}) of the datasets library",
    )


def read(options: SciKnowEvalOptions, loader: Loader) -> dict[str, Split]:
    """Choose and divide the questions."""
    needed = ("question", "choices", "answerKey", "type", "domain", "details")
    chosen = _choose(loader.table(HUB, TEST, needed), options.domain)
    try:
        parts = chosen.train_test_split(test_size=options.test_share, seed=options.seed)
    except ValueError as error:
        raise DataError(
            f"{len(chosen)} questions cannot be divided with a test share of {options.test_share:g}: {error}"
        ) from error
    return {name: Split(len(parts[name]), _examples(parts[name])) for name in (TRAIN, TEST)}


def _choose(questions: Dataset, domain: str) -> Dataset:
    """Keep what fits in its order, with its place among what fits as `place`."""
    marks = questions.select_columns(["type", "domain", "details"])
    places = [
        place
        for place, row in enumerate(marks)
        if row["domain"] == domain and row["details"]["level"] == LEVEL and row["type"] in TYPES
    ]
    if len(places) < 2:
        found = sorted({str(row["domain"]) for row in marks})
        raise DataError(
            f"{len(places)} of {len(questions)} rows are multiple-choice questions of level {LEVEL} on {domain!r}; two "
            f"are needed. Domains in this data: {', '.join(found)}. Choose one with --domain."
            f"{nearest(domain, [name for name in found if name != domain])}"
        )
    return questions.select(places).add_column("place", list(range(len(places))))


def _examples(questions: Any) -> Iterator[Example]:
    for row in questions:
        choices = zip(row["choices"]["label"], row["choices"]["text"], strict=True)
        listed = "\n".join(f"{label}: {text}" for label, text in choices)
        if row["answerKey"] not in row["choices"]["label"]:
            raise DataError(
                f"the answer {row['answerKey']!r} of question {row['question'][:80]!r} is none of its choices."
            )
        prompt = [
            message("system", SYSTEM_PROMPT),
            message("user", f"{row['question']}\n\n{listed}\nPlease reason step by step."),
        ]
        yield Example(prompt, row["answerKey"], row["place"])


SOURCE = Source(
    "sciknoweval",
    "The paper's science questions (section 3): multiple choice on one of four subjects.",
    SciKnowEvalOptions,
    facts,
    read,
)
