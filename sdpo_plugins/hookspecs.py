"""Every hook of the plug-in system: its contract, and an example to copy.

A plug-in is a module or an object with functions marked by `hookimpl`. It is found by its entry point in the group
`sdpo_plugins`, and used only by runs that name it: `SDPOConfig(plugins=("renyi",), divergence="renyi")`.
Hooks run before training, `sdpo_metrics` once a rollout batch; none runs inside of the loss.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

import pluggy

from sdpo_plugins.types import (
    Divergence,
    Host,
    Reprompter,
    Rollout,
    Scorer,
    Selector,
    TeacherContexts,
    TeacherStrategy,
)

if TYPE_CHECKING:
    from sdpo_plugins.config import SDPOConfig

__all__ = ["ENTRY_POINT_GROUP", "PROJECT_NAME", "hookimpl", "hookspec"]

PROJECT_NAME = "sdpo"
ENTRY_POINT_GROUP = "sdpo_plugins"

_Function = TypeVar("_Function")

hookspec = pluggy.HookspecMarker(PROJECT_NAME)
hookimpl = pluggy.HookimplMarker(PROJECT_NAME)
"""Marks the functions of a plug-in that implement a hook."""


@hookspec
def sdpo_divergences() -> Iterable[Divergence]:  # type: ignore[empty-body]
    """Give named per-token divergences between student and teacher.

    Returns:
        Entries whose `build(config, options)` gives f(student_logp, teacher_logp): log-probabilities [..., K] →
        divergence in nats [...]; the K entries (top-K, a tail bucket, or the vocabulary) sum to one. Differentiable in
        `student_logp`, never negative beyond rounding, zero where both are equal, no NaN at −inf.

    Example:
        >>> @hookimpl
        ... def sdpo_divergences():
        ...     def build(config, options):
        ...         return lambda student, teacher: (teacher.exp() * (teacher - student)).sum(-1)
        ...
        ...     return [Divergence("plain_forward_kl", "KL(T‖S) without care for −inf.", build)]
    """


@hookspec
def sdpo_selectors() -> Iterable[Selector]:  # type: ignore[empty-body]
    """Give named rules for which rollout demonstrates for which.

    Returns:
        Entries whose `build(config, options)` gives select(index, candidates, rollouts) → one of the candidates, or
        None for no demonstration. `candidates` are batch positions of successful rollouts of the same group, never
        empty. The same inputs must give the same choice on every rank.

    Example:
        >>> @hookimpl
        ... def sdpo_selectors():
        ...     def build(config, options):
        ...         return lambda index, candidates, rollouts: candidates[-1]
        ...
        ...     return [Selector("last", "The last success of the group.", build)]
    """


@hookspec
def sdpo_reprompters() -> Iterable[Reprompter]:  # type: ignore[empty-body]
    """Give named builders of what the teacher reads before it re-scores an answer.

    Returns:
        Entries whose `build(config, options)` gives reprompt(rollouts) → `TeacherContexts`: one context for each
        rollout in the same order, and the batch's metrics. The rollouts must not be changed.

    Example:
        >>> @hookimpl
        ... def sdpo_reprompters():
        ...     def build(config, options):
        ...         def reprompt(rollouts):
        ...             contexts = (TeacherContext(list(r.prompt), active=False) for r in rollouts)
        ...             return TeacherContexts(tuple(contexts), {})
        ...
        ...         return reprompt
        ...
        ...     return [Reprompter("nothing", "Every rollout stays inactive.", build)]
    """


@hookspec
def sdpo_scorers() -> Iterable[Scorer]:  # type: ignore[empty-body]
    """Give named functions that reward an answer and say what was wrong with it.

    Returns:
        Entries whose `build(config, options)` gives score(response, sample) → `Score` with a finite reward and the
        feedback text or None. `sample` is the dataset's row and must not be changed; no response may raise.

    Example:
        >>> @hookimpl
        ... def sdpo_scorers():
        ...     def build(config, options):
        ...         return lambda response, sample: Score(float(response.strip() == sample["answer"]))
        ...
        ...     return [Scorer("exact", "1 if the answer is the dataset's, else 0.", build)]
    """


@hookspec
def sdpo_teachers() -> Iterable[TeacherStrategy]:  # type: ignore[empty-body]
    """Give named strategies for the teacher's weights.

    Returns:
        Entries whose `build(config, options)` gives a fresh object with the methods of
        `sdpo_plugins.teacher.Teacher`; it starts as an exact copy of the student, and its state survives a checkpoint.

    Example:
        >>> @hookimpl
        ... def sdpo_teachers():
        ...     def build(config, options):
        ...         from my_package import SlowTeacher  # torch only when it is used
        ...
        ...         return SlowTeacher(rate=config.teacher_update_rate / 10)
        ...
        ...     return [TeacherStrategy("slow", "An EMA at a tenth of the rate.", build)]
    """


@hookspec
def sdpo_hosts() -> Iterable[Host]:  # type: ignore[empty-body]
    """Give the training frameworks for which an adapter exists.

    Returns:
        Entries that say which distribution in which versions the adapter supports; nothing is imported until its use.

    Example:
        >>> @hookimpl
        ... def sdpo_hosts():
        ...     return [Host("mine", "my-trainer", ">=2,<3", "my_trainer_sdpo", "pip install my-trainer-sdpo")]
    """


@hookspec
def sdpo_validate(config: SDPOConfig, host: str | None) -> Iterable[str]:  # type: ignore[empty-body]
    """Say what is wrong with a configuration; the problems of all plug-ins are raised together.

    Args:
        config: The options, each valid by itself.
        host: Name of the host that will run it, or None if unknown.

    Returns:
        One sentence for each problem: what was wrong, what was given, what is valid, what to do.

    Example:
        >>> @hookimpl
        ... def sdpo_validate(config, host):
        ...     if config.divergence == "renyi" and not config.full_logit_distillation:
        ...         return ["`divergence='renyi'` needs `full_logit_distillation=True`, got False."]
        ...     return []
    """


@hookspec
def sdpo_metrics(  # type: ignore[empty-body]
    config: SDPOConfig, rollouts: Sequence[Rollout], contexts: TeacherContexts
) -> Mapping[str, float]:
    """Give more metrics of a rollout batch; a key that exists already is an error.

    Args:
        config: The run's options.
        rollouts: The batch, in order.
        contexts: What the teacher reads for each of them, and the metrics known so far.

    Returns:
        Names and finite numbers; begin the names with the plug-in's own ("renyi/…").

    Example:
        >>> @hookimpl
        ... def sdpo_metrics(rollouts):  # take only the arguments that you need
        ...     return {"mine/longest_response": float(max(len(r.response) for r in rollouts))}
    """


@hookspec(firstresult=True)
def sdpo_attach(target: object) -> Host | None:
    """Say whether a trainer or a host's configuration belongs to a host of yours.

    Args:
        target: A trainer, or the configuration object that the host reads.

    Returns:
        The host entry whose adapter can drive it; None leaves the question to the next plug-in.

    Example:
        >>> @hookimpl
        ... def sdpo_attach(target):
        ...     return MY_HOST if type(target).__module__.startswith("my_trainer.") else None
    """
