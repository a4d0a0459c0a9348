"""What a reader wants to see of a run, and under which names each host logs it: one table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

__all__ = ["STANDARD", "StandardCurve"]


@dataclass(frozen=True)
class StandardCurve:
    """A row of the table: a curve, and the names to look for, in order.

    Args:
        key: As in `curves.Curve`, and so are `title`, `unit` and `help`.
        common: Names under which SDPO logs it on every host.
        hosts: Names of each host's own.
        sampled: Computes a rollout's value from its line, where no metric says it.
    """

    key: str
    title: str
    unit: str
    help: str
    common: tuple[str, ...] = ()
    hosts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    sampled: Callable[[Mapping[str, object]], float | None] | None = None

    def names(self, host: str | None) -> list[str]:
        """Return the names to look for; a host's own first, then, for runs of unknown hosts, all others'."""
        own = self.hosts.get(host or "", ())
        others = [name for place in self.hosts.values() for name in place]
        return list(dict.fromkeys([*self.common, *own, *others]))


def _number(name: str) -> Callable[[Mapping[str, object]], float | None]:
    def of(line: Mapping[str, object]) -> float | None:
        value = line.get(name)
        return float(value) if isinstance(value, (bool, int, float)) else None

    return of


_SDPO = "self_distillation/"

STANDARD: tuple[StandardCurve, ...] = (
    StandardCurve(
        "reward",
        "Reward",
        "",
        "Mean reward of the student's answers.",
        hosts={"trl": ("reward",), "verl": ("critic/score/mean", "critic/rewards/mean"), "openrlhf": ("reward",)},
        sampled=_number("reward"),
    ),
    StandardCurve(
        "accuracy",
        "Accuracy",
        "share",
        "Share of the student's answers whose reward reaches `success_reward_threshold`.",
        common=(f"{_SDPO}success_rollout_fraction",),
        sampled=_number("success"),
    ),
    StandardCurve(
        "loss",
        "Loss",
        "",
        "What the optimizer lowers. Its size says little; it need not fall while a run learns.",
        hosts={"trl": ("loss",), "verl": ("actor/loss", "actor/pg_loss"), "openrlhf": ("policy_loss",)},
    ),
    StandardCurve(
        "divergence",
        "Divergence of student and teacher",
        "nats",
        "How differently the two continue the same answers. 0: the teacher has nothing to say.",
        common=(f"{_SDPO}divergence",),
    ),
    StandardCurve(
        "active",
        "Active rollouts",
        "share",
        "Rollouts whose teacher reads a demonstration or feedback; only these add to the loss.",
        common=(f"{_SDPO}reprompt_sample_fraction",),
    ),
    StandardCurve(
        "success_groups",
        "Questions with a success",
        "share",
        "Questions with at least one rollout that succeeded, and so a demonstration for the others.",
        common=(f"{_SDPO}success_group_fraction",),
    ),
    StandardCurve(
        "length",
        "Response length",
        "tokens",
        "Mean length of the student's answers.",
        hosts={
            "trl": ("completions/mean_length",),
            "verl": ("response_length/mean",),
            "openrlhf": ("response_length",),
        },
        sampled=_number("response_tokens"),
    ),
    StandardCurve(
        "gap",
        "Teacher–student gap",
        "nats",
        "Mean log q(y) − log π(y) of the sampled tokens. Over all answers it estimates −KL(student‖teacher), so it "
        "lies below 0; what counts is that it is higher on answers that succeeded.",
        common=(f"{_SDPO}gap", f"{_SDPO}teacher_student_gap"),
    ),
    StandardCurve(
        "gap_on_success",
        "Gap on answers that succeeded",
        "nats",
        "A teacher worth following likes these better than answers that failed: compare the two gaps.",
        common=(f"{_SDPO}gap_on_success",),
    ),
    StandardCurve(
        "gap_on_failure",
        "Gap on answers that failed",
        "nats",
        "A teacher worth following doubts what failed: clearly below 0, and below the gap on success.",
        common=(f"{_SDPO}gap_on_failure",),
    ),
    StandardCurve(
        "entropy",
        "Entropy of the student",
        "nats",
        "How undecided the student is about the next token. Near 0 it has stopped exploring.",
        common=(f"{_SDPO}entropy",),
        hosts={"trl": ("entropy",), "verl": ("actor/entropy",), "openrlhf": ("entropy_loss",)},
    ),
    StandardCurve(
        "teacher_distance",
        "Distance of the teacher's weights",
        "",
        "Root mean square of teacher minus student. 0: the teacher is the student, or does not follow it.",
        common=("teacher/distance",),
    ),
    StandardCurve(
        "teacher_accuracy",
        "The teacher's own accuracy",
        "share",
        "Share of questions that the teacher answers right from what it reads.",
        common=(f"{_SDPO}teacher_accuracy",),
    ),
    StandardCurve(
        "truncated",
        "Truncated teacher prompts",
        "share",
        "Teacher prompts longer than `max_reprompt_len`, of which something was cut.",
        common=(f"{_SDPO}truncated_fraction",),
    ),
    StandardCurve(
        "cut_off",
        "Answers cut off",
        "share",
        "Answers that ended at the length limit.",
        hosts={
            "trl": ("completions/clipped_ratio",),
            "verl": ("response_length/clip_ratio",),
            "openrlhf": ("response_clip_ratio",),
        },
        sampled=_number("cut_off"),
    ),
    StandardCurve(
        "kl",
        "KL to the reference model",
        "nats",
        "How far the student has moved from the reference model.",
        hosts={"trl": ("kl",), "verl": ("actor/kl_loss",), "openrlhf": ("kl",)},
    ),
    StandardCurve(
        "clip",
        "GRPO: clipped tokens",
        "share",
        "Tokens whose probability ratio left GRPO's trust region.",
        hosts={"trl": ("clip_ratio/region_mean",), "verl": ("actor/pg_clipfrac",), "openrlhf": ("ppo_clip_ratio",)},
    ),
    StandardCurve(
        "zero_spread",
        "GRPO: groups without spread",
        "share",
        "Questions whose answers all got one reward: GRPO learns nothing from them.",
        hosts={"trl": ("frac_reward_zero_std",)},
    ),
    StandardCurve(
        "gradient",
        "Norm of the gradient",
        "",
        "Before it is clipped.",
        hosts={"trl": ("grad_norm",), "verl": ("actor/grad_norm",), "openrlhf": ("actor_grad_norm",)},
    ),
)
"""In the order in which they are shown."""
