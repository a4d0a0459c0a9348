"""The demos' methods beside each other: progress, what to do when one fails, memory."""

from __future__ import annotations

import argparse
import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, Protocol

from sdpo_plugins.embedded.results import Run
from sdpo_plugins.embedded.settings import RunSettings
from sessions import RunFailed

__all__ = ["OnStep", "Train", "positive", "train_side_by_side"]

OnStep = Callable[[int, Mapping[str, float]], None]


class Train(Protocol):
    """Trains by one method's settings. It ends early, with `RunFailed`, once `stop` is set."""

    def __call__(self, settings: RunSettings, *, log: Path, on_step: OnStep, stop: threading.Event) -> Run: ...


def train_side_by_side(
    settings: Sequence[RunSettings], train: Train, output: Path, *, title: str, gigabytes: float, reward: str
) -> list[Run]:
    """Train by all settings, at once if they fit into memory: half of the time a run waits for its own processes.

    Args:
        settings: One for each method, of one task.
        train: Trains by one of them.
        output: Folder for the logs; made if need be.
        title: What is trained on, e.g. `"facts · verl, 1 FSDP2 rank(s) · seed 0"`.
        gigabytes: Memory that one run takes.
        reward: Name of the metric that is shown beside the progress.

    Returns:
        The runs, in the settings' order.

    Raises:
        RunFailed: One failed; the others have been ended by then.
    """
    output.mkdir(parents=True, exist_ok=True)
    at_once = len(settings) if _available_gigabytes() >= len(settings) * gigabytes else 1
    print(
        f"{title} · {settings[0].steps} steps of "
        f"{settings[0].questions_per_step}×{settings[0].rollouts_per_question} answers · "
        + ("both methods at once" if at_once > 1 else "one method after the other, for want of memory"),
        flush=True,
    )
    stop = threading.Event()
    finished: dict[str, Run] = {}

    def one_run(one: RunSettings, on_step: OnStep) -> Run:
        log = output / f"{one.method}.log"
        try:
            return train(one, log=log, on_step=on_step, stop=stop)
        except RunFailed as error:
            message = f"{one.method.upper()} failed: {error}\nAll that it printed: {log}"
            raise RunFailed(message, error.log, error.metrics, error.timed_out) from error

    with _progress(settings, reward) as on_step, ThreadPoolExecutor(at_once) as pool:
        waiting = {pool.submit(one_run, one, on_step(one)): one for one in settings}
        try:
            for future in as_completed(waiting):
                done = finished[waiting[future].method] = future.result()
                print(
                    f"{done.method.upper()}: accuracy {done.accuracy_before:.0%} → {done.accuracy_after:.0%}, "
                    f"{done.generations} generations, {done.seconds:.0f} s of training",
                    flush=True,
                )
        finally:
            # After an error the other run is of no use; the pool's end waits until its processes are gone.
            stop.set()
            for future in waiting:
                future.cancel()
    return [finished[one.method] for one in settings]


@contextlib.contextmanager
def _progress(settings: Sequence[RunSettings], reward_name: str) -> Iterator[Callable[[RunSettings], OnStep]]:
    """Give what is called after each step: a bar for each run on a terminal, nothing elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("reward {task.fields[reward]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        tasks = {one.method: progress.add_task(one.method.upper(), total=one.steps, reward="–") for one in settings}

        def on_step(one: RunSettings) -> OnStep:
            def show(step: int, metrics: Mapping[str, float]) -> None:
                reward = metrics.get(reward_name)
                shown: dict[str, Any] = {} if reward is None else {"reward": f"{reward:.2f}"}
                progress.update(tasks[one.method], completed=step, **shown)

            return show

        yield on_step


def _available_gigabytes() -> float:
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) / 2**20
    return 0.0


def positive(text: str) -> int:
    """Read an option's whole number, at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value
