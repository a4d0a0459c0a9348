"""One recorded batch of rollouts, for every host, and what SDPO makes of it by plain transformers in float64.

The batch lies in `tests/golden/recorded_rollouts.json`. `record` made it: 16 rows sampled from the embedded checkpoint
on the embedded tasks. `python tests/support/recorded.py` writes it anew; a new file means new numbers in every test of
it.

A test of a host builds a model with `write_student`, feeds `recorded()` to the host's own training step, and compares
loss, gradient norm and gradients with `expected(...)`, which shares neither model code nor loss code with the adapters:
one sequence a pass, whole logits, the core's loss on logits.
"""

from __future__ import annotations

import functools
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sdpo_plugins.config import SDPOConfig
from sdpo_plugins.embedded import Question, Task, checkpoint_path, load_task
from sdpo_plugins.losses import (
    aggregate,
    gather_log_probs,
    group_advantages,
    policy_gradient_loss,
    self_distillation_loss,
)
from sdpo_plugins.reprompt import build_teacher_contexts, encode_contexts
from sdpo_plugins.types import Rollout

__all__ = [
    "Batch",
    "Expected",
    "Row",
    "expected",
    "padded",
    "record",
    "recorded",
    "tokenizer",
    "write_student",
]

# One thread: on a tiny model more cost time, and on a busy machine very much of it.
torch.set_num_threads(1)

FILE = Path(__file__).resolve().parents[1] / "golden" / "recorded_rollouts.json"
SEED = 1
"""The first with two successes in the first group, one in the second, none in the others."""
TEMPERATURE = 1.25
"""Of sampling, and so of all log-probabilities: not 1, which a host could forget without anyone noticing."""

_LONGEST = 8
_TOOL_TURN = "\n<|im_start|>tool\nPlease check this answer.<|im_end|>\n<|im_start|>assistant\n"
_HISTORY = [{"role": "user", "content": "What is 20 + 31?"}, {"role": "assistant", "content": "51"}]
_SYSTEM = [{"role": "system", "content": "Answer with a number only."}]


@dataclass(frozen=True)
class Row:
    """One rollout as a sampler hands it to a trainer.

    Args:
        group: Identifies the question.
        prompt: Chat messages.
        prompt_ids: Their token ids, generation prompt included.
        response_ids: Token ids of the response, the end of turn included where it was sampled.
        response_mask: 1 for sampled tokens, 0 for those of a tool's turn; all 0 in the padding row.
        log_probs: Of each sampled token at the recorded temperature; 0 where the mask is.
        reward: 1 for the true answer, else 0.
        feedback: What the task said of it.
        is_padding: Whether the row only fills the batch up.
    """

    group: str
    prompt: list[dict[str, str]]
    prompt_ids: list[int]
    response_ids: list[int]
    response_mask: list[int]
    log_probs: list[float]
    reward: float
    feedback: str | None
    is_padding: bool = False


@dataclass(frozen=True)
class Batch:
    """The rows, and the temperature they were sampled at."""

    temperature: float
    rows: tuple[Row, ...]

    @property
    def rollouts(self) -> list[Rollout]:
        """What adapters must make of the rows."""
        decode = tokenizer().decode
        return [
            Rollout(
                group_id=row.group,
                prompt=row.prompt,
                response=decode(row.response_ids, skip_special_tokens=True),
                reward=row.reward,
                feedback=row.feedback,
                is_padding=row.is_padding,
            )
            for row in self.rows
        ]

    @property
    def advantages(self) -> list[float]:
        """GRPO's, without division by the deviation, one for each row."""
        names = {name: place for place, name in enumerate(dict.fromkeys(row.group for row in self.rows))}
        groups = torch.tensor([names[row.group] for row in self.rows])
        rewards = torch.tensor([row.reward for row in self.rows], dtype=torch.float64)
        return [float(value) for value in group_advantages(rewards, groups)]


@dataclass(frozen=True)
class Expected:
    """What a training step on the batch has to find.

    Args:
        loss: Of the whole batch.
        gradient_norm: Of all gradients together.
        gradients: By parameter name, float64.
        active_tokens: How many tokens SDPO learns from.
        ratios: π/π_old of every sampled token, `[N]`.
        advantages: GRPO's of the same tokens, `[N]`.
    """

    loss: float
    gradient_norm: float
    gradients: Mapping[str, Tensor]
    active_tokens: int
    ratios: Tensor
    advantages: Tensor

    def distance(self, gradients: Mapping[str, Tensor]) -> float:
        """Return ‖found − expected‖ / ‖expected‖ over all gradients; names must be the same."""
        assert gradients.keys() == self.gradients.keys(), gradients.keys() ^ self.gradients.keys()
        squares = sum(
            float((gradients[name].double() - value).square().sum()) for name, value in self.gradients.items()
        )
        return float(squares**0.5) / self.gradient_norm


@functools.cache
def recorded() -> Batch:
    """Return the batch of the file."""
    found = json.loads(FILE.read_text(encoding="utf-8"))
    return Batch(found["temperature"], tuple(Row(**row) for row in found["rows"]))


@functools.cache
def tokenizer() -> Any:
    """Return the embedded checkpoint's tokenizer; only read it."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(checkpoint_path())


def write_student(folder: str | Path, noise: float = 0.15, seed: int = 4) -> str:
    """Write a student that differs from the embedded checkpoint, which sampled the rollouts and may be its teacher.

    Args:
        folder: Where to.
        noise: Standard deviation of what is added to each weight, relative to the root mean square of its tensor.
        seed: Of the noise.

    Returns:
        The folder, for `from_pretrained`.
    """
    model = _model(checkpoint_path(), torch.float32)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight += noise * weight.square().mean().sqrt() * torch.randn(weight.shape, generator=draw)
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return str(folder)


def expected(
    config: SDPOConfig,
    student: str | Path,
    teacher: str | Path | None = None,
    batch: Batch | None = None,
) -> Expected:
    r"""Compute loss and gradients of one step on the whole batch, plainly and in float64.

    Formula:
        (1−λ)·SDPO over active tokens + λ·(PPO's clipped loss with GRPO's advantages, mean over response tokens), with
        λ = `grpo_weight`, and the clips of `sdpo_plugins.losses.policy_gradient_loss` (0.2 and 0.28).

    Args:
        config: The options; its teacher strategy does not matter, `teacher` gives the weights.
        student: Folder of the model.
        teacher: Folder of the teacher's; None: the student's weights, as at the start of a run.
        batch: None: the recorded one.

    Returns:
        What a host has to find.
    """
    batch = recorded() if batch is None else batch
    contexts = build_teacher_contexts(batch.rollouts, config)
    encoded = encode_contexts(contexts, tokenizer(), config, skip_inactive=True)
    model = _model(student, torch.float64)
    guide = model if teacher is None else _model(teacher, torch.float64)
    told = [
        context.ids if context.active else row.prompt_ids
        for context, row in zip(encoded.contexts, batch.rows, strict=True)
    ]
    student_logits = _logits(model, [row.prompt_ids for row in batch.rows], batch)
    with torch.no_grad():
        teacher_logits = _logits(guide, told, batch)
    ids = padded([torch.tensor(row.response_ids) for row in batch.rows])
    mask = padded([torch.tensor(row.response_mask) for row in batch.rows])
    old = padded([torch.tensor(row.log_probs, dtype=torch.float64) for row in batch.rows])
    active = torch.tensor(encoded.self_distillation_mask)
    loss, _ = self_distillation_loss(
        student_logits,
        teacher_logits,
        ids,
        mask,
        config,
        old_log_probs=old,
        self_distillation_mask=active,
        loss_agg_mode=config.loss_agg_mode,
        temperature=batch.temperature,
    )
    log_probs = gather_log_probs(student_logits, ids[..., None], batch.temperature)[..., 0]
    advantages = torch.tensor(batch.advantages, dtype=torch.float64)[:, None].expand(mask.shape)
    if config.grpo_weight > 0.0:
        policy = aggregate(policy_gradient_loss(log_probs, advantages, old), mask, "token-mean")
        loss = config.grpo_weight * policy + (1.0 - config.grpo_weight) * loss
    loss.backward()
    gradients = {name: weight.grad for name, weight in model.named_parameters()}
    norm = sum(float(value.square().sum()) for value in gradients.values()) ** 0.5
    sampled = mask.bool()
    return Expected(
        loss=float(loss.detach()),
        gradient_norm=norm,
        gradients=gradients,
        active_tokens=int((mask * active[:, None]).sum()),
        ratios=(log_probs.detach() - old)[sampled].exp(),
        advantages=advantages[sampled],
    )


def padded(rows: Sequence[Tensor]) -> Tensor:
    """Return rows of different lengths as one tensor, zeros behind the end of each."""
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)


def record(seed: int = SEED) -> dict[str, Any]:
    """Sample the batch from the embedded checkpoint, in float64 so that every machine samples the same.

    Two questions ask for sums, which the model half knows, two for facts, which only feedback reveals; some feedback is
    withheld, so that its rollout has nothing to learn from. One answer goes on behind a tool's turn.

    Args:
        seed: Of the draws.

    Returns:
        What the file holds.
    """
    sums, facts = load_task("sums"), load_task("facts")
    model, draw = _model(checkpoint_path(), torch.float64), random.Random(seed)
    rows = [
        *_group(model, draw, sums, sums.train[1], [], 4, tool_turn_in=2),
        *_group(model, draw, sums, sums.train[7], _SYSTEM, 4),
        *_group(model, draw, facts, facts.train[25], _HISTORY, 4, silent=(1,)),
        *_group(model, draw, facts, facts.train[3], [], 3, silent=(0,)),
    ]
    end = tokenizer().eos_token_id
    rows.append(Row("padding", rows[0].prompt, rows[0].prompt_ids, [end], [0], [0.0], 0.0, None, is_padding=True))
    return {"temperature": TEMPERATURE, "seed": seed, "rows": [asdict(row) for row in rows]}


def _group(
    model: Any,
    draw: random.Random,
    task: Task,
    question: Question,
    before: list[dict[str, str]],
    count: int,
    tool_turn_in: int | None = None,
    silent: tuple[int, ...] = (),
) -> list[Row]:
    prompt = [*before, *question.messages]
    prompt_ids = tokenizer().apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)["input_ids"]
    rows = []
    for place in range(count):
        ids, log_probs = _sample(model, prompt_ids, draw)
        mask = [1] * len(ids)
        said = ids
        if place == tool_turn_in:
            turn = tokenizer()(_TOOL_TURN, add_special_tokens=False)["input_ids"]
            said, more = _sample(model, [*prompt_ids, *ids, *turn], draw)
            mask = [*mask, *[0] * len(turn), *[1] * len(said)]
            log_probs = [*log_probs, *[0.0] * len(turn), *more]
            ids = [*ids, *turn, *said]
        reward, feedback = task.score(question, tokenizer().decode(said, skip_special_tokens=True))
        feedback = None if place in silent else feedback
        rows.append(Row(question.text, prompt, prompt_ids, ids, mask, log_probs, reward, feedback))
    return rows


@torch.no_grad()
def _sample(model: Any, prompt: Sequence[int], draw: random.Random) -> tuple[list[int], list[float]]:
    ids, log_probs = list(prompt), []
    for _ in range(_LONGEST):
        scores = torch.log_softmax(model(torch.tensor([ids])).logits[0, -1] / TEMPERATURE, -1)
        mass = scores.exp().cumsum(0)
        token = int(torch.searchsorted(mass, draw.random() * float(mass[-1]), right=True).clamp(max=len(mass) - 1))
        ids.append(token)
        log_probs.append(round(float(scores[token]), 9))
        if token == tokenizer().eos_token_id:
            break
    return ids[len(prompt) :], log_probs


def _logits(model: Any, prompts: Sequence[Sequence[int]], batch: Batch) -> Tensor:
    rows = []
    for prompt, row in zip(prompts, batch.rows, strict=True):
        logits = model(torch.tensor([[*prompt, *row.response_ids]])).logits[0]
        rows.append(logits[len(prompt) - 1 : -1])  # the logits before a token predict it
    return padded(rows)


def _model(path: str | Path, dtype: torch.dtype) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(path, dtype=dtype).eval()


if __name__ == "__main__":
    FILE.write_text(json.dumps(record(), indent=1) + "\n", encoding="utf-8")
