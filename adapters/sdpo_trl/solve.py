"""`sdpo solve`: SDPO on one hard question at test time, and as many answers of the untrained model beside it."""

from __future__ import annotations

import gc
import os
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

from sdpo_plugins.embedded import checkpoint_path
from sdpo_plugins.errors import ConfigError
from sdpo_plugins.feedback.trl import for_trl
from sdpo_plugins.solve import Outcome, Question, RunFolder, SolveSettings, outcome_of
from sdpo_plugins.solve.attempts import BASELINE, SDPO, first_success, of_method
from sdpo_plugins.solve.results import write_results
from sdpo_plugins.solve.settings import EMBEDDED
from sdpo_trl.solve_arguments import training_arguments
from sdpo_trl.solve_scoring import Progress, ScoredAttempts
from sdpo_trl.solve_steps import last_whole_checkpoint, sample_base, train_on

__all__ = ["run", "solve"]


def run(
    question: Question,
    scorer: str,
    scorer_options: Mapping[str, Any],
    settings: SolveSettings,
    output: Path,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Outcome:
    """Solve a question with a scorer of the catalogue.

    Args:
        question: The question.
        scorer: Name of the scorer.
        scorer_options: Its options, and `workers` and `timeout` of its batches.
        settings: What to do.
        output: Folder of the run; a run that it holds goes on.
        overwrite: Begin anew.
        progress: As for `solve`.

    Returns:
        What came of it.

    Raises:
        ConfigError: Options that are invalid or contradict the folder's run.
        SDPOError: What the scorer needs is missing; a row that it cannot use.
    """
    _quiet_libraries()
    tokenizer = _loaded(AutoTokenizer, _place(settings.model, scorer))
    plugins = training_arguments(settings, output, steps=1).to_sdpo_config().plugins
    known = {"plugins": plugins, "eos_token_id": tokenizer.eos_token_id, "progress": False}
    if tokenizer.eos_token_id is not None:
        known["max_completion_length"] = settings.max_completion_length
    reward = for_trl(scorer, **{**known, **scorer_options})
    try:
        # No attempt: a row that the scorer cannot use shows itself before the model is loaded.
        reward.scorer([""], [question.row])
        return solve(
            question,
            reward,
            settings,
            output,
            identity={"scorer": scorer, "scorer_options": dict(scorer_options)},
            place=_place(settings.model, scorer),
            overwrite=overwrite,
            progress=progress,
        )
    finally:
        reward.close()


def solve(
    question: Question,
    reward: Callable[..., Any],
    settings: SolveSettings,
    output: Path,
    *,
    place: str | None = None,
    identity: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Outcome:
    """Sample, score and take SDPO steps on one question until an answer succeeds or the budget is spent.

    Args:
        question: The question.
        reward: A reward function for TRL; it may return feedback too.
        settings: What to do.
        output: Folder for `attempts.jsonl`, `solution.txt`, `results.json`, `run.json`, records and the newest
            checkpoint; a run that it holds goes on.
        place: Name or folder of the model, if not `settings.model`.
        identity: What else makes the run what it is, as plain values.
        overwrite: Delete a run that `output` holds, and begin anew.
        progress: progress(method, attempts, of, best reward, solved), called after each batch of attempts.

    Returns:
        What came of it.

    Raises:
        ConfigError: Options that are invalid or contradict the folder's run; several processes.
        SDPOError: As `SDPOTrainer` raises.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError(
            f"`sdpo solve` runs in one process, got WORLD_SIZE={os.environ['WORLD_SIZE']}. Start it without a "
            "launcher; for one question on several GPUs, train a recipe with a data set of one row."
        )
    _quiet_libraries()
    place = place or settings.model
    arguments = training_arguments(settings, output, steps=settings.steps)
    threshold = arguments.to_sdpo_config().success_reward_threshold
    folder = RunFolder(output)
    folder.begin({"question": question.row, **settings.identity, **(identity or {})}, overwrite)
    begin = time.perf_counter()
    scored = ScoredAttempts(question, reward, folder, threshold, settings.samples, progress)
    interrupted = False
    solved = first_success(of_method(folder.log.read(), SDPO), threshold)
    if solved is None or settings.keep_going:
        checkpoint, step = last_whole_checkpoint(output)
        scored.resume(folder.attempts_to_resume(step, settings.samples))
        if step < settings.steps:
            tokenizer = _loaded(AutoTokenizer, place)
            interrupted = train_on(place, tokenizer, arguments, scored, settings, checkpoint)
    spent = len(of_method(folder.log.read(), SDPO))
    if settings.baseline != "none" and not interrupted:
        gc.collect()
        interrupted = _sample_base(place, arguments, scored, settings, spent)
    outcome = outcome_of(folder.log.read(), threshold, settings.baseline != "none", settings.samples, interrupted)
    if outcome.sdpo.solution is not None:
        folder.write_solution(outcome.sdpo.solution)
    write_results(
        output / "results.json",
        outcome,
        seconds=round(time.perf_counter() - begin, 1),
        budget=settings.budget,
        **settings.identity,
    )
    return outcome


def _sample_base(place: str, arguments: Any, scored: ScoredAttempts, settings: SolveSettings, count: int) -> bool:
    scored.method = BASELINE
    scored.resume(scored.folder.log.read(), whole_batches=True)
    if len(scored.attempts) >= count:
        return False
    tokenizer = _loaded(AutoTokenizer, place)
    model = _loaded(AutoModelForCausalLM, place, **(arguments.model_init_kwargs or {}))
    model = model.to("cuda" if torch.cuda.is_available() and not arguments.use_cpu else "cpu").eval()
    return sample_base(model, tokenizer, arguments, scored, settings, count)


def _place(model: str, scorer: str) -> str:
    return str(checkpoint_path("code" if scorer == "code" else "text")) if model == EMBEDDED else model


def _loaded(kind: Any, place: str, **options: Any) -> Any:
    try:
        return kind.from_pretrained(place, **options)
    except (OSError, ValueError) as error:
        first = str(error).strip().split("\n")[0]
        raise ConfigError(
            f"`model` cannot be loaded from {place!r}: {first} Give a folder with a model and its tokenizer, a name on "
            "the hub, or `embedded`."
        ) from error


def _quiet_libraries() -> None:
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    # Names that TRL still uses and transformers renamed; not for the reader of this command.
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
