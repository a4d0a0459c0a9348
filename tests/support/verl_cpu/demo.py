"""`make demo-verl`: GRPO and SDPO side by side on the embedded task `facts`, through verl's own `main_ppo`, on a CPU.

Both train the same checkpoint with the same number of generations, each with the learning rate that suits it. verl's
validation measures the sampled accuracy before and after.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sdpo_plugins.embedded.results import Run, draw_curves, print_table, write_results
from sdpo_plugins.embedded.settings import RunSettings, run_settings
from side_by_side import OnStep, positive, train_side_by_side
from verl_cpu.data import data_source
from verl_cpu.run import RunFailed, base_overrides, interrupted_when_terminated, run

__all__ = ["METHODS", "main", "overrides", "result"]

METHODS = ("grpo", "sdpo")

_TASK = "facts"
# In TRL the demo takes 200; SDPO has learnt most of the task by now, and a step costs ten times as much in a cluster.
_STEPS = 120
# Answers to each of the 40 questions: the standard error of an accuracy is then below three points.
_SAMPLES = 8
_TIME_LIMIT = 3600.0
# What a run was seen to take, generously.
_GIGABYTES, _GIGABYTES_PER_RANK = 4.0, 0.6


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo; the exit code is 0 on success, 1 if a run failed, 130 if it was interrupted."""
    parser = argparse.ArgumentParser(prog="python -m verl_cpu.demo", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--ranks", type=positive, default=1, help="FSDP2 ranks that share the model (default 1)")
    parser.add_argument("--seed", type=int, default=0, help="of sampling and data order (default 0)")
    parser.add_argument("--steps", type=positive, default=_STEPS, help=f"optimizer steps (default {_STEPS})")
    parser.add_argument("--output", type=Path, default=Path("runs/demo-verl"), help="where results and logs go")
    given = parser.parse_args(arguments)
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
        print("demo-verl was interrupted; nothing of it runs on.", file=sys.stderr)
        return 130
    results = write_results(runs, given.output, host="verl", ranks=given.ranks)
    picture = draw_curves(runs, given.output / f"{_TASK}.png")
    print()
    print_table(runs)
    print(f"\n{time.monotonic() - begin:.0f} s in all, on verl with {given.ranks} FSDP2 rank(s).")
    print(f"Results: {results}")
    print(f"Learning curves: {picture}")
    return 0


def overrides(settings: RunSettings, folder: Path, *, ranks: int, seed: int, records: Path | None = None) -> list[str]:
    """Return the Hydra overrides of one run.

    Args:
        settings: Task, method, learning rate, budget.
        folder: For the task's parquet files.
        ranks: Number of FSDP2 ranks.
        seed: Of sampling and data order.
        records: Folder of SDPO's records, which outlives `folder`; None: they go with the checkpoints.

    Raises:
        ValueError: A learning rate that is not constant, for which verl would need a schedule of its own.
    """
    if settings.lr_scheduler_type != "constant":
        raise ValueError(f"only a constant learning rate is known here, got {settings.lr_scheduler_type!r}")
    actor, rollout = "actor_rollout_ref.actor", "actor_rollout_ref.rollout"
    rows = settings.questions_per_step * settings.rollouts_per_question // ranks
    sdpo = []
    if settings.method == "sdpo":
        sdpo = [
            "+sdpo=default",
            *(f"++{actor}.self_distillation.{name}={_hydra(value)}" for name, value in settings.sdpo.items()),
        ]
        if records is not None:
            sdpo.append(f"++{actor}.self_distillation.record_dir={json.dumps(str(records), ensure_ascii=False)}")
    return [
        *base_overrides(settings.task, folder, ranks=ranks),
        f"trainer.total_training_steps={settings.steps}",
        "trainer.val_before_train=True",
        f"trainer.test_freq={settings.steps}",
        f"data.train_batch_size={settings.questions_per_step}",
        f"data.seed={seed}",
        f"data.max_response_length={settings.max_completion_length}",
        f"{actor}.optim.lr={settings.learning_rate}",
        f"{actor}.optim.lr_scheduler_type=constant",
        f"{actor}.ppo_mini_batch_size={settings.questions_per_step}",
        f"{actor}.ppo_micro_batch_size_per_gpu={rows}",
        f"{rollout}.n={settings.rollouts_per_question}",
        f"{rollout}.temperature={settings.temperature}",
        f"{rollout}.seed={seed}",
        f"{rollout}.val_kwargs.n={_SAMPLES}",
        f"{rollout}.val_kwargs.temperature={settings.temperature}",
        # The server's log-probabilities are the actor's, to rounding. That spares a pass.
        f"{rollout}.calculate_log_probs=True",
        "algorithm.rollout_correction.bypass_mode=True",
        *sdpo,
        # Behind the mode that +sdpo=… sets and base_overrides took back.
        f"trainer.v1.trainer_mode={'sdpo' if settings.method == 'sdpo' else 'sync'}",
    ]


def result(settings: RunSettings, metrics: Mapping[int, Mapping[str, float]], seed: int) -> Run:
    """Read a finished run's result from what verl recorded.

    Args:
        settings: Of the run.
        metrics: By step; the validation before training is at step 0.
        seed: Of the run.

    Raises:
        RunFailed: The records lack a step or a validation, so verl ended early without an error.
    """
    accuracy = f"val-core/{data_source(settings.task)}/acc/mean@{_SAMPLES}"
    steps = range(1, settings.steps + 1)
    absent = [step for step in steps if "critic/score/mean" not in metrics.get(step, {})]
    absent += [step for step in (0, settings.steps) if accuracy not in metrics.get(step, {})]
    if absent:
        raise RunFailed(
            f"verl ended without an error, but recorded no score or no accuracy at steps {absent[:10]}.",
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
        seconds=sum(float(metrics[step]["timing_s/step"]) for step in steps),
        generations_per_step=settings.questions_per_step * settings.rollouts_per_question,
        curve=[float(metrics[step]["critic/score/mean"]) for step in steps],
    )


def _train(settings: Sequence[RunSettings], seed: int, ranks: int, output: Path) -> list[Run]:
    def train(one: RunSettings, *, log: Path, on_step: OnStep, stop: threading.Event) -> Run:
        with tempfile.TemporaryDirectory() as folder:
            records = output.absolute() / one.method / "records"
            given = overrides(one, Path(folder), ranks=ranks, seed=seed, records=records)
            return result(one, run(given, _TIME_LIMIT, log=log, on_step=on_step, stop=stop), seed)

    return train_side_by_side(
        settings,
        train,
        output,
        title=f"{_TASK} · verl, {ranks} FSDP2 rank(s) · seed {seed}",
        gigabytes=_needed_gigabytes(ranks),
        reward="critic/score/mean",
    )


def _needed_gigabytes(ranks: int) -> float:
    return _GIGABYTES + _GIGABYTES_PER_RANK * (ranks - 1)


def _hydra(value: Any) -> str:
    return "null" if value is None else str(value)


def _failed(message: str) -> int:
    print(f"demo-verl: {message}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
