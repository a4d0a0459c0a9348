"""`make demo-openrlhf`: GRPO and SDPO side by side on the embedded task `facts`, through OpenRLHF's trainer, on a CPU.

Both train the same checkpoint with the same number of generations, each with the learning rate that suits it.
OpenRLHF's evaluation measures the sampled accuracy before and after.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from openrlhf_cpu.data import data_source
from openrlhf_cpu.run import base_arguments, run
from sdpo_plugins.embedded.results import Run, draw_curves, print_table, write_results
from sdpo_plugins.embedded.settings import RunSettings, run_settings
from sessions import RunFailed, interrupted_when_terminated
from side_by_side import OnStep, positive, train_side_by_side

__all__ = ["METHODS", "arguments", "main", "result"]

METHODS = ("grpo", "sdpo")

_TASK = "facts"
# In TRL the demo takes 200; SDPO has learnt most of the task by now.
_STEPS = 160
# Answers to each of the 40 questions: the standard error of an accuracy is then below three points.
_SAMPLES = 8
_TIME_LIMIT = 3600.0
# What a run was seen to take, generously.
_GIGABYTES, _GIGABYTES_PER_RANK = 5.0, 1.0
_REWARD, _SECONDS = "rollout/reward_mean", "timing/step_total"


def main(given_arguments: Sequence[str] | None = None) -> int:
    """Run the demo; the exit code is 0 on success, 1 if a run failed, 130 if it was interrupted."""
    parser = argparse.ArgumentParser(prog="python -m openrlhf_cpu.demo", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--ranks", type=positive, default=1, help="DeepSpeed ranks that share the model (default 1)")
    parser.add_argument("--seed", type=int, default=0, help="of sampling and of the questions' order (default 0)")
    parser.add_argument("--steps", type=positive, default=_STEPS, help=f"optimizer steps (default {_STEPS})")
    parser.add_argument("--output", type=Path, default=Path("runs/demo-openrlhf"), help="where results and logs go")
    given = parser.parse_args(given_arguments)
    settings = [replace(run_settings(_TASK, method), steps=given.steps) for method in METHODS]
    rows = settings[0].questions_per_step * settings[0].rollouts_per_question
    if rows % given.ranks:
        return _failed(f"--ranks must divide the {rows} answers of a step, got {given.ranks}.")
    # Said now, and not after minutes of training.
    if importlib.util.find_spec("matplotlib") is None:
        return _failed("matplotlib draws the learning curves and is not installed: pip install matplotlib")
    begin = time.monotonic()
    try:
        with interrupted_when_terminated():
            runs = _train(settings, given.seed, given.ranks, given.output)
    except RunFailed as error:
        return _failed(str(error))
    except KeyboardInterrupt:
        print("demo-openrlhf was interrupted; nothing of it runs on.", file=sys.stderr)
        return 130
    results = write_results(runs, given.output, host="openrlhf", ranks=given.ranks)
    picture = draw_curves(runs, given.output / f"{_TASK}.png")
    print()
    print_table(runs)
    print(f"\n{time.monotonic() - begin:.0f} s in all, on OpenRLHF with {given.ranks} DeepSpeed rank(s).")
    print(f"Results: {results}")
    print(f"Learning curves: {picture}")
    return 0


def arguments(settings: RunSettings, folder: Path, *, ranks: int, seed: int, records: Path | None = None) -> list[str]:
    """Return the flags of one run.

    Args:
        settings: Task, method, learning rate, budget.
        folder: For the task's data files and what is saved.
        ranks: Number of DeepSpeed ranks.
        seed: Of sampling and of the questions' order.
        records: Folder of the run's records, which outlives `folder`; None: they go with the model.
    """
    if settings.method == "sdpo":
        sdpo = [word for name, value in settings.sdpo.items() for word in (f"--sdpo.{name}", _word(value))]
    else:
        sdpo = ["--sdpo.enabled", "false"]
    if records is not None:
        sdpo += ["--sdpo.record_dir", str(records)]
    return [
        *base_arguments(
            settings.task,
            folder,
            steps=settings.steps,
            questions=settings.questions_per_step,
            rollouts=settings.rollouts_per_question,
            ranks=ranks,
            seed=seed,
        ),
        *("--rollout.max_new_tokens", str(settings.max_completion_length)),
        *("--rollout.temperature", str(settings.temperature)),
        *("--eval.steps", str(settings.steps)),
        *("--eval.temperature", str(settings.temperature)),
        *("--eval.n_samples_per_prompt", str(_SAMPLES)),
        *("--actor.adam.lr", str(settings.learning_rate)),
        *("--actor.lr_scheduler", settings.lr_scheduler_type),
        *sdpo,
    ]


def result(settings: RunSettings, metrics: Mapping[int, Mapping[str, float]], seed: int) -> Run:
    """Read a finished run's result from what OpenRLHF recorded.

    Args:
        settings: Of the run.
        metrics: By step; the evaluation before training is at step 0.
        seed: Of the run.

    Raises:
        RunFailed: The records lack a step or an evaluation, so OpenRLHF ended early without an error.
    """
    accuracy = f"eval/eval_{data_source(settings.task)}_pass1"
    steps = range(1, settings.steps + 1)
    absent = [step for step in steps if _REWARD not in metrics.get(step, {})]
    absent += [step for step in (0, settings.steps) if accuracy not in metrics.get(step, {})]
    if absent:
        raise RunFailed(
            f"OpenRLHF ended without an error, but recorded no reward or no accuracy at steps {absent[:10]}.",
            "",
            {step: dict(row) for step, row in metrics.items()},
            False,
        )
    return Run(
        task=settings.task,
        method=settings.method,
        seed=seed,
        accuracy_before=float(metrics[0][accuracy]),
        accuracy_after=float(metrics[settings.steps][accuracy]),
        generations=settings.generations,
        seconds=sum(float(metrics[step][_SECONDS]) for step in steps),
        generations_per_step=settings.questions_per_step * settings.rollouts_per_question,
        curve=[float(metrics[step][_REWARD]) for step in steps],
    )


def _train(settings: Sequence[RunSettings], seed: int, ranks: int, output: Path) -> list[Run]:
    def train(one: RunSettings, *, log: Path, on_step: OnStep, stop: threading.Event) -> Run:
        with tempfile.TemporaryDirectory() as folder:
            records = output.absolute() / one.method / "records"
            given = arguments(one, Path(folder), ranks=ranks, seed=seed, records=records)
            first = {"OPENRLHF_CPU_EVALUATE_FIRST": "1"}
            return result(one, run(given, _TIME_LIMIT, environment=first, log=log, on_step=on_step, stop=stop), seed)

    return train_side_by_side(
        settings,
        train,
        output,
        title=f"{_TASK} · OpenRLHF, {ranks} DeepSpeed rank(s) · seed {seed}",
        gigabytes=_GIGABYTES + _GIGABYTES_PER_RANK * (ranks - 1),
        reward=_REWARD,
    )


def _word(value: Any) -> str:
    """Write a value as the flag takes it, which is read as YAML."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _failed(message: str) -> int:
    print(f"demo-openrlhf: {message}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
