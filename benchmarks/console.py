"""What the benchmarks' commands have in common: which parts to measure, on what, where figures and progress go."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import typer

__all__ = ["chosen_parts", "keep", "machine", "show", "tell"]


def chosen_parts(only: Sequence[str] | None, parts: Sequence[str]) -> list[str]:
    """Return the parts asked for, all of them if none is named.

    Raises:
        typer.BadParameter: A part that there is not.
    """
    unknown = sorted(set(only or ()) - set(parts))
    if unknown:
        raise typer.BadParameter(
            f"unknown part {', '.join(unknown)}; there are {', '.join(parts)}", param_hint="--only"
        )
    return list(only or parts)


def machine(threads: int | None) -> str:
    """Return what the figures were measured on, in one line."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    used = threads or torch.get_num_threads()
    plural = "" if used == 1 else "s"
    return (
        f"{os.cpu_count()} CPU cores ({platform.machine()}), {used} thread{plural}, {gpu}, "
        f"torch {torch.__version__}, Python {platform.python_version()}"
    )


def show(title: str, text: str) -> None:
    """Print a part's tables."""
    print(f"## {title}\n\n{text}\n", flush=True)


def tell(line: str) -> None:
    """Say how far it is, beside the tables."""
    print(line, file=sys.stderr, flush=True)


def keep(results: Mapping[str, Any], folder: Path) -> None:
    """Write results.json."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    tell(f"figures: {folder / 'results.json'}")
