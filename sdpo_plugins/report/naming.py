"""Names of runs beside one another, and which of them differ by their seed only."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

__all__ = ["run_names", "without_seed"]

_SEED = re.compile(r"[-_. ]*\bseed[-_=. ]?\d+|[-_. ]+seed[-_=. ]?\d+", re.IGNORECASE)
_RECORDS = "records"


def without_seed(name: str) -> str:
    """Return a run's name without its seed: the part "seed" and a number.

    Args:
        name: Of a run.

    Example:
        >>> without_seed("sdpo-seed3"), without_seed("sdpo/seed_3"), without_seed("seedling")
        ('sdpo', 'sdpo', 'seedling')
    """
    return _SEED.sub("", name).strip("/-_. ") or name


def run_names(folders: Sequence[Path]) -> list[str]:
    """Return a short name for each run: as much of the end of its path as tells it from the others.

    Args:
        folders: Of the runs, or of their records.

    Returns:
        In the same order. A name is more than a seed where the path has more to say.

    Example:
        >>> run_names([Path("runs/sdpo/seed1/records"), Path("runs/grpo/seed1/records")])
        ['sdpo/seed1', 'grpo/seed1']
    """
    paths = [_parts(folder) for folder in folders]
    deepest = max((len(parts) for parts in paths), default=0)
    names: list[str] = []
    for depth in range(1, deepest + 1):
        names = ["/".join(parts[-depth:]) for parts in paths]
        if len(set(names)) == len(set(map(tuple, paths))) and all(_SEED.sub("", name).strip("/-_. ") for name in names):
            break
    return names


def _parts(folder: Path) -> list[str]:
    parts = list(folder.resolve().parts[1:])
    return parts[:-1] if parts and parts[-1] == _RECORDS else parts
