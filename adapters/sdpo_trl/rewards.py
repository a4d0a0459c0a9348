"""Reward functions that also say what was wrong: every form users bring becomes rewards plus feedback texts."""

from __future__ import annotations

import asyncio
import functools
import inspect
import math
import numbers
import reprlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from sdpo_plugins.errors import RewardError
from sdpo_plugins.types import Score

__all__ = ["FeedbackRecorder", "normalize_rewards", "reward_name"]

_FEEDBACK = "feedback"


def reward_name(func: Any) -> str:
    """Return the name a reward function has in logs, as TRL forms it: its `__name__`, or its class's.

    Example:
        >>> reward_name(functools.partial(len))
        'len'
    """
    name = getattr(_unwrapped(func), "__name__", None)
    return name if isinstance(name, str) else type(_unwrapped(func)).__name__


def normalize_rewards(output: Any, count: int, name: str) -> tuple[list[float | None], list[str | None] | None]:
    """Split what a reward function returned into rewards and feedback texts.

    Accepted: a sequence of numbers; a sequence of mappings with `score` and optionally `feedback`; a sequence of
    `Score`; one mapping with `rewards` and optionally `extra_logs["feedback"]`. None as a reward means "not judged".

    Args:
        output: What the function returned.
        count: Number of completions that it was given.
        name: The function's name, for messages.

    Returns:
        `count` rewards, and `count` feedback texts or None if the function gave no feedback at all.

    Raises:
        RewardError: Wrong length or type; says which function, which completion, and what it gave.

    Example:
        >>> normalize_rewards([{"score": 0, "feedback": "Wrong."}, {"score": 1}], 2, "grade")
        ([0.0, 1.0], ['Wrong.', None])
    """
    if isinstance(output, Mapping):
        return _from_batch_mapping(output, count, name)
    items = _as_list(output, name, "rewards")
    _check_length(items, count, name, "rewards")
    rewards: list[float | None] = []
    feedback: list[str | None] = []
    told = False
    item: Any
    for index, item in enumerate(items):
        text: Any = None
        if isinstance(item, Score):
            item, text, told = item.reward, item.feedback, True
        elif isinstance(item, Mapping):
            if "score" not in item:
                raise RewardError(
                    f"The reward function '{name}' returned a mapping without `score` for completion {index}: "
                    f"{reprlib.repr(dict(item))}. Each mapping needs `score` (a number) and may "
                    "have `feedback` (a text)."
                )
            item, text, told = item["score"], item.get(_FEEDBACK), True
        rewards.append(_as_reward(item, index, name))
        feedback.append(_as_feedback(text, index, name))
    return rewards, feedback if told else None


class FeedbackRecorder:
    """Wraps reward functions so that a trainer sees numbers and the recorder keeps the feedback of the batch.

    Example:
        >>> recorder = FeedbackRecorder()
        >>> grade = recorder.wrap(lambda prompts, completions, **_: [{"score": 0.0, "feedback": "Too short."}])
        >>> grade(prompts=["?"], completions=["!"])
        [0.0]
        >>> recorder.take(1)
        ['Too short.']
    """

    def __init__(self) -> None:
        self._texts: dict[int, list[str | None]] = {}
        self._wrapped = 0

    def wrap(self, func: Any) -> Any:
        """Return a function for the trainer; models and model names come back as they are.

        Raises:
            RewardError: It can be neither called nor be a model.
        """
        if isinstance(func, (str, torch.nn.Module)):
            return func
        if not callable(func):
            raise RewardError(
                f"A reward function must be callable, a model, or a model's name, got {reprlib.repr(func)} "
                f"({type(func).__name__})."
            )
        slot, name = self._wrapped, reward_name(func)
        self._wrapped += 1

        def settle(output: Any, logged: list[Any], count: int) -> list[float | None]:
            rewards, texts = normalize_rewards(output, count, name)
            sources = [texts, _last_feedback(func, count, name), _logged_feedback(logged, count, name)]
            merged = merge_feedback([source for source in sources if source is not None], count)
            if merged is not None:
                self._texts[slot] = merged
            return rewards

        def prepare(kwargs: dict[str, Any]) -> list[Any]:
            logged: list[Any] = []
            if "log_extra" in kwargs:
                kwargs["log_extra"] = _intercept(kwargs["log_extra"], logged)
            return logged

        if _is_async(func):

            async def call_async(*, completions: Sequence[Any], **kwargs: Any) -> list[float | None]:
                logged = prepare(kwargs)
                return settle(await func(completions=completions, **kwargs), logged, len(completions))

            return _named(call_async, func, name)

        def call(*, completions: Sequence[Any], **kwargs: Any) -> list[float | None]:
            logged = prepare(kwargs)
            return settle(func(completions=completions, **kwargs), logged, len(completions))

        return _named(call, func, name)

    def take(self, count: int, extra: Sequence[Any] | None = None) -> list[str | None] | None:
        """Return the feedback of the batch just scored, all functions' texts joined, and forget it.

        Args:
            count: Number of completions in the batch.
            extra: Feedback that came with the rollouts themselves, for instance from `rollout_func`.
        """
        sources = [self._texts[slot] for slot in sorted(self._texts)]
        if extra is not None:
            sources.append([_as_feedback(text, index, "feedback column") for index, text in enumerate(extra)])
        self._texts = {}
        return merge_feedback(sources, count)


def merge_feedback(sources: Sequence[Sequence[str | None]], count: int) -> list[str | None] | None:
    """Join the non-blank texts of each completion with a blank line, dropping repetitions; None without sources."""
    if not sources:
        return None
    merged: list[str | None] = []
    for index in range(count):
        texts = dict.fromkeys(text for source in sources if (text := source[index]) and text.strip())
        merged.append("\n\n".join(texts) if texts else None)
    return merged


def _from_batch_mapping(
    output: Mapping[str, Any], count: int, name: str
) -> tuple[list[float | None], list[str | None] | None]:
    if "rewards" not in output:
        raise RewardError(
            f"The reward function '{name}' returned one mapping without `rewards`: keys {sorted(map(str, output))}. "
            "Return a list with one reward for each completion, or a mapping with `rewards` and "
            '`extra_logs={"feedback": [...]}`.'
        )
    rewards = _as_list(output["rewards"], name, "rewards")
    _check_length(rewards, count, name, "rewards")
    texts = (output.get("extra_logs") or {}).get(_FEEDBACK)
    feedback = None
    if texts is not None:
        texts = _as_list(texts, name, "feedback texts")
        _check_length(texts, count, name, "feedback texts")
        feedback = [_as_feedback(text, index, name) for index, text in enumerate(texts)]
    return [_as_reward(item, index, name) for index, item in enumerate(rewards)], feedback


def _last_feedback(func: Any, count: int, name: str) -> list[str | None] | None:
    texts = getattr(func, "last_feedback", None)
    if texts is None:
        return None
    texts = _as_list(texts, f"{name}.last_feedback", "feedback texts")
    _check_length(texts, count, f"{name}.last_feedback", "feedback texts")
    return [_as_feedback(text, index, f"{name}.last_feedback") for index, text in enumerate(texts)]


def _logged_feedback(logged: list[Any], count: int, name: str) -> list[str | None] | None:
    if not logged:
        return None
    _check_length(logged, count, f'{name} via log_extra("feedback")', "feedback texts")
    return [_as_feedback(text, index, name) for index, text in enumerate(logged)]


def _intercept(log_extra: Callable[[str, list[Any]], None], logged: list[Any]) -> Callable[[str, list[Any]], None]:
    # The trainer writes the merged feedback of all functions into the table once: two functions that log the same
    # column would otherwise make it longer than the batch.
    def log(column: str, values: list[Any]) -> None:
        if column == _FEEDBACK:
            logged.extend(values)
        else:
            log_extra(column, values)

    return log


def _as_list(values: Any, name: str, what: str) -> list[Any]:
    if isinstance(values, torch.Tensor):
        # A column [N, 1] is what models give; any other second dimension is a mistake to be shown as it is.
        values = values.detach()
        values = values.flatten() if values.numel() == max(values.shape, default=0) else values
    if hasattr(values, "tolist") and not isinstance(values, (str, bytes)):
        values = values.tolist()
    if isinstance(values, (list, tuple)):
        return list(values)
    raise RewardError(
        f"The reward function '{name}' must return a list of {what}, one for each completion; it returned "
        f"{reprlib.repr(values)} ({type(values).__name__})."
    )


def _check_length(values: Sequence[Any], count: int, name: str, what: str) -> None:
    if len(values) != count:
        raise RewardError(
            f"The reward function '{name}' returned {len(values)} {what} for {count} completions: "
            f"{reprlib.repr(list(values))}. Return exactly one for each completion, in the same order."
        )


def _as_reward(value: Any, index: int, name: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, torch.Tensor) and value.numel() == 1:
        value = value.item()
    if isinstance(value, numbers.Real) or (hasattr(value, "item") and isinstance(value.item(), numbers.Real)):
        reward = float(value)
        if not math.isinf(reward):
            return None if math.isnan(reward) else reward
    raise RewardError(
        f"The reward function '{name}' gave {reprlib.repr(value)} ({type(value).__name__}) as the reward of completion "
        f"{index}. Valid are finite numbers, None, mappings with `score` and `feedback`, and `Score` objects."
    )


def _as_feedback(value: Any, index: int, name: str) -> str | None:
    if value is None or isinstance(value, str):
        return value
    raise RewardError(
        f"The feedback of '{name}' for completion {index} must be a text or None, got {reprlib.repr(value)} "
        f"({type(value).__name__})."
    )


def _unwrapped(func: Any) -> Any:
    while isinstance(func, functools.partial):
        func = func.func
    return func


def _is_async(func: Any) -> bool:
    func = _unwrapped(func)
    return asyncio.iscoroutinefunction(func) or inspect.iscoroutinefunction(getattr(func, "__call__", None))  # noqa: B004


def _named(wrapper: Any, func: Any, name: str) -> Any:
    if hasattr(func, "__name__"):
        functools.update_wrapper(wrapper, func)
    wrapper.__name__ = name
    return wrapper
