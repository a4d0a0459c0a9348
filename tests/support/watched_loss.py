"""Trainers that keep what reaches the loss, and the same loss recomputed outside of them, row by row and unpadded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from sdpo_plugins.losses import self_distillation_loss
from sdpo_trl import SDPOTrainer


class Spying(SDPOTrainer):
    """Keeps each micro-batch and its loss."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.seen: list[dict[str, Any]] = []
        self.losses: list[float] = []
        super().__init__(*args, **kwargs)

    def _compute_loss(self, model: Any, inputs: Any) -> torch.Tensor:
        self.seen.append({name: value.clone() if torch.is_tensor(value) else value for name, value in inputs.items()})
        loss = super()._compute_loss(model, inputs)
        self.losses.append(float(loss.detach()))
        return loss

    def rows(self) -> list[dict[str, Any]]:
        """Each row seen: ids without padding, and their texts."""
        return [row for batch in self.seen for row in rows_of(self._tokenizer, batch)]


class Scripted(Spying):
    """A tiny model cannot call tools, so generation writes what a script says; everything around it is TRL's own.

    Args:
        script: Gives the answers to a batch of rendered prompts. An answer that ends in "…" is written without it and
            without an end token, as one cut at the length limit.
    """

    def __init__(self, *args: Any, script: Callable[[Sequence[str]], Sequence[str]], **kwargs: Any) -> None:
        self.script = script
        super().__init__(*args, **kwargs)

    def _generate_single_turn(self, prompt_ids: Any, *_: Any, **__: Any) -> Any:
        answers = self.script([self._tokenizer.decode(ids) for ids in prompt_ids])
        return [self._written(answer) for answer in answers], None

    def _written(self, answer: str) -> list[int]:
        ids = list(self._tokenizer(answer.removesuffix("…"), add_special_tokens=False)["input_ids"])
        return ids if answer.endswith("…") else [*ids, self._tokenizer.eos_token_id]


def rows_of(tokenizer: Any, batch: dict[str, Any]) -> list[dict[str, Any]]:
    """Take a micro-batch apart."""
    rows = []
    for row in range(batch["completion_ids"].size(0)):
        length, width = int(batch["completion_mask"][row].sum()), batch["completion_ids"].size(1)
        kept = {
            "answer_ids": batch["completion_ids"][row, :length],
            "prompt_ids": batch["prompt_ids"][row][batch["prompt_mask"][row].bool()],
            "teacher_ids": batch["sdpo_prompt_ids"][row][batch["sdpo_prompt_mask"][row].bool()],
        }
        learnt = torch.ones(length) if "tool_mask" not in batch else batch["tool_mask"][row, :length]
        weight = batch.get("importance_sampling_ratio")
        rows.append(
            {
                **kept,
                **{name.replace("_ids", ""): tokenizer.decode(ids) for name, ids in kept.items()},
                "active": bool(batch["sdpo_active"][row]),
                "success": bool(batch["sdpo_success"][row]),
                "learnt": learnt.bool(),
                "weights": torch.ones(length) if weight is None else weight[row].expand(width)[:length],
            }
        )
    return rows


def core_loss(
    trainer: Spying, *, temperature: float = 1.0, model_inputs: Any = None, gradient: bool = False
) -> torch.Tensor:
    """The core's loss of all rows seen, with forward passes of this function's own in float64.

    The model must not have moved since (learning rate 0), and the teacher must be a copy of it.

    Args:
        trainer: After training.
        temperature: Of the rollouts.
        model_inputs: `model_inputs(index of the row, prompt ids) -> dict`: what the model needs besides ids.
        gradient: Keep the student's graph, for a backward pass into `trainer.model`.
    """
    model, rows = trainer.model.double().eval(), trainer.rows()
    width = max(len(row["answer_ids"]) for row in rows)
    columns: list[list[torch.Tensor]] = [[] for _ in range(5)]
    for index, row in enumerate(rows):
        answer, length = row["answer_ids"], len(row["answer_ids"])
        logits = []
        told = row["teacher_ids"] if row["active"] else row["prompt_ids"]
        for prompt, learns in ((row["prompt_ids"], gradient), (told, False)):
            extra = model_inputs(index, torch.cat([prompt, answer])) if model_inputs else {}
            with torch.set_grad_enabled(learns):
                output = model(input_ids=torch.cat([prompt, answer])[None], **extra).logits[0]
            logits.append(output[len(prompt) - 1 : len(prompt) - 1 + length])
        pad = torch.zeros(width - length, dtype=torch.float64)
        values = (
            *(torch.cat([part, pad[:, None].expand(-1, part.size(1))]) for part in logits),
            torch.cat([answer, answer.new_zeros(width - length)]),
            torch.cat([row["learnt"].double(), pad]),
            torch.cat([row["weights"].double(), pad]),
        )
        for column, value in zip(columns, values, strict=True):
            column.append(value)
    student, teacher, ids, mask, weights = (torch.stack(column) for column in columns)
    loss, _ = self_distillation_loss(
        student,
        teacher,
        ids,
        mask,
        trainer.sdpo_config,
        self_distillation_mask=torch.tensor([float(row["active"]) for row in rows]).double(),
        rollout_is_weights=weights,
        temperature=temperature,
    )
    return loss
