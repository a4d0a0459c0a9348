"""Teacher contexts of a batch as tensors: built by the core, tokenised with the trainer's template, left-padded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor
from trl.data_utils import prepare_multimodal_messages

from sdpo_plugins.config import SDPOConfig
from sdpo_plugins.reprompt import (
    EncodedContext,
    encode_contexts,
    encoding_metrics,
    is_success,
    make_render,
)
from sdpo_plugins.types import Rollout, TeacherContext, TeacherContexts

__all__ = ["ContextBuilder", "pad_left"]


@dataclass(frozen=True)
class ContextBuilder:
    """Makes teacher inputs out of rollouts.

    Args:
        config: The SDPO options.
        reprompt: Builds the contexts, resolved once.
        tokenizer: The trainer's; it is only read.
        processor: The processor of a vision-language model, else None.
        chat_template: The template the trainer renders prompts with, or None for the tokenizer's own.
        chat_template_kwargs: More arguments of the template, the trainer's; the configuration's come on top.
    """

    config: SDPOConfig
    reprompt: Callable[[Sequence[Rollout]], TeacherContexts]
    tokenizer: Any
    processor: Any = None
    chat_template: str | None = None
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)

    def tensors(
        self, rollouts: Sequence[Rollout], mine: slice, batch: Mapping[str, Any], tools: Sequence[Any]
    ) -> tuple[dict[str, Any], TeacherContexts, list[EncodedContext], dict[str, float]]:
        """Build the contexts of all rollouts and this rank's share of them as tensors.

        Every rank must call this together.

        Args:
            rollouts: All ranks' rollouts.
            mine: This rank's.
            batch: TRL's tensors of this rank's rollouts.
            tools: Tools that each of this rank's prompts shows, or None.

        Returns:
            `sdpo_prompt_ids` and `sdpo_prompt_mask` [B, P'], `sdpo_active` [B] and `sdpo_success` [B], for
            vision-language models also their per-token types; all contexts; what this rank's came to; metrics.
        """
        contexts = self.reprompt(rollouts)
        local = contexts.contexts[mine]
        encoded = self._encode(local, tools)
        device = batch["prompt_ids"].device
        prompts = [row.ids for row in encoded]
        if "pixel_values" in batch:
            # Pictures keep their place in the batch, so inactive rows are scored, too: behind the student's prompt.
            own = zip(batch["prompt_ids"], batch["prompt_mask"], strict=True)
            student = [row[mask.bool()].tolist() for row, mask in own]
            prompts = [row.ids if row.active else other for row, other in zip(encoded, student, strict=True)]
        ids, mask = pad_left(prompts, self.tokenizer.pad_token_id, device)
        success = [float(is_success(rollout, self.config)) for rollout in rollouts[mine]]
        tensors: dict[str, Any] = {
            "sdpo_prompt_ids": ids,
            "sdpo_prompt_mask": mask,
            "sdpo_active": torch.tensor([float(row.active) for row in encoded], device=device),
            "sdpo_success": torch.tensor(success, device=device),
        }
        for name in ("token_type_ids", "mm_token_type_ids"):
            if name in batch:
                tensors[f"sdpo_{name}"] = _same_types(ids, batch["prompt_ids"], batch[name])
        # Of the other ranks' prompts only the lengths count.
        counted = gather_object([replace(row, ids=[0] * len(row.ids), messages="") for row in encoded])
        metrics = encoding_metrics(counted, [context.active for context in contexts.contexts])
        return tensors, contexts, encoded, {**contexts.metrics, **metrics}

    def _encode(self, contexts: Sequence[TeacherContext], tools: Sequence[Any]) -> list[EncodedContext]:
        """Tokenise each context with the tools that its prompt shows; environments may show different ones."""
        encoded: dict[int, EncodedContext] = {}
        for shown in {id(row): row for row in tools}.values():
            rows = [row for row, own in enumerate(tools) if own is shown]
            part = encode_contexts(
                [contexts[row] for row in rows],
                self.tokenizer,
                self.config,
                render=self._render(shown),
                skip_inactive=True,
            )
            encoded.update(zip(rows, part.contexts, strict=True))
        return [encoded[row] for row in range(len(contexts))]

    def _render(self, tools: Any) -> Callable[[Any], list[int]]:
        render = make_render(
            self.tokenizer if self.processor is None else self.processor,
            self.config,
            tools=tools,
            chat_template=self.chat_template,
            chat_template_kwargs=self.chat_template_kwargs,
        )
        if self.processor is None:
            return render
        # TRL, too, turns plain texts into lists of parts before a processor's template sees them.
        return lambda prompt: render(prompt if isinstance(prompt, str) else prepare_multimodal_messages(prompt))


def pad_left(rows: Sequence[Sequence[int]], pad_token_id: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Pad token ids on the left.

    Args:
        rows: B lists of token ids; an empty one becomes a row of padding.
        pad_token_id: What to pad with.
        device: Where the tensors go.

    Returns:
        Ids and mask [B, longest], mask 1 for real tokens.

    Example:
        >>> pad_left([[5], [6, 7]], 0, torch.device("cpu"))[0].tolist()
        [[0, 5], [6, 7]]
    """
    width = max([len(row) for row in rows] + [1])
    ids = [[pad_token_id] * (width - len(row)) + list(row) for row in rows]
    mask = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def _same_types(prompt_ids: Tensor, their_ids: Tensor, theirs: Tensor) -> Tensor:
    """Give the teacher's prompts the token types that the student's have, token by token; answers keep theirs.

    What marks a picture is the model family's own: Gemma's processor names another token than the one it repeats.
    """
    width = their_ids.size(1)
    types = torch.zeros_like(prompt_ids)
    for kind in theirs[:, :width].unique().tolist():
        if kind:
            types[torch.isin(prompt_ids, their_ids[theirs[:, :width] == kind])] = kind
    return torch.cat([types, theirs[:, width:]], dim=1).to(theirs.dtype)
