"""OpenRLHF on a CPU: its modules must be patched before any test imports them, here and in what the tests start."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

_HERE = Path(__file__).parent
for _path in (str(_HERE.parent / "support"), str(_HERE)):
    if _path not in sys.path:
        sys.path.insert(0, _path)
os.environ["DS_ACCELERATOR"] = "cpu"

from openrlhf_cpu.hooks import install  # noqa: E402
from sdpo_plugins.embedded import checkpoint_path  # noqa: E402

install()

REWARD_FILE = "def reward_func(queries, prompts, labels):\n    return {'rewards': 1.0, 'extra_logs': {}}\n"


@pytest.fixture
def words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Command lines of a run that could start on a machine with eight GPUs; later words win."""
    monkeypatch.setenv("RAY_OVERRIDE_RESOURCES", '{"CPU": 16, "GPU": 8}')
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    (tmp_path / "prompts.jsonl").write_text('{"input": "What is 1 + 1?", "label": "2"}\n')
    (tmp_path / "reward.py").write_text(REWARD_FILE)

    def make(*more: str) -> list[str]:
        return [
            *("--actor.model_name_or_path", str(checkpoint_path())),
            *("--data.prompt_dataset", str(tmp_path / "prompts.jsonl")),
            *("--reward.remote_url", str(tmp_path / "reward.py")),
            *("--rollout.batch_size", "16", "--rollout.n_samples_per_prompt", "8"),
            *("--train.batch_size", "128", "--train.micro_batch_size", "2"),
            *("--actor.num_gpus_per_node", "2", "--vllm.num_engines", "1"),
            *more,
        ]

    return make
