"""What runs in a worker process: build the scorer once, then score one response after another."""

from __future__ import annotations

import contextlib
import math
import os
import pickle
import signal
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from sdpo_plugins.errors import PluginError, SDPOError
from sdpo_plugins.feedback._context import die_with
from sdpo_plugins.types import Score

__all__ = ["NOTHING", "Failed", "Recipe", "build", "checked", "prepare", "score_one"]

NOTHING = b""


@dataclass(frozen=True)
class Recipe:
    """How to build a scorer, in names and plain mappings.

    Args:
        name: Of the catalogue.
        options: The scorer's own.
        plugins: Plug-ins in use beside our own.
    """

    name: str
    options: Mapping[str, Any]
    plugins: tuple[str, ...]


@dataclass(frozen=True)
class Failed:
    """A scorer that raised.

    Args:
        error: What it raised.
        trace: The traceback's text, which does not travel with an exception.
        built: False if it could not even be built.
    """

    error: Exception
    trace: str
    built: bool = True


def build(recipe: Recipe) -> Callable[[str, Mapping[str, Any]], Any]:
    """Return the scorer.

    Raises:
        ConfigError: Unknown scorer or option.
        PluginError: A plug-in cannot be used.
    """
    from sdpo_plugins.config import SDPOConfig
    from sdpo_plugins.plugins import build_scorer

    return build_scorer(SDPOConfig(plugins=recipe.plugins), recipe.name, dict(recipe.options))


def checked(score: Any, name: str) -> Score:
    """Return what a scorer gave, with a plain number as reward and a plain mapping as details.

    Raises:
        PluginError: It is no `Score`, or its reward is no finite number, or its feedback no text.
    """
    if not isinstance(score, Score):
        raise PluginError(f"The scorer {name!r} must return a `Score`, got {score!r} ({type(score).__name__}).")
    try:
        reward = float(score.reward)
    except (TypeError, ValueError):
        reward = math.nan
    if not math.isfinite(reward):
        raise PluginError(f"The scorer {name!r} must give a finite number as reward, got {score.reward!r}.")
    if score.feedback is not None and not isinstance(score.feedback, str):
        raise PluginError(f"The scorer {name!r} must give a text or None as feedback, got {score.feedback!r}.")
    return replace(score, reward=reward, details=dict(score.details))


_scorer: Callable[[str, Mapping[str, Any]], Any] | Failed | None = None
_name = ""


def prepare(packed: bytes, parent: int) -> None:
    """Make this process a worker; an error of the scorer's is kept for the first response.

    Args:
        packed: A pickled `Recipe`.
        parent: Id of the process that the worker belongs to.
    """
    global _scorer, _name
    die_with(parent)
    # A group of its own: Ctrl-C is the parent's business, and what a scorer started ends with the worker.
    with contextlib.suppress(AttributeError, OSError):
        os.setpgid(0, 0)
        signal.signal(signal.SIGTERM, _end_group)
    os.dup2(2, 1)  # the parent's standard output is the parent's
    try:
        recipe: Recipe = pickle.loads(packed)
        _name = recipe.name
        _scorer = build(recipe)
    except Exception as error:
        _scorer = replace(_failed(error), built=False)


def score_one(packed: bytes) -> bytes:
    """Score one response.

    Args:
        packed: A pickled pair of response and sample. Not the pair itself: what cannot be read back would end the
            worker before it could say so. `NOTHING`: only say whether the scorer could be built.

    Returns:
        A pickled `Score` or `Failed`.
    """
    if isinstance(_scorer, Failed):
        return pickle.dumps(_scorer)
    if packed == NOTHING:
        return pickle.dumps(Score(0.0))
    assert _scorer is not None
    try:
        response, sample = pickle.loads(packed)
        return pickle.dumps(checked(_scorer(response, sample), _name))
    except Exception as error:
        return pickle.dumps(_failed(error))


def _failed(error: Exception) -> Failed:
    trace = traceback.format_exc()
    try:
        back = pickle.loads(pickle.dumps(error))
        if type(back) is type(error):
            return Failed(error, trace)
    except Exception:  # an exception with a constructor of its own; what it says is kept
        pass
    kind = SDPOError if isinstance(error, SDPOError) else RuntimeError
    return Failed(kind(f"{type(error).__name__}: {error}"), trace)


def _end_group(*_: Any) -> None:
    os.killpg(0, signal.SIGKILL)
