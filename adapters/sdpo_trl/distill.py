"""The SDPO loss of one micro-batch: forward passes of student and teacher, the core's token losses, their sum."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from sdpo_plugins.config import SDPOConfig
from sdpo_plugins.losses import aggregate, per_token_losses
from sdpo_plugins.teacher import Teacher, local_tensors
from sdpo_trl.forward import Sequences, completion_logits, evaluating, sampled_log_probs, token_entropies
from sdpo_trl.window import Window, loss_mask

__all__ = ["MULTIMODAL", "Distiller", "accepts_logits_to_keep"]

# Inputs of vision-language models that go through unchanged, and the per-token ones that follow the prompt's length.
MULTIMODAL = (
    "pixel_values",
    "image_grid_thw",
    "pixel_attention_mask",
    "spatial_shapes",
    "image_sizes",
    "image_position_ids",
)
PER_TOKEN = ("token_type_ids", "mm_token_type_ids")


def accepts_logits_to_keep(model: nn.Module) -> bool:
    """Say whether a causal language model can leave out the logits of the prompt."""
    base: Any = model
    if hasattr(model, "get_base_model"):
        base = cast(Any, model).get_base_model()
    return "logits_to_keep" in inspect.signature(type(base).forward).parameters


@dataclass
class Distiller:
    """Computes SDPO's loss for micro-batches; holds the settings of a run, not the trainer.

    Args:
        config: The SDPO options.
        divergence: The per-token divergence, resolved once.
        teacher: The teacher's weights.
        temperature: Temperature of the rollouts, for both models' logits.
        beta: Weight of the KL to the reference model.
        weigh_kl: Weight that KL by the importance ratio π/π_old, which makes its gradient unbiased.
        scale_factor: Tokens that seq-mean-token-sum-norm divides by.
        autocast: Makes the context of a forward pass.
        sharded: True if the weights are spread over ranks, so that every rank has to join in every forward pass.
        balance_experts: Whether a mixture-of-experts model is to give its load-balancing loss, too.
    """

    config: SDPOConfig
    divergence: Callable[[Tensor, Tensor], Tensor]
    teacher: Teacher
    temperature: float
    beta: float
    weigh_kl: bool
    scale_factor: int
    autocast: Callable[[], AbstractContextManager[Any]]
    sharded: bool = False
    balance_experts: bool = False

    def loss(
        self, student: nn.Module, module: nn.Module, inputs: Mapping[str, Any], window: Window
    ) -> tuple[Tensor, Tensor | None, dict[str, Tensor]]:
        """Return this micro-batch's part of the optimizer step's loss, summed over ranks by the caller's averaging.

        Args:
            student: The model as the trainer wraps it, for the pass with gradient.
            module: The bare model, into which the teacher's weights can be put.
            inputs: TRL's micro-batch with our `sdpo_*` entries.
            window: What the whole step is divided by.

        Returns:
            The loss, to be multiplied by the number of ranks where gradients are averaged; the load-balancing loss of
            this micro-batch's active rows, to be averaged over micro-batches and ranks; and local sums for metrics.
        """
        mask = loss_mask(dict(inputs))
        active = inputs["sdpo_active"].bool() & mask.any(dim=1)
        extra = {name: inputs[name] for name in MULTIMODAL if inputs.get(name) is not None}
        whole = bool(extra) or any(inputs.get(name) is not None for name in PER_TOKEN)
        everyone = torch.arange(mask.size(0), device=mask.device)
        chosen = active.nonzero().squeeze(1)
        needs_all = whole or self.beta != 0.0
        rows = everyone if needs_all and mask.any() else chosen
        keep = accepts_logits_to_keep(module)
        if rows.numel() == 0:
            return self._idle(student, module, inputs, keep), None, {}

        source = Sequences(
            *(inputs[name] for name in ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask"))
        )
        behind = Sequences(
            inputs["sdpo_prompt_ids"], inputs["sdpo_prompt_mask"], source.completion_ids, source.completion_mask
        )
        if whole:
            source = _with_extra(source, {**extra, **_present(inputs, PER_TOKEN)})
            behind = _with_extra(behind, {**extra, **_present(inputs, PER_TOKEN, prefix="sdpo_")})
        else:
            source = source.take(rows)
            behind = behind.take(chosen) if chosen.numel() else behind.smallest()

        if self.balance_experts:
            source = _with_extra(source, {**source.extra, "output_router_logits": True})
        with self.autocast():
            output_logits, balance = completion_logits(student, source, accepts_logits_to_keep=keep)
            teacher_logits = self._teacher_logits(module, behind, keep) if chosen.numel() or self.sharded else None

        length = output_logits.size(1)
        loss = output_logits.new_zeros((), dtype=torch.float32)
        sums: dict[str, Tensor] = {}
        if chosen.numel() and teacher_logits is not None:
            student_logits = output_logits if whole or rows.numel() == chosen.numel() else output_logits[chosen]
            # The two passes may have been cut to different completion lengths.
            picked = everyone if whole else chosen
            short = min(length, teacher_logits.size(1))
            token_mask = (mask * active.unsqueeze(1))[picked][:, :short]
            part, sums = self._distillation(
                student_logits[:, :short], teacher_logits[:, :short], inputs, picked, token_mask, window
            )
            loss = loss + part
        if self.beta != 0.0:
            part, kl_sums = self._reference_kl(output_logits, inputs, rows, mask[rows][:, :length], window)
            loss = loss + part
            sums.update(kl_sums)
        if not self.balance_experts:
            balance = None
        if balance is not None:
            sums.update(balance=balance.detach(), balance_batches=torch.ones_like(balance).detach())
        if not loss.requires_grad and torch.is_grad_enabled():
            loss = loss + 0.0 * output_logits.sum()
        return loss, balance, sums

    def _distillation(
        self,
        student_logits: Tensor,
        teacher_logits: Tensor,
        inputs: Mapping[str, Any],
        rows: Tensor,
        token_mask: Tensor,
        window: Window,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        length = token_mask.size(1)

        def cut(name: str) -> Tensor | None:
            value = inputs.get(name)
            return None if value is None else value[rows][:, :length].expand(-1, length)

        token_ids = inputs["completion_ids"][rows][:, :length]
        losses = per_token_losses(
            student_logits,
            teacher_logits,
            token_ids,
            self.config,
            old_log_probs=cut("old_per_token_logps"),
            rollout_is_weights=cut("importance_sampling_ratio"),
            temperature=self.temperature,
            divergence=self.divergence,
        )
        denominator = None if self.config.loss_normalization == "reference" else window.active
        loss = window.share * aggregate(
            losses.per_token,
            token_mask,
            self.config.loss_agg_mode,
            denominator=denominator,
            scale_factor=self.scale_factor,
        )
        with torch.no_grad():
            assert losses.teacher_log_probs is not None  # logits give it in every mode
            gap = losses.teacher_log_probs - losses.student_log_probs.detach()
            success = inputs["sdpo_success"][rows].unsqueeze(1).to(token_mask)
            sums = {
                "active_tokens": token_mask.sum(),
                "divergence": _masked_sum(losses.divergence, token_mask),
                "gap": _masked_sum(gap, token_mask),
                "gap_success": _masked_sum(gap, token_mask * success),
                "success_tokens": (token_mask * success).sum(),
                "log_prob": _masked_sum(losses.student_log_probs.detach(), token_mask),
                "entropy": _masked_sum(token_entropies(student_logits, self.temperature), token_mask),
            }
            if losses.importance_ratio is not None:
                sums["importance_ratio"] = _masked_sum(losses.importance_ratio, token_mask)
        return loss, sums

    def _reference_kl(
        self, logits: Tensor, inputs: Mapping[str, Any], rows: Tensor, mask: Tensor, window: Window
    ) -> tuple[Tensor, dict[str, Tensor]]:
        length = mask.size(1)
        ids = inputs["completion_ids"][rows][:, :length]
        log_probs = sampled_log_probs(logits, ids, self.temperature)
        log_ratio = inputs["ref_per_token_logps"][rows][:, :length] - log_probs
        kl = torch.exp(log_ratio) - log_ratio - 1.0
        if self.weigh_kl:
            old = inputs.get("old_per_token_logps")
            kl = kl * torch.exp(log_probs - (log_probs.detach() if old is None else old[rows][:, :length]))
        denominator = None if self.config.loss_normalization == "reference" else window.all_tokens
        loss = aggregate(kl, mask, self.config.loss_agg_mode, denominator=denominator, scale_factor=self.scale_factor)
        return self.beta * window.share * loss, {"kl": _masked_sum(kl.detach(), mask), "kl_tokens": mask.sum()}

    def _teacher_logits(self, module: nn.Module, inputs: Sequences, keep: bool) -> Tensor:
        def forward() -> Tensor:
            return completion_logits(module, inputs, accepts_logits_to_keep=keep)[0]

        with torch.no_grad(), evaluating(module):
            return self.teacher.score(forward, local_tensors(module))

    def _idle(self, student: nn.Module, module: nn.Module, inputs: Mapping[str, Any], keep: bool) -> Tensor:
        """Take part in the collectives of the other ranks, at the price of two tokens."""
        tiny = _student_side(inputs).smallest()
        with self.autocast():
            logits, _ = completion_logits(student, tiny, accepts_logits_to_keep=keep)
            if self.sharded:
                self._teacher_logits(module, tiny, keep)
        # Zero times a logit of -inf would be NaN: a masked vocabulary must not poison an idle rank.
        return 0.0 * torch.nan_to_num(logits.float(), neginf=0.0, posinf=0.0).sum()


def _student_side(inputs: Mapping[str, Any]) -> Sequences:
    return Sequences(*(inputs[name] for name in ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")))


def _masked_sum(values: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask.bool(), values, torch.zeros_like(values)).sum()


def _present(inputs: Mapping[str, Any], names: tuple[str, ...], prefix: str = "") -> dict[str, Any]:
    return {name: inputs[prefix + name] for name in names if inputs.get(prefix + name) is not None}


def _with_extra(sequences: Sequences, extra: Mapping[str, Any]) -> Sequences:
    return Sequences(
        sequences.prompt_ids, sequences.prompt_mask, sequences.completion_ids, sequences.completion_mask, extra
    )
