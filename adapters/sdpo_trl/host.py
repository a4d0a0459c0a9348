"""What the adapter reads of TRL's trainer, under one name each: TRL's own came and went between its versions."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, cast

import torch
import trl

__all__ = ["GRPOHost"]


class GRPOHost(trl.GRPOTrainer):
    """GRPO's trainer, unchanged, with names that hold for every supported version of TRL."""

    _known: tuple[torch.Tensor, torch.Tensor] | None = None

    @property
    def _has_environments(self) -> bool:
        return any(getattr(self, name, None) is not None for name in ("environment_factories", "environments"))

    @property
    def _balance_weight(self) -> float:
        """Weight of the load-balancing loss of mixture-of-experts models; 0 if the host adds none."""
        return float(self.router_aux_loss_coef) if getattr(self, "aux_loss_enabled", False) else 0.0

    @property
    def _mode(self) -> str:
        return "train" if cast(torch.nn.Module, self.model).training else "eval"

    @property
    def _options(self) -> Any:
        # GRPO's arguments; the base class of the trainer declares only those of transformers.
        return self.args

    @property
    def _group_size(self) -> int:
        # TRL 1.x fills both numbers in when the trainer is made.
        evaluation = getattr(self, "num_generations_eval", None) or self.num_generations
        return int(self.num_generations if self._mode == "train" else evaluation)

    @property
    def _end_tokens(self) -> set[int]:
        """What ends an answer, in the sense of TRL's `completions/clipped_ratio`."""
        ends = getattr(self, "eos_token_ids", None) or [getattr(self, "eos_token_id", None)]
        return {token for token in (*ends, self._tokenizer.pad_token_id) if token is not None}

    def _forward_autocast(self) -> AbstractContextManager[Any]:
        return self.accelerator.autocast()

    def _bare_model(self) -> torch.nn.Module:
        module: torch.nn.Module = self.accelerator.unwrap_model(self.model_wrapped)
        return module

    def _tools_of_rows(self, count: int) -> list[Any]:
        names = getattr(self, "_batch_environments", None)
        per_environment = getattr(self, "_env_tools", None)
        if names is not None and per_environment is not None:
            return [per_environment[name] or None for name in names]
        return [getattr(self, "tools", None) or None] * count

    @contextmanager
    def _using_log_probs(self, log_probs: torch.Tensor, entropies: torch.Tensor) -> Iterator[None]:
        """Within the block GRPO's loss takes these [B, T] tensors instead of a forward pass of its own."""
        self._known = (log_probs, entropies)
        try:
            yield
        finally:
            self._known = None

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        if self._known is None:
            return super()._get_per_token_logps_and_entropies(*args, **kwargs)
        method = super()._get_per_token_logps_and_entropies
        # Newer versions give the load-balancing loss of experts as a third value.
        third = "compute_aux_loss" in inspect.signature(method).parameters
        return (*self._known, None) if third else self._known

    def _mean_length(self) -> float:
        # TRL's own figure: masks say what is learnt, and `mask_truncated_completions` empties those of long answers.
        return float(self._metrics["train"]["completions/mean_length"][-1])

    def _note(self, mode: str, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self._metrics[mode][name].append(float(value))

    def _warn(self, messages: Sequence[str]) -> None:
        if self.accelerator.is_main_process:
            for message in messages:
                warnings.warn(message, stacklevel=4)

    def _sum_over_ranks(self, values: list[float]) -> list[float]:
        total = self.accelerator.reduce(torch.tensor(values, device=self.accelerator.device), reduction="sum")
        return [float(value) for value in total]
