"""Unsloth replaces `trl.GRPOTrainer` by a class of its own; a stand-in does the same, each time in a fresh process."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

UNSLOTH = '''
"""Stand-in: what unsloth's PatchFastRL does to TRL, without its kernels."""

import sys
import types

CALLS = []


class FastLanguageModel:
    pass


def PatchFastRL(algorithm, model_class):
    import trl
    import trl.trainer.grpo_config
    import trl.trainer.grpo_trainer

    assert algorithm == "GRPO" and model_class is FastLanguageModel
    original, original_config = trl.GRPOTrainer, trl.GRPOConfig

    class _UnslothGRPOTrainer(original):
        def _generate_and_score_completions(self, inputs):
            CALLS.append("generate")
            return super()._generate_and_score_completions(inputs)

        def _calculate_rewards(self, *args, **kwargs):
            CALLS.append("rewards")
            return super()._calculate_rewards(*args, **kwargs)

        def training_step(self, *args, **kwargs):
            CALLS.append("step")
            return super().training_step(*args, **kwargs)

    class UnslothGRPOTrainer(_UnslothGRPOTrainer):
        pass

    class UnslothGRPOConfig(original_config):
        pass

    for place in (trl, trl.trainer, trl.trainer.grpo_trainer):
        place.GRPOTrainer = UnslothGRPOTrainer
    for place in (trl, trl.trainer, trl.trainer.grpo_config, trl.trainer.grpo_trainer):
        place.GRPOConfig = UnslothGRPOConfig
'''

RUN = """
import tiny_trl
from transformers import AutoTokenizer
from trl import GRPOConfig
from sdpo_plugins.embedded import checkpoint_path

def run(args, **more):
    trainer = SDPOTrainer(
        model=tiny_trl.tiny_model(), args=args, processing_class=AutoTokenizer.from_pretrained(checkpoint_path()),
        reward_funcs=[tiny_trl.digits_reward], train_dataset=tiny_trl.questions(), **more,
    )
    trainer.train()
    (logged,) = [row for row in trainer.state.log_history if "loss" in row]
    assert logged["self_distillation/active_tokens"] > 0, logged
    return trainer

small = dict(output_dir=OUT, num_generations=4, max_completion_length=6, max_steps=1, logging_steps=1, use_cpu=True,
             report_to="none", save_strategy="no")
"""

RIGHT = """
from unsloth import FastLanguageModel, PatchFastRL

PatchFastRL("GRPO", FastLanguageModel)

import trl, unsloth
from sdpo_trl import SDPOTrainer, SDPOConfig, SDPOTrainingArguments

assert trl.GRPOTrainer in SDPOTrainer.__mro__ and trl.GRPOTrainer.__name__ == "UnslothGRPOTrainer"
with warnings.catch_warnings():
    warnings.filterwarnings("error", message=".*PatchFastRL.*")
    trainer = run(GRPOConfig(**small), sdpo_config=SDPOConfig(teacher_mode="ema"))
assert isinstance(trainer, trl.GRPOTrainer) and type(trainer.args).__name__ == "UnslothGRPOConfig"
assert unsloth.CALLS == ["step", "generate", "rewards"], unsloth.CALLS
run(SDPOTrainingArguments(**small, alpha=1.0))
print("DONE right")
"""

WRONG = """
from sdpo_trl import SDPOTrainer, SDPOConfig, SDPOTrainingArguments
from unsloth import FastLanguageModel, PatchFastRL

PatchFastRL("GRPO", FastLanguageModel)

import trl, unsloth

assert trl.GRPOTrainer not in SDPOTrainer.__mro__
for args, more in ((SDPOTrainingArguments(**small), {}), (trl.GRPOConfig(**small), {"sdpo_config": SDPOConfig()})):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run(args, **more)
    (told,) = [warning for warning in caught if "PatchFastRL" in str(warning.message)]
    assert issubclass(told.category, UserWarning)
    assert "trl.GRPOTrainer was replaced by unsloth." in str(told.message), told.message
    assert "Call PatchFastRL first, then import sdpo_trl" in str(told.message), told.message
    assert told.filename == __file__, told.filename
assert unsloth.CALLS == []
print("DONE wrong")
"""


@pytest.mark.parametrize("order", ["right", "wrong"])
def test_import_order(order: str, tmp_path: Path) -> None:
    (tmp_path / "unsloth.py").write_text(UNSLOTH)
    script = tmp_path / "script.py"
    # Importing the helpers imports sdpo_trl, so it happens where the user's script imports it.
    imports, rest = (RIGHT if order == "right" else WRONG).split("import trl, unsloth\n")
    script.write_text(
        textwrap.dedent(f"import warnings\nOUT = {str(tmp_path / 'out')!r}\n")
        + imports
        + "import trl, unsloth\n"
        + ("from sdpo_trl import SDPOTrainer, SDPOConfig, SDPOTrainingArguments\n")
        + RUN
        + rest
    )
    root = Path(__file__).parents[2]
    path = os.pathsep.join(map(str, (tmp_path, root, root / "adapters", root / "tests" / "support")))
    done = subprocess.run(
        [sys.executable, str(script)],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0 and f"DONE {order}" in done.stdout, done.stderr[-3000:]
