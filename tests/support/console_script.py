"""The installed console script `sdpo`, for tests that need a process of its own."""

from __future__ import annotations

import sysconfig
from pathlib import Path


def script() -> str:
    """Return the path of `sdpo` in this environment."""
    path = Path(sysconfig.get_path("scripts")) / "sdpo"
    assert path.exists(), "install the project first: pip install -e '.[trl,dev]'"
    return str(path)
