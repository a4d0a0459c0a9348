"""An agent of OpenRLHF whose answers depend on weights and questions alone: two runs of it can be compared.

One answer after the other, each with a seed of its own: vLLM's rounding depends on what it computes together.
"""

from __future__ import annotations

import asyncio
import zlib
from collections import Counter
from copy import deepcopy
from pathlib import Path
from typing import Any

from openrlhf.utils.agent import SingleTurnAgentExecutor

ROLLOUTS = 4
_REWARDS = Path(__file__).resolve().parents[1] / "support" / "openrlhf_cpu" / "reward.py"


class AgentExecutor(SingleTurnAgentExecutor):
    """Answers in one turn; its rewards are those of the embedded tasks, with feedback."""

    def __init__(self) -> None:
        super().__init__(str(_REWARDS))
        self._asked: Counter[str] = Counter()
        self._turn = asyncio.Lock()

    async def execute(self, prompt: str, label: str, sampling_params: Any, *args: Any, **kwargs: Any) -> Any:
        """Answer once.

        Args:
            prompt: The host's.
            label: The host's.
            sampling_params: The host's; its seed is set.
            args: The host's others.
            kwargs: The host's others.
        """
        number = self._asked[prompt] % ROLLOUTS
        self._asked[prompt] += 1
        params = deepcopy(sampling_params)
        params.seed = zlib.crc32(f"{number} {prompt}".encode())
        async with self._turn:
            return await super().execute(prompt, label, params, *args, **kwargs)
