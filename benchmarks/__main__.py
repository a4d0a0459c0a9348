"""`python -m benchmarks`: measure, print the tables as Markdown, keep the figures in runs/bench/results.json."""

from __future__ import annotations

import json
import os
import platform
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from benchmarks import cuda, growth, loss, report, step
from benchmarks.problem import Shape

__all__ = ["app"]

PARTS = ("loss", "growth", "step", "cuda")
QUICK = Shape(batch=4, length=64, width=256, vocabulary=32_768)
GROWTH = Shape(length=256, vocabulary=16_384)
QUICK_STEP = step.StepShape(prompt=128, response=32, group=4, vocabulary=8192, width=128, layers=2, steps=2)

app = typer.Typer(add_completion=False)


@app.command()
def measure(
    only: Annotated[list[str] | None, typer.Option(help=f"A part ({', '.join(PARTS)}); may be repeated.")] = None,
    quick: Annotated[bool, typer.Option(help="Small sizes, once: does it run, and roughly how does it look?")] = False,
    repeats: Annotated[int, typer.Option(min=1, help="Fresh processes for each figure of the loss.")] = 3,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of each process; default: PyTorch's.")] = None,
    output: Annotated[Path, typer.Option(help="Folder of results.json.")] = Path("runs/bench"),
) -> None:
    """Measure this project's losses and training steps beside the peers' and print tables with ratios."""
    parts = only or list(PARTS)
    unknown = sorted(set(parts) - set(PARTS))
    if unknown:
        raise typer.BadParameter(
            f"unknown part {', '.join(unknown)}; there are {', '.join(PARTS)}", param_hint="--only"
        )
    results: dict[str, Any] = {"machine": machine(threads), "quick": quick}
    turns = 1 if quick else repeats
    print(f"# Benchmarks\n\n{results['machine']}\n", flush=True)
    if "loss" in parts:
        rows = loss.run_loss(QUICK if quick else Shape(), turns, threads=threads, tell=_tell)
        results["loss"] = [asdict(row) for row in rows]
        _show("The loss, forward and backward with the head", report.loss_report(rows, not quick))
    if "growth" in parts:
        found = growth.run_growth(QUICK if quick else GROWTH, threads=threads, tell=_tell)
        results["growth"] = [asdict(one) for one in found]
        _show("How the peak grows", report.growth_report(found, growth.CHUNK_MB, not quick))
    if "step" in parts:
        steps = step.run_steps(QUICK_STEP if quick else step.StepShape(), threads=threads, tell=_tell)
        results["step"] = steps
        _show("A whole training step, generation left out", report.step_report(steps, not quick))
    if "cuda" in parts:
        results["cuda"] = cuda.run_cuda(tell=_tell)
        _show("On a GPU", report.cuda_report(results["cuda"]))
    output.mkdir(parents=True, exist_ok=True)
    (output / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    _tell(f"figures: {output / 'results.json'}")


def machine(threads: int | None) -> str:
    """Return what the figures were measured on, in one line."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    used = threads or torch.get_num_threads()
    plural = "" if used == 1 else "s"
    return (
        f"{os.cpu_count()} CPU cores ({platform.machine()}), {used} thread{plural}, {gpu}, "
        f"torch {torch.__version__}, Python {platform.python_version()}"
    )


def _show(title: str, text: str) -> None:
    print(f"## {title}\n\n{text}\n", flush=True)


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    app()
