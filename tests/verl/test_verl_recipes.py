"""The recipes: their files as Hydra composes them, their data as verl reads it, their rewards."""

from __future__ import annotations

import base64
import importlib.util
import json
import os
import pickle
import re
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet as pq
import pytest
import yaml
from hydra import compose, initialize_config_dir, initialize_config_module
from omegaconf import DictConfig, OmegaConf
from transformers import AutoTokenizer
from verl.trainer.ppo.reward import get_custom_reward_fn
from verl.utils.config import omega_conf_to_dataclass
from verl.utils.dataset.rl_dataset import RLHFDataset

from sdpo_plugins import SDPOConfig
from sdpo_plugins.embedded import checkpoint_path
from sdpo_plugins.presets import PAPER_HOST_SETTINGS, preset_options
from sdpo_verl import config_checks
from sdpo_verl.config import check_config, sdpo_config_of, settle

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


def module(recipe: str, name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"{recipe}_{name}", RECIPES / recipe / f"{name}.py")
    assert spec is not None and spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


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


@pytest.mark.parametrize("recipe", PRESETS)
def test_the_reward_function_named_is_there_and_takes_its_arguments(recipe: str, monkeypatch: Any) -> None:
    monkeypatch.chdir(RECIPES.parents[1])
    config = composed(recipe)
    OmegaConf.resolve(config)
    score = get_custom_reward_fn(config)
    truths = {
        "sciknoweval_chemistry": "B",
        "tooluse": '[{"Action": "a", "Action_Input": "{}"}]',
        "livecodebench_v6": json.dumps(written("stdin", [("1", "2")])),
    }
    found = score(data_source=recipe, solution_str="no idea", ground_truth=truths[recipe], extra_info={})
    assert found["score"] == found["acc"] == 0.0 and found["incorrect_format"] == 1
    assert isinstance(found["feedback"], str)


def test_verls_sandbox_settings_reach_the_reward_function() -> None:
    config = composed("livecodebench_v6", "reward.sandbox_fusion.url=http://there/run_code", "reward.num_workers=4")
    given = OmegaConf.to_container(config.reward.custom_reward_function.reward_kwargs, resolve=True)
    assert given == {
        "sandbox_url": "http://there/run_code",
        "max_concurrent": 64,
        "memory_limit_mb": 1024,
        "workers": 4,
    }


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
def test_the_launch_script(recipe: str, tmp_path: Path) -> None:
    script = RECIPES / recipe / "run.sh"
    assert os.access(script, os.X_OK) and os.access(RECIPES / recipe / "prepare.py", os.X_OK)
    subprocess.run(["bash", "-n", str(script)], check=True, timeout=60)

    missing = launched(recipe, tmp_path)
    assert missing.returncode == 1
    assert f"runs/data/{recipe}/train.parquet is missing" in missing.stderr and "prepare.py" in missing.stderr

    data = tmp_path / "my data"
    data.mkdir()
    for split in ("train", "test"):
        (data / f"{split}.parquet").touch()
    variables = {
        "DATA_DIR": str(data),
        "MODEL_PATH": str(tmp_path / "a model"),
        "SANDBOX_URL": "http://there:1/run_code",
    }
    done = launched(recipe, tmp_path, "trainer.n_gpus_per_node=8", **variables)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[:6] == ["-m", "verl.trainer.main_ppo", "--config-path", str(RECIPES / recipe), "--config-name", recipe]
    config = composed(recipe, *lines[6:])
    assert config.actor_rollout_ref.model.path == str(tmp_path / "a model")
    assert config.data.train_files == str(data / "train.parquet")
    assert config.data.val_files == str(data / "test.parquet")
    assert config.trainer.default_local_dir == str(tmp_path / "runs" / recipe)
    assert Path(config.reward.custom_reward_function.path) == RECIPES / recipe / "reward.py"
    assert config.trainer.n_gpus_per_node == 8
    if recipe == "livecodebench_v6":
        assert config.reward.sandbox_fusion.url == "http://there:1/run_code"


# Data -----------------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def cache_of_this_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def prepared(recipe: str, output: Path, source: Path, *arguments: str) -> dict[str, list[dict[str, Any]]]:
    """Prepare local files and return the rows of what is written."""
    module(recipe, "prepare").main(["--output", str(output), "--from-file", str(source), *arguments])
    assert {path.name for path in output.iterdir()} == {"train.parquet", "test.parquet"}
    return {split: pq.read_table(output / f"{split}.parquet").to_pylist() for split in ("train", "test")}


@pytest.mark.parametrize("recipe", PRESETS)
def test_preparation_is_a_program(recipe: str, tmp_path: Path) -> None:
    command = [sys.executable, str(RECIPES / recipe / "prepare.py"), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True, cwd=tmp_path)
    assert "--from-file" in done.stdout and "--seed" in done.stdout and "--output" in done.stdout
    assert not list(tmp_path.iterdir())


def as_verl_reads(recipe: str, folder: Path, cache: Path) -> RLHFDataset:
    """Read a prepared file with the settings of the recipe."""
    config = composed(recipe, f"+data.cache_dir={cache}").data
    tokenizer = AutoTokenizer.from_pretrained(checkpoint_path())
    return RLHFDataset([str(folder / "train.parquet")], tokenizer, config)


def chemistry_question(number: int, **changes: Any) -> dict[str, Any]:
    return {
        "question": f"What weighs {number}?",
        "choices": {"text": ["gold", "iron", "tin", "zinc"], "label": ["A", "B", "C", "D"]},
        "answerKey": "ABCD"[number % 4],
        "type": "mcq-4-choices",
        "domain": "Chemistry",
        "details": {"level": "L3", "task": "weight", "subtask": "weight", "source": "none"},
        **changes,
    }


def write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_chemistry_data(tmp_path: Path) -> None:
    other = [
        chemistry_question(1, domain="Physics"),
        chemistry_question(2, type="open-ended-qa"),
        chemistry_question(3, details={"level": "L1", "task": "", "subtask": "", "source": ""}),
    ]
    two = chemistry_question(0, type="mcq-2-choices", choices={"text": ["yes", "no"], "label": ["A", "B"]})
    source = write_lines(tmp_path / "all.jsonl", [*other, two, *[chemistry_question(n) for n in range(1, 20)]])
    found = prepared("sciknoweval_chemistry", tmp_path / "out", source)
    assert {name: len(rows) for name, rows in found.items()} == {"train": 18, "test": 2}
    places = [row["extra_info"]["index"] for rows in found.values() for row in rows]
    assert sorted(places) == list(range(20)), "every question of the subset is in one of the files"
    assert prepared("sciknoweval_chemistry", tmp_path / "again", source) == found
    assert prepared("sciknoweval_chemistry", tmp_path / "other", source, "--seed", "7") != found

    for rows in found.values():
        for row in rows:
            number = row["extra_info"]["index"]
            system, user = row["prompt"]
            assert (system["role"], user["role"]) == ("system", "user")
            assert system["content"].endswith("just output:\n<answer>\nA\n</answer>\n")
            choices = "A: yes\nB: no" if number == 0 else "A: gold\nB: iron\nC: tin\nD: zinc"
            assert user["content"] == f"What weighs {number}?\n\n{choices}\nPlease reason step by step."
            assert row["reward_model"]["ground_truth"] == "ABCD"[number % 4]

    questions = as_verl_reads("sciknoweval_chemistry", tmp_path / "out", tmp_path / "cache")
    assert len(questions) == 18
    assert questions[0]["raw_prompt"] == found["train"][0]["prompt"]
    assert questions[0]["reward_model"] == found["train"][0]["reward_model"]


def test_chemistry_data_that_cannot_be_used(tmp_path: Path) -> None:
    none = write_lines(tmp_path / "none.jsonl", [chemistry_question(n, domain="Physics") for n in range(3)])
    with pytest.raises(SystemExit, match=r"0 of 3 rows(?s:.)*Domains in this data: Physics"):
        prepared("sciknoweval_chemistry", tmp_path / "out", none)
    wrong = write_lines(tmp_path / "wrong.jsonl", [chemistry_question(n, answerKey="E") for n in range(3)])
    with pytest.raises(SystemExit, match="'E' of question"):
        prepared("sciknoweval_chemistry", tmp_path / "out", wrong)
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def tool_question(index: int, answer: Any, system: str | None = None) -> dict[str, Any]:
    text = answer if isinstance(answer, str) else json.dumps(answer)
    return {
        "prompt": f"Use the tools. Question: {index}?",
        "description": "",
        "idx": index,
        "dataset": "tooluse",
        "system": system,
        "answer": text,
        "tests": None,
        "kind": "tooluse",
        "elo": 1500,
    }


def test_tool_use_data(tmp_path: Path) -> None:
    right = [{"Action": "find", "Action_Input": '{"text": "axolotl"}'}]
    source = tmp_path / "source"
    source.mkdir()
    rows = [tool_question(index, right) for index in range(6)]
    write_lines(source / "train.json", [*rows, tool_question(6, "[]"), tool_question(7, right, system="Be brief.")])
    broken = [{"Action": "find", "Action_Input": "{text"}]
    write_lines(source / "test.json", [tool_question(8, right), tool_question(9, broken)])
    found = prepared("tooluse", tmp_path / "out", source)
    assert [row["extra_info"]["index"] for row in found["train"]] == [0, 1, 2, 3, 4, 5, 7]
    assert [row["extra_info"]["index"] for row in found["test"]] == [8]
    assert found["train"][0]["prompt"] == [{"role": "user", "content": "Use the tools. Question: 0?"}]
    assert found["train"][-1]["prompt"][0] == {"role": "system", "content": "Be brief."}
    assert json.loads(found["train"][0]["reward_model"]["ground_truth"]) == right
    shuffled = prepared("tooluse", tmp_path / "shuffled", source, "--seed", "1")
    assert shuffled["train"] != found["train"] and len(shuffled["train"]) == 7
    assert len(as_verl_reads("tooluse", tmp_path / "out", tmp_path / "cache")) == 7

    write_lines(source / "test.json", [tool_question(9, "[]")])
    with pytest.raises(SystemExit, match="no question is left"):
        prepared("tooluse", tmp_path / "out2", source)
    assert not (tmp_path / "out2").exists()


def encoded(tests: list[dict[str, str]]) -> str:
    return base64.b64encode(zlib.compress(pickle.dumps(json.dumps(tests)))).decode()


def code_question(number: int, **changes: Any) -> dict[str, Any]:
    cases = [{"input": f"{number} {case}", "output": str(number + case), "testtype": "stdin"} for case in range(5)]
    return {
        "question_title": "Sums",
        "question_content": "Add the numbers.",
        "platform": "none",
        "question_id": f"q{number}",
        "contest_id": "c",
        "contest_date": "2025-03-01T00:00:00",
        "starter_code": "",
        "difficulty": "easy",
        "public_test_cases": "[]",
        "private_test_cases": encoded(cases),
        "metadata": "{}",
        **changes,
    }


def test_code_data(tmp_path: Path) -> None:
    function = code_question(
        1,
        starter_code="class Solution:\n    def add(self, a: int, b: int) -> int:\n        ",
        metadata='{"func_name": "add"}',
        private_test_cases=json.dumps([{"input": "1\n2", "output": "3", "testtype": "functional"}]),
    )
    old, new = (
        code_question(8, contest_date="2025-01-31T23:59:59"),
        code_question(9, contest_date="2025-05-01T00:00:00"),
    )
    source = write_lines(tmp_path / "all.jsonl", [old, code_question(0), function, code_question(2), new])
    found = prepared("livecodebench_v6", tmp_path / "out", source)
    for rows in found.values():
        assert [row["extra_info"]["question"] for row in rows] == ["q0", "q1", "q2"]
    tests = {name: [json.loads(row["reward_model"]["ground_truth"]) for row in rows] for name, rows in found.items()}
    assert [len(case["inputs"]) for case in tests["test"]] == [5, 1, 5]
    assert [len(case["inputs"]) for case in tests["train"]] == [2, 1, 2]
    for half, whole in zip(tests["train"], tests["test"], strict=True):
        pairs = list(zip(whole["inputs"], whole["outputs"], strict=True))
        kept = list(zip(half["inputs"], half["outputs"], strict=True))
        assert kept == [pair for pair in pairs if pair in kept], "a part of the tests, in their order"
        assert {**half, "inputs": [], "outputs": []} == {**whole, "inputs": [], "outputs": []}
    assert tests["test"][1] == {
        "inputs": ["1\n2"],
        "outputs": ["3"],
        "testtype": "functional",
        "fn_name": "add",
        "time_limit": 6.0,
    }
    (message,) = found["train"][1]["prompt"]
    assert message["content"].startswith("You are a coding expert.") and "self" not in message["content"]
    assert "signature: ```python\ndef add(a: int, b: int) -> int:\n```" in message["content"]
    assert prepared("livecodebench_v6", tmp_path / "again", source) == found
    assert prepared("livecodebench_v6", tmp_path / "other", source, "--seed", "3")["train"] != found["train"]
    assert len(as_verl_reads("livecodebench_v6", tmp_path / "out", tmp_path / "cache")) == 3
    for row in found["train"]:
        module("livecodebench_v6", "reward").read_tests(row["reward_model"]["ground_truth"])


class Runs:
    """Unpickled, it would make a file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return open, (self.path, "w")


def test_tests_that_would_run_code_are_refused(tmp_path: Path) -> None:
    trap = base64.b64encode(zlib.compress(pickle.dumps(Runs(str(tmp_path / "made"))))).decode()
    source = write_lines(tmp_path / "all.jsonl", [code_question(0), code_question(1, private_test_cases=trap)])
    with pytest.raises(SystemExit, match=r"open, not a text"):
        prepared("livecodebench_v6", tmp_path / "out", source)
    assert not (tmp_path / "made").exists()
    assert not list((tmp_path / "out").iterdir()), "nothing half-made stays"


def test_no_question_of_the_time_asked_for(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "all.jsonl", [code_question(0)])
    with pytest.raises(SystemExit, match="none of 1 questions is of a contest from 2026-01-01"):
        prepared("livecodebench_v6", tmp_path / "out", source, "--since", "2026-01-01", "--until", "2026-02-01")


# Rewards: multiple choice ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("response", "score", "answer", "wrong_format"),
    [
        ("<reasoning>b</reasoning>\n<answer>\nB\n</answer>\n", 1.0, "B", 0),
        ("<answer>B</answer>", 1.0, "B", 0),
        ("<answer>A</answer> no: <answer> B </answer>", 1.0, "B", 0),
        ("<answer>B</answer> no: <answer>A</answer>", 0.0, "A", 0),
        ("<answer>B</answer> I think", 1.0, "B", 1),
        ("<answer>A</answer>", 0.0, "A", 0),
        ("<answer>b</answer>", 0.0, "b", 1),
        ("<answer>B: iron</answer>", 0.0, "B: iron", 1),
        ("<answer>A or B</answer>", 0.0, "A or B", 1),
        ("<answer><answer>B</answer>", 1.0, "B", 0),
        ("<answer>B", 0.0, "", 1),
        ("B", 0.0, "", 1),
        ("<answer></answer>", 0.0, "", 1),
        ("", 0.0, "", 1),
    ],
)
def test_multiple_choice(response: str, score: float, answer: str, wrong_format: int) -> None:
    found = module("sciknoweval_chemistry", "reward").compute_score("sciknoweval", response, "B", {})
    assert found == {"score": score, "acc": score, "pred": answer, "incorrect_format": wrong_format, "feedback": ""}


def test_a_choice_that_is_none() -> None:
    with pytest.raises(ValueError, match="one capital letter"):
        module("sciknoweval_chemistry", "reward").compute_score("sciknoweval", "<answer></answer>", "", {})


# Rewards: tool use ----------------------------------------------------------------------------------------------------

ONE = json.dumps([{"Action": "find", "Action_Input": '{"text": "axolotl", "page": 1}'}])
TWO = json.dumps([{"Action": "a", "Action_Input": {"x": 1}}, {"Action": "b", "Action_Input": {"y": {"z": 2}}}])
SAME = json.dumps([{"Action": "a", "Action_Input": {"x": 1}}, {"Action": "a", "Action_Input": {"x": 2}}])
NONE = json.dumps([{"Action": "ping", "Action_Input": "{}"}])
FIND = 'Action: find\nAction Input: {"page": 1, "text": "axolotl"}'


@pytest.mark.parametrize(
    ("response", "truth", "score", "wrong_format", "feedback"),
    [
        (f"Thought: look.\n{FIND}", ONE, 1.0, 0, ""),
        (f"{FIND}\nObservation: …", ONE, 1.0, 0, ""),
        ('Action: b\nAction Input: {"y": {"z": 2}}\nAction: a\nAction Input: {"x": 1}', TWO, 1.0, 0, ""),
        ("Action: ping", NONE, 1.0, 0, ""),
        ("Action: ping\nAction Input: {}", NONE, 1.0, 0, ""),
        ("I would look for axolotls.", ONE, 0.0, 1, "No tool was called"),
        ("", ONE, 0.0, 1, "No tool was called"),
        ("Action: ping\nAction Input: {", NONE, 0.0, 1, "input of ping is no JSON object"),
        ("Action: ping\nAction Input: [1]", NONE, 0.0, 1, "input of ping is no JSON object"),
        ("Action: ping\nAction Input: " + "[" * 100_000, NONE, 0.0, 1, "input of ping is no JSON object"),
        ('Action: seek\nAction Input: {"text": "axolotl", "page": 1}', ONE, 0.0, 0, "not the right tools: seek"),
        (f"{FIND}\n{FIND}", ONE, 0.0, 0, "not the right tools: find, find"),
        ('Action: find\nAction Input: {"text": "newt", "page": 1}', ONE, 0.0, 0, 'inputs: find {"text": "newt"'),
        ("Action: find", ONE, 0.0, 0, "inputs: find {}"),
        (
            'Action: a\nAction Input: {"y": {"z": 2}}\nAction: b\nAction Input: {"x": 1}',
            TWO,
            0.0,
            0,
            "not these inputs",
        ),
        ('Action: a\nAction Input: {"x": 1}\n' * 2, SAME, 0.0, 0, 'inputs: a {"x": 1}'),
        ('Action: a\nAction Input: {"x": 2}\nAction: a\nAction Input: {"x": 1}', SAME, 1.0, 0, ""),
    ],
)
def test_tool_calls(response: str, truth: str, score: float, wrong_format: int, feedback: str) -> None:
    reward = module("tooluse", "reward")
    found = reward.compute_score("tooluse", response, truth, {})
    assert (found["score"], found["acc"], found["incorrect_format"]) == (score, score, wrong_format)
    assert feedback in found["feedback"] and bool(found["feedback"]) == (score == 0.0)
    told = reward.compute_score("tooluse", response, truth, {}, reveal=True)
    assert told["score"] == score
    assert ("Expected: " in told["feedback"]) == (score == 0.0)


def test_the_right_calls_are_named_only_if_asked_for() -> None:
    reward = module("tooluse", "reward")
    for response in ("", "Action: seek", "Action: find", "Action: find\nAction Input: {"):
        assert "axolotl" not in reward.compute_score("tooluse", response, ONE, {})["feedback"]
        assert '"text": "axolotl"' in reward.compute_score("tooluse", response, ONE, {}, reveal=True)["feedback"]


@pytest.mark.parametrize(
    "truth", ["", "{}", "[]", "[1]", '[{"Action": "a"}]', '[{"Action": "a", "Action_Input": "[1]"}]']
)
def test_right_calls_that_cannot_be_read(truth: str) -> None:
    with pytest.raises(ValueError, match="right calls"):
        module("tooluse", "reward").compute_score("tooluse", FIND, truth, {})


# Rewards: code --------------------------------------------------------------------------------------------------------


def written(kind: str, cases: list[tuple[str, str]], name: str = "") -> dict[str, Any]:
    return {
        "inputs": [given for given, _ in cases],
        "outputs": [right for _, right in cases],
        "testtype": kind,
        "fn_name": name,
        "time_limit": 1.5,
    }


def finished(output: str = "", error: str = "", code: int = 0) -> dict[str, Any]:
    run = {"status": "Finished", "execution_time": 0.1, "return_code": code, "stdout": output, "stderr": error}
    return {"status": "Failed" if code else "Success", "message": "", "compile_result": None, "run_result": run}


OUT_OF_TIME = {
    "status": "Failed",
    "message": "",
    "compile_result": None,
    "run_result": {"status": "TimeLimitExceeded", "return_code": None, "stdout": "", "stderr": ""},
}


class Sandbox:
    """A server with SandboxFusion's interface that runs nothing: its answers are chosen by the test's input."""

    def __init__(self) -> None:
        self.answers: dict[str, Any] = {}
        self.requests: list[dict[str, Any]] = []
        self.busy = self.most = 0
        self.failures: list[int] = []
        self.pause = 0.0
        lock = threading.Lock()
        sandbox = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    sandbox.requests.append({"path": self.path, **body})
                    sandbox.busy += 1
                    sandbox.most = max(sandbox.most, sandbox.busy)
                    failure = sandbox.failures.pop() if sandbox.failures else 0
                time.sleep(sandbox.pause)
                with lock:
                    sandbox.busy -= 1
                answer = json.dumps(sandbox.answers[body["stdin"]] if not failure else {"detail": "no"}).encode()
                self.send_response(failure or 200)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/run_code"


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    found = Sandbox()
    thread = threading.Thread(target=found.server.serve_forever, daemon=True)
    thread.start()
    yield found
    found.server.shutdown()
    found.server.server_close()
    thread.join(10)


CODE = "Plan.\n```python\nprint('hostile')\n```\n"


def scored(sandbox: Sandbox, cases: list[tuple[str, str]], answers: list[Any], kind: str = "stdin", **more: Any) -> Any:
    sandbox.answers = {given: answer for (given, _), answer in zip(cases, answers, strict=True)}
    tests = json.dumps(written(kind, cases, "f" if kind == "functional" else ""))
    reward = module("livecodebench_v6", "reward")
    return reward.compute_score("livecodebench", CODE, tests, {}, sandbox_url=sandbox.url, **more)


def test_a_program_that_passes(sandbox: Sandbox) -> None:
    found = scored(sandbox, [("1 2", "3\n"), ("2 2", "4")], [finished("3 \n"), finished("\n4\n\n")])
    assert found == {
        "score": 1.0,
        "acc": 1.0,
        "passed_fraction": 1.0,
        "incorrect_format": 0,
        "error_in_test_cases": 0,
        "timed_out": 0,
        "truncated": 0,
        "feedback": "",
    }
    for request in sandbox.requests:
        assert request["path"] == "/run_code" and request["language"] == "python"
        assert request["run_timeout"] == 1.5 and request["memory_limit_MB"] == 1024
        assert "print('hostile')" in request["code"]
        compile(request["code"], "program", "exec")  # valid Python; compiled, never run
        assert all(right not in request["code"] for right in ("'3", "'4")), "no right output goes there"


def test_wrong_answers_show_the_two_shortest(sandbox: Sandbox) -> None:
    cases = [("1" * 400, "a"), ("22", "b" * 300), ("3", "c"), ("4", "d")]
    found = scored(sandbox, cases, [finished("x"), finished("y"), finished("z"), finished("d")])
    assert (found["score"], found["acc"], found["passed_fraction"]) == (0.0, 0.0, 0.25)
    assert found["feedback"] == (
        "Test Case 3: Wrong Answer\n\nInput\n3\n\nOutput\nz\n\nExpected\nc\n\n"
        f"Test Case 2: Wrong Answer\n\nInput\n22\n\nOutput\ny\n\nExpected\n{'b' * 250}..."
    )


def test_errors_come_first(sandbox: Sandbox) -> None:
    report = "debug\n\x1eZeroDivisionError: division by zero\n  a / 0\nLine 73 in f (Solution.py)"
    lines = "\n".join(str(line) for line in range(20))
    cases = [("1", "a"), ("2", "b"), (lines, "c")]
    found = scored(sandbox, cases, [finished("x"), OUT_OF_TIME, finished("", report, 1)])
    shown = "\n".join(str(line) for line in range(8))
    assert found["feedback"] == (
        "Runtime Error\nZeroDivisionError: division by zero\n  a / 0\nLine 73 in f (Solution.py)\n\n"
        f"Last Executed Input\n{shown}\n... (12 more lines)"
    )
    assert (found["error_in_test_cases"], found["timed_out"]) == (1, 1)
    found = scored(sandbox, cases[:2], [finished("x"), OUT_OF_TIME])
    assert found["feedback"] == "Time Limit Exceeded\n\nLast Executed Input\n2"


def test_feedback_has_a_limit_and_texts_stay_as_they_are(sandbox: Sandbox) -> None:
    found = scored(sandbox, [("{}", "a")], [finished("", "\x1eValueError: {solution} " + "é" * 5000, 1)])
    assert found["feedback"].startswith("Runtime Error\nValueError: {solution} é")
    assert len(found["feedback"]) == 2000
    found = scored(sandbox, [("1", "a")], [finished("", "", -9)])
    assert "The program ended with code -9." in found["feedback"]


@pytest.mark.parametrize(
    ("output", "right", "score"),
    [
        ("[1, 2]", "[1,2]", 1.0),
        ('{"b": 1, "a": 2}', '{"a": 2, "b": 1}', 1.0),
        ("1", "1.0", 0.0),
        ("true", "1", 0.0),
        ("[2, 1]", "[1, 2]", 0.0),
        ("", "null", 0.0),
        ("not JSON", '"not JSON"', 0.0),
        ("[" * 100_000, "[]", 0.0),
    ],
)
def test_functions_return_values(sandbox: Sandbox, output: str, right: str, score: float) -> None:
    found = scored(sandbox, [("1\n2", right)], [finished(output)], kind="functional")
    assert found["score"] == score


def test_an_output_without_end_is_wrong(sandbox: Sandbox) -> None:
    found = scored(sandbox, [("1", "a")], [finished("x" * (2**20 + 100))])
    assert found["score"] == 0.0 and "(output longer than 1048584 bytes)" in found["feedback"]


@pytest.mark.parametrize(
    ("response", "extra", "truncated", "piece"),
    [
        ("print(1)", {}, 0, "Incorrect Format: Put your code inside a ```python ... ``` block."),
        ("", {}, 0, "Incorrect Format"),
        ("```python\nprint(1", {}, 1, "Truncated Attempt: "),
        ("print(1)", {"truncated": True}, 1, "Truncated Attempt: "),
    ],
)
def test_responses_without_a_program_ask_no_sandbox(
    sandbox: Sandbox, response: str, extra: dict[str, Any], truncated: int, piece: str
) -> None:
    reward = module("livecodebench_v6", "reward")
    tests = json.dumps(written("stdin", [("1", "1")]))
    found = reward.compute_score("livecodebench", response, tests, extra, sandbox_url=sandbox.url)
    assert (found["score"], found["incorrect_format"], found["truncated"]) == (0.0, 1, truncated)
    assert found["feedback"].startswith(piece) and not sandbox.requests
    assert set(found) == set(scored(sandbox, [("1", "1")], [finished("1")])), "verl wants the same keys of each row"


def test_no_more_requests_at_once_than_allowed(sandbox: Sandbox) -> None:
    sandbox.pause = 0.1
    cases = [(str(case), str(case)) for case in range(9)]
    scored(sandbox, cases, [finished(str(case)) for case in range(9)], max_concurrent=6, workers=2)
    assert len(sandbox.requests) == 9 and 2 <= sandbox.most <= 3


def test_a_sandbox_that_stumbles_is_asked_again(sandbox: Sandbox) -> None:
    sandbox.failures = [503]
    assert scored(sandbox, [("1", "1")], [finished("1")])["score"] == 1.0
    assert len(sandbox.requests) == 2


@pytest.mark.parametrize(
    ("failures", "answer", "piece"),
    [
        ([500, 500], finished("1"), "code 500"),
        ([404], finished("1"), "code 404"),
        ([], {"status": "SandboxError", "message": "no room", "run_result": None}, "no room"),
        ([], {"status": "Failed", "message": "odd", "run_result": None}, "odd"),
    ],
)
def test_a_sandbox_that_fails_is_no_failure_of_the_program(
    sandbox: Sandbox, failures: list[int], answer: Any, piece: str
) -> None:
    sandbox.failures = failures
    with pytest.raises(RuntimeError, match=piece):
        scored(sandbox, [("1", "1")], [answer], attempts=2)


def test_without_a_sandbox_nothing_is_scored() -> None:
    reward = module("livecodebench_v6", "reward")
    tests = json.dumps(written("stdin", [("1", "1")]))
    with pytest.raises(ValueError, match=r"reward\.sandbox_fusion\.url"):
        reward.compute_score("livecodebench", CODE, tests, {})
    with pytest.raises(RuntimeError, match="Is SandboxFusion running"):
        reward.compute_score("livecodebench", CODE, tests, {}, sandbox_url="http://127.0.0.1:9/run_code", attempts=1)


@pytest.mark.parametrize(
    "tests",
    [
        "nonsense",
        "[]",
        json.dumps({}),
        json.dumps(written("stdin", [])),
        json.dumps({**written("stdin", [("1", "1")]), "outputs": []}),
        json.dumps({**written("stdin", [("1", "1")]), "time_limit": 0}),
        json.dumps({**written("stdin", [("1", "1")]), "inputs": [1]}),
        json.dumps(written("code", [("1", "1")])),
        json.dumps(written("functional", [("1", "1")])),
        json.dumps(written("functional", [("1", "1")], "f()")),
        json.dumps(written("functional", [("1", "no JSON")], "f")),
    ],
)
def test_tests_that_cannot_be_read(tests: str) -> None:
    with pytest.raises(ValueError, match=r"tests (cannot be read|need)"):
        module("livecodebench_v6", "reward").compute_score(
            "livecodebench", CODE, tests, {}, sandbox_url="http://x/run_code"
        )


# What the sandbox is sent, with code of our own -----------------------------------------------------------------------


def ran(code: str, tests: dict[str, Any], given: str) -> subprocess.CompletedProcess[str]:
    """Run our own code in our program, as the sandbox would."""
    program = module("livecodebench_v6", "reward").program_of(code, tests)
    return subprocess.run(
        [sys.executable, "-I", "-c", program], input=given, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize(
    ("code", "given", "output"),
    [
        ("def f(a, b):\n    print('noise')\n    return [a, b]", '"two words"\n2', '["two words", 2]'),
        ("class Solution:\n    def f(self, a: List[int]) -> Unknown:\n        return sum(a)", "[1, 2]", "3"),
        ("def f(a):\n    return (a, {1: None})", "1", '[1, {"1": null}]'),
        ("from dataclasses import dataclass\n@dataclass\nclass P:\n    x: int\ndef f(a):\n    return P(a).x", "5", "5"),
        ("def f(a):\n    return 1\nif __name__ == '__main__':\n    print(f(input()))", "1", "1"),
    ],
)
def test_functions_are_called(code: str, given: str, output: str) -> None:
    done = ran(code, written("functional", [(given, output)], "f"), given)
    assert (done.returncode, done.stdout) == (0, output), done.stderr


def test_programs_read_and_write() -> None:
    tests = written("stdin", [("1 2", "3")])
    code = (
        "def main():\n    print(sum(map(int, input().split())))\n    exit()\n\nif __name__ == '__main__':\n    main()"
    )
    assert ran(code, tests, "1 2").stdout == "3\n"
    quotes = "print('''it's \"é\" {0} \\\\''')"
    assert ran(quotes, tests, "").stdout == 'it\'s "é" {0} \\\n'


@pytest.mark.parametrize(
    ("code", "kind", "report"),
    [
        (
            "def f(a):\n    return a / 0",
            "functional",
            "ZeroDivisionError: division by zero\n  return a / 0\nLine 2 in f (Solution.py)",
        ),
        (
            "x = [1]\nprint(x[3])",
            "stdin",
            "IndexError: list index out of range\n  print(x[3])\nLine 2 in <module> (Solution.py)",
        ),
        ("def f(a)\n    return a", "functional", "SyntaxError: expected ':' (Solution.py, line 1)"),
        ("def g(a):\n    return a", "functional", "NameError: there is no function f"),
        ("def f(a):\n    return {1}", "functional", "TypeError: Non-serializable result type: set"),
        ("exit(3)", "stdin", "SystemExit: 3\nLine 1 in <module> (Solution.py)"),
    ],
)
def test_errors_are_reported_where_they_are(code: str, kind: str, report: str) -> None:
    reward = module("livecodebench_v6", "reward")
    done = ran(code, written(kind, [("1", "1")], "f"), "1")
    outcome = reward.outcome_of(finished(done.stdout, done.stderr, done.returncode), "1", kind == "functional")
    assert outcome.kind == "error"
    assert outcome.text.startswith(report.splitlines()[0]) and all(line in outcome.text for line in report.splitlines())
