"""What `sdpo config --to verl` writes, composed by Hydra with verl's own files and read by the adapter."""

from __future__ import annotations

import json

import pytest
from hydra import compose, initialize_config_dir, initialize_config_module
from omegaconf import OmegaConf
from typer.testing import CliRunner

from other_projects import FILES, arguments_of
from sdpo_plugins import SDPOConfig
from sdpo_plugins.cli import app
from sdpo_plugins.conversion.values import DEFAULTS
from sdpo_plugins.presets import PAPER_HOST_SETTINGS, preset_names
from sdpo_verl.config import check_config, sdpo_config_of

ACTOR = "actor_rollout_ref.actor."
# Options whose values test every kind of quoting.
ODD = (
    'feedback_template=It\'s "no":\n\\{feedback_raw}\\',
    "apply_chat_template_kwargs={enable_thinking: false, style: a b}",
    "distillation_topk=null",
    "teacher_update_rate=1e-5",
    "plugins=[]",
    "success_reward_name=true",
)
SOURCES = {
    **{preset: ("--preset", preset) for preset in preset_names()},
    **{dialect: ("--from", dialect) for dialect in FILES},
    "odd": ODD,
}


def source(name, folder):
    words = SOURCES[name]
    if words[0] == "--from":
        file, text = FILES[name] if name in FILES else FILES[words[1]]
        (folder / file).write_text(text, encoding="utf-8")
        words = (*words, str(folder / file))
    return words


def run(*words):
    result = CliRunner().invoke(app, ["config", *words])
    assert result.exit_code == 0, result.output
    return result.stdout


def wanted(words):
    told = json.loads(run(*words, "--json"))["options"]
    return SDPOConfig.from_mapping({name: one["value"] for name, one in told.items()})


def by_command(words, folder):
    arguments = arguments_of(run(*words, "--to", "verl"), folder, MODEL_PATH="Qwen/Qwen3-0.6B")
    assert arguments[:3] == ["-m", "verl.trainer.main_ppo", "--config-name"]
    with initialize_config_module("verl.trainer.config", version_base=None):
        return compose(arguments[3], overrides=arguments[4:])


def by_file(words, folder):
    run(*words, "--to", "verl", "--output", str(folder / "emitted.yaml"))
    with initialize_config_dir(str(folder), version_base=None):
        return compose("emitted", overrides=["actor_rollout_ref.model.path=Qwen/Qwen3-0.6B"])


@pytest.mark.parametrize("composed", [by_command, by_file])
@pytest.mark.parametrize("name", list(SOURCES))
def test_verl_reads_the_same_options(tmp_path, name, composed):
    words = source(name, tmp_path)
    config = composed(words, tmp_path)
    if config.actor_rollout_ref.rollout.n > 1:  # of one, SDPO learns nothing, and the adapter refuses it
        check_config(config)
    assert sdpo_config_of(config) == wanted(words)


@pytest.mark.parametrize("preset", list(PAPER_HOST_SETTINGS))
def test_the_papers_settings(tmp_path, preset):
    config = by_command(("--preset", preset, "gpus=4", "scorer=math"), tmp_path)
    check_config(config)
    paper = PAPER_HOST_SETTINGS[preset]
    actor, rollout = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout
    assert (actor.optim.lr, actor.optim.lr_warmup_steps) == (paper.learning_rate, paper.warmup_steps)
    assert (config.data.train_batch_size, rollout.n) == (paper.questions_per_batch, paper.rollouts_per_question)
    assert actor.ppo_mini_batch_size == paper.mini_batch_size
    assert (config.data.max_prompt_length, config.data.max_response_length) == (2048, 8192)
    assert config.algorithm.rollout_correction.rollout_is == "token"
    assert config.reward.custom_reward_function.name == "math"
    assert config.trainer.n_gpus_per_node == 4


def test_the_defaults_in_the_table_are_verls():
    with initialize_config_module("verl.trainer.config", version_base=None):
        config = compose("ppo_trainer")
    places = {
        "learning_rate": ACTOR + "optim.lr",
        "lr_schedule": ACTOR + "optim.lr_scheduler_type",
        "weight_decay": ACTOR + "optim.weight_decay",
        "adam_betas": ACTOR + "optim.betas",
        "max_grad_norm": ACTOR + "optim.clip_grad",
        "rollouts_per_question": "actor_rollout_ref.rollout.n",
        "questions_per_batch": "data.train_batch_size",
        "mini_batch_size": ACTOR + "ppo_mini_batch_size",
        "passes": ACTOR + "ppo_epochs",
        "epochs": "trainer.total_epochs",
        "max_prompt_length": "data.max_prompt_length",
        "max_response_length": "data.max_response_length",
        "temperature": "actor_rollout_ref.rollout.temperature",
        "top_p": "actor_rollout_ref.rollout.top_p",
        "gradient_checkpointing": "actor_rollout_ref.model.enable_gradient_checkpointing",
    }
    assert set(places) == set(DEFAULTS["verl"])
    found = {name: OmegaConf.select(config, place) for name, place in places.items()}
    assert {**found, "adam_betas": tuple(found["adam_betas"])} == dict(DEFAULTS["verl"])
