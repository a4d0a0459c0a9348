"""The grader of `reward.py` without its texts: the unmodified host makes a number of everything in `extra_logs`."""

from __future__ import annotations

from typing import Any

from openrlhf_cpu.reward import reward_func as _graded


def reward_func(*args: Any, **kwargs: Any) -> dict[str, Any]:
    """Score responses; arguments and result are those of `openrlhf_cpu.reward`, less `feedback`."""
    graded = _graded(*args, **kwargs)
    del graded["extra_logs"]["feedback"]
    return graded
