"""The recorded batch of rollouts as OpenRLHF holds it between its experience maker and its replay buffer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from openrlhf.trainer.ppo_utils.experience import Experience

from recorded import Row, recorded, tokenizer
from sdpo_openrlhf.experience import attach
from sdpo_openrlhf.fields import FEEDBACK
from sdpo_openrlhf.prompts import PromptStyle
from sdpo_openrlhf.rollouts import rollouts_of, samples_of
from sdpo_plugins import SDPOConfig
from sdpo_plugins.reprompt import build_teacher_contexts, encode_contexts

__all__ = ["GROUP_SIZE", "experiences", "sampled", "style"]

GROUP_SIZE = 4
"""Of the recorded groups; the last one has only three answers, and the padding row stands beside them."""


def experiences(config: SDPOConfig, records: Sequence[int] | None = None) -> list[Experience]:
    """Return the batch as `SDPOExperienceMaker.make_experience_batch` gives it to the policy actors, row by row.

    Args:
        config: Of the teacher's prompts.
        records: Id under which each row is recorded, or `NOT_RECORDED`; None: none is.

    Returns:
        An experience of one row for each recorded row. OpenRLHF has no rows that only fill a batch up: the recorded one
        is a row without any sampled token.
    """
    rows = sampled(recorded().rows)
    rollouts = rollouts_of(samples_of(rows), style(), tokenizer(), config, GROUP_SIZE)
    contexts = build_teacher_contexts(rollouts, config)
    encoded = encode_contexts(contexts, tokenizer(), config, render=style().render(config), skip_inactive=True)
    attach(rows, rollouts, encoded, config, tokenizer().pad_token_id, dict(enumerate(records or ())))
    for row, advantage in zip(rows, recorded().advantages, strict=True):
        row.advantages = row.action_mask.float() * advantage
        row.returns = row.advantages.clone()
    return rows


def sampled(rows: Sequence[Row]) -> list[Experience]:
    """Return rows as the host's experience maker leaves them before SDPO's part: an experience for each.

    Args:
        rows: Recorded.
    """
    made = []
    for index, row in enumerate(rows):
        # Place a of the host's masks stands for token a + 1 of the sequence.
        before = len(row.prompt_ids) - 1
        mask = torch.tensor([[0] * before + row.response_mask])
        log_probs = torch.tensor([[0.0] * before + row.log_probs])
        sequences = torch.tensor([[*row.prompt_ids, *row.response_ids]])
        reward = torch.tensor([row.reward])
        made.append(
            Experience(
                sequences=sequences,
                attention_mask=torch.ones_like(sequences),
                action_mask=mask,
                action_log_probs=log_probs,
                rollout_log_probs=log_probs.clone(),
                rewards=reward,
                response_length=mask.sum(1),
                truncated=torch.tensor([False]),
                total_length=torch.tensor([float(sequences.shape[1])]),
                index=[index],
                prompts=[_text(row)],
                labels=[""],
                images=[None],
                mm_train_inputs=[None],
                info={"reward": reward.clone(), FEEDBACK: [row.feedback or ""]},
            )
        )
    return made


def style() -> PromptStyle:
    """Return the recorded questions by the prompts that OpenRLHF would make of them."""
    return PromptStyle(tokenizer(), {_text(row): row.prompt for row in recorded().rows})


def _text(row: Row) -> str:
    text: str = tokenizer().apply_chat_template(row.prompt, tokenize=False, add_generation_prompt=True)
    return text
