"""What ended a run, in one sentence: Ray wraps it into tracebacks of several processes."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator

from sdpo_plugins.errors import SDPOError

__all__ = ["sentence"]

# Part of an actor's class name → what it is to the user.
_ROLES = (
    ("RolloutRayActor", "a vLLM engine"),
    ("PolicyModelActor", "a policy rank"),
    ("ReferenceModelActor", "a rank of the reference model"),
    ("RewardModelActor", "a rank of the reward model"),
    ("CriticModelActor", "a rank of the critic"),
    ("GenerateSamplesActor", "the controller of rollouts"),
    ("TrainingActor", "the controller of training"),
    ("PPOTrainer", "the controller"),
)

# The host's functions that wait for a vLLM engine.
_WAIT_FOR_ENGINES = (
    "in _generate_vllm",
    "in _dispatch_prompts_to_vllm",
    "in batch_vllm_engine_call",
    "in _broadcast_param",
    "in _handle_cuda_ipc",
)


def sentence(error: BaseException) -> str:
    """Say what ended a run: our own error as it is, which actor died, or the innermost error.

    Args:
        error: What came out of the host's `train`, perhaps wrapped by Ray several times.

    Example:
        >>> sentence(ValueError("no rewards"))
        'The run ended with ValueError: no rewards'
    """
    chain = list(_chain(error))
    ours = next((each for each in chain if isinstance(each, SDPOError)), None)
    if ours is not None:
        return _plain(ours)
    inner = chain[-1]
    if _is(inner, "RayActorError"):
        return _death(str(inner), str(error))
    # Ray's own errors go on with reports of a page.
    return f"The run ended with {_name(inner)}: {_plain(inner).splitlines()[0]}"


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Give an error and what it wraps, outermost first."""
    seen: set[int] = set()
    while id(error) not in seen:
        seen.add(id(error))
        cause = getattr(error, "cause", None) if _is(error, "RayTaskError") else None
        if not isinstance(cause, BaseException):
            yield error
            return
        error = cause


def _is(error: BaseException, name: str) -> bool:
    # Without importing ray: where it was never imported no error is of it.
    kind = getattr(sys.modules.get("ray.exceptions"), name, None)
    return kind is not None and isinstance(error, kind)


def _name(error: BaseException) -> str:
    return type(error).__name__


def _plain(error: BaseException) -> str:
    """Return an error's own message; one that also is Ray's shows the whole remote traceback as text."""
    if _is(error, "RayTaskError"):
        return _last_line(str(error)).partition(": ")[2] or _last_line(str(error))
    return str(error).strip() or "no message"


def _death(text: str, whole: str) -> str:
    """Say which actor is gone.

    Args:
        text: Ray's words about it; without its class if it could only not be reached.
        whole: The traceback of who waited for it.
    """
    found = re.search(r"class_name:\s*(\S+)", text) or re.search(r"::(\w+)\.__init__\(\)", text)
    engine = any(function in whole for function in _WAIT_FOR_ENGINES)
    name = found.group(1) if found else ("RolloutRayActor" if engine else "unknown")
    role = next((words for part, words in _ROLES if part in name), "an actor")
    died = "An actor" if name == "unknown" else f"{role[:1].upper()}{role[1:]} ({name})"
    if "creation task" in text:
        kind, _, message = _last_line(text).partition(": ")
        if kind.startswith("sdpo_plugins.errors."):
            return message
        return f"{died} could not be started: {kind.rpartition('.')[2]}: {message}"
    return (
        f"{died} died, so the run ended. Ray says why above; an actor that was killed from outside mostly ran out of "
        "memory."
    )


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    return lines[-1] if lines else "no message"
