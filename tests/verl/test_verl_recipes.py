"""The recipes: their files as Hydra composes them, their data as verl reads it, their rewards."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import datasets
import pytest
import yaml
from hydra import compose, initialize_config_dir, initialize_config_module
from omegaconf import DictConfig, OmegaConf
from transformers import AutoTokenizer
from typer.testing import CliRunner
from verl.trainer.ppo.reward import get_custom_reward_fn, resolve_reward_manager_cls
from verl.utils.config import omega_conf_to_dataclass
from verl.utils.dataset.rl_dataset import RLHFDataset

from data_samples import SAMPLES
from sdpo_plugins import SDPOConfig
from sdpo_plugins.cli import app
from sdpo_plugins.data import prepare
from sdpo_plugins.embedded import checkpoint_path
from sdpo_plugins.feedback import for_verl
from sdpo_plugins.presets import PAPER_HOST_SETTINGS, preset_options
from sdpo_verl import config_checks
from sdpo_verl.config import check_config, sdpo_config_of, settle
from sdpo_verl.rewards import CutOffRewardManager

RECIPES = Path(__file__).parents[2] / "recipes" / "verl"
PRESETS = {
    "sciknoweval_chemistry": "paper",
    "tooluse": "paper",
    "livecodebench_v6": "paper_rich_feedback",
}
ACTOR = "actor_rollout_ref.actor."
HOST = {
    ACTOR + "optim.lr": "learning_rate",
    ACTOR + "optim.lr_warmup_steps": "warmup_steps",
    ACTOR + "optim.weight_decay": "weight_decay",
    ACTOR + "optim.clip_grad": "max_grad_norm",
    "data.train_batch_size": "questions_per_batch",
    "actor_rollout_ref.rollout.n": "rollouts_per_question",
    ACTOR + "ppo_mini_batch_size": "mini_batch_size",
    "data.max_prompt_length": "max_prompt_length",
    "data.max_response_length": "max_response_length",
    "actor_rollout_ref.rollout.temperature": "temperature",
    "algorithm.rollout_correction.rollout_is": "rollout_is",
    "algorithm.rollout_correction.rollout_is_threshold": "rollout_is_threshold",
}


def composed(recipe: str, *overrides: str) -> DictConfig:
    with initialize_config_dir(str(RECIPES / recipe), version_base=None):
        return compose(recipe, overrides=list(overrides))


# Files ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", PRESETS)
def test_the_file_is_accepted_and_holds_the_papers_values(recipe: str) -> None:
    config = composed(recipe, f"actor_rollout_ref.model.path={checkpoint_path()}")
    check_config(config)
    assert sdpo_config_of(config) == SDPOConfig.preset(PRESETS[recipe])
    given = PAPER_HOST_SETTINGS[PRESETS[recipe]]
    for path, name in HOST.items():
        assert OmegaConf.select(config, path) == getattr(given, name), path
    assert given.advantage_clip is None
    assert config.actor_rollout_ref.rollout.calculate_log_probs
    omega_conf_to_dataclass(config.actor_rollout_ref.actor)


def unlike(value: Any) -> Any:
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value


@pytest.mark.parametrize("recipe", PRESETS)
def test_the_table_of_the_readme_is_what_is_composed(recipe: str) -> None:
    text = (RECIPES / recipe / "README.md").read_text(encoding="utf-8")
    table = text.split("<!-- parameters -->")[1].split("<!-- end -->")[0]
    rows = re.findall(r"^\| `([^`]+)` \| `([^`]+)` \|$", table, re.MULTILINE)
    assert len(rows) == table.count("\n| ") - 1, "a row cannot be read"
    config = composed(recipe)
    settle(config)
    for path, value in rows:
        assert unlike(OmegaConf.select(config, path, throw_on_missing=True)) == yaml.safe_load(value), path
    listed = {path for path, _ in rows}
    options = {ACTOR + "self_distillation." + name for name in preset_options(PRESETS[recipe])}
    assert options | set(HOST) <= listed


REWARDED = {
    "sciknoweval_chemistry": ("B", "<answer>B</answer>", "<answer>C</answer>", None),
    "tooluse": (
        '[{"Action": "find", "Action_Input": "{\\"text\\": \\"axolotl\\"}"}]',
        'Action: find\nAction Input: {"text": "axolotl"}',
        'Action: find\nAction Input: {"text": "newt"}',
        "but not these inputs",
    ),
    "livecodebench_v6": (
        json.dumps({"inputs": ["1\n", "2\n"], "outputs": ["2", "3"], "testtype": "stdin", "time_limit": 6.0}),
        "```python\nprint(int(input()) + 1)\n```",
        "```python\nprint(2)\n```",
        "Test Case 2: Wrong Answer\n\nInput\n2\n\nOutput\n2\n\nExpected\n3",
    ),
}


@pytest.mark.parametrize("recipe", PRESETS)
def test_the_scorer_named_is_there_and_takes_its_options(recipe: str) -> None:
    config = composed(recipe)
    OmegaConf.resolve(config)
    truth, right, wrong, said = REWARDED[recipe]
    score = get_custom_reward_fn(config)
    given: dict[str, Any] = {"data_source": recipe, "ground_truth": truth, "extra_info": {"split": "train"}}
    found = score(solution_str=right, **given)
    assert (found["score"], found["acc"], found["feedback"]) == (1.0, 1.0, "")
    other = score(solution_str=wrong, **given)
    assert (other["score"], other["acc"]) == (0.0, 0.0) and other.keys() == found.keys()
    assert said in other["feedback"] if said else other["feedback"] == ""
    cut = score(solution_str="I thi", **{**given, "extra_info": {"truncated": True}})
    assert (cut["score"], cut["truncated"], cut["incorrect_format"]) == (0.0, 1, 1)
    assert "axolotl" not in other["feedback"] + cut["feedback"]


@pytest.mark.parametrize("recipe", PRESETS)
def test_the_reward_manager_named_is_there(recipe: str) -> None:
    assert resolve_reward_manager_cls(composed(recipe)) is CutOffRewardManager


# The guide ------------------------------------------------------------------------------------------------------------


def blocks(language: str) -> list[str]:
    text = (RECIPES.parents[1] / "docs" / "verl.md").read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def test_the_guides_command_is_accepted() -> None:
    (command,) = [block for block in blocks("bash") if "verl.trainer.main_ppo" in block]
    words = command.replace("\\\n", " ").split()
    assert words[:5] == ["python", "-m", "verl.trainer.main_ppo", "--config-name", "sdpo"]
    with initialize_config_module("verl.trainer.config", version_base=None):
        config = compose("sdpo", overrides=words[5:])
    check_config(config)
    assert sdpo_config_of(config) == SDPOConfig.preset("paper_rich_feedback")


def test_the_guides_file_is_accepted(tmp_path: Path) -> None:
    (text,) = blocks("yaml")
    (tmp_path / "mine.yaml").write_text(text, encoding="utf-8")
    with initialize_config_dir(str(tmp_path), version_base=None):
        config = compose("mine", overrides=["actor_rollout_ref.rollout.name=vllm", "actor_rollout_ref.rollout.n=8"])
    check_config(config)
    assert sdpo_config_of(config) == SDPOConfig.preset("paper", selector="shortest")


def test_the_guide_names_every_setting_that_is_refused_or_renamed() -> None:
    text = (RECIPES.parents[1] / "docs" / "verl.md").read_text(encoding="utf-8")
    refused = text.split("## What is refused, and why")[1].split("\n## ")[0]
    for path, *_ in config_checks._ONLY:
        name = path.rsplit(".", 1)[-1]
        found = name if name not in ("enable", "enabled", "mode", "enable_train") else path.split(".")[-2]
        assert found in refused, path
    renamed = text.split("### From the authors' fork")[1].split("\n## ")[0]
    for old, new in config_checks._MOVED.items():
        section, _, leaf = old.partition(".")
        assert section in renamed and (leaf in renamed or f"{section}.*" in renamed), old
        assert new.rpartition(".")[0] in renamed, new


# Launch scripts -------------------------------------------------------------------------------------------------------

# In the place of Python: says what it was called with.
SAYS = '#!/usr/bin/env bash\nprintf "%s\\n" "$@"\n'


def launched(recipe: str, folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    python = folder / "python"
    python.write_text(SAYS)
    python.chmod(0o755)
    environment = {"PATH": os.environ["PATH"], "PYTHON": str(python), **variables}
    command = [str(RECIPES / recipe / "run.sh"), *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("recipe", PRESETS)
def test_the_launch_script(recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = RECIPES / recipe / "run.sh"
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", str(script)], check=True, timeout=60)

    monkeypatch.chdir(tmp_path)
    missing = launched(recipe, tmp_path)
    assert missing.returncode == 1
    assert f"runs/data/verl/{recipe}/train.parquet is missing" in missing.stderr
    (command,) = re.findall(r"sdpo (data .*), or set DATA_DIR", missing.stderr)
    sample = SAMPLES[command.split()[1]].place(tmp_path / "source")
    made = CliRunner().invoke(app, [*command.split(), "--from", str(sample)])
    assert made.exit_code == 0, made.stderr
    assert launched(recipe, tmp_path).returncode == 0, "what it says makes what it needs"

    data = tmp_path / "my data"
    data.mkdir()
    for split in ("train", "test"):
        (data / f"{split}.parquet").touch()
    variables = {"DATA_DIR": str(data), "MODEL_PATH": str(tmp_path / "a model")}
    done = launched(recipe, tmp_path, "trainer.n_gpus_per_node=8", **variables)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[:6] == ["-m", "verl.trainer.main_ppo", "--config-path", str(RECIPES / recipe), "--config-name", recipe]
    config = composed(recipe, *lines[6:])
    assert config.actor_rollout_ref.model.path == str(tmp_path / "a model")
    assert config.data.train_files == str(data / "train.parquet")
    assert config.data.val_files == str(data / "test.parquet")
    assert config.trainer.default_local_dir == str(tmp_path / "runs" / recipe)
    assert config.trainer.n_gpus_per_node == 8
    assert config.reward == composed(recipe).reward


def test_a_server_that_runs_the_programs(tmp_path: Path) -> None:
    for split in ("train", "test"):
        (tmp_path / f"{split}.parquet").touch()
    url = "http://there:1/run_code"
    done = launched("livecodebench_v6", tmp_path, DATA_DIR=str(tmp_path), SANDBOX_URL=url)
    config = composed("livecodebench_v6", *done.stdout.splitlines()[6:])
    given = OmegaConf.to_container(config.reward.custom_reward_function.reward_kwargs)
    assert given == {"isolation": "sandbox_fusion", "sandbox_url": url, "reveal_expected": True}
    for_verl("code", **given)  # they fit together


# Data -----------------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def cache_of_this_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


SOURCES = {"sciknoweval_chemistry": "sciknoweval", "tooluse": "tooluse", "livecodebench_v6": "livecodebench"}


@pytest.mark.parametrize("recipe", PRESETS)
def test_the_files_are_where_the_data_are_written(recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    sample = SAMPLES[SOURCES[recipe]]
    folder = prepare(SOURCES[recipe], host="verl", place=sample.place(tmp_path / "source")).folder
    config = composed(recipe)
    files = [config.data.train_files, config.data.val_files]
    assert files == [f"{folder}/train.parquet", f"{folder}/test.parquet"]
    found = RLHFDataset(files[0], AutoTokenizer.from_pretrained(checkpoint_path()), config.data)
    assert len(found) == sample.counts[0]
    assert config.reward.custom_reward_function.name == found[0]["ability"], "the scorer that the rows name"
    text = (RECIPES / recipe / "README.md").read_text(encoding="utf-8")
    assert f"sdpo data {SOURCES[recipe]} --host verl " in text and f"# writes {folder}\n" in text
