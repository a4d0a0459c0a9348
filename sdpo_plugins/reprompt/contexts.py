"""From rollouts to teacher contexts: who succeeded, who demonstrates, what the teacher reads, and metrics."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sdpo_plugins.config import SDPOConfig
from sdpo_plugins.errors import ConfigError, DataError, PluginError
from sdpo_plugins.reprompt.messages import copy_prompt, raise_prompt_problem, write_prompt
from sdpo_plugins.reprompt.selectors import SELECTORS, Select
from sdpo_plugins.reprompt.templates import Template, parse_template
from sdpo_plugins.reprompt.thinking import remove_thinking, thinking_is_unclosed
from sdpo_plugins.types import Message, Rollout, Section, TeacherContext, TeacherContexts

__all__ = ["build_teacher_contexts", "build_template", "is_success", "reaches"]


def build_teacher_contexts(
    rollouts: Sequence[Rollout], config: SDPOConfig, *, select: Select | None = None
) -> TeacherContexts:
    """Build what the teacher reads before it re-scores each rollout: question, demonstration, feedback, instruction.

    A rollout is active (mask 1) if a successful rollout of its group demonstrates for it or feedback is shown;
    otherwise its context is its own prompt (mask 0). Padding rows are never active and count nowhere.

    Args:
        rollouts: The rollouts of a batch; a group may stand in any order, but must be complete.
        config: The options.
        select: Who demonstrates, `select(index, candidates, rollouts) -> int | None`; None: the selector that the
            configuration names.

    Returns:
        One context for each rollout in the same order, and metrics `self_distillation/…`: the authors'
        `success_group_fraction` (groups with a success), `success_sample_fraction` (rollouts for which someone
        demonstrates), `feedback_available_fraction`, `feedback_used_fraction`, `reprompt_sample_fraction` (active
        rollouts); and `success_rollout_fraction` (rollouts that succeeded), `feedback_unused_fraction` (feedback was
        given while `include_environment_feedback` is off), `unclosed_thinking_fraction` (answers that end inside of
        a thinking part), `demonstration_chars_mean`, `group_count`. All over the rows that are not padding.

    Raises:
        DataError: A prompt does not end in a user or tool turn, a reward or feedback is of the wrong type, or the
            reward named by `success_reward_name` is absent. The row is named.
        PluginError: The selector chose a rollout that may not demonstrate.

    Example:
        >>> rollouts = [Rollout(0, "2+2?", "5", 0.0), Rollout(0, "2+2?", "4", 1.0)]
        >>> contexts = build_teacher_contexts(rollouts, SDPOConfig())
        >>> contexts.self_distillation_mask
        [1.0, 0.0]
        >>> contexts.contexts[0].messages
        '2+2?\\nCorrect solution:\\n\\n4\\n\\nCorrectly solve the original question.'

    Source: arXiv 2601.20802, section 3; lasgroup/SDPO `_maybe_build_self_distillation_batch`.
    """
    if config.reprompter != "template":
        if select is not None:
            raise ConfigError(
                f"`select` belongs to the reprompter 'template', but the configuration names {config.reprompter!r}. "
                "Leave one of the two out."
            )
        from sdpo_plugins.plugins import build_reprompter

        contexts: TeacherContexts = build_reprompter(config)(rollouts)
        return contexts
    return build_template(config, select=select)(rollouts)


def build_template(
    config: SDPOConfig, options: Any = None, *, select: Select | None = None
) -> Callable[[Sequence[Rollout]], TeacherContexts]:
    """Return the reprompter "template", with templates parsed and the selector resolved once.

    Args:
        config: The options.
        options: None; the strategy has no options of its own.
        select: As in `build_teacher_contexts`.

    Returns:
        `reprompt(rollouts) -> TeacherContexts`.

    Example:
        >>> build_template(SDPOConfig())([]).contexts
        ()
    """
    chosen = select if select is not None else _selector(config)
    templates = _Templates(
        parse_template(config.reprompt_template),
        parse_template(config.solution_template),
        parse_template(config.feedback_template),
    )

    def reprompt(rollouts: Sequence[Rollout]) -> TeacherContexts:
        return _reprompt(rollouts, config, chosen, templates)

    return reprompt


def is_success(rollout: Rollout, config: SDPOConfig, row: int = 0) -> bool:
    """Return True if the total or the named reward is at least `success_reward_threshold`.

    A reward that equals the threshold up to the rounding of float32 counts; NaN does not, and neither does a named
    reward of None (a reward function that does not apply to the row).

    Args:
        rollout: The rollout.
        config: `success_reward_threshold` and `success_reward_name` are read.
        row: The rollout's position, for errors.

    Returns:
        Whether it succeeded.

    Raises:
        DataError: The named reward is absent, or the reward is no number.

    Example:
        >>> is_success(Rollout(0, "2+2?", "4", 0.5), SDPOConfig())
        True
    """
    reward: Any = rollout.reward
    if config.success_reward_name is not None:
        named = rollout.rewards or {}
        if config.success_reward_name not in named:
            raise DataError(
                f"Row {row}: `success_reward_name` is {config.success_reward_name!r}, but the rollout's named rewards "
                f"are {', '.join(map(repr, named)) or 'none'}. Use one of these, or null for the total reward."
            )
        reward = named[config.success_reward_name]
        if reward is None:
            return False
    try:
        value = float(reward)
    except (TypeError, ValueError) as error:
        raise DataError(f"Row {row}: a reward must be a number, got {reward!r} ({type(reward).__name__}).") from error
    return reaches(value, config.success_reward_threshold)


def reaches(reward: float, threshold: float) -> bool:
    """Say whether a reward is a success: at least the threshold, up to the rounding of float32; NaN is none.

    Args:
        reward: The reward.
        threshold: `success_reward_threshold`.

    Example:
        >>> reaches(0.699999988079071, 0.7), reaches(0.69, 0.7)  # the first is 0.7 in float32
        (True, False)
    """
    return reward >= threshold or math.isclose(reward, threshold, rel_tol=1e-6)


@dataclass(frozen=True)
class _Templates:
    reprompt: Template
    solution: Template
    feedback: Template


@dataclass(frozen=True)
class _Rebuild:
    """Writes the context with given section texts; a class, not a closure, so that contexts can be pickled."""

    prompt: str | Sequence[Message]
    templates: _Templates
    sections: tuple[Section, ...]

    def __call__(self, texts: Sequence[str]) -> str | list[dict[str, Any]]:
        if len(texts) != len(self.sections):
            raise ValueError(f"The context has {len(self.sections)} sections, got {len(texts)} texts.")
        filled = {"demonstration": "", "feedback": ""}
        for section, text in zip(self.sections, texts, strict=True):
            if section.text.strip() and not text.strip():
                continue  # Shortened to nothing: a heading without a text would mislead.
            if section.kind == "demonstration":
                filled[section.kind] = self.templates.solution.fill(successful_previous_attempt=text)
            else:
                filled[section.kind] = self.templates.feedback.fill(feedback_raw=text)
        return write_prompt(
            self.prompt, self.templates.reprompt, solution=filled["demonstration"], feedback=filled["feedback"]
        )


def _selector(config: SDPOConfig) -> Select:
    if config.selector in SELECTORS and not config.selector_options:
        return SELECTORS[config.selector](config)
    from sdpo_plugins.plugins import build_selector

    select: Select = build_selector(config)
    return select


def _reprompt(
    rollouts: Sequence[Rollout], config: SDPOConfig, select: Select, templates: _Templates
) -> TeacherContexts:
    real = [index for index, rollout in enumerate(rollouts) if not rollout.is_padding]
    for index in real:
        raise_prompt_problem(rollouts[index].prompt, index)
    given = {index: _has_feedback(rollouts[index], index) for index in real}
    successes: dict[Hashable, list[int]] = {}
    for index in real:
        found = successes.setdefault(rollouts[index].group_id, [])
        if is_success(rollouts[index], config, index):
            found.append(index)
    texts = {index: _demonstration(rollouts[index], config) for found in successes.values() for index in found}

    contexts = []
    for index, rollout in enumerate(rollouts):
        if rollout.is_padding:
            contexts.append(TeacherContext(messages=copy_prompt(rollout.prompt), active=False))
            continue
        candidates = _candidates(index, successes[rollout.group_id], texts, config)
        demonstration = _choose(select, index, candidates, rollouts)
        shows_feedback = (
            given[index]
            and config.include_environment_feedback
            and (demonstration is None or not config.environment_feedback_only_without_solution)
        )
        sections = []
        if demonstration is not None:
            sections.append(Section("demonstration", texts[demonstration]))
        if shows_feedback:
            sections.append(Section("feedback", rollout.feedback or ""))
        contexts.append(_context(rollout, templates, tuple(sections), demonstration))
    return TeacherContexts(tuple(contexts), _metrics(rollouts, real, contexts, successes, given, texts, config))


def _context(
    rollout: Rollout, templates: _Templates, sections: tuple[Section, ...], demonstration: int | None
) -> TeacherContext:
    if not sections:
        return TeacherContext(messages=copy_prompt(rollout.prompt), active=False)
    rebuild = _Rebuild(rollout.prompt, templates, sections)
    return TeacherContext(
        messages=rebuild([section.text for section in sections]),
        active=True,
        demonstration_index=demonstration,
        feedback_used=sections[-1].kind == "feedback",
        sections=sections,
        rebuild=rebuild,
    )


def _has_feedback(rollout: Rollout, row: int) -> bool:
    if rollout.feedback is None:
        return False
    if not isinstance(rollout.feedback, str):
        raise DataError(
            f"Row {row}: feedback must be a text or None, got {rollout.feedback!r} ({type(rollout.feedback).__name__})."
        )
    return bool(rollout.feedback.strip())


def _demonstration(rollout: Rollout, config: SDPOConfig) -> str:
    if not config.remove_thinking_from_demonstration:
        return rollout.response
    return remove_thinking(rollout.response, config.thinking_tag, config.thinking_removal, rollout.thinking_opened)


def _candidates(index: int, successes: list[int], texts: Mapping[int, str], config: SDPOConfig) -> list[int]:
    needs_text = config.remove_thinking_from_demonstration and config.thinking_removal == "strict"
    return [
        other
        for other in successes
        if not (config.dont_reprompt_on_self_success and other == index)
        and not (needs_text and not texts[other].strip())
    ]


def _choose(select: Select, index: int, candidates: list[int], rollouts: Sequence[Rollout]) -> int | None:
    if not candidates:
        return None
    chosen = select(index, tuple(candidates), rollouts)
    if chosen is not None and chosen not in candidates:
        raise PluginError(
            f"The selector {getattr(select, '__qualname__', select)!s} chose {chosen!r} for rollout {index}; it must "
            f"return one of the candidates {candidates} or None."
        )
    return chosen


def _metrics(
    rollouts: Sequence[Rollout],
    real: Sequence[int],
    contexts: Sequence[TeacherContext],
    successes: Mapping[Hashable, Sequence[int]],
    given: Mapping[int, bool],
    texts: Mapping[int, str],
    config: SDPOConfig,
) -> dict[str, float]:
    shown = [contexts[index] for index in real]
    included = config.include_environment_feedback
    lengths = [
        float(len(texts[context.demonstration_index])) for context in shown if context.demonstration_index is not None
    ]
    unclosed = [
        thinking_is_unclosed(rollouts[index].response, config.thinking_tag, rollouts[index].thinking_opened)
        for index in real
    ]
    values = {
        "success_group_fraction": _mean([bool(found) for found in successes.values()]),
        "success_sample_fraction": _mean([context.demonstration_index is not None for context in shown]),
        "feedback_available_fraction": _mean([included and given[index] for index in real]),
        "feedback_used_fraction": _mean([context.feedback_used for context in shown]),
        "reprompt_sample_fraction": _mean([context.active for context in shown]),
        "success_rollout_fraction": sum(map(len, successes.values())) / max(len(real), 1),
        "feedback_unused_fraction": _mean([not included and given[index] for index in real]),
        "unclosed_thinking_fraction": _mean(unclosed),
        "demonstration_chars_mean": _mean(lengths),
        "group_count": float(len(successes)),
    }
    return {f"self_distillation/{name}": value for name, value in values.items()}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
