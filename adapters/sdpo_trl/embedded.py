"""The embedded tasks as TRL data: a dataset, a reward function with feedback, sampled answers and their accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from sdpo_plugins.embedded import Question, Task, load_task
from sdpo_plugins.embedded.tasks import accuracy
from sdpo_plugins.modes import evaluating

__all__ = ["dataset_of", "reward_of", "sampled_accuracy", "sampled_answers"]


def dataset_of(task: Task, split: str = "train") -> Dataset:
    """Return a task's questions as a dataset with `prompt`, `truth`, `subject`, and `ground_truth` for a scorer."""
    return Dataset.from_list(task.rows("train" if split == "train" else "evaluation"))


def reward_of(name: str) -> Any:
    """Return a task's reward function: scores with feedback, as any user would write it.

    Args:
        name: Name of the task.

    Example:
        >>> grade = reward_of("sums")
        >>> grade([[{"role": "user", "content": "What is 23 + 34?"}]], [[{"role": "assistant", "content": "61"}]],
        ...       truth=["57"], subject=["The answer"])
        [{'score': 0.0, 'feedback': 'Wrong. The answer is 57, not 61.'}]
    """
    task = load_task(name)

    def correct(
        prompts: Sequence[Any], completions: Sequence[Any], truth: Sequence[str], subject: Sequence[str], **_: Any
    ) -> list[dict[str, Any]]:
        results = []
        for prompt, completion, right, about in zip(prompts, completions, truth, subject, strict=True):
            question = Question(prompt[-1]["content"], right, about)
            score, feedback = task.score(question, completion[0]["content"])
            results.append({"score": score, "feedback": feedback})
        return results

    return correct


def sampled_accuracy(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    *,
    samples: int,
    seed: int,
    temperature: float = 1.0,
    batch_size: int = 256,
) -> float:
    """Return the share of right answers when each evaluation question is sampled several times.

    Args:
        model: The policy.
        tokenizer: Its tokenizer.
        task: The task.
        samples: Answers per question.
        seed: Of the sampling; the run's own random numbers are not moved.
        temperature: Of the sampling.
        batch_size: Answers generated at once.

    Returns:
        Accuracy in [0, 1].
    """
    questions = [question for question in task.evaluation for _ in range(samples)]
    answers = sampled_answers(
        model,
        tokenizer,
        [question.messages for question in questions],
        max_new_tokens=task.max_completion_length,
        seed=seed,
        temperature=temperature,
        batch_size=batch_size,
    )
    return accuracy(task, questions, answers)


@torch.no_grad()
def sampled_answers(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[list[dict[str, str]]],
    *,
    max_new_tokens: int,
    seed: int,
    temperature: float = 1.0,
    batch_size: int = 256,
) -> list[str]:
    """Sample one answer to each prompt.

    Args:
        model: The policy.
        tokenizer: Its tokenizer, with a chat template.
        prompts: Chat messages of each.
        max_new_tokens: Of an answer.
        seed: Of the sampling; the caller's own random numbers are not moved.
        temperature: Of the sampling.
        batch_size: Answers generated at once.

    Returns:
        The texts, without special tokens.
    """
    texts = [tokenizer.apply_chat_template(one, tokenize=False, add_generation_prompt=True) for one in prompts]
    answers: list[str] = []
    with torch.random.fork_rng(), evaluating(model):
        torch.manual_seed(seed)
        for start in range(0, len(texts), batch_size):
            batch = tokenizer(
                texts[start : start + batch_size],
                return_tensors="pt",
                padding=True,
                padding_side="left",
                add_special_tokens=False,
            ).to(model.device)
            output = model.generate(
                input_ids=batch["input_ids"],
                attention_mask=batch["attention_mask"],
                do_sample=True,
                temperature=temperature,
                top_k=0,
                top_p=1.0,
                max_new_tokens=max_new_tokens,
                pad_token_id=tokenizer.pad_token_id,
            )
            answers += tokenizer.batch_decode(output[:, batch["input_ids"].size(1) :], skip_special_tokens=True)
    return answers
