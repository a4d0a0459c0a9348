"""The commands of the documents that a CPU answers in seconds, without a network, really run."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import doc_blocks
from doc_blocks import ROOT, Block, Command
from made_records import make_run

# Commands that are not run, by a pattern of the line, and why.
NOT_RUN = {
    r"sdpo train recipes/trl/\w+\.yaml(?!.*max_steps)": "trains for a minute or more; tests/trl runs the recipes",
    r"sdpo demo": "trains for minutes; tests/trl runs the demo with fewer steps",
    r"sdpo data (?!jsonl|--help)": "reads a data set from the hub; tests/core reads copies of each",
    r"sdpo estimate --model Qwen/": "reads a model's configuration from the hub; tests/core has copies",
    r"sdpo solve .*--model (Qwen|my)/": "a model that is not here; tests/trl solves with the embedded one",
}

# Files of a reader that commands name.
FILES = {
    "mine.jsonl": "".join(json.dumps({"question": f"{n} + 1?", "answer": str(n + 1)}) + "\n" for n in range(20)),
    "grpo.yaml": "distillation_mode: topk_logits\ndistillation_topk: 100\ndistillation_alpha: 0.5\n"
    "learning_rate: 1.0e-5\nnum_generations: 8\n",
    "their_run.sh": "python -m verl.trainer.main_ppo actor_rollout_ref.actor.self_distillation.alpha=0.5 \\\n"
    "  actor_rollout_ref.actor.optim.lr=1e-5\n",
    "train.py": "from sdpo_rl import SDPOConfig\n\nconfig = SDPOConfig(teacher_mode='ema', alpha=0.5)\n",
    "my_verl.yaml": "actor_rollout_ref: {model: {path: Qwen/Qwen3-8B}, actor: {self_distillation: {alpha: 1.0}}}\n",
}


def reason(command: Command) -> str | None:
    """Return why a command is not run, or None if it is."""
    return next((why for pattern, why in NOT_RUN.items() if re.match(pattern, command.line)), None)


def to_run(block: Block) -> list[Command]:
    return [each for each in doc_blocks.commands_of(block) if each.words[0] == "sdpo" and reason(each) is None]


def run_blocks() -> list[Block]:
    """Return the blocks with commands to run, those whose commands others have left out."""
    seen: set[str] = set()
    found = []
    for block in doc_blocks.of("bash", "console"):
        lines = {each.line for each in to_run(block)}
        if lines - seen:
            found.append(block)
        seen |= lines
    return found


def prepare(folder: Path, block: Block, commands: list[Command]) -> None:
    """Make the files that the commands name: recipes, data, files that the same page shows, records of runs."""
    (folder / "recipes").symlink_to(ROOT / "recipes")
    for name, text in FILES.items():
        (folder / name).write_text(text, encoding="utf-8")
    for shown in doc_blocks.of("yaml"):
        name = re.match(r"# ([\w.-]+\.yaml)\b", shown.text)
        if shown.page == block.page and name:
            (folder / name[1]).write_text(shown.text, encoding="utf-8")
    for command in commands:
        if command.words[1] in ("report", "plot"):
            for number, word in enumerate(command.words[2:]):
                if re.fullmatch(r"runs/[\w.-]+", word) and not (folder / word).exists():
                    make_run(folder / word, steps=6, seed=number)


@pytest.mark.slow
@pytest.mark.parametrize("block", run_blocks(), ids=str)
def test_the_commands_run(block: Block, tmp_path: Path) -> None:
    commands = to_run(block)
    prepare(tmp_path, block, commands)
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "BROWSER": "true"}
    for command in commands:
        done = subprocess.run(
            [sys.executable, "-m", "sdpo_plugins.cli", *command.words[1:]],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=240,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        assert done.stdout or done.stderr
        if command.target:
            (tmp_path / command.target).write_text(done.stdout, encoding="utf-8")


def test_no_reason_is_stale() -> None:
    lines = [command.line for command in doc_blocks.commands()]
    assert [pattern for pattern in NOT_RUN if not any(re.match(pattern, line) for line in lines)] == []
    assert [name for name in FILES if not any(name in line.split() for line in lines)] == []
