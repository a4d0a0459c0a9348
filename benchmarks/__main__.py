"""`python -m benchmarks`: measure, print the tables as Markdown, keep the figures in runs/bench/results.json."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks import cuda, growth, loss, report, step
from benchmarks.console import chosen_parts, keep, machine, show, tell
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
    parts = chosen_parts(only, PARTS)
    results: dict[str, Any] = {"machine": machine(threads), "quick": quick}
    turns = 1 if quick else repeats
    print(f"# Benchmarks\n\n{results['machine']}\n", flush=True)
    if "loss" in parts:
        rows = loss.run_loss(QUICK if quick else Shape(), turns, threads=threads, tell=tell)
        results["loss"] = [asdict(row) for row in rows]
        show("The loss, forward and backward with the head", report.loss_report(rows, not quick))
    if "growth" in parts:
        found = growth.run_growth(QUICK if quick else GROWTH, threads=threads, tell=tell)
        results["growth"] = [asdict(one) for one in found]
        show("How the peak grows", report.growth_report(found, growth.CHUNK_MB, not quick))
    if "step" in parts:
        steps = step.run_steps(QUICK_STEP if quick else step.StepShape(), threads=threads, tell=tell)
        results["step"] = steps
        show("A whole training step, generation left out", report.step_report(steps, not quick))
    if "cuda" in parts:
        results["cuda"] = cuda.run_cuda(tell=tell)
        show("On a GPU", report.cuda_report(results["cuda"]))
    keep(results, output)


if __name__ == "__main__":
    app()
