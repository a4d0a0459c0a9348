"""The SDPO trainer on a CPU: the mode `sdpo_cpu`. Name this module to verl where the adapter is on the path."""

from __future__ import annotations

from typing import Any

from verl.trainer.ppo.v1 import register_trainer

from sdpo_verl.trainer import SDPOTrainer
from verl_cpu.trainer import CPUTrainerMixin

__all__ = ["SDPOTrainerCPU"]


@register_trainer("sdpo_cpu")
class SDPOTrainerCPU(CPUTrainerMixin, SDPOTrainer):
    """The adapter's `sdpo` on a CPU.

    Args:
        config: verl's configuration; the adapter sees the mode `sdpo`, the only one that it accepts.
    """

    def __init__(self, config: Any) -> None:
        config.trainer.v1.trainer_mode = "sdpo"
        super().__init__(config)
