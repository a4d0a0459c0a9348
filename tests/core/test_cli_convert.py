"""`sdpo config --from … --to …`: other projects' files, and what hosts read."""

from __future__ import annotations

import itertools
import json

import pytest
import yaml
from typer.testing import CliRunner

from other_projects import AUTHORS_SCRIPT, AUTHORS_YAML, FILES, TRL_YAML, arguments_of
from sdpo_plugins import SDPOConfig
from sdpo_plugins.cli import app
from sdpo_plugins.conversion.settings import SETTINGS
from sdpo_plugins.presets import PAPER_HOST_SETTINGS

VERL = "actor_rollout_ref.actor."


def run(*words: str):
    return CliRunner().invoke(app, ["config", *words], env={"COLUMNS": "200"})


def told(*words: str):
    result = run(*words, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def refused(*words: str) -> str:
    result = run(*words)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    return result.stderr


def options(found) -> dict:
    return {name: one["value"] for name, one in found["options"].items()}


def settings(found) -> dict:
    return {name: one["value"] for name, one in found["host"]["settings"].items()}


@pytest.fixture
def file(tmp_path):
    def write(text: str, name: str) -> str:
        (tmp_path / name).write_text(text, encoding="utf-8")
        return str(tmp_path / name)

    return write


# From -----------------------------------------------------------------------------------------------------------------

SDPO_OPTIONS = {
    "trl": {
        "distillation_alpha": 0.25,
        "distillation_mode": "topk_logits",
        "distillation_topk": 50,
        "distillation_add_tail": True,
        "teacher_model_kind": "ema",
        "teacher_update_rate": 0.02,
        "teacher_sync_steps": 2,
        "include_environment_feedback": True,
    },
    "lasgroup": {
        "loss_mode": "sdpo",
        "distillation_topk": 50,
        "teacher_regularization": "trust-region",
        "ema_update_rate": 0.01,
        "max_reprompt_len": 8192,
    },
    "sdpo-trainer": {
        "enabled": True,
        "alpha": 0.5,
        "distillation_topk": 100,
        "teacher_mode": "copy",
        "ema_tau": 0.1,
        "is_coef": 1.0,
        "is_clip": 3.0,
        "reprompt_teacher": True,
        "thinking_tag": "<think>",
    },
    "sdpo-rl": {
        "enabled": True,
        "alpha": 0.5,
        "distillation_topk": 100,
        "teacher_mode": "ema",
        "teacher_update_rate": 0.05,
        "is_clip": 2.0,
        "max_reprompt_length": 512,
        "include_environment_feedback": True,
        "environment_feedback_only_without_solution": True,
        "remove_thinking_from_demonstration": True,
    },
}


@pytest.mark.parametrize("dialect", list(FILES))
def test_options_are_those_of_the_dialect(file, dialect):
    name, text = FILES[dialect]
    found = told("--from", dialect, file(text, name))
    assert options(found) == SDPOConfig.from_mapping(SDPO_OPTIONS[dialect], dialect).to_mapping()
    assert found["dialect"] == dialect
    given = {one["name"]: one["value"] for one in found["given"] if one["name"] != "_target_"}
    assert given == SDPO_OPTIONS[dialect]


def test_the_report_says_what_became_of_each_option(file):
    name, text = FILES["sdpo-trainer"]
    result = run("--from", "sdpo-trainer", file(text, name))
    assert result.exit_code == 0, result.output
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert "alpha = 0.5 the same" in lines
    assert "teacher_mode = copy teacher = live" in lines
    assert "ema_tau = 0.1 teacher_update_rate = 0.1" in lines
    assert "is_clip = 3 read together with is_coef" in lines
    assert "reprompt_teacher = true nothing to set" in lines
    assert f"learning_rate 1e-05 line 13 {SETTINGS['learning_rate'].meaning}" in lines
    assert any("line 14" in line and "`seed=int(os.environ['SEED'])`" in line for line in lines)


def test_settings_of_trl(file):
    found = settings(told("--from", "trl", file(TRL_YAML, "grpo.yaml"), "--gpus", "2"))
    assert found == {
        "model": "Qwen/Qwen3-0.6B",
        "learning_rate": 3e-6,
        "warmup_steps": 5,
        "weight_decay": 0.1,
        "rollouts_per_question": 8,
        "max_response_length": 1024,
        "temperature": 0.9,
        "kl_coefficient": 0.02,
        "clip_range": [0.2, 0.28],
        "seed": 7,
        "gpus": 2,
        # 8 rollouts on each of 2 GPUs: 4 times for an optimizer step, 8 times for a rollout batch.
        "micro_batch_size": 8,
        "mini_batch_size": 8,
        "questions_per_batch": 16,
        "rollout_batches": 50,
    }


def test_settings_of_the_authors(file):
    found = told("--from", "lasgroup", file(AUTHORS_YAML, "authors.yaml"))
    assert settings(found) == {
        "model": "Qwen/Qwen3-8B",
        "learning_rate": 1e-5,
        "warmup_steps": 10,
        "weight_decay": 0.01,
        "rollouts_per_question": 8,
        "questions_per_batch": 32,
        "mini_batch_size": 16,
        "passes": 1,
        "epochs": 30,
        "max_prompt_length": 2048,
        "max_response_length": 8192,
        "temperature": 1.0,
        "top_k": 0,
        "kl_coefficient": 0.001,
        "rollout_is": "token",
        "rollout_is_threshold": 2.0,
        "chat_template_kwargs": {"enable_thinking": False},
        "gpus": 8,
    }
    assert "trainer.project_name" in found["host"]["not_carried"]
    assert "sdpo data" in found["host"]["not_carried"]["data.train_files"]


def test_the_authors_launch_script(file):
    found = told("--from", "lasgroup", file(AUTHORS_SCRIPT, "run.sh"))
    wanted = SDPOConfig.from_mapping({"distillation_topk": 20, "alpha": 1.0}, "lasgroup")
    assert options(found) == wanted.to_mapping()
    assert settings(found) == {"learning_rate": 1e-6, "rollouts_per_question": 8, "questions_per_batch": 32}
    (unread,) = found["unread"]
    assert "actor_rollout_ref.model.path=$MODEL" in unread and "line 5" in unread
    shown = run("--from", "lasgroup", file(AUTHORS_SCRIPT, "run.sh"))
    assert shown.output.count("is known only when the script runs") == 1


def test_words_behind_the_file_are_in_its_vocabulary(file):
    found = told("--from", "trl", file(TRL_YAML, "grpo.yaml"), "distillation_alpha=0.75", "learning_rate=1e-5")
    assert options(found)["alpha"] == 0.75 and settings(found)["learning_rate"] == 1e-5


@pytest.mark.parametrize(
    ("dialect", "name", "text", "words"),
    [
        (
            "trl",
            "a.yaml",
            "diagnostics_flat_tolerance: 1\nlearning_rate: 1.0\n",
            ["`diagnostics_flat_tolerance`", "once"],
        ),
        ("trl", "a.yaml", "distillation_topk: 5\nlearning_rate: 1.0\n", ["`distillation_topk=5`", "topk_logits"]),
        ("trl", "a.yaml", "ema_tau: 1\n", ["`ema_tau`", "dialect 'trl'"]),
        ("sdpo-trainer", "a.yaml", "is_coef: 0.5\n", ["`is_coef` must be 0", "got 0.5"]),
        ("sdpo-rl", "a.json", '{"teacher_mode": "copy"}', ["`teacher_mode` must be one of", "'copy'"]),
        ("lasgroup", "a.yaml", "rho: 1\nrenyi_regularization: true\n", ["`rho`", "`renyi_regularization`"]),
        ("sdpo-rl", "a.py", "print('no configuration')\n", ["calls none of SDPOConfig(…)"]),
        ("sdpo-rl", "a.py", "SDPOConfig(alpha=1\n", ["line 1", "not Python"]),
        ("sdpo-rl", "a.py", "SDPOConfig(alpha=1)\nSDPOConfig(alpha=0)\n", ["`alpha` twice", "lines 1 and 2"]),
        ("lasgroup", "a.sh", "echo hello\n", ["no words of the form"]),
        ("lasgroup", "a.sh", "echo 'hello\n", ["no shell script", "quotation"]),
        ("lasgroup", "a.toml", "a = 1\n", ["'.toml'", ".yaml"]),
    ],
)
def test_what_cannot_be_mapped_is_named(file, dialect, name, text, words):
    message = refused("--from", dialect, file(text, name))
    for word in words:
        assert word in message


# To -------------------------------------------------------------------------------------------------------------------


def emitted(*words: str) -> str:
    result = run(*words)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_a_recipe_for_trl(file):
    text = emitted("--from", "lasgroup", file(AUTHORS_YAML, "authors.yaml"), "--to", "trl")
    recipe = yaml.safe_load(text)
    assert recipe["host"] == "trl" and recipe["model_name_or_path"] == "Qwen/Qwen3-8B"
    # 16 questions of 8 rollouts on 8 GPUs.
    assert recipe["per_device_train_batch_size"] * recipe["gradient_accumulation_steps"] * 8 == 16 * 8
    assert recipe["generation_batch_size"] == 32 * 8
    assert (recipe["beta"], recipe["lr_scheduler_type"], recipe["warmup_steps"]) == (0.001, "constant_with_warmup", 10)
    assert recipe["chat_template_kwargs"] == {"enable_thinking": False}
    assert "--num_processes 8" in text and "# scorer: NAME" in text and "# dataset_name:" in text
    again = told(file(text, "recipe.yaml"), "--gpus", "8")
    first = told("--from", "lasgroup", file(AUTHORS_YAML, "authors.yaml"))
    assert options(again) == options(first)
    common = settings(first).keys() & settings(again).keys()
    assert {name: settings(again)[name] for name in common} == {name: settings(first)[name] for name in common}
    assert settings(first).keys() - common == {"max_prompt_length"}


def test_a_configuration_for_verl(file, tmp_path):
    source = ("--from", "trl", file(TRL_YAML, "grpo.yaml"), "--gpus", "2")
    target = tmp_path / "run" / "mine.yaml"
    result = run(*source, "--to", "verl", "--output", str(target))
    assert result.exit_code == 0, result.output
    assert f"Written: {target}" in result.stdout and "`data.train_files`" not in result.stdout
    first, again = told(*source), told(str(target))
    assert options(again) == options(first)
    kept = settings(again)
    assert {name: kept[name] for name in settings(first)} == settings(first)
    tree = yaml.safe_load(target.read_text())
    assert tree["defaults"] == ["sdpo", "_self_"] and tree["data"]["train_files"] == "???"
    assert tree["actor_rollout_ref"]["actor"]["clip_ratio_high"] == 0.28
    # What TRL does where nothing is said, and verl does not.
    assert (kept["max_grad_norm"], kept["adam_betas"]) == (1.0, [0.9, 0.999])


def test_the_command_for_verl_says_the_same_as_its_file(file, tmp_path):
    source = ("--from", "trl", file(TRL_YAML, "grpo.yaml"))
    words = arguments_of(emitted(*source, "--to", "verl"), tmp_path)
    assert words[:4] == ["-m", "verl.trainer.main_ppo", "--config-name", "sdpo"]
    assert words[4:7] == [
        "actor_rollout_ref.model.path=Qwen/Qwen3-0.6B",
        "data.train_files=data/train.parquet",
        "data.val_files=data/test.parquet",
    ]
    assert VERL + "optim.lr=3e-06" in words and VERL + "self_distillation.alpha=0.25" in words


def test_a_script_for_openrlhf(file, tmp_path):
    source = ("--from", "lasgroup", file(AUTHORS_YAML, "authors.yaml"), "--to", "openrlhf", "--gpus", "4")
    words = arguments_of(emitted(*source), tmp_path)
    assert words[:2] == ["-m", "sdpo_openrlhf.train"]
    flags = dict(itertools.pairwise(words))
    for flag, value in {
        "--actor.model_name_or_path": "Qwen/Qwen3-8B",
        "--rollout.batch_size": "32",
        "--rollout.n_samples_per_prompt": "8",
        "--train.batch_size": "128",
        "--data.max_len": "10240",
        "--rollout.max_new_tokens": "8192",
        "--algo.kl.init_coef": "0.001",
        "--algo.advantage.is_correction_level": "token",
        "--vllm.num_engines": "4",
        "--sdpo.teacher": "trust_region",
        "--sdpo.reprompt_truncation": "right",
    }.items():
        assert flags[flag] == value, flag
    notes = told(*source)["target"]["notes"]
    assert any("`warmup_steps` = 10" in note and "lr_warmup_ratio" in note for note in notes)
    assert any("`chat_template_kwargs`" in note for note in notes)


@pytest.mark.parametrize("preset", list(PAPER_HOST_SETTINGS))
def test_the_papers_settings_go_with_its_presets(preset, tmp_path):
    words = arguments_of(emitted("--preset", preset, "--to", "verl", "model=Qwen/Qwen3-4B", "gpus=4"), tmp_path)
    paper = PAPER_HOST_SETTINGS[preset]
    for word in (
        "actor_rollout_ref.model.path=Qwen/Qwen3-4B",
        f"data.train_batch_size={paper.questions_per_batch}",
        f"actor_rollout_ref.rollout.n={paper.rollouts_per_question}",
        f"{VERL}ppo_mini_batch_size={paper.mini_batch_size}",
        f"{VERL}optim.lr={paper.learning_rate}",
        f"{VERL}self_distillation.preset={preset}",
        "algorithm.rollout_correction.rollout_is=token",
        "trainer.n_gpus_per_node=4",
    ):
        assert word in words
    assert not any(word.startswith(VERL + "self_distillation.alpha") for word in words)


def test_a_scorer_goes_along(tmp_path):
    words = ("--preset", "paper", "scorer=math", "scorer_options={check_equations: true}", "--to")
    assert yaml.safe_load(emitted(*words, "trl"))["scorer_options"] == {"check_equations": True}
    flags = arguments_of(emitted(*words, "openrlhf"), tmp_path, MODEL_PATH="m")
    assert flags[flags.index("--sdpo.scorer") + 1] == "math" and "--reward.remote_url" not in flags
    assert json.loads(flags[flags.index("--sdpo.scorer_options") + 1]) == {"check_equations": True}
    verl = arguments_of(emitted(*words, "verl"), tmp_path, MODEL_PATH="m")
    assert "reward.custom_reward_function.name=math" in verl
    assert "++reward.custom_reward_function.reward_kwargs={check_equations: true}" in verl
    target = tmp_path / "scored.yaml"
    assert run(*words, "verl", "-o", str(target)).exit_code == 0
    again = settings(told(str(target)))
    assert (again["scorer"], again["scorer_options"]) == ("math", {"check_equations": True})


def test_what_a_host_has_no_word_for_is_said(file):
    path = file(TRL_YAML.replace("per_device_train_batch_size: 8", "per_device_train_batch_size: 1"), "small.yaml")
    notes = told("--from", "trl", path, "--to", "verl")["target"]["notes"]
    assert any("`lr_schedule` = linear (TRL's default)" in note for note in notes)
    assert any("`mini_batch_size` = 1/2 became 1" in note for note in notes)


def test_one_rollout_of_a_question_is_worth_a_note():
    assert any("rollouts_per_question=8" in note for note in told("--to", "verl")["target"]["notes"])
    assert not told("--to", "verl", "rollouts_per_question=8")["target"]["notes"]


def test_the_same_host_loses_nothing(file):
    text = emitted("--from", "trl", file(TRL_YAML + "logging_steps: 3\nsave_strategy: 'no'\n", "g.yaml"), "--to", "trl")
    recipe = yaml.safe_load(text)
    assert (recipe["logging_steps"], recipe["save_strategy"], recipe["dataset_name"]) == (3, "no", "mine.jsonl")
    assert recipe["learning_rate"] == 3e-6 and recipe["alpha"] == 0.25 and "distillation_alpha" not in recipe


def test_words_and_the_paper_go_on_top_of_a_file_of_the_same_host(file, tmp_path):
    text = "actor_rollout_ref: {rollout: {n: 4}, actor: {optim: {lr: 1.0e-4}}}\n"
    words = (file(text, "mine.yaml"), "--preset", "paper", "temperature=0.5", "--gpus", "4", "--to", "verl")
    found = arguments_of(emitted(*words), tmp_path, MODEL_PATH="m")
    for word in (
        "actor_rollout_ref.rollout.n=4",
        "actor_rollout_ref.actor.optim.lr=0.0001",
        "actor_rollout_ref.rollout.temperature=0.5",
        "actor_rollout_ref.actor.optim.lr_warmup_steps=10",
        "data.train_batch_size=32",
        "trainer.n_gpus_per_node=4",
    ):
        assert word in found


@pytest.mark.parametrize(
    ("words", "pieces"),
    [
        (["--to", "verll"], ["`--to` must be one of trl, verl, openrlhf", "Did you mean 'verl'?"]),
        (["--from", "trll"], ["`--from` must be one of", "Did you mean 'trl'?", "needs the file"]),
        (["--output", "x.yaml"], ["needs a host", "--to"]),
        (["--to", "openrlhf", "--output", "x.yaml"], ["OpenRLHF ends in .sh", "'.yaml'"]),
        (["--yaml", "--to", "trl"], ["`--yaml`"]),
        (["--preset", "paper", "--from", "trl", "nowhere.yaml"], ["nowhere.yaml cannot be read"]),
        (["--to", "verl", "learning_rate=fast"], ["`learning_rate` (command line) must be a number, got 'fast'"]),
        (["learnin_rate=1"], ["`learnin_rate`"]),
        (["alpha=1", "recipe.yaml"], ["KEY=VALUE, got 'recipe.yaml'", "a file stands before"]),
    ],
)
def test_requests_that_make_no_sense(words, pieces):
    message = refused(*words)
    for piece in pieces:
        assert piece in message


def test_a_file_that_is_there_stays(tmp_path):
    target = tmp_path / "run.sh"
    target.write_text("mine")
    assert "--overwrite" in refused("--to", "verl", "--output", str(target))
    assert target.read_text() == "mine"
    assert run("--to", "verl", "--output", str(target), "--overwrite").exit_code == 0
    assert target.read_text().startswith("#!") and target.stat().st_mode & 0o111
    assert "cannot be written" in refused("--to", "verl", "--output", str(target / "below.sh"))


def test_every_setting_has_a_meaning_and_a_place():
    for setting in SETTINGS.values():
        assert setting.meaning
        assert any((setting.trl, setting.verl, setting.openrlhf)) or setting.name == "advantage_clip"
        assert set(setting.derived) <= {"trl", "verl", "openrlhf"}
