"""A plug-in whose scorer does what the response says: what a scorer must not do, and what it may."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sdpo_plugins import DataError, Score, Scorer, SDPOConfig, SDPOError, hookimpl, option


@dataclass(frozen=True)
class OddOptions:
    """Options of `odd`."""

    bonus: float = option(0.0, "Added to every reward.")
    broken: str | None = option(None, "What its building raises.", choices=("SDPOError", "ImportError"))


class OwnError(Exception):
    """Does not survive pickling."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(f"{one} and {two}")


def build_odd(config: SDPOConfig, options: OddOptions) -> Callable[[str, Mapping[str, Any]], Any]:
    """Return the scorer."""
    if options.broken:
        raise {"SDPOError": SDPOError, "ImportError": ImportError}[options.broken]("It is not there; install it.")

    def score(response: str, sample: Mapping[str, Any]) -> Any:
        what, _, more = response.partition(" ")
        if what in _DEEDS:
            given = _DEEDS[what](more)
            if given is not None:
                return given
        right = response == sample.get("ground_truth")
        details = {"acc": float(right), "pred": response, "pid": os.getpid(), "torch": "torch" in sys.modules}
        return Score(float(right) + options.bonus, None if right else f"{response!r} is wrong.", details)

    return score


def _raise(error: BaseException) -> None:
    raise error


def _child(path: str) -> None:
    """Start a process that outlives nobody, write its id, and wait for it."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    with open(path, "a", encoding="utf-8") as file:
        file.write(f"{process.pid}\n")
    process.wait()


def _said(text: str) -> None:
    print(text, flush=True)


_DEEDS: dict[str, Callable[[str], Any]] = {
    "sleep": lambda more: time.sleep(float(more)),
    "exit": lambda more: os._exit(int(more)),
    "kill": lambda more: os.kill(os.getpid(), signal.SIGKILL),
    # Holds the interpreter's lock: no thread and no signal handler of Python's gets a turn.
    "hold": lambda more: sum(range(10**12)),
    "raise": lambda more: _raise(ValueError(more)),
    "own": lambda more: _raise(OwnError("this", "that")),
    "recurse": lambda more: _DEEDS["recurse"](more),
    "data": lambda more: _raise(DataError(f"The row is bad: {more}.")),
    "sandbox": lambda more: _raise(SDPOError("The sandbox is gone; start it again.")),
    "nothing": lambda more: "no score",
    "nan": lambda more: Score(float("nan")),
    "child": _child,
    "say": _said,
}


@hookimpl
def sdpo_scorers() -> list[Scorer]:
    return [Scorer("odd", "1 if the answer is the truth; else what the answer says.", build_odd, OddOptions)]
