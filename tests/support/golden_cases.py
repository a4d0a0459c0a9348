"""The recorded cases of the authors' loss: their tensors, their settings as options of ours, and the comparison."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sdpo_plugins.config import SDPOConfig

_FOLDER = Path(__file__).parents[1] / "golden"
CASES: dict[str, dict[str, Any]] = json.loads((_FOLDER / "loss_reference.json").read_text())

with np.load(_FOLDER / "loss_reference.npz") as _loaded:
    _ARRAYS = {name: torch.from_numpy(_loaded[name]) for name in _loaded.files}


class GoldenCase:
    """One case.

    Args:
        name: Key of `CASES`.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.settings = CASES[name]

    def __getitem__(self, array: str) -> Tensor:
        return _ARRAYS[f"{self.name}/{array}"]

    @property
    def config(self) -> SDPOConfig:
        given = self.settings
        return SDPOConfig(
            alpha=given["alpha"],
            distillation_topk=given.get("topk"),
            distillation_add_tail=given.get("tail", True),
            full_logit_distillation=given.get("full", True),
            is_clip=given.get("is_clip"),
            loss_agg_mode=given.get("agg", "token-mean"),
        )

    @property
    def options(self) -> dict[str, Any]:
        """What goes by name into the loss."""
        return {
            "old_log_probs": self["old_log_probs"],
            "self_distillation_mask": self["self_distillation_mask"],
            "rollout_is_weights": self["rollout_is_weights"] if self.settings.get("riw") else None,
        }

    @property
    def is_empty(self) -> bool:
        """Whether nothing is active."""
        return bool((self["response_mask"] * self["self_distillation_mask"].unsqueeze(-1)).sum() == 0)
