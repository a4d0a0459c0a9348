"""Checks of the teacher: does it differ, does it approve what succeeded, does it follow, does it read everything."""

from __future__ import annotations

import math
from collections.abc import Iterator

from sdpo_plugins.health import EQUAL, TROUBLES
from sdpo_plugins.report.checks.facts import PATIENCE, Check, Facts, Finding, Trend, mean_of, percent

__all__ = ["TEACHER"]

_EMA = ("ema", "lora_ema")
_LITTLE = 1e-3
_FAR = 0.05
_OFTEN_TRUNCATED = 0.1
_ACCURACY_LOST = 0.7
_DOUBT_LOST = 0.1
_DOUBT = 0.02


def differs(facts: Facts) -> Iterator[Finding]:
    """Teacher and student are one."""
    values = facts.values("divergence")
    trend = facts.trend("divergence")
    if trend is None:
        return
    trouble = TROUBLES["teacher_is_student"]
    equal = next((back for back, value in enumerate(reversed(values)) if abs(value) >= EQUAL), len(values))
    if equal >= trouble.patience:
        text = trouble.text.format(n=equal)
        yield Finding("differs", "bad", "The teacher is the student", text, trouble.advice)
    elif trend.late < _LITTLE:
        yield Finding(
            "differs",
            "note",
            "Teacher and student hardly differ",
            f"Their divergence was {trend.late:.1e} nats at the end ({trend.early:.1e} at the beginning).",
            "If accuracy still is low, look at the teacher prompts.",
        )
    else:
        yield Finding(
            "differs",
            "ok",
            "The teacher has something to say",
            f"It diverged from the student by {trend.early:.3g} nats at the beginning, {trend.late:.3g} at the end.",
        )


def approval(facts: Facts) -> Iterator[Finding]:
    """The teacher likes what failed better than what succeeded, or no longer doubts what failed."""
    success, failure = facts.trend("gap_on_success"), facts.trend("gap_on_failure")
    if success is None or failure is None:
        return
    said = (
        f"Its mean verdict log q − log π at the end is {success.late:+.3f} nats on answers that succeeded and "
        f"{failure.late:+.3f} on those that failed"
    )
    noise = math.hypot(success.error, failure.error)
    if success.late < failure.late - max(2 * noise, EQUAL):
        yield Finding(
            "approval",
            "warning",
            "The teacher dislikes what succeeded",
            f"{said}: it pulls the student away from its good answers.",
            "Look at the teacher prompts: is the right demonstration in them, and is the question complete?",
        )
    elif _doubts_no_more(facts, failure):
        yield Finding(
            "approval",
            "warning",
            "The teacher no longer doubts what failed",
            f"{said}, where it was {failure.early:+.3f} at the beginning, while "
            f"{percent(1 - _late_accuracy(facts))} of the answers still fail.",
            "The teacher may have taken on its student's mistakes: use a slower or a frozen teacher.",
        )
    elif success.late > failure.late and _tells_apart(facts):
        verb = "approves" if success.late > 0 else "prefers"
        yield Finding("approval", "ok", f"The teacher {verb} what succeeded", f"{said}.")
    else:
        yield Finding(
            "approval",
            "note",
            "The teacher hardly tells success from failure",
            f"{said}; over the run the difference is within its noise.",
            "If this lasts, look at the teacher prompts.",
        )


def accuracy(facts: Facts) -> Iterator[Finding]:
    """The teacher itself answers fewer questions, or fewer than its student."""
    values = facts.values("teacher_accuracy")
    trend = facts.trend("teacher_accuracy", least=3)
    if trend is None:
        return
    course = (
        f"It answered {percent(trend.early)} of the questions at the beginning and {percent(trend.late)} at the end "
        f"({len(values)} measurements)."
    )
    student = facts.trend("accuracy")
    if trend.late < _ACCURACY_LOST * trend.early - 2 * trend.error / 3:
        yield Finding(
            "teacher_accuracy",
            "bad",
            "The teacher loses its accuracy",
            course,
            "Lower `teacher_update_rate`, or use the frozen teacher.",
        )
    elif student is not None and trend.late < student.late - 2 * max(trend.error, student.error):
        yield Finding(
            "teacher_accuracy",
            "warning",
            "The student answers better than its teacher",
            f"{course} The student is at {percent(student.late)}.",
            "Look at the teacher prompts; the context may confuse the teacher.",
        )
    elif trend.late > 0:
        yield Finding("teacher_accuracy", "ok", "The teacher knows the answers", course)


def weights(facts: Facts) -> Iterator[Finding]:
    """An EMA teacher that stays where the student is, or is left far behind."""
    values = facts.values("teacher_distance")
    config = facts.run.config
    rate = float(config.get("teacher_update_rate", 0.0) or 0.0)
    if len(values) < PATIENCE or config.get("teacher") not in _EMA or not 0.0 < rate < 1.0:
        return
    relative = facts.metric("teacher/relative_distance")
    half = values[len(values) // 2]
    if not any(values[-PATIENCE:]):
        yield Finding(
            "weights",
            "bad",
            "The teacher's average stands still",
            f"The distance of its weights to the student's was 0 in the last {PATIENCE} updates, where an average "
            f"with rate {rate:g} lags behind: no weight of the student has changed, or none is averaged.",
            "See that the learning rate is above 0 and that something is trainable.",
        )
    elif values[-1] > 5 * half and relative and relative[-1] > _FAR:
        yield Finding(
            "weights",
            "warning",
            "The student runs away from its teacher",
            f"The distance of their weights grew from {half:.2g} half way to {values[-1]:.2g}, which is "
            f"{percent(relative[-1])} of the student's norm.",
            "Lower the learning rate; if the gradient explodes, clip it.",
        )
    else:
        yield Finding(
            "weights",
            "ok",
            "The teacher follows its student",
            f"The distance of their weights is {values[-1]:.2g} (root mean square) at the end.",
        )


def truncation(facts: Facts) -> Iterator[Finding]:
    """Teacher prompts that were cut."""
    values = facts.values("truncated")
    if not values:
        return
    mean = sum(values) / len(values)
    if mean == 0.0:
        yield Finding("truncation", "ok", "The teacher reads everything", "No teacher prompt was cut.")
        return
    trouble = TROUBLES["truncated"]
    dropped = facts.metric("self_distillation/dropped_too_long_fraction")
    lost = sum(dropped) / len(dropped) if dropped else 0.0
    emptied = f" {percent(lost)} of the active rollouts were left with nothing to read." if lost else ""
    cut = facts.metric("self_distillation/truncated_tokens_mean")
    tokens = f" On average {sum(cut) / len(cut):.0f} tokens were cut." if cut else ""
    yield Finding(
        "truncation",
        "warning" if mean >= _OFTEN_TRUNCATED or lost else "note",
        "Teacher prompts are cut",
        f"{trouble.text.format(share=max(values))} The mean over the run is {percent(mean)}.{tokens}{emptied}",
        trouble.advice,
    )


def feedback(facts: Facts) -> Iterator[Finding]:
    """Feedback that nobody reads."""
    unused = facts.metric("self_distillation/feedback_unused_fraction")
    used = facts.metric("self_distillation/feedback_used_fraction")
    if unused and max(unused) > 0.0:
        share = sum(unused) / len(unused)
        yield Finding(
            "feedback",
            "warning",
            "Feedback is given, but not used",
            f"{TROUBLES['feedback_unused'].text} {percent(share)} of the rollouts had some.",
            "Set `include_environment_feedback` to true.",
        )
    elif used and max(used) > 0.0:
        share = sum(used) / len(used)
        yield Finding(
            "feedback", "ok", "Feedback is used", f"The teacher read some for {percent(share)} of the rollouts."
        )


def _tells_apart(facts: Facts) -> bool:
    """Whether the verdicts on success and failure differ over the whole run by more than their noise."""
    success, failure = (mean_of(facts.values(key)) for key in ("gap_on_success", "gap_on_failure"))
    return success[0] - failure[0] > 2 * math.hypot(success[1], failure[1])


def _doubts_no_more(facts: Facts, failure: Trend) -> bool:
    lost = failure.early < -_DOUBT and failure.late > _DOUBT_LOST * failure.early
    return lost and failure.late - failure.early > 2 * failure.error and _late_accuracy(facts) < 0.5


def _late_accuracy(facts: Facts) -> float:
    trend = facts.trend("accuracy")
    return trend.late if trend is not None else 1.0


TEACHER: tuple[Check, ...] = (differs, approval, accuracy, weights, truncation, feedback)
