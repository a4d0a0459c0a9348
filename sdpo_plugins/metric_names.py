"""Every metric that this package gives, by name: what it means, its unit, where it comes from."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["HOSTS", "METRICS", "Metric", "markdown_table", "metric"]

HOSTS = ("trl", "verl", "openrlhf")

_SHOWN = {"trl": "TRL", "verl": "verl", "openrlhf": "OpenRLHF", "loss": "the loss functions"}


@dataclass(frozen=True)
class Metric:
    """A metric.

    Args:
        name: As it is logged, and as it stands in a run's records.
        meaning: In a few words.
        unit: "nats", "tokens", "share" (0 to 1), "count" …
        where: Which hosts log it ("trl", "verl", "openrlhf"), and "loss" where `self_distillation_loss` and
            `fused_self_distillation_loss` return it to their caller.
        every: When there is a new value.
        optional: True if only some settings give it.
    """

    name: str
    meaning: str
    unit: str
    where: tuple[str, ...] = HOSTS
    every: str = "rollout batch"
    optional: bool = False


def _batch(name: str, meaning: str, unit: str = "share") -> Metric:
    return Metric(f"self_distillation/{name}", meaning, unit)


def _step(name: str, meaning: str, unit: str, *, loss: bool = False, optional: bool = False) -> Metric:
    where = (*HOSTS, "loss") if loss else HOSTS
    return Metric(f"self_distillation/{name}", meaning, unit, where, "optimizer step", optional)


def _loss(name: str, meaning: str, unit: str, *, optional: bool = False) -> Metric:
    return Metric(f"self_distillation/{name}", meaning, unit, ("loss",), "call", optional)


METRICS: tuple[Metric, ...] = (
    # Rollouts and teacher contexts
    _batch("group_count", "questions in the rollout batch", "count"),
    _batch("success_rollout_fraction", "rollouts that succeeded: the student's own accuracy while it trains"),
    _batch("success_group_fraction", "questions with at least one rollout that succeeded"),
    _batch("success_sample_fraction", "rollouts for which a successful one demonstrates"),
    _batch("feedback_available_fraction", "rollouts with feedback that may be shown"),
    _batch("feedback_used_fraction", "rollouts whose teacher reads feedback"),
    _batch("feedback_unused_fraction", "rollouts with feedback while `include_environment_feedback` is off"),
    _batch("reprompt_sample_fraction", "active rollouts: those whose teacher reads a demonstration or feedback"),
    _batch("unclosed_thinking_fraction", "answers that end inside of a thinking part"),
    _batch("demonstration_chars_mean", "mean length of a demonstration", "characters"),
    # Teacher prompts in tokens
    _batch("truncated_fraction", "teacher prompts, of those of active rollouts, of which something was cut"),
    _batch("truncated_tokens_mean", "tokens cut from a teacher prompt, mean over active rollouts", "tokens"),
    _batch("truncated_demonstration_tokens_mean", "of these, tokens of the demonstration", "tokens"),
    _batch("truncated_feedback_tokens_mean", "of these, tokens of the feedback", "tokens"),
    _batch("dropped_too_long_fraction", "active rollouts that truncation left with nothing to read, so inactive"),
    _batch("teacher_prompt_length_mean", "mean length of the teacher prompts of active rollouts", "tokens"),
    _batch("teacher_prompt_length_max", "longest teacher prompt of an active rollout", "tokens"),
    # The step
    _step("active_tokens", "tokens that carry loss", "tokens", loss=True),
    _step(
        "divergence", "divergence of student and teacher at active tokens, before clip and weights", "nats", loss=True
    ),
    _step("log_prob", "mean log π(y) of the sampled tokens", "nats"),
    _step("entropy", "mean entropy of the student at active tokens", "nats", loss=True),
    _step("importance_ratio", "mean π/π_old before the clip", "ratio", loss=True, optional=True),
    _step("gap", "mean log q(y) − log π(y) of sampled tokens; above 0: the teacher likes them better", "nats"),
    _step("gap_on_success", "the same over answers that succeeded", "nats", optional=True),
    _step("gap_on_failure", "the same over answers that failed", "nats", optional=True),
    _step("prefix_saved_fraction", "share of the teacher's tokens that common prefixes saved", "share", optional=True),
    # The teacher's weights
    Metric("teacher/distance", "root mean square of teacher minus student over all weights", "as the weights"),
    Metric("teacher/relative_distance", "‖teacher − student‖ / ‖student‖ over all weights", "ratio"),
    Metric("teacher/updates", "updates of the teacher so far", "count"),
    Metric(
        "self_distillation/teacher_accuracy",
        "share of questions that the teacher itself answers right from its context (`teacher_accuracy_every`)",
        "share",
        ("trl",),
        "probe",
        optional=True,
    ),
    # What the loss functions return beside
    _loss("active_sequences", "rows with at least one active token", "count"),
    _loss("empty_target_batch", "1 if nothing is active, else 0", "flag"),
    _loss("student_log_prob", "mean log π(y) of the sampled tokens", "nats"),
    _loss("teacher_student_gap", "mean log q(y) − log π(y) of the sampled tokens", "nats"),
    _loss("teacher_student_gap_abs", "mean of its absolute value", "nats"),
    _loss("student_topk_mass", "the student's probability of the top-K entries together", "probability", optional=True),
    _loss("teacher_topk_mass", "the teacher's probability of the same entries", "probability", optional=True),
    _loss("importance_clip_fraction", "tokens whose ratio was clipped", "share", optional=True),
    _loss("rollout_is_weight", "mean rollout weight", "ratio", optional=True),
    _loss("loss_clip_fraction", "tokens whose loss was clipped", "share", optional=True),
    # Under the hosts' own names, where SDPO computes what the host otherwise would
    Metric("kl", "KL of the student to the reference model over all tokens", "nats", ("trl",), "optimizer step", True),
    Metric("aux_loss", "load-balancing loss of a mixture of experts", "loss", ("trl",), "optimizer step", True),
    Metric("actor/kl_loss", "KL of the student to the reference model", "nats", ("verl",), "optimizer step", True),
    Metric("actor/kl_coef", "its coefficient in the loss", "ratio", ("verl",), "optimizer step", True),
)
"""In the order in which a reader meets them."""

_BY_NAME = {item.name: item for item in METRICS}


def metric(name: str) -> Metric | None:
    """Return the entry of a metric, or None if it is not one of this package's.

    Args:
        name: As it is logged.

    Example:
        >>> metric("self_distillation/gap").unit
        'nats'
    """
    return _BY_NAME.get(name)


def markdown_table() -> str:
    """Return all metrics as a Markdown table, for the reference documentation.

    Example:
        >>> markdown_table().splitlines()[0]
        '| metric | meaning | unit | new value each | where |'
    """
    lines = ["| metric | meaning | unit | new value each | where |", "|---|---|---|---|---|"]
    for item in METRICS:
        where = _where(item.where) + ("; only with some settings" if item.optional else "")
        cells = (f"`{item.name}`", item.meaning, item.unit, item.every, where)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def _where(places: tuple[str, ...]) -> str:
    if places[: len(HOSTS)] == HOSTS:
        return ", ".join(["all hosts", *(_SHOWN[place] for place in places[len(HOSTS) :])])
    return ", ".join(_SHOWN[place] for place in places)
