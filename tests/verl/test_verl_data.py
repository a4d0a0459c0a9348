"""What `sdpo data --host verl` writes, as verl's own data set reads it, and scored by verl's own reward manager."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_module
from omegaconf import DictConfig
from transformers import AutoTokenizer
from verl import DataProto
from verl.trainer.ppo.reward import load_reward_manager
from verl.utils.dataset.rl_dataset import RLHFDataset

from data_samples import SAMPLES
from sdpo_plugins.data import prepare
from sdpo_plugins.embedded import checkpoint_path


@pytest.fixture(autouse=True)
def cache_of_this_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def composed(scorer: str, folder: Path) -> DictConfig:
    """Compose verl's configuration with the settings that the card names."""
    text = (folder / "README.md").read_text(encoding="utf-8")
    settings = text.split("Options of verl")[1].split("```")[1].split()
    assert settings[-1].endswith(f"name={scorer}")
    more = ["reward.num_workers=1", "+reward.custom_reward_function.reward_kwargs={workers: 1}"]
    with initialize_config_module("verl.trainer.config", version_base=None):
        return compose("ppo_trainer", overrides=[*settings, *more, f"+data.cache_dir={folder.parent / 'verl'}"])


def scored(config: DictConfig, row: dict[str, Any], answer: str) -> dict[str, Any]:
    """Let verl's reward manager score an answer to a row of its data set."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoint_path())
    ids = [*tokenizer(answer)["input_ids"], tokenizer.eos_token_id]
    assert tokenizer.decode(ids, skip_special_tokens=True) == answer
    batch = DataProto.from_dict(
        tensors={
            "prompts": torch.ones(1, 4, dtype=torch.long),
            "responses": torch.tensor([ids]),
            "attention_mask": torch.ones(1, 4 + len(ids), dtype=torch.long),
        },
        non_tensors={
            name: np.array([row[name]], dtype=object) for name in ("data_source", "reward_model", "extra_info")
        },
    )

    async def score() -> dict[str, Any]:
        manager = load_reward_manager(config, tokenizer)
        manager.loop = asyncio.get_running_loop()
        return dict(await manager.run_single(batch))

    return asyncio.run(score())


@pytest.mark.parametrize("source", SAMPLES)
def test_verl_reads_and_scores_it(source: str, tmp_path: Path) -> None:
    sample = SAMPLES[source]
    options = dict(zip((word[2:].replace("-", "_") for word in sample.options[::2]), sample.options[1::2], strict=True))
    place = sample.place(tmp_path / "source")
    prepared = prepare(source, host="verl", place=place, output=tmp_path / "out", **options)
    config = composed(prepared.card["scorer"], tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(checkpoint_path())
    found = {
        split: RLHFDataset([getattr(config.data, f"{name}_files")], tokenizer, config.data)
        for split, name in (("train", "train"), ("test", "val"))
    }
    assert tuple(map(len, found.values())) == sample.counts
    for split, rows in found.items():
        for row in rows:
            assert row["extra_info"]["split"] == split and row["ability"] == prepared.card["scorer"]
            assert row["raw_prompt"][-1]["role"] == "user"
    row = found["test"][0]
    right = sample.right(row["raw_prompt"][-1]["content"], row["reward_model"]["ground_truth"])
    assert scored(config, row, right)["reward_score"] == 1.0
    assert scored(config, row, "I do not know.")["reward_score"] == 0.0
