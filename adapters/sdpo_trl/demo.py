"""`sdpo demo`: GRPO and SDPO side by side on the embedded tasks, through the real TRL trainers."""

from __future__ import annotations

import gc
import json
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, ProgressCallback
from trl import GRPOConfig, GRPOTrainer

from sdpo_plugins.config import SDPOConfig
from sdpo_plugins.embedded import checkpoint_path, load_task, task_names
from sdpo_plugins.embedded.results import Run, draw_curves, print_table, write_results
from sdpo_plugins.embedded.settings import RunSettings, run_settings
from sdpo_plugins.errors import HostError
from sdpo_plugins.records import FOLDER, read_run
from sdpo_trl.embedded import dataset_of, reward_of, sampled_accuracy
from sdpo_trl.records import RecordCallback
from sdpo_trl.trainer import SDPOTrainer

__all__ = ["METHODS", "run", "train_once"]

METHODS = ("grpo", "sdpo")

# Answers sampled per evaluation question: the standard error of an accuracy is then two or three points.
_SAMPLES = {"sums": 4, "facts": 16, "programs": 16}


def run(seeds: int, tasks: Sequence[str] | None, output: Path) -> dict[str, Any]:
    """Train every task with both methods from the same checkpoint and budget, and show what came of it.

    Args:
        seeds: Number of seeds, 0, 1, ….
        tasks: Names of tasks; None for those of the demo's own model.
        output: Folder for `results.json`, the pictures, the report, and each run's records.

    Returns:
        `runs`, the rows of `results.json`; `results` and `curves`, the files; `seconds`.
    """
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    # Names that TRL still uses and transformers renamed; not for the reader of this demo.
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    output.mkdir(parents=True, exist_ok=True)
    chosen = list(tasks or task_names())
    runs: list[Run] = []
    begin = time.perf_counter()
    for seed in range(seeds):
        for task in chosen:
            for method in METHODS:
                print(f"{task} · {method.upper()} · seed {seed}", flush=True)
                runs.append(train_once(run_settings(task, method), seed, _folder(output, task, method, seed)))
                done = runs[-1]
                print(
                    f"  accuracy {done.accuracy_before:.0%} → {done.accuracy_after:.0%}, "
                    f"{done.generations} generations, {done.seconds:.0f} s",
                    flush=True,
                )
                results = write_results(runs, output)
    pictures = [draw_curves([one for one in runs if one.task == task], output / f"{task}.png") for task in chosen]
    print()
    print_table(runs)
    print(f"\n{time.perf_counter() - begin:.0f} s in all.")
    print(f"Results: {results}")
    print(f"Learning curves: {', '.join(map(str, pictures))}")
    print(f"Report: {_report(output, runs)}")
    return {
        "runs": json.loads(results.read_text(encoding="utf-8")),
        "results": str(results),
        "curves": [str(picture) for picture in pictures],
        "seconds": time.perf_counter() - begin,
    }


def train_once(settings: RunSettings, seed: int, records: Path | None = None) -> Run:
    """Train the embedded model on one task with one method.

    Args:
        settings: Task, method, learning rate, budget.
        seed: Of sampling and data order.
        records: Folder of the run's records; None: none are written.

    Returns:
        Accuracies before and after, and the reward of every step.
    """
    task = load_task(settings.task)
    checkpoint = checkpoint_path(task.family)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    samples = _SAMPLES.get(task.name, 4)
    before = sampled_accuracy(model, tokenizer, task, samples=samples, seed=seed)
    with tempfile.TemporaryDirectory() as scratch:
        args = GRPOConfig(
            output_dir=scratch,
            per_device_train_batch_size=settings.questions_per_step * settings.rollouts_per_question,
            num_generations=settings.rollouts_per_question,
            max_completion_length=settings.max_completion_length,
            temperature=settings.temperature,
            max_steps=settings.steps,
            learning_rate=settings.learning_rate,
            lr_scheduler_type=settings.lr_scheduler_type,
            gradient_checkpointing=False,
            bf16=False,
            seed=seed,
            logging_steps=1,
            save_strategy="no",
            dataloader_pin_memory=False,
            report_to="none",
            disable_tqdm=not sys.stderr.isatty(),
        )
        common: dict[str, Any] = {
            "args": args,
            "train_dataset": dataset_of(task),
            "processing_class": tokenizer,
        }
        trainer: GRPOTrainer
        if settings.method == "sdpo":
            recording = {"record": records is not None, "record_dir": None if records is None else str(records)}
            config = SDPOConfig.from_mapping({**settings.sdpo, **recording})
            trainer = SDPOTrainer(model, reward_funcs=reward_of(task.name), sdpo_config=config, **common)
        else:
            callbacks = [] if records is None else [RecordCallback(records)]
            trainer = GRPOTrainer(model, reward_funcs=_scores_only(task.name), callbacks=callbacks, **common)
        _quiet(trainer)
        begin = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - begin
    curve = [float(row["reward"]) for row in trainer.state.log_history if "reward" in row]
    after = sampled_accuracy(model, tokenizer, task, samples=samples, seed=seed)
    del trainer
    gc.collect()
    return Run(
        task=task.name,
        method=settings.method,
        seed=seed,
        accuracy_before=before,
        accuracy_after=after,
        generations=settings.generations,
        seconds=seconds,
        generations_per_step=settings.questions_per_step * settings.rollouts_per_question,
        curve=curve,
    )


def _folder(output: Path, task: str, method: str, seed: int) -> Path:
    return output / f"{task}-{method}-{seed}" / FOLDER


def _report(output: Path, runs: Sequence[Run]) -> str:
    """Make the page of all runs, and say where it is; or how to get one, without the libraries of reports."""
    from sdpo_plugins.report import build_page, write_page

    records = [read_run(_folder(output, run.task, run.method, run.seed)) for run in runs]
    try:
        page = build_page(records)
    except HostError as missing:
        return f"sdpo report {output} ({missing})"
    target = output / "report.html"
    write_page(page.html, target)
    return str(target)


def _scores_only(name: str) -> Any:
    """GRPO takes numbers: the same reward without the feedback."""
    grade = reward_of(name)

    def correct(**columns: Any) -> list[float]:
        return [result["score"] for result in grade(**columns)]

    return correct


class _Progress(ProgressCallback):
    """A progress bar that shows the reward beside itself instead of printing every log."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if state.is_world_process_zero and self.training_bar is not None and logs and "reward" in logs:
            self.training_bar.set_postfix(reward=f"{logs['reward']:.2f}")


def _quiet(trainer: GRPOTrainer) -> None:
    bar = not trainer.args.disable_tqdm
    trainer.remove_callback(ProgressCallback)
    trainer.remove_callback(transformers.PrinterCallback)
    if bar:
        trainer.add_callback(_Progress())
