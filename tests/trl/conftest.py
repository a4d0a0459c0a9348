"""Fixtures of the TRL tests; the tiny things themselves are in tests/support/tiny_trl.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from sdpo_plugins.embedded import checkpoint_path
from sdpo_trl import SDPOTrainer
from tiny_trl import digits_reward, questions, tiny_arguments, tiny_model


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(checkpoint_path())


@pytest.fixture
def make_trainer(tmp_path: Any) -> Callable[..., SDPOTrainer]:
    """Build an SDPOTrainer on tiny things; `args` are changes to `tiny_arguments`, the rest goes to the trainer."""

    def make(model: Any = None, args: dict[str, Any] | None = None, cls: type = SDPOTrainer, **kwargs: Any) -> Any:
        settings: dict[str, Any] = {
            "reward_funcs": digits_reward,
            "args": tiny_arguments(tmp_path / "out", **(args or {})),
            "train_dataset": questions(),
            "processing_class": AutoTokenizer.from_pretrained(checkpoint_path()),
            **kwargs,
        }
        return cls(model if model is not None else tiny_model(), **settings)

    return make
