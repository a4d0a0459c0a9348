"""Checks of the run itself: did it begin, did it end, what did it warn of."""

from __future__ import annotations

from collections.abc import Iterator

from sdpo_plugins.report.checks.facts import PATIENCE, Check, Facts, Finding

__all__ = ["RUN"]

# A step may take many minutes, but hardly ever this many seconds.
_SILENCE = 1800.0
_MUST_BE_FINITE = ("loss", "policy_loss", "pg_loss", "grad_norm", "actor_grad_norm")


def beginning(facts: Facts) -> Iterator[Finding]:
    """Too few steps to judge."""
    steps = facts.run.steps
    if not steps:
        yield Finding(
            "beginning",
            "note",
            "No step was recorded yet",
            "The records hold no metrics: the run has not finished its first step.",
        )
    elif len(steps) < PATIENCE:
        yield Finding(
            "beginning",
            "note",
            "Too early to judge the course",
            f"{_count(len(steps), 'step')} recorded so far; trends are judged from {PATIENCE} on.",
        )


def ending(facts: Facts) -> Iterator[Finding]:
    """A run that was killed, or goes on."""
    run = facts.run
    last = run.steps[-1].step if run.steps else 0
    starts = f", after {len(run.headers)} starts" if len(run.headers) > 1 else ""
    if run.end is not None:
        reason = run.end.get("reason")
        if reason in ("finished", None):
            yield Finding("ending", "ok", "The run came to its end", f"It ended at step {run.end['step']}{starts}.")
        else:
            yield Finding(
                "ending",
                "warning",
                "The run ended before its time",
                f"It ended at step {run.end['step']}{starts}: {reason}.",
                "Look at the end of its log.",
            )
        return
    if facts.now is not None and run.steps and facts.now - run.steps[-1].time < _SILENCE:
        ago = max(facts.now - run.steps[-1].time, 0.0)
        yield Finding("ending", "ok", "The run goes on", f"Step {last} was recorded {ago:.0f} seconds ago{starts}.")
        return
    yield Finding(
        "ending",
        "warning",
        "The run has no end",
        f"Its last recorded step is {last}{starts}, and no line says that it ended: it goes on, or it was killed.",
        "If it no longer runs, look at the end of its log, and resume it from its last checkpoint.",
    )


def finite(facts: Facts) -> Iterator[Finding]:
    """A loss or a gradient that is no number: from then on nothing is learnt."""
    broken = [
        (step.step, name)
        for step in facts.run.steps
        for name, value in step.metrics.items()
        if value is None and name.rpartition("/")[2] in _MUST_BE_FINITE
    ]
    if broken:
        steps, (first, name) = len({step for step, _ in broken}), broken[0]
        yield Finding(
            "finite",
            "bad",
            "The loss or its gradient was no number",
            f"`{name}` was not finite at step {first}, and something was at {_count(steps, 'step')} in all.",
            "Go back to a checkpoint before it, and lower the learning rate, or train in bfloat16 in place of float16.",
        )


def warnings(facts: Facts) -> Iterator[Finding]:
    """What the run warned of while it ran."""
    told: dict[str, list[int]] = {}
    for step, text in facts.run.warnings:
        told.setdefault(text, []).append(step)
    for number, (text, steps) in enumerate(told.items()):
        where = f"step {steps[0]}" if len(steps) == 1 else f"{len(steps)} times, first at step {steps[0]}"
        yield Finding(f"warned_{number}", "warning", f"The run warned ({where})", text)


def problems(facts: Facts) -> Iterator[Finding]:
    """Lines of the records that could not be read."""
    found = facts.run.problems
    if found:
        yield Finding(
            "problems",
            "note",
            f"{_count(len(found), 'line')} of the records could not be read",
            " ".join(found[:3]) + (" …" if len(found) > 3 else ""),
        )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


RUN: tuple[Check, ...] = (beginning, ending, finite, warnings, problems)
