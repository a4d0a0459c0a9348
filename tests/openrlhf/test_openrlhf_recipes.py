"""The recipes: their scripts' flags through the real launcher, their data as OpenRLHF reads it, rewards and agent.

A script is run with another program in the place of Python, which says what it was called with.
"""

from __future__ import annotations

import asyncio
import doctest
import importlib.util
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pytest
import yaml
from openrlhf.trainer.ppo_trainer import prepare_datasets
from openrlhf.trainer.ray.vllm_engine import _load_agent_executor
from openrlhf.utils import get_strategy
from openrlhf.utils.agent import SingleTurnAgentExecutor
from openrlhf.utils.utils import get_tokenizer
from typer.testing import CliRunner
from vllm import SamplingParams

from data_samples import GSM8K_ANSWERS, word_problems
from openrlhf_cpu.data import write_jsonl
from recorded import tokenizer
from sdpo_openrlhf.checks import _ONLY
from sdpo_openrlhf.feedback import checked_response
from sdpo_openrlhf.host_defaults import HOST_DEFAULTS
from sdpo_openrlhf.places import gpus_needed
from sdpo_openrlhf.prompts import prompt_style
from sdpo_openrlhf.train import Prepared, prepare
from sdpo_plugins import SDPOConfig
from sdpo_plugins.cli import app
from sdpo_plugins.embedded import checkpoint_path, load_task
from sdpo_plugins.presets import PAPER_HOST_SETTINGS, preset_options

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "recipes" / "openrlhf"
SCRIPTS = {
    "arithmetic_cpu": "train_sdpo_arithmetic_cpu.sh",
    "hybrid_engine": "train_sdpo_ray_hybrid_engine.sh",
    "agent_async": "train_sdpo_agent_async.sh",
}
LARGE = ("hybrid_engine", "agent_async")
PRESETS = {"hybrid_engine": "paper_rich_feedback", "agent_async": "paper"}
CONFIGS = {
    "arithmetic_cpu": SDPOConfig(distillation_topk=None, distillation_add_tail=False, teacher="frozen"),
    "hybrid_engine": SDPOConfig.preset("paper_rich_feedback"),
    "agent_async": SDPOConfig.preset("paper", include_environment_feedback=True),
}
# As many as GSM8K has, and seventeen more than whole batches.
QUESTIONS = 7473
# Where `sdpo data` writes a recipe's questions.
DATA = {
    "hybrid_engine": Path("runs/data/openrlhf/gsm8k"),
    "agent_async": Path("runs/data/openrlhf/gsm8k_calculator"),
}


@pytest.fixture(autouse=True)
def a_machine_with_eight_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_OVERRIDE_RESOURCES", '{"CPU": 16, "GPU": 8}')
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def module(path: str) -> Any:
    spec = importlib.util.spec_from_file_location(Path(path).stem, RECIPES / path)
    assert spec is not None and spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


# Launch scripts -------------------------------------------------------------------------------------------------------


def launched(recipe: str, folder: Path, *more: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a recipe's script; in the place of Python and of `ray`, a program prints its arguments as a line of JSON."""
    tools = folder / "tools"
    tools.mkdir(exist_ok=True)
    for name in ("python", "ray"):
        says = f"import json, sys\nprint(json.dumps([{name!r}, *sys.argv[1:]]))\n"
        (tools / name).write_text(f"#!{sys.executable}\n{says}")
        (tools / name).chmod(0o755)
    environment = {
        "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}",
        "PYTHON": str(tools / "python"),
        "MODEL_PATH": str(checkpoint_path()),
        **variables,
    }
    command = [str(RECIPES / recipe / SCRIPTS[recipe]), *more]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False)


def data_of(recipe: str, folder: Path) -> None:
    """Lay the data where a script looks for it."""
    if recipe == "arithmetic_cpu":
        write_jsonl(load_task("sums"), folder / "runs" / "openrlhf_arithmetic_cpu" / "data")
        return
    place = folder / DATA[recipe]
    place.mkdir(parents=True)
    (place / "train.jsonl").write_text("{}\n" * QUESTIONS)
    (place / "test.jsonl").write_text("{}\n")


def words_of(recipe: str, folder: Path, *more: str) -> list[str]:
    """Return the flags that a recipe's script gives to the launcher."""
    data_of(recipe, folder)
    done = launched(recipe, folder, *more)
    assert done.returncode == 0, done.stderr
    calls = [json.loads(line) for line in done.stdout.splitlines()]
    if recipe == "arithmetic_cpu":
        output = folder / "runs" / "openrlhf_arithmetic_cpu"
        assert calls[0] == ["python", "-m", "openrlhf_cpu.data", "sums", str(output / "data")]
        assert calls[1][:5] == ["python", "-m", "openrlhf_cpu.run", "--log", str(output / "log.txt")]
        return list(calls[1][5:])
    (call,) = calls
    assert call[:3] == ["python", "-m", "sdpo_openrlhf.train"]
    return list(call[3:])


def accepted(recipe: str, folder: Path, *more: str) -> Prepared:
    """Let the launcher check a recipe as it does before anything is started."""
    return prepare(words_of(recipe, folder, *more))


def value(args: Any, flag: str) -> Any:
    for part in flag.split("."):
        args = args[part] if isinstance(args, dict) else getattr(args, part)
    return list(args) if isinstance(args, tuple) else args


@pytest.mark.parametrize("recipe", SCRIPTS)
def test_the_launcher_accepts_the_script_without_a_remark(recipe: str, tmp_path: Path) -> None:
    script = RECIPES / recipe / SCRIPTS[recipe]
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", str(script)], check=True, timeout=60)
    found = accepted(recipe, tmp_path)
    assert found.config == CONFIGS[recipe]
    assert found.notices == ()
    assert found.args.rollout.n_samples_per_prompt == 8
    # Every question is in a whole batch.
    assert found.args.data.max_samples % found.args.rollout.batch_size == 0
    assert found.args.data.max_samples == {"arithmetic_cpu": 60 * 8}.get(recipe, QUESTIONS - QUESTIONS % 32)


@pytest.mark.parametrize("recipe", SCRIPTS)
def test_flags_behind_a_script_win(recipe: str, tmp_path: Path) -> None:
    found = accepted(recipe, tmp_path, "--actor.adam.lr", "3e-6", "--sdpo.teacher_update_rate", "0.2")
    assert found.args.actor.adam.lr == 3e-6 and found.config.teacher_update_rate == 0.2


@pytest.mark.parametrize("recipe", LARGE)
def test_the_hosts_settings_are_the_papers(recipe: str, tmp_path: Path) -> None:
    args, paper = accepted(recipe, tmp_path).args, PAPER_HOST_SETTINGS[PRESETS[recipe]]
    rollouts = args.rollout
    assert gpus_needed(args) == 8
    assert (rollouts.batch_size, rollouts.n_samples_per_prompt) == (
        paper.questions_per_batch,
        paper.rollouts_per_question,
    )
    assert args.train.batch_size == paper.mini_batch_size * rollouts.n_samples_per_prompt
    assert args.actor.adam.lr == paper.learning_rate
    assert args.actor.adam.weight_decay == paper.weight_decay
    assert args.actor.max_norm == paper.max_grad_norm
    assert rollouts.max_new_tokens == paper.max_response_length
    assert args.data.max_len == paper.max_prompt_length + paper.max_response_length
    assert rollouts.temperature == paper.temperature
    correction = args.algo.advantage
    assert (correction.is_correction_level, correction.is_correction_mode) == (paper.rollout_is, "clip")
    assert list(correction.is_correction_threshold) == [0.0, paper.rollout_is_threshold]
    steps = (
        args.data.max_samples * rollouts.n_samples_per_prompt // args.train.batch_size * args.train.num_episodes
    )  # as OpenRLHF counts them for its schedule, and rounds
    assert math.ceil(steps * args.actor.lr_warmup_ratio) == paper.warmup_steps


def commands_of(recipe: str, marker: str) -> list[list[str]]:
    """Return flags that a README puts behind its script, where they begin with a given flag."""
    text = (RECIPES / recipe / "README.md").read_text(encoding="utf-8").replace("\\\n", " ")
    found = re.findall(rf"({re.escape(marker)}[^`#]*)[`#]", text)
    return [" ".join(each.split()).split() for each in found]


def test_section_threes_settings_are_accepted(tmp_path: Path) -> None:
    (flags,) = commands_of("hybrid_engine", "--sdpo.preset")
    found, paper = accepted("hybrid_engine", tmp_path, *flags), PAPER_HOST_SETTINGS["paper"]
    assert found.config == SDPOConfig.preset("paper") and found.notices == ()
    assert (found.args.train.batch_size, found.args.actor.adam.lr) == (paper.mini_batch_size * 8, paper.learning_rate)
    steps = found.args.data.max_samples // 32 * found.args.train.num_episodes
    assert math.ceil(steps * found.args.actor.lr_warmup_ratio) == paper.warmup_steps


def test_grpo_with_the_same_script_is_openrlhfs_own(tmp_path: Path) -> None:
    (flags,) = commands_of("arithmetic_cpu", "--sdpo.enabled false")
    found = accepted("arithmetic_cpu", tmp_path, *flags)
    assert not found.config.enabled and found.args.algo.advantage.estimator == "group_norm"
    assert found.args.algo.advantage.is_correction_level == "off"


def test_few_questions_are_warm_up_alone(tmp_path: Path) -> None:
    data_of("agent_async", tmp_path)
    train = tmp_path / DATA["agent_async"] / "train.jsonl"
    train.write_text("{}\n" * 70)
    done = launched("agent_async", tmp_path)
    args = prepare(json.loads(done.stdout)[3:]).args
    assert (args.data.max_samples, args.actor.lr_warmup_ratio) == (64, 1.0)
    train.write_text("{}\n" * 31)
    assert "fewer than 32 lines" in launched("agent_async", tmp_path).stderr


@pytest.mark.parametrize("recipe", LARGE)
def test_missing_data_is_named_with_what_makes_it(recipe: str, tmp_path: Path) -> None:
    missing = launched(recipe, tmp_path)
    assert missing.returncode == 1 and not missing.stdout
    assert f"{DATA[recipe]}/train.jsonl is missing" in missing.stderr
    (command,) = re.findall(r"sdpo (data .*), or set DATA_DIR", missing.stderr)
    # More than whole batches, and what it says makes what it needs.
    place = word_problems(tmp_path / "source", ["#### 42"] * 33)
    made = CliRunner().invoke(app, [*command.split(), "--from", str(place)])
    assert made.exit_code == 0, made.stderr
    done = launched(recipe, tmp_path)
    assert done.returncode == 0 and json.loads(done.stdout).count("32") > 0
    text = (RECIPES / recipe / "README.md").read_text(encoding="utf-8")
    said = " ".join(command.split()[:-2])
    assert re.search(rf"^sdpo {re.escape(said)} +# writes {re.escape(str(DATA[recipe]))}$", text, re.MULTILINE)


@pytest.mark.parametrize("recipe", LARGE)
def test_with_an_address_the_same_run_becomes_a_job(recipe: str, tmp_path: Path) -> None:
    from ray.dashboard.modules.job.cli import submit

    here = words_of(recipe, tmp_path)
    address = "http://127.0.0.1:8265"
    done = launched(recipe, tmp_path, RAY_API_SERVER_ADDRESS=address)
    (call,) = [json.loads(line) for line in done.stdout.splitlines()]
    assert call[:3] == ["ray", "job", "submit"]
    read = submit.make_context("submit", call[3:]).params  # ray's own parser
    assert read["address"] == address
    python = str(tmp_path / "tools" / "python")
    assert list(read["entrypoint"]) == [python, "-m", "sdpo_openrlhf.train", *here]


# READMEs --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", SCRIPTS)
def test_the_table_of_the_readme_is_what_runs(recipe: str, tmp_path: Path) -> None:
    text = (RECIPES / recipe / "README.md").read_text(encoding="utf-8")
    table = text.split("<!-- parameters -->")[1].split("<!-- end -->")[0]
    rows = re.findall(r"^\| `--([^`]+)` \| `([^`]+)` \|", table, re.MULTILINE)
    assert len(rows) == table.count("\n| `") > 10, "a row cannot be read"
    args = accepted(recipe, tmp_path).args
    args.actor.model_name_or_path = {"arithmetic_cpu": "sdpo_plugins/embedded/checkpoint"}.get(recipe, "Qwen/Qwen3-8B")
    for flag, shown in rows:
        found = value(args, flag)
        assert (" ".join(map(str, found)) == shown) if isinstance(found, list) else found == yaml.safe_load(shown), flag
    if recipe in PRESETS:
        assert {f"sdpo.{name}" for name in preset_options(PRESETS[recipe])} <= {flag for flag, _ in rows}


def test_every_recipe_is_in_the_overview() -> None:
    text = (RECIPES / "README.md").read_text(encoding="utf-8")
    for recipe, script in SCRIPTS.items():
        assert f"({recipe}/README.md)" in text and f"recipes/openrlhf/{recipe}/{script}" in text


# Data -----------------------------------------------------------------------------------------------------------------


def prepared(folder: Path, *more: str) -> dict[str, list[dict[str, Any]]]:
    """Write the questions of a recipe and return their rows."""
    output = folder / "out"
    words = ["gsm8k", "--host", "openrlhf", "--no-think", "--output", str(output), "--overwrite", *more]
    made = CliRunner().invoke(app, ["data", *words, "--from", str(word_problems(folder / "source"))])
    assert made.exit_code == 0, made.stderr
    return {
        split: [json.loads(line) for line in (output / f"{split}.jsonl").read_text().splitlines()]
        for split in ("train", "test")
    }


@pytest.mark.parametrize("recipe", LARGE)
def test_openrlhf_reads_the_data_with_the_scripts_flags(recipe: str, tmp_path: Path) -> None:
    rows = prepared(tmp_path, *(["--calculator"] if recipe == "agent_async" else []))
    train, test = (str(tmp_path / "out" / f"{split}.jsonl") for split in ("train", "test"))
    args = accepted(recipe, tmp_path, "--data.prompt_dataset", train, "--eval.dataset", test).args
    strategy = get_strategy(args)
    own = get_tokenizer(str(checkpoint_path()), None, "left", strategy)
    loader, evaluation, _ = prepare_datasets(strategy, own)
    assert len(loader.dataset) == len(evaluation.dataset) == len(GSM8K_ANSWERS)
    source_name, prompt, label, images = loader.dataset[0]
    assert (source_name, images) == ("gsm8k", None)
    assert label == rows["train"][0]["label"] and rows["train"][0]["input"][1]["content"] in prompt
    # And SDPO finds the question of the prompt again.
    assert prompt_style(strategy, own).question(prompt) == rows["train"][0]["input"]


# Rewards and agent ----------------------------------------------------------------------------------------------------


def test_the_examples_in_the_agents_file() -> None:
    found = doctest.testmod(module("agent_async/agent.py"))
    assert found.attempted > 0 and found.failed == 0


class Script:
    """Answers in turn with given texts and the end of the turn, as vLLM's engine would hand them over."""

    def __init__(self, *texts: str) -> None:
        self.texts = list(texts)

    async def generate(self, ids: list[int], sampling_params: Any, multi_modal_data: Any = None) -> Any:
        text = self.texts.pop(0)
        answer = [*tokenizer()(text)["input_ids"], tokenizer().eos_token_id]
        log_probs = [{token: SimpleNamespace(logprob=-0.5)} for token in answer]
        output = SimpleNamespace(token_ids=answer, text=text, finish_reason="stop", logprobs=log_probs)
        return SimpleNamespace(outputs=[output])


def asked(folder: Path, *flags: str) -> tuple[str, str]:
    """Return the prompt and the label of a question whose answer is 42."""
    row = prepared(folder, *flags)["train"][0]
    prompt = tokenizer().apply_chat_template(row["input"], tokenize=False, add_generation_prompt=True)
    return str(prompt), row["label"]


def executed(executor: Any, prompt: str, label: str, *texts: str) -> tuple[dict[str, Any], str, dict[str, Any]]:
    """Let an executor of the host talk to a scripted model, and SDPO read its response."""
    sampling = SamplingParams(max_tokens=64, logprobs=1)
    response = asyncio.run(executor.execute(prompt, label, sampling, 4096, tokenizer(), Script(*texts)))
    checked, text = checked_response(response, judged=True)
    return checked, text, response


def test_the_scorer_in_openrlhfs_executor(tmp_path: Path) -> None:
    prompt, label = asked(tmp_path)
    found = accepted("hybrid_engine", tmp_path, "--ckpt.output_dir", str(tmp_path / "model"))
    assert found.reward_file is not None
    found.reward_file.write()
    executor = SingleTurnAgentExecutor(found.args.reward.remote_url)
    right, text, _ = executed(executor, prompt, label, "6 * 7 = 42 \\boxed{42}")
    assert (right["reward"], right["scores"], text) == (1.0, 1.0, "")
    wrong, text, _ = executed(executor, prompt, label, "6 * 7 = 41 \\boxed{41}")
    logs = {name: float(log) for name, log in wrong["extra_logs"].items()}
    assert wrong["reward"] == 0.0 and (logs["acc"], logs["incorrect_format"], logs["truncated"]) == (0.0, 0.0, 0.0)
    assert text == "The answer 41 is wrong. These equations do not hold: 6 * 7 = 41 (it is 42)."


def agent() -> Any:
    return _load_agent_executor(str(RECIPES / "agent_async" / "agent.py"))


def test_the_agent_answers_calls_and_judges_the_end(tmp_path: Path) -> None:
    prompt, label = asked(tmp_path, "--calculator")
    turns = ("I try <calculator>6 * (3 + 4)</calculator>", "So \\boxed{42}")
    checked, text, response = executed(agent(), prompt, label, *turns)
    assert (checked["reward"], float(checked["scores"]), text) == (1.0, 1.0, "")
    assert checked["extra_logs"] == {"turns": 2, "calls": 1}
    assert response["prompt"] == prompt
    first, second = response["action_ranges"]
    between = tokenizer().decode(response["observation_tokens"][first[1] : second[0]])
    assert between == "\n<|im_start|>user\n6 * (3 + 4) = 42<|im_end|>\n<|im_start|>assistant\n"
    # Just what the chat template writes between two turns of the model.
    messages = [*("user", "assistant"), *("user", "assistant")]
    told = [{"role": role, "content": str(at)} for at, role in enumerate(messages)]
    whole = tokenizer().apply_chat_template(told, tokenize=False)
    assert between.replace("6 * (3 + 4) = 42", "2") in whole


def test_the_agents_feedback_says_what_went_wrong(tmp_path: Path) -> None:
    prompt, label = asked(tmp_path, "--calculator")
    checked, text, _ = executed(agent(), prompt, label, "<calculator>6 apples</calculator>", "\\boxed{41}")
    assert checked["reward"] == 0.0
    assert text == "The answer 41 is wrong. The calculator could not compute '6 apples'."
    _, text, _ = executed(agent(), prompt, label, "\\boxed{41}")
    assert text == "The answer 41 is wrong. The calculator was not used."
    _, text, _ = executed(agent(), *asked(tmp_path, "--calculator", "--reveal"), "\\boxed{41}")
    assert text.endswith("The right answer is 42.")


def test_the_agent_ends_a_conversation_without_an_answer(tmp_path: Path) -> None:
    prompt, label = asked(tmp_path, "--calculator")
    checked, text, response = executed(agent(), prompt, label, *["Well."] * 8)
    assert checked["reward"] == 0.0 and checked["extra_logs"] == {"turns": 8, "calls": 0}
    assert text.startswith("The conversation ended without a number alone")
    assert len(response["action_ranges"]) == 8


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("2 / 3", "0.6666666667"),
        ("1,000 × 3 ÷ -4", "-750"),
        ("$12.50 * 2", "25"),
        ("1 / 0", "it divides by zero"),
        ("2 ** 9999999", "only numbers"),
        ("9 // 2", "only numbers"),
        ("1e999 * 2", "only numbers"),
        ("__import__('os')", "only numbers"),
        ("(1", "only numbers"),
        ("1 + " * 60 + "1", "longer than 200"),
        ("", "only numbers"),
    ],
)
def test_the_calculator(text: str, shown: str) -> None:
    calculate = module("agent_async/agent.py").calculate
    try:
        assert calculate(text) == shown
    except ValueError as error:
        assert shown in str(error)


# The guide ------------------------------------------------------------------------------------------------------------


def guide() -> str:
    return (ROOT / "docs" / "openrlhf.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    return guide().split(f"## {title}\n")[1].split("\n## ")[0]


def files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the files that the guide's commands name."""
    monkeypatch.chdir(folder)
    for name in ("train.jsonl", "test.jsonl"):
        Path(name).write_text("{}\n")
    Path("my_rewards.py").write_text("def reward_func(queries, prompts, labels): ...\n")


def command() -> list[str]:
    (block,) = [
        block
        for block in re.findall(r"^```bash\n(.*?)^```$", guide(), re.DOTALL | re.MULTILINE)
        if block.startswith("python -m sdpo_openrlhf.train")
    ]
    words = block.replace("\\\n", " ").split()
    assert words[:3] == ["python", "-m", "sdpo_openrlhf.train"]
    return words[3:]


def test_the_guides_command_is_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files(tmp_path, monkeypatch)
    found = prepare(command())
    assert found.config == SDPOConfig.preset("paper_rich_feedback") and found.notices == ()


def test_the_guides_file_is_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files(tmp_path, monkeypatch)
    (text,) = re.findall(r"^```yaml\n(.*?)^```$", guide(), re.DOTALL | re.MULTILINE)
    Path("sdpo.yaml").write_text(text)
    words = command()
    at = words.index("--sdpo.preset")
    found = prepare([*words[:at], "--sdpo.config", "sdpo.yaml", *words[at + 2 :]])
    assert found.config == SDPOConfig.preset("paper", selector="shortest")


def test_the_guide_names_every_default_of_the_launcher() -> None:
    table = section("What the launcher sets")
    for each in HOST_DEFAULTS:
        given = each.value if isinstance(each.value, tuple) else (each.value,)
        shown = " ".join(str(item).lower() if isinstance(item, (bool, str)) else f"{item:g}" for item in given)
        start = f"| `--{each.flag}` | `{shown}` |"
        (row,) = [line for line in table.splitlines() if line.startswith(start)]
        assert all(other.rpartition(".")[2] in row.rpartition("|")[0].rpartition("|")[2] for other in each.unless), row


def test_the_guide_names_what_is_refused() -> None:
    table = section("What is refused, and why")
    for flag, *_ in _ONLY:
        assert f"`--{flag}" in table, flag
