"""What the examples of this folder share and what is not about SDPO: a command line, a model, an accuracy."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any


def command_line(description: str, *, steps: int, tiny_steps: int, output: str) -> argparse.Namespace:
    """Read the options that every example has."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--model", default="Qwen/Qwen2.5-0.5B-Instruct", help="name on the hub, or a folder")
    parser.add_argument("--tiny", action="store_true", help="the model that comes with sdpo-plugins, on any CPU")
    parser.add_argument("--output", default=output, help="folder for checkpoints and the trained model")
    parser.add_argument("--steps", type=int, help=f"optimizer steps; default {steps}, with --tiny {tiny_steps}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--grpo", action="store_true", help="the same run with GRPO, to compare: rewards without feedback"
    )
    parser.add_argument("--samples", type=int, default=4, help="answers to each question when accuracy is measured")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint in --output")
    arguments = parser.parse_args()
    if arguments.steps is None:
        arguments.steps = tiny_steps if arguments.tiny else steps
    return arguments


def load(arguments: argparse.Namespace, family: str = "text") -> tuple[Any, Any]:
    """Load the model and its tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from sdpo_plugins.embedded import checkpoint_path

    path = checkpoint_path(family) if arguments.tiny else arguments.model
    return AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)


def housekeeping(arguments: argparse.Namespace) -> dict[str, Any]:
    """Give GRPOConfig's options that have nothing to do with learning."""
    import torch

    return {
        "output_dir": arguments.output,
        "max_steps": arguments.steps,
        "seed": arguments.seed,
        "bf16": torch.cuda.is_available(),
        "remove_unused_columns": False,
        "logging_steps": 10,
        "save_steps": 20,
        "save_total_limit": 2,
        "report_to": "none",
        "gradient_checkpointing": not arguments.tiny,
        "dataloader_pin_memory": torch.cuda.is_available(),
    }


def accuracy(trainer: Any, reward: Callable[..., Any], rows: Sequence[dict[str, Any]], samples: int) -> float:
    """Sample answers to questions, and let the reward function say which are right.

    Args:
        trainer: Its model, tokenizer and sampling are used.
        reward: Gives numbers, or mappings with `score`.
        rows: The questions.
        samples: Answers to each.
    """
    from sdpo_trl.embedded import sampled_answers

    rows = [row for row in rows for _ in range(samples)]
    columns: dict[str, list[Any]] = {name: [row[name] for row in rows] for name in rows[0] if name != "prompt"}
    prompts = [row["prompt"] for row in rows]
    answers = sampled_answers(
        trainer.model,
        trainer.processing_class,
        prompts,
        max_new_tokens=trainer.args.max_completion_length,
        seed=trainer.args.seed,
        temperature=trainer.args.temperature,
        batch_size=64,
    )
    completions = [[{"role": "assistant", "content": answer}] for answer in answers]
    found = reward(prompts=prompts, completions=completions, **columns)
    scores = [each["score"] if isinstance(each, dict) else each for each in found]
    return sum(score == 1.0 for score in scores) / len(scores)
