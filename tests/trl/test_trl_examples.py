"""The examples in recipes/trl and the code of other projects' guides, each in a process of its own, as users do it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

from guides import SDPO_RL_CONFIGS, SDPO_RL_REWARD, SDPO_TRAINER, SDPO_TRAINER_CONFIG, SDPO_TRAINER_REWARD
from sdpo_plugins.embedded import checkpoint_path
from sdpo_trl.recipe import import_function

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "recipes" / "trl"
NAMES = ("basic_sdpo", "sdpo_with_unsloth", "sdpo_rich_feedback", "sdpo_lora_ema")


def python(script: Path, *words: str, cwd: Path, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    places = [ROOT, ROOT / "adapters", *([path] if path else [])]
    return subprocess.run(
        [sys.executable, str(script), *words],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(map(str, places)),
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
        },
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=280,
    )


class Printed(NamedTuple):
    """What an example printed at its end, in percent, and all it printed."""

    before: float
    steps: int
    after: float
    text: str


def example(name: str, *words: str, cwd: Path, path: Path | None = None) -> Printed:
    """Run an example to its end."""
    done = python(EXAMPLES / f"{name}.py", *words, cwd=cwd, path=path)
    assert done.returncode == 0, done.stderr[-3000:]
    found = re.search(r"^accuracy before ([\d.]+)%, after (\d+) steps ([\d.]+)%$", done.stdout, re.MULTILINE)
    assert found, done.stdout[-2000:]
    return Printed(float(found[1]), int(found[2]), float(found[3]), done.stdout)


def save_tiny_qwen2(folder: Path) -> None:
    """A random model of another architecture, with the embedded tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoint_path())
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "at_first", "gain"),
    [
        ("basic_sdpo", 55.0, 20.0),
        ("sdpo_with_unsloth", 55.0, 20.0),
        ("sdpo_lora_ema", 55.0, 20.0),
        ("sdpo_rich_feedback", 10.0, 50.0),
    ],
)
def test_an_example_learns(name: str, at_first: float, gain: float, tmp_path: Path) -> None:
    run = example(name, "--tiny", cwd=tmp_path)
    assert run.before < at_first
    assert run.after - run.before > gain
    assert ("without Unsloth" in run.text) == (name == "sdpo_with_unsloth")
    (left,) = (tmp_path / "runs").iterdir()
    assert left.name == name and list(left.glob("*.safetensors")) and list(left.glob("checkpoint-*/sdpo"))


@pytest.mark.slow
def test_rewards_alone_do_not_teach_what_only_failing_tests_say(tmp_path: Path) -> None:
    run = example("sdpo_rich_feedback", "--tiny", "--grpo", cwd=tmp_path)
    assert run.before < 10.0
    assert run.after - run.before < 25.0


@pytest.mark.slow
def test_an_example_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    words = ("--tiny", "--steps", "21", "--samples", "1")
    straight = example("basic_sdpo", *words, "--output", "straight", cwd=tmp_path)
    shutil.copytree(tmp_path / "straight" / "checkpoint-20", tmp_path / "cut" / "checkpoint-20")
    cut = example("basic_sdpo", *words, "--output", "cut", "--resume", cwd=tmp_path)
    assert cut[:3] == straight[:3]
    one, other = (tmp_path / run / "checkpoint-21" / "model.safetensors" for run in ("straight", "cut"))
    assert one.read_bytes() == other.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if name != "sdpo_with_unsloth"])
def test_an_example_takes_a_model_by_its_name(name: str, tmp_path: Path) -> None:
    """The path of a large model, with one from a folder: settings, answers, rewards and a step as they are."""
    save_tiny_qwen2(tmp_path / "model")
    run = example(name, "--model", "model", "--steps", "1", "--samples", "1", cwd=tmp_path)
    assert run[:3] == (0.0, 1, 0.0)
    saved = json.loads((tmp_path / "runs" / name / "checkpoint-1" / "trainer_state.json").read_text())
    assert saved["train_batch_size"] == 4 and saved["global_step"] == 1


UNSLOTH = '''
"""Stand-in for Unsloth: replaces TRL's classes as its patch does, and loads models without four-bit kernels."""

import json
from pathlib import Path

CALLS = {}


class FastLanguageModel:
    @staticmethod
    def from_pretrained(name, **options):
        from transformers import AutoModelForCausalLM, AutoTokenizer

        CALLS["from_pretrained"] = [name, options]
        return AutoModelForCausalLM.from_pretrained(name), AutoTokenizer.from_pretrained(name)

    @staticmethod
    def get_peft_model(model, r, lora_alpha, random_state):
        from peft import LoraConfig, get_peft_model

        CALLS["rank"] = r
        return get_peft_model(model, LoraConfig(r=r, lora_alpha=lora_alpha, target_modules="all-linear"))


def PatchFastRL(algorithm, model_class):
    import sys

    assert "sdpo_trl" not in sys.modules and algorithm == "GRPO" and model_class is FastLanguageModel
    import trl
    import trl.trainer.grpo_trainer

    class UnslothGRPOTrainer(trl.GRPOTrainer):
        def train(self, *args, **kwargs):
            CALLS["trained"] = [type(self.args).__name__, type(self).__name__]
            Path("unsloth.json").write_text(json.dumps(CALLS))
            return super().train(*args, **kwargs)

    class UnslothGRPOConfig(trl.GRPOConfig):
        def __init__(self, *args, optim, **kwargs):
            # Eight-bit states need bitsandbytes and a GPU.
            CALLS["optim"] = optim
            super().__init__(*args, optim="adamw_torch", **kwargs)

    for made in (UnslothGRPOTrainer, UnslothGRPOConfig):  # checkpoints hold the configuration by its place
        made.__qualname__ = made.__name__
        globals()[made.__name__] = made
    for place in (trl, trl.trainer, trl.trainer.grpo_trainer):
        place.GRPOTrainer, place.GRPOConfig = UnslothGRPOTrainer, UnslothGRPOConfig
    trl.trainer.grpo_config.GRPOConfig = UnslothGRPOConfig
'''


@pytest.mark.slow
def test_the_unsloth_example_patches_first(tmp_path: Path) -> None:
    (tmp_path / "stand_in").mkdir()
    (tmp_path / "stand_in" / "unsloth.py").write_text(UNSLOTH)
    save_tiny_qwen2(tmp_path / "model")
    words = ("--model", "model", "--steps", "1", "--samples", "1")
    run = example("sdpo_with_unsloth", *words, cwd=tmp_path, path=tmp_path / "stand_in")
    assert run.steps == 1
    assert json.loads((tmp_path / "unsloth.json").read_text()) == {
        "from_pretrained": ["model", {"max_seq_length": 2048, "load_in_4bit": True}],
        "rank": 16,
        "optim": "adamw_8bit",
        "trained": ["UnslothGRPOConfig", "SDPOTrainer"],
    }


def test_without_unsloth_one_message_says_what_to_do(tmp_path: Path) -> None:
    done = python(EXAMPLES / "sdpo_with_unsloth.py", cwd=tmp_path)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "pip install unsloth" in done.stderr and "--tiny" in done.stderr


SOLUTIONS = {
    "total": "return sum(numbers)",
    "unique": "return list(dict.fromkeys(items))",
    "second_largest": "return sorted(set(numbers))[-2]",
    "vowels": "return sum(letter in 'aeiou' for letter in text.lower())",
    "initials": "return ''.join(word[0].upper() for word in name.split())",
    "is_palindrome": "text = text.lower().replace(' ', ''); return text == text[::-1]",
    "sign": "return (x > 0) - (x < 0)",
    "leap": "return year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)",
    "grade": "return 'A' if points >= 90 else 'B' if points >= 80 else 'C'",
    "factorial": "return 1 if n == 0 else n * factorial(n - 1)",
    "digits_sum": "return sum(map(int, str(n)))",
    "collatz_steps": "return 0 if n == 1 else 1 + collatz_steps(n // 2 if n % 2 == 0 else 3 * n + 1)",
}


def test_the_problems_of_the_code_example_can_be_solved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    rows = import_function(f"{EXAMPLES / 'sdpo_rich_feedback.py'}:problem_rows")()
    reward: Any = import_function(f"{EXAMPLES / 'sdpo_rich_feedback.py'}:TestResults")()
    answers, truths = [], [row["ground_truth"] for row in rows]
    for row in rows:
        call = re.search(r"function (\w+\(.*?\))", row["prompt"][0]["content"])
        assert call
        body = SOLUTIONS[call[1].partition("(")[0]]
        answers.append(f"```python\ndef {call[1]}:\n    {body}\n```")
    answers.append(answers[0].replace("sum(", "len("))
    truths.append(truths[0])
    completions = [[{"role": "assistant", "content": answer}] for answer in answers]
    assert reward(None, completions, truths) == [1.0] * len(SOLUTIONS) + [0.0]
    assert reward.last_feedback[:-1] == [""] * len(SOLUTIONS)
    assert "Input\n[1, 2, 3]\n\nOutput\n3\n\nExpected\n6" in reward.last_feedback[-1]


# The guides' machines have a GPU; TRL asks to be told where there is none.
BEFORE = """
import trl
from datasets import Dataset

import sdpo_trl


class OnCPU(trl.GRPOConfig):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **{"use_cpu": True, **kwargs})


trl.GRPOConfig = OnCPU

your_dataset = Dataset.from_list([{"prompt": [{"role": "user", "content": f"What is {n} + 1?"}]} for n in range(8)])
correct_answer = why = "7"

def is_correct(completion):
    return "7" in completion[0]["content"]
"""

BUILD = """
from sdpo_trl import SDPOTrainer

trainer = SDPOTrainer(
    model="Qwen/Qwen2.5-0.5B-Instruct", args=grpo_config, sdpo_config=sdpo_config, reward_funcs=[REWARD],
    train_dataset=your_dataset,
)
trainer.train()
"""

CHECK = """
print("TRAINED", trainer.state.global_step, trainer.sdpo_config.teacher, trainer.sdpo_config.teacher_update_rate)
"""

GUIDES = {
    "sdpo-trainer": BEFORE + SDPO_TRAINER,
    "sdpo-trainer, all options": BEFORE
    + SDPO_TRAINER_REWARD
    + SDPO_TRAINER.split("# Configure SDPO")[0]
    + SDPO_TRAINER_CONFIG
    + BUILD.replace("REWARD", "reward_fn"),
    "sdpo-rl": BEFORE + SDPO_RL_CONFIGS + SDPO_RL_REWARD + BUILD.replace("REWARD", "MyReward()"),
}


@pytest.mark.slow
@pytest.mark.parametrize("guide", GUIDES)
def test_the_code_of_other_guides_runs(guide: str, tmp_path: Path) -> None:
    # `from_pretrained` takes a folder of that name before it asks the hub.
    save_tiny_qwen2(tmp_path / "Qwen" / "Qwen2.5-0.5B-Instruct")
    script = tmp_path / "script.py"
    script.write_text(GUIDES[guide] + CHECK)
    done = python(script, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    found = re.search(r"^TRAINED (\d+) ema 0.05$", done.stdout, re.MULTILINE)
    assert found and int(found[1]) > 0, done.stdout[-2000:]
