"""Does the student quote what only its teacher reads? A student that does has learnt to talk of its context."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sdpo_plugins.errors import ConfigError
from sdpo_plugins.report.checks.facts import PATIENCE, Check, Facts, Finding, percent
from sdpo_plugins.reprompt.templates import parse_template

__all__ = ["LEAKAGE", "phrases_of", "quoted"]

# How models speak of a demonstration or feedback that they were shown; compared without case and spacing.
_PHRASES = (
    "the correct solution",
    "the provided solution",
    "the given solution",
    "the reference solution",
    "the previous solution",
    "unsuccessful earlier attempt",
    "successful previous attempt",
    "my earlier attempt",
    "your earlier attempt",
    "my previous attempt",
    "your previous attempt",
    "according to the feedback",
    "based on the feedback",
    "the feedback says",
)
_TEMPLATES = ("reprompt_template", "solution_template", "feedback_template")
_SHORTEST = 12
_COMMON = 3
_BAD = 0.2
_WARNING = 0.05


def leakage(facts: Facts) -> Iterator[Finding]:
    """Answers that quote the teacher's template, phrases about it, or the environment's standing texts."""
    lines = facts.lines
    if not facts.is_sdpo or not lines:
        return
    phrases = phrases_of(facts.run.config, lines)
    hits = _quotes(lines, phrases)
    steps = sorted({int(line["step"]) for line in lines})
    early, late = _shares(lines, hits, steps)
    found = [(line, hit) for line, hit in zip(lines, hits, strict=True) if hit is not None]
    if not found:
        yield Finding(
            "leakage",
            "ok",
            "The student does not quote its teacher's context",
            f"None of the {len(lines)} recorded answers has a phrase of the teacher's templates.",
        )
        return
    counts: dict[str, int] = {}
    for _, hit in found:
        counts[hit] = counts.get(hit, 0) + 1
    most = sorted(counts, key=lambda phrase: -counts[phrase])[:3]
    example = found[-1][0]
    grown = late > max(2 * early, _WARNING) and len(steps) >= PATIENCE
    course = f"{percent(early)} of those of the first steps, {percent(late)} of the last"
    yield Finding(
        "leakage",
        ("bad" if late >= _BAD else "warning") if grown else "note",
        "The student quotes what only its teacher reads" if grown else "Some answers sound like the teacher's context",
        f"{len(found)} of {len(lines)} recorded answers ({course}) have "
        f"{', '.join(f'“{phrase}”' for phrase in most)}, which the student's own prompt does not; for example "
        f"rollout {example['id']} (step {example['step']}).",
        "Write into `reprompt_template` that the answer must not mention a solution or feedback, take a point off such "
        "answers in the reward, or use a slower teacher."
        if grown
        else "They did not become more; read the example.",
    )


def phrases_of(config: Mapping[str, Any], lines: list[Any]) -> list[str]:
    """Return what to look for in answers: phrases, pieces of the run's templates, lines that feedback repeats.

    Args:
        config: The run's options.
        lines: Of its recorded rollouts.

    Returns:
        Normalised as `quoted` compares them.

    Example:
        >>> phrases_of({"solution_template": "A winning answer: {successful_previous_attempt}"}, [])[-1]
        'a winning answer'
    """
    found = [*_PHRASES]
    for name in _TEMPLATES:
        try:
            pieces = parse_template(str(config.get(name) or "")).pieces
        except ConfigError:  # of another version, whose templates had another syntax
            continue
        found += [line for literal, _ in pieces for line in literal.splitlines()]
    sources: dict[str, set[str]] = {}
    for line in lines:
        for text in set(str(line.get("feedback") or "").splitlines()):
            sources.setdefault(text, set()).add(str(line["response"]))
    found += [text for text, answers in sources.items() if len(answers) >= _COMMON]
    normal = dict.fromkeys(_normal(text) for text in found)
    return [text for text in normal if len(text) >= _SHORTEST and " " in text]


def quoted(line: Mapping[str, Any], phrases: list[str]) -> str | None:
    """Return the first phrase that stands in a rollout's answer and not in its own prompt, or None.

    Args:
        line: A rollout's line.
        phrases: From `phrases_of`.
    """
    return _quotes([line], phrases)[0]


def _quotes(lines: Sequence[Mapping[str, Any]], phrases: Sequence[str]) -> list[str | None]:
    """Look for all phrases at once, by how they begin: a long run has thousands of both."""
    place = {phrase: number for number, phrase in enumerate(phrases)}
    by_start: dict[str, list[str]] = {}
    for phrase in phrases:
        by_start.setdefault(phrase[:_SHORTEST], []).append(phrase)
    found = []
    for line in lines:
        answer = _normal(str(line["response"]))
        starts = {answer[at : at + _SHORTEST] for at in range(len(answer) - _SHORTEST + 1)} & by_start.keys()
        hits = [phrase for start in starts for phrase in by_start[start] if phrase in answer]
        found.append(_not_asked(sorted(hits, key=place.__getitem__), line["prompt"]) if hits else None)
    return found


def _not_asked(hits: Sequence[str], prompt: Any) -> str | None:
    """Return the first phrase that does not stand in the student's prompt."""
    known = prompt if isinstance(prompt, str) else " ".join(str(turn["content"]) for turn in prompt)
    return next((phrase for phrase in hits if phrase not in _normal(known)), None)


def _shares(lines: list[Any], hits: list[str | None], steps: list[int]) -> tuple[float, float]:
    """Share of answers with a phrase in the first and in the last fifth of the steps."""
    size = max(len(steps) // 5, 1)
    shares = []
    for part in (set(steps[:size]), set(steps[-size:])):
        chosen = [hit is not None for line, hit in zip(lines, hits, strict=True) if int(line["step"]) in part]
        shares.append(sum(chosen) / len(chosen))
    return shares[0], shares[1]


def _normal(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip(" \t\n.:;,!").lower()


LEAKAGE: tuple[Check, ...] = (leakage,)
