"""One short run of `sdpo_trl.solve`, in this process or in one that ends itself in the middle."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sdpo_plugins.embedded import checkpoint_path
from sdpo_plugins.solve import Outcome, Question, SolveSettings
from sdpo_trl.solve import solve

SECRET = "the truth is 26071"
QUESTION = Question(
    ({"role": "user", "content": "What is the atomic number of iron?"},), {"ground_truth": SECRET, "hint": "none"}
)


def settings(**changes: Any) -> SolveSettings:
    """Six batches of four answers, a checkpoint after every second."""
    base: dict[str, Any] = {
        "samples": 4,
        "budget": 24,
        "learning_rate": 1e-3,
        "max_completion_length": 6,
        "checkpoint_every": 2,
        "options": {"use_cpu": True, "record_rollouts": 16},
    }
    return SolveSettings(**{**base, **changes})


def never_right(completions: Sequence[Any], ground_truth: Sequence[str], **_: Any) -> list[dict[str, Any]]:
    """No success; the feedback says what the answer was."""
    assert set(ground_truth) == {SECRET}
    return [{"score": 0.1, "feedback": f"Wrong, not {each[0]['content'][:4]}."} for each in completions]


def run(folder: Path, stop_at: int | None = None, sign: int = signal.SIGKILL, **changes: Any) -> Outcome:
    """Run, and send this process a signal when so many attempts are written down."""

    def progress(method: str, done: int, goal: int, best: float | None, solved: bool) -> None:
        if method == "sdpo" and done == stop_at:
            os.kill(os.getpid(), sign)

    return solve(QUESTION, never_right, settings(**changes), folder, place=str(checkpoint_path()), progress=progress)


if __name__ == "__main__":
    run(Path(sys.argv[1]), stop_at=int(sys.argv[2]), sign=int(sys.argv[3]))
