"""Checks of prompts and tokenizer before the first step, so that a run does not die in the middle."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sdpo_plugins.config import SDPOConfig
from sdpo_plugins.errors import DataError
from sdpo_plugins.reprompt.contexts import build_template
from sdpo_plugins.reprompt.messages import prompt_problem
from sdpo_plugins.reprompt.rendering import Render, check_chat_template, make_render
from sdpo_plugins.types import Rollout

__all__ = ["check_prompts", "long_prompts"]

_SHOWN = 5


def check_prompts(
    prompts: Iterable[Any],
    tokenizer: Any = None,
    config: SDPOConfig | None = None,
    *,
    tools: Sequence[Any] | None = None,
    chat_template: str | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    add_special_tokens: bool = True,
    render: Render | None = None,
) -> list[str]:
    """Refuse prompts of which no teacher context can be made, and name those too long for one.

    Args:
        prompts: Strings or chat messages; a sample of a large dataset will do.
        tokenizer: Also check that it has a chat template, if any prompt needs one; None: only the prompts.
        config: Also check lengths against `max_reprompt_len`; None: do not.
        tools: As in `encode_context`, and so are the others.
        chat_template: As in `encode_context`.
        chat_template_kwargs: As in `encode_context`.
        add_special_tokens: As in `encode_context`.
        render: As in `encode_context`.

    Returns:
        Sentences to log, one for each prompt that alone exceeds `max_reprompt_len`: its rollouts will be inactive
        (with `reprompt_truncation="sections"`).

    Raises:
        DataError: There are no prompts; a prompt does not end in a user or tool turn (the first rows are named);
            chat prompts without a chat template; a prompt too long under `reprompt_truncation="error"`.

    Example:
        >>> check_prompts([[{"role": "user", "content": "2+2?"}]])
        []
    """
    rows = list(prompts)
    if not rows:
        raise DataError("There are no prompts: the dataset is empty. Check its path, split and filters.")
    found = [(row, problem) for row, prompt in enumerate(rows) if (problem := prompt_problem(prompt)) is not None]
    if found:
        listing = "\n".join(f"  - Row {row}: {problem}" for row, problem in found[:_SHOWN])
        more = f"\n  and {len(found) - _SHOWN} more." if len(found) > _SHOWN else ""
        raise DataError(f"{len(found)} of {len(rows)} prompts cannot be used:\n{listing}{more}")
    if tokenizer is not None and render is None and any(not isinstance(prompt, str) for prompt in rows):
        check_chat_template(tokenizer, chat_template)
    if config is None or (tokenizer is None and render is None):
        return []
    render = render or make_render(
        tokenizer,
        config,
        tools=tools,
        chat_template=chat_template,
        chat_template_kwargs=chat_template_kwargs,
        add_special_tokens=add_special_tokens,
    )
    notices = long_prompts(rows, render, config)
    if notices and config.reprompt_truncation == "error":
        raise DataError("\n".join(notices[:_SHOWN]))
    return notices


def long_prompts(prompts: Sequence[Any], render: Render, config: SDPOConfig) -> list[str]:
    """Name the prompts that exceed `max_reprompt_len` before any demonstration or feedback is added.

    Args:
        prompts: Valid prompts.
        render: Tokenises messages or a string.
        config: `max_reprompt_len` and the templates are read.

    Returns:
        One sentence for each such prompt.
    """
    # What a context weighs with its sections emptied: the question, the instruction, the generation prompt.
    reprompt = build_template(
        config.replace(
            include_environment_feedback=True, success_reward_name=None, selector="first", selector_options={}
        )
    )
    notices = []
    for row, prompt in enumerate(prompts):
        context = reprompt([Rollout(group_id=row, prompt=prompt, response="", reward=float("nan"), feedback="x")])
        rebuild = context.contexts[0].rebuild
        assert rebuild is not None
        length = len(render(rebuild([""])))
        if length > config.max_reprompt_len:
            notices.append(
                f"Row {row}: question and instruction alone have {length} tokens, more than `max_reprompt_len` "
                f"({config.max_reprompt_len}): no demonstration or feedback fits. Raise "
                "`max_reprompt_len`, or drop the row."
            )
    return notices
