"""What a trainer's teacher says of given sequences, by both ways to the loss, which must agree."""

from __future__ import annotations

from typing import Any

import torch

from sdpo_plugins.causal_lm import split_model
from sdpo_plugins.teacher.passes import mix_passes
from sdpo_trl.forward import Sequences
from sdpo_trl.fused_path import FusedPath
from sdpo_trl.logits_path import LogitsPath


def both_teacher_logits(trainer: Any, inputs: Sequences) -> torch.Tensor:
    """Return the teacher's logits [B, T, V] of the completions."""
    settings, module = trainer._distiller.settings, trainer.model
    with settings.autocast():
        logits = LogitsPath(settings, keep=True).teacher_logits(module, inputs)
        states = FusedPath(settings, split_model(module), share_prefix=False).teacher_states(module, inputs)
        parts = [head.logits(hidden) for hidden, head in zip(states.hidden, states.heads, strict=True)]
    mixed = mix_passes(settings.teacher.passes, parts)
    # Under autocast the model's own forward widens what its head gave.
    close = 1e-5 if mixed.dtype == torch.float32 else 2e-2
    torch.testing.assert_close(mixed.float(), logits.float(), rtol=close, atol=close)
    return logits
