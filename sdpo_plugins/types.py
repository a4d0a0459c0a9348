"""Values that pass between hosts, plug-ins and the core. No torch here."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = [
    "Divergence",
    "Host",
    "Message",
    "Reprompter",
    "Rollout",
    "Score",
    "Scorer",
    "Section",
    "Selector",
    "TeacherContext",
    "TeacherContexts",
    "TeacherStrategy",
]

Message = Mapping[str, Any]
"""One chat message, `{"role": …, "content": str | list of parts}`."""


@dataclass(frozen=True)
class Rollout:
    """One sampled answer with what the environment said about it.

    Args:
        group_id: Identifies the question; rollouts of one question share it.
        prompt: Chat messages, or a plain string for models without a chat template.
        response: The decoded answer, special tokens removed.
        reward: Total reward; success is `reward >= success_reward_threshold`.
        feedback: What the environment said of this answer; None or blank means nothing.
        rewards: The named parts of the reward, for `success_reward_name`.
        is_padding: True for a row that only fills up a batch: it never demonstrates, is never active, counts nowhere.
        thinking_opened: True if the prompt's template already opened the thinking tag, so that the response begins
            inside of it.

    Example:
        >>> Rollout(group_id=0, prompt=[{"role": "user", "content": "2+2?"}], response="4", reward=1.0).reward
        1.0
    """

    group_id: Hashable
    prompt: str | Sequence[Message]
    response: str
    reward: float
    feedback: str | None = None
    rewards: Mapping[str, float] | None = None
    is_padding: bool = False
    thinking_opened: bool = False


@dataclass(frozen=True)
class Section:
    """A part of the teacher's text that truncation may shorten.

    Args:
        kind: "demonstration" or "feedback".
        text: The raw text that was put into the template.
    """

    kind: Literal["demonstration", "feedback"]
    text: str


@dataclass(frozen=True)
class TeacherContext:
    """What the teacher reads before it re-scores one response.

    Args:
        messages: Chat messages, or a string where the prompt was a string. For an inactive rollout it is the prompt
            itself, so that a batch keeps its shape.
        active: False if there is neither a demonstration nor feedback: the rollout adds no loss.
        demonstration_index: Position in the batch of the rollout that demonstrates, or None.
        feedback_used: True if feedback stands in the context.
        sections: The demonstration and feedback texts in it, for section-aware truncation.
        rebuild: Gives the messages again with other texts in the place of those of `sections` (same order).
    """

    messages: str | list[dict[str, Any]]
    active: bool
    demonstration_index: int | None = None
    feedback_used: bool = False
    sections: tuple[Section, ...] = ()
    rebuild: Callable[[Sequence[str]], str | list[dict[str, Any]]] | None = field(
        default=None, repr=False, compare=False
    )


@dataclass(frozen=True)
class TeacherContexts:
    """The teacher contexts of a batch, one for each rollout in the same order, and the batch's metrics."""

    contexts: tuple[TeacherContext, ...]
    metrics: Mapping[str, float]

    @property
    def self_distillation_mask(self) -> list[float]:
        """1.0 where the rollout is active, else 0.0; length = number of rollouts."""
        return [float(context.active) for context in self.contexts]


@dataclass(frozen=True)
class Score:
    """What a scorer says of a response: the reward, the feedback text, and details for logs."""

    reward: float
    feedback: str | None = None
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Strategy:
    """Common shape of a catalogue entry.

    Args:
        name: What a configuration says to choose it.
        summary: One line for `sdpo list`.
        build: Called once before training with the validated `SDPOConfig` and the options object.
        options: A dataclass of the strategy's own options (`<kind>_options` in the configuration), or None.
        provider: Filled in by the catalogue: the plug-in the entry came from.
    """

    name: str
    summary: str
    build: Callable[..., Any]
    options: type[Any] | None = None
    provider: str = ""


@dataclass(frozen=True)
class Divergence(_Strategy):
    """`build(config, options) -> f`, `f(student_logp, teacher_logp)`: log-probs [..., K] → divergence [...]."""


@dataclass(frozen=True)
class Selector(_Strategy):
    """`build(config, options) -> select`, `select(index, candidates, rollouts) -> int | None`.

    `candidates` are the positions of the successful rollouts that may demonstrate for rollout `index`, in batch order
    and never empty; None means that no one demonstrates.
    """


@dataclass(frozen=True)
class Reprompter(_Strategy):
    """`build(config, options) -> reprompt`, `reprompt(rollouts) -> TeacherContexts`."""


@dataclass(frozen=True)
class Scorer(_Strategy):
    """`build(config, options) -> score`, `score(response, sample) -> Score`."""


@dataclass(frozen=True)
class TeacherStrategy(_Strategy):
    """`build(config, options) -> teacher`, an object with the methods of `sdpo_plugins.teacher.Teacher`."""


@dataclass(frozen=True)
class Host:
    """A framework that an adapter drives.

    Args:
        name: "trl", "verl", "openrlhf".
        distribution: Name of the installed distribution.
        requirement: Supported versions as a PEP 440 specifier set, e.g. ">=1.0,<1.17".
        adapter: Import path of the adapter package, imported only when used.
        install: The command that installs what is missing.
        summary: One line for `sdpo list`.
    """

    name: str
    distribution: str
    requirement: str
    adapter: str
    install: str
    summary: str = ""
