"""Checks of the student: does anything succeed, and do its answers stay answers."""

from __future__ import annotations

from collections.abc import Iterator

from sdpo_plugins.health import COLLAPSED_TO, LONG_ENOUGH, TROUBLES
from sdpo_plugins.report.checks.facts import PATIENCE, Check, Facts, Finding, percent

__all__ = ["STUDENT"]

_FALL = 0.05
_OFTEN_CUT = 0.5
_SOMETIMES_CUT = 0.1
_FEW = 0.1
_LOW_ENTROPY = 0.05
_MASTERED = 0.9
_NO_SPREAD = 0.9


def success(facts: Facts) -> Iterator[Finding]:
    """Nothing succeeds, accuracy falls, or it holds."""
    values = facts.values("accuracy")
    trend = facts.trend("accuracy")
    if trend is None:
        return
    nothing = TROUBLES["nothing_succeeded"]
    if not any(values[-PATIENCE:]):
        barren = next((back for back, value in enumerate(reversed(values)) if value), len(values))
        fed = facts.metric("self_distillation/feedback_used_fraction")
        if any(fed[-PATIENCE:]):
            yield Finding(
                "success",
                "warning",
                "Nothing succeeds",
                f"No rollout has succeeded in the last {barren} rollout batches. The teacher reads feedback, so there "
                "still is something to learn, but no demonstration.",
                "Take easier questions or more rollouts per question if this lasts.",
            )
        else:
            yield Finding("success", "bad", "Nothing succeeds", nothing.text.format(n=barren), nothing.advice)
        return
    course = f"{percent(trend.early)} of the answers succeeded at the beginning, {percent(trend.late)} at the end."
    if trend.early - trend.late > max(_FALL, 2 * trend.error):
        yield Finding(
            "success",
            "warning",
            "Accuracy falls",
            course,
            "Lower the learning rate, use a slower teacher, and read answers from the end of the run.",
        )
    elif trend.late - trend.early > max(_FALL, 2 * trend.error):
        yield Finding("success", "ok", "Accuracy rises", course)
    else:
        yield Finding("success", "ok", "Accuracy holds", f"{course} The difference is within its noise.")


def active(facts: Facts) -> Iterator[Finding]:
    """Nothing to learn from, though something succeeds."""
    values = facts.values("active")
    if len(values) < PATIENCE:
        return
    trend = facts.trend("active")
    assert trend is not None
    idle = next((back for back, value in enumerate(reversed(values)) if value), len(values))
    trouble = TROUBLES["nothing_active"]
    if idle >= trouble.patience:
        # Where nothing succeeds and no feedback is shown, nothing can be active; that is said already.
        if any(facts.values("accuracy")[-PATIENCE:]) or any(facts.values("success_groups")[-PATIENCE:]):
            yield Finding("active", "bad", "Nothing is active", trouble.text.format(n=idle), trouble.advice)
    elif trend.late < _FEW:
        yield Finding(
            "active",
            "warning",
            "Few rollouts are active",
            f"At the end {percent(trend.late)} of the rollouts added to the loss ({percent(trend.early)} at the "
            "beginning).",
            "Raise the rollouts per question, or return feedback from the reward function.",
        )
    else:
        yield Finding(
            "active", "ok", "Rollouts are active", f"At the end {percent(trend.late)} of them added to the loss."
        )


def length(facts: Facts) -> Iterator[Finding]:
    """Answers collapse, shrink, or stay."""
    values = facts.values("length")
    trend = facts.trend("length")
    if trend is None:
        return
    first = values[0]
    trouble = TROUBLES["length_collapse"]
    short = next((back for back, value in enumerate(reversed(values)) if value >= COLLAPSED_TO * first), len(values))
    course = f"{trend.early:.0f} tokens at the beginning, {trend.late:.0f} at the end"
    if first >= LONG_ENOUGH and short >= trouble.patience:
        text = trouble.text.format(first=first, now=values[-1], n=short)
        yield Finding("length", "bad", "Answers collapse in length", text, trouble.advice)
    elif trend.early >= LONG_ENOUGH and trend.late < 0.5 * trend.early:
        yield Finding(
            "length",
            "note",
            "Answers have become much shorter",
            f"{course}. SDPO's answers often become shorter without loss; see that accuracy holds.",
        )
    else:
        yield Finding("length", "ok", "Answers keep a sound length", f"{course}.")


def cut_off(facts: Facts) -> Iterator[Finding]:
    """Answers that end at the length limit."""
    trend = facts.trend("cut_off")
    if trend is None:
        return
    if trend.late < _SOMETIMES_CUT:
        title = "Answers come to their end" if trend.late == 0 else "Few answers are cut off"
        yield Finding(
            "cut_off", "ok", title, f"{percent(trend.late)} of them reached the length limit at the end of the run."
        )
        return
    yield Finding(
        "cut_off",
        "bad" if trend.late >= _OFTEN_CUT else "warning",
        "Answers are cut off",
        f"{percent(trend.late)} of the answers reached the length limit at the end of the run "
        f"({percent(trend.early)} at the beginning): they are judged without their end.",
        "Raise the response length, or say in the prompt how long an answer may be.",
    )


def entropy(facts: Facts) -> Iterator[Finding]:
    """The student no longer explores."""
    trend = facts.trend("entropy")
    if trend is None:
        return
    course = f"{trend.early:.2f} nats at the beginning, {trend.late:.2f} at the end"
    accuracy = facts.trend("accuracy")
    if accuracy is not None and accuracy.late >= _MASTERED and trend.late <= _LOW_ENTROPY:
        # What is known needs no exploring.
        text = f"Its entropy was {course}, and {percent(accuracy.late)} of its answers are right."
        yield Finding("entropy", "ok", "The student is sure, and right", text)
    elif trend.early > _LOW_ENTROPY > trend.late and trend.late < 0.25 * trend.early:
        yield Finding(
            "entropy",
            "warning",
            "The student has stopped exploring",
            f"Its entropy was {course}: it answers a question in one way only, right or wrong.",
            "Lower the learning rate, or raise the temperature of the rollouts.",
        )
    else:
        yield Finding("entropy", "ok", "The student still explores", f"Its entropy was {course}.")


def spread(facts: Facts) -> Iterator[Finding]:
    """GRPO: all answers to a question get one reward."""
    trend = facts.trend("zero_spread")
    if trend is None or facts.is_sdpo:
        return
    if trend.late >= _NO_SPREAD:
        yield Finding(
            "spread",
            "warning",
            "GRPO learns from few questions",
            f"In {percent(trend.late)} of the groups at the end all answers got one reward, which gives no advantage.",
            "Take questions of another difficulty, or more rollouts per question.",
        )


STUDENT: tuple[Check, ...] = (success, active, length, cut_off, entropy, spread)
