"""The two loops of `sdpo solve`: SDPO steps through the real trainer, and answers of the untrained model."""

from __future__ import annotations

import json
import re
import shutil
import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from datasets import Dataset
from transformers import PrinterCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from sdpo_plugins.solve import SolveSettings
from sdpo_trl.solve_scoring import ScoredAttempts
from sdpo_trl.trainer import SDPOTrainer

__all__ = ["Interrupt", "last_whole_checkpoint", "sample_base", "train_on"]


def train_on(
    model: str,
    tokenizer: Any,
    arguments: Any,
    scored: ScoredAttempts,
    settings: SolveSettings,
    checkpoint: Path | None,
) -> bool:
    """Train on the question until it is solved, the steps are over, or somebody interrupts.

    Args:
        model: Name or folder of the model.
        tokenizer: Its tokenizer.
        arguments: TRL's.
        scored: The reward function.
        settings: What to do.
        checkpoint: Where to go on from, or None.

    Returns:
        Whether it was interrupted; then there is a checkpoint of the last step.
    """
    scored.goal = settings.budget
    scored.tell()
    with Interrupt() as interrupt:
        trainer = SDPOTrainer(
            model,
            reward_funcs=scored,
            args=arguments,
            train_dataset=Dataset.from_list([scored.question.row]),
            processing_class=tokenizer,
            callbacks=[_Steering(scored, settings.keep_going, interrupt)],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        return interrupt.asked and len(scored.attempts) < settings.budget


@torch.no_grad()
def sample_base(
    model: Any, tokenizer: Any, arguments: Any, scored: ScoredAttempts, settings: SolveSettings, count: int
) -> bool:
    """Let an untrained model answer the question, batch by batch, as the trainer samples.

    A batch's random numbers depend on the seed and on its place alone, so that a run can go on after any batch.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        arguments: TRL's.
        scored: The reward function.
        settings: What to do.
        count: Answers in all, those of an earlier start included.

    Returns:
        Whether it was interrupted.
    """
    scored.goal = count
    scored.tell()
    prompt = tokenizer.apply_chat_template(
        scored.question.row["prompt"],
        tokenize=False,
        add_generation_prompt=True,
        **(arguments.chat_template_kwargs or {}),
    )
    ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)["input_ids"].to(model.device)
    sampling = _sampling(arguments)
    with Interrupt() as interrupt, torch.random.fork_rng():
        while len(scored.attempts) < count and not interrupt.asked:
            # Other numbers than those of the training run, which begins with the seed itself.
            torch.manual_seed(settings.seed + 1_000_003 * (len(scored.attempts) // settings.samples + 1))
            output = model.generate(
                input_ids=ids.repeat(settings.samples, 1),
                attention_mask=torch.ones_like(ids).repeat(settings.samples, 1),
                pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
                **sampling,
            )[:, ids.size(1) :]
            texts = tokenizer.batch_decode(output, skip_special_tokens=True)
            row = scored.question.row
            scored(
                prompts=[row["prompt"]] * len(texts),
                completions=[[{"role": "assistant", "content": text}] for text in texts],
                completion_ids=[_without_padding(each, tokenizer) for each in output.tolist()],
                **{name: [value] * len(texts) for name, value in row.items() if name != "prompt"},
            )
        return interrupt.asked and len(scored.attempts) < count


def _sampling(arguments: Any) -> dict[str, Any]:
    """Return how the trainer samples; what a model brings along, a repetition penalty say, would count otherwise."""
    sampling = {
        "do_sample": True,
        "temperature": arguments.temperature,
        "top_p": arguments.top_p,
        "top_k": arguments.top_k or 0,
        "repetition_penalty": arguments.repetition_penalty,
        "max_new_tokens": arguments.max_completion_length,
    }
    if arguments.min_p is not None:
        sampling["min_p"] = arguments.min_p
    # vLLM's have other names, and the untrained model is sampled without it.
    return sampling if arguments.use_vllm else {**sampling, **(arguments.generation_kwargs or {})}


def last_whole_checkpoint(folder: Path) -> tuple[Path | None, int]:
    """Return the newest checkpoint that was written to its end, and its step; delete what a crash left of newer ones.

    Args:
        folder: The run's.

    Returns:
        (None, 0) if there is none.
    """
    names = ((re.fullmatch(r"checkpoint-(\d+)", path.name), path) for path in folder.glob("checkpoint-*"))
    found = {int(name[1]): path for name, path in names if name and path.is_dir()}
    for step in sorted(found, reverse=True):
        try:
            # The host writes this file last.
            state = json.loads((found[step] / "trainer_state.json").read_text(encoding="utf-8"))
            if state["global_step"] == step:
                return found[step], step
        except (OSError, ValueError, KeyError):
            pass
        shutil.rmtree(found[step])
    return None, 0


class Interrupt:
    """Within the block Ctrl+C and SIGTERM only ask for an end; a second one ends at once.

    Attributes:
        asked: Whether somebody did.
    """

    _SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interrupt:
        # Only the main thread may take signals; elsewhere they are the program's own.
        if threading.current_thread() is threading.main_thread():
            self._before = {each: signal.signal(each, self._ask) for each in self._SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for each, handler in self._before.items():
            signal.signal(each, handler)
        self._before = {}

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        self.__exit__()


class _Steering(TrainerCallback):
    """Ends the training when the question is solved or somebody interrupts, and saves what must not be lost."""

    def __init__(self, scored: ScoredAttempts, keep_going: bool, interrupt: Interrupt) -> None:
        self._scored, self._keep_going, self._interrupt = scored, keep_going, interrupt
        self._was_solved = scored.solved

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        solved = self._scored.solved
        if self._interrupt.asked or (solved and not self._keep_going):
            control.should_training_stop = True
        # Also a first success of a run that goes on: on a machine that computes differently the second time, a restart
        # from an older checkpoint would lose it.
        if self._interrupt.asked or (solved and not self._was_solved):
            control.should_save = True
        self._was_solved = solved
        return control


def _without_padding(tokens: list[int], tokenizer: Any) -> list[int]:
    """Cut an answer off after its end token, as the trainer does."""
    if tokenizer.eos_token_id in tokens:
        return tokens[: tokens.index(tokenizer.eos_token_id) + 1]
    return tokens
