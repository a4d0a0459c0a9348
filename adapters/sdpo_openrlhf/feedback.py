"""What a reward function or an agent said of a response: checked, and the feedback text taken out of the numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sdpo_plugins.errors import DataError

__all__ = ["checked_response", "feedback_of", "shortened"]

_KEY = "feedback"


def shortened(text: Any, length: int = 60) -> str:
    """Return a text, or the beginning of a long one, for an error message.

    Example:
        >>> shortened("What is 2+2?", 7)
        "'What is…'"
    """
    text = str(text)
    return repr(text if len(text) <= length else text[:length] + "…")


def checked_response(response: Mapping[str, Any], *, judged: bool) -> tuple[dict[str, Any], str]:
    """Return a response that the host can turn into tensors, and the feedback text, "" for none.

    Args:
        response: What the host's rollout engine gives for one sample.
        judged: Whether a reward function, a reward server or an agent is configured; else a reward model judges later.

    Returns:
        The response with `reward` as a number and without `feedback`; the text.

    Raises:
        DataError: There is no reward, or reward, feedback or an extra log is of the wrong type.

    Example:
        >>> response = {"prompt": "2+2?", "reward": 1, "extra_logs": {"feedback": "Right.", "digits": 1}}
        >>> checked_response(response, judged=True)
        ({'prompt': '2+2?', 'reward': 1.0, 'extra_logs': {'digits': 1}}, 'Right.')
    """
    prompt = response.get("prompt")
    logs = response.get("extra_logs")
    logs = {} if logs is None else logs
    if not isinstance(logs, Mapping):
        raise DataError(
            f"`extra_logs` must be a mapping of names to numbers and, under {_KEY!r}, a text, got {shortened(logs)} "
            f"({type(logs).__name__}) for the prompt {shortened(prompt)}."
        )
    text = feedback_of(response, logs)
    logs = {name: value for name, value in logs.items() if name != _KEY}
    for name, value in logs.items():
        _check_log(name, value, prompt)
    checked = {name: value for name, value in response.items() if name != _KEY}
    checked["extra_logs"] = logs
    if judged and response.get("reward") is None:
        raise DataError(
            f"There is no reward for the prompt {shortened(prompt)}: the reward function, server or agent failed, or "
            "gave no `rewards`. OpenRLHF swallows its exceptions; the line `Failed to fetch reward` above says which "
            'one it was. A reward function returns {"rewards": a tensor with one number, "extra_logs": {…}} for the '
            "lists of one query, one prompt and one label that it is given."
        )
    for name in ("reward", "scores"):
        if response.get(name) is not None:
            checked[name] = _number(name, response[name], prompt)
    return checked, text


def feedback_of(response: Mapping[str, Any], logs: Mapping[str, Any]) -> str:
    """Return the feedback text of a response, "" for none.

    Args:
        response: May hold `feedback` beside its other entries, as agents of one's own may give it.
        logs: May hold it too, as reward functions give it.

    Raises:
        DataError: It is no text, or two different ones were given.
    """
    prompt = response.get("prompt")
    texts = []
    for where, place in (("extra_logs", logs), ("the response", response)):
        given = place.get(_KEY)
        value = given[0] if isinstance(given, (list, tuple)) and len(given) == 1 else given
        if value is not None and not isinstance(value, str):
            size = f" of length {len(given)}" if isinstance(given, (list, tuple)) else ""
            raise DataError(
                f"`{_KEY}` in {where} must be a text, None, or a list of one of these, as there is one response, got "
                f"{shortened(given)} ({type(given).__name__}{size}) for the prompt {shortened(prompt)}."
            )
        texts += [value] if value else []
    if len(set(texts)) > 1:
        raise DataError(
            f"`{_KEY}` is given twice for the prompt {shortened(prompt)}, as {shortened(texts[0])} in `extra_logs` and "
            f"as {shortened(texts[1])} in the response. Give it in one place."
        )
    return texts[0] if texts else ""


def _number(name: str, value: Any, prompt: Any) -> float:
    try:
        given = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError):
        given = torch.empty(0)
    if given.numel() != 1:
        raise DataError(
            f"`{name}` must be one number, or a tensor or list of one, as there is one response, got "
            f"{shortened(value)} ({type(value).__name__}) for the prompt {shortened(prompt)}."
        )
    number = float(given)
    if not math.isfinite(number):
        raise DataError(
            f"`{name}` is {number} for the prompt {shortened(prompt)}: advantages and successes of its whole group "
            "would be undefined. Let the reward function return a finite number."
        )
    return number


def _check_log(name: str, value: Any, prompt: Any) -> None:
    # What the host does with it.
    try:
        torch.tensor([value.flatten()[0].item() if isinstance(value, Tensor) else value])
    except (TypeError, ValueError, RuntimeError, IndexError) as error:
        raise DataError(
            f"`extra_logs` must hold numbers and, under {_KEY!r}, a text; {name!r} is {shortened(value)} "
            f"({type(value).__name__}) for the prompt {shortened(prompt)}, of which OpenRLHF cannot make a tensor."
        ) from error
