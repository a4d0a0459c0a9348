"""The run report: curves, health in plain words, pictures, and one page that shows what the teacher says of each token.

Everything is made from a run's records; nothing here needs torch. The libraries are the extra `report`'s.
"""

from __future__ import annotations

import importlib
from typing import Any

MAX_ROLLOUTS = 2000
"""How many rollouts a page holds unless asked for more."""

# Where each public name stands; a module is imported when one of its names is used.
_PLACES = {
    "Curve": "curves",
    "standard_curves": "curves",
    "Finding": "health",
    "findings": "health",
    "Page": "page",
    "build_page": "page",
    "follow": "page",
    "write_page": "page",
}

__all__ = ["MAX_ROLLOUTS", *_PLACES]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)
