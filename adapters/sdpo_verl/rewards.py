"""verl's reward manager, which also tells the reward function whether an answer was cut off.

    reward:
      reward_manager: {source: importlib, name: CutOffRewardManager, module: {path: pkg://sdpo_verl.rewards}}

verl gives a reward function the decoded response alone, so that an answer without an end looks like a wrong one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from verl import DataProto
from verl.experimental.reward_loop.reward_manager.naive import NaiveRewardManager

__all__ = ["CutOffRewardManager"]


class CutOffRewardManager(NaiveRewardManager):
    """The host's `naive` manager with `truncated` in `extra_info`: as long as allowed, and without an end."""

    async def run_single(self, data: DataProto) -> Any:
        """Score one response.

        Args:
            data: As the host gives it; of several sequences the last one is scored.

        Returns:
            As the host's.
        """
        data = data[-1:]
        item = data[0]
        responses, mask = item.batch["responses"], item.batch["attention_mask"]
        length = int(mask[-responses.shape[-1] :].sum())
        ended = length > 0 and int(responses[length - 1]) == self.tokenizer.eos_token_id
        longest = self.config.actor_rollout_ref.rollout.response_length
        known = item.non_tensor_batch.get("extra_info") or {}
        data.non_tensor_batch["extra_info"] = np.array(
            [{**known, "truncated": length >= longest and not ended}], dtype=object
        )
        return await super().run_single(data)
