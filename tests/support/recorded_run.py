"""A run with records that may be killed: a job for a process of its own."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from sdpo_plugins.embedded import checkpoint_path
from sdpo_trl import SDPOTrainer
from tiny_trl import digits_reward, questions, tiny_arguments, tiny_model


class Dying(SDPOTrainer):
    """Is killed amid its seventh step, in the middle of a line."""

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == 6:
            with open(Path(self.args.output_dir, "records", "rollouts-00000.jsonl"), "ab") as file:
                file.write(b'{"kind":"rollout","st')
            os.kill(os.getpid(), signal.SIGKILL)
        return super()._calculate_rewards(*args, **kwargs)


def train_or_die(folder: str, *, dies: bool = False, resume: bool = False) -> None:
    """Train eight steps, with a checkpoint after the fourth.

    Args:
        folder: The output folder.
        dies: Be killed amid the seventh step.
        resume: Go on from the last checkpoint.
    """
    trainer = (Dying if dies else SDPOTrainer)(
        tiny_model(),
        reward_funcs=digits_reward,
        args=tiny_arguments(folder, max_steps=8, save_strategy="steps", save_steps=4),
        train_dataset=questions(),
        processing_class=AutoTokenizer.from_pretrained(checkpoint_path()),
    )
    trainer.train(resume_from_checkpoint=resume or None)
