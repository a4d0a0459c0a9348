"""Rollouts with known texts, through TRL's own `rollout_func`: what the trainer does with them can be foretold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch


def scripted(tokenizer: Any, answers: Sequence[str], **fields: Callable[[Sequence[str]], list[Any]]) -> Any:
    """A `rollout_func` that gives the answers in turn; `fields` are made of the batch's texts and go along."""

    def rollout(prompts: list[Any], trainer: Any) -> dict[str, Any]:
        texts = [answers[row % len(answers)] for row in range(len(prompts))]
        completions = [
            [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id] for text in texts
        ]
        return {
            "prompt_ids": [_prompt_ids(tokenizer, prompt) for prompt in prompts],
            "completion_ids": completions,
            "logprobs": [[0.0] * len(ids) for ids in completions],
            **{name: make(texts) for name, make in fields.items()},
        }

    return rollout


def _prompt_ids(tokenizer: Any, prompt: Any) -> list[int]:
    if isinstance(prompt, str):
        return tokenizer(prompt)["input_ids"]
    return tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)["input_ids"]


def buffered_rows(trainer: Any) -> list[dict[str, Any]]:
    """The rows of the rollout batch that the trainer holds: texts without padding, and the SDPO flags."""
    tokenizer = trainer.processing_class
    rows = []
    for batch in trainer._buffered_inputs:
        for row in range(batch["completion_ids"].size(0)):
            answer = _text(tokenizer, batch["completion_ids"][row], batch["completion_mask"][row])
            rows.append(
                {
                    "answer": answer.removesuffix(tokenizer.eos_token),
                    "prompt": _text(tokenizer, batch["prompt_ids"][row], batch["prompt_mask"][row]),
                    "teacher": _text(tokenizer, batch["sdpo_prompt_ids"][row], batch["sdpo_prompt_mask"][row]),
                    "active": bool(batch["sdpo_active"][row]),
                    "success": bool(batch["sdpo_success"][row]),
                }
            )
    return rows


def _text(tokenizer: Any, ids: torch.Tensor, mask: torch.Tensor) -> str:
    return str(tokenizer.decode(ids[mask.bool()], skip_special_tokens=False))


def watch_gradients(trainer: Any) -> dict[str, torch.Tensor]:
    """The gradients that reach the optimizer, filled in at its (last) step."""
    seen: dict[str, torch.Tensor] = {}
    trainer.create_optimizer()
    step = trainer.optimizer.step

    def stepping(*args: Any, **kwargs: Any) -> Any:
        seen.update({name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None})
        return step(*args, **kwargs)

    trainer.optimizer.step = stepping
    return seen
