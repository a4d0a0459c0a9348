"""verl's real configuration, composed by Hydra: our files, the options in them, and what is refused."""

import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir, initialize_config_module
from omegaconf import OmegaConf
from verl.utils.config import omega_conf_to_dataclass

import sdpo_verl.conf
from sdpo_plugins import ConfigError, SDPOConfig
from sdpo_plugins.errors import HostError
from sdpo_plugins.presets import preset_names
from sdpo_verl.conf.files import files
from sdpo_verl.config import SDPOActorConfig, check_config, sdpo_config_of, settle
from sdpo_verl.config_checks import check_text_only, idle_notices

SECTION = "actor_rollout_ref.actor.self_distillation."
BASE = (
    "actor_rollout_ref.rollout.name=vllm",
    "actor_rollout_ref.rollout.n=8",
    "actor_rollout_ref.model.path=Qwen/Qwen3-8B",
    "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=1",
    "data.max_response_length=512",
)


def composed(*overrides, name="sdpo"):
    with initialize_config_module("verl.trainer.config", version_base=None):
        return compose(name, overrides=[*BASE, *overrides])


def problems(config):
    with pytest.raises(ConfigError) as caught:
        check_config(config)
    return caught.value.problems


# Files and their names ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(files()))
def test_the_files_are_those_that_the_options_and_presets_give(name):
    folder = Path(sdpo_verl.conf.__file__).parent
    assert (folder / name).read_text(encoding="utf-8") == files()[name], "run `python -m sdpo_verl.conf.files`"
    assert {str(path.relative_to(folder)) for path in folder.rglob("*.yaml")} == set(files())


def test_config_name_sdpo():
    config = composed()
    check_config(config)
    assert sdpo_config_of(config) == SDPOConfig()
    assert config.trainer.v1.trainer_mode == "sdpo"
    actor = omega_conf_to_dataclass(config.actor_rollout_ref.actor)
    assert isinstance(actor, SDPOActorConfig)
    assert actor.engine.strategy == "fsdp2"
    assert actor.sdpo_config == SDPOConfig()


@pytest.mark.parametrize("primary", ["sdpo", "ppo_trainer"])
@pytest.mark.parametrize("preset", preset_names())
def test_presets_by_name(primary, preset):
    config = composed(f"+sdpo={preset}", "+" * (primary != "sdpo") + SECTION + "max_reprompt_len=99", name=primary)
    check_config(config)
    assert sdpo_config_of(config) == SDPOConfig.preset(preset, max_reprompt_len=99)


def test_a_default_written_out_beats_a_preset():
    assert SDPOConfig().alpha == 0.5
    assert sdpo_config_of(composed("+sdpo=paper_rich_feedback", SECTION + "alpha=0.5")).alpha == 0.5


@pytest.mark.parametrize(
    ("override", "name", "value"),
    [
        ("distillation_topk=null", "distillation_topk", None),
        ("ema_update_rate=0.01", "teacher_update_rate", 0.01),
        ("teacher_regularization=trust-region", "teacher", "trust_region"),
        (
            "apply_chat_template_kwargs={enable_thinking: false}",
            "apply_chat_template_kwargs",
            {"enable_thinking": False},
        ),
        ("plugins=[]", "plugins", ()),
        ("is_clip=2", "is_clip", 2.0),
    ],
)
def test_options_on_the_command_line(override, name, value):
    assert getattr(sdpo_config_of(composed(SECTION + override)), name) == value


def test_every_option_can_be_set_without_a_plus():
    assert set(SDPOConfig().to_mapping()) <= set(composed().actor_rollout_ref.actor.self_distillation)


# Reading the options --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "mode", "scale"),
    [
        ((), "token-mean", None),
        (("actor_rollout_ref.actor.loss_agg_mode=seq-mean-token-mean",), "seq-mean-token-mean", None),
        (("actor_rollout_ref.actor.loss_agg_mode=seq-mean-token-sum-norm",), "seq-mean-token-sum-norm", 512),
        (
            (
                "actor_rollout_ref.actor.loss_agg_mode=seq-mean-token-sum-norm",
                "actor_rollout_ref.actor.loss_scale_factor=64",
            ),
            "seq-mean-token-sum-norm",
            64,
        ),
        (
            (
                "actor_rollout_ref.actor.loss_agg_mode=token-sum",
                SECTION + "loss_agg_mode=seq-mean-token-sum-norm",
                SECTION + "loss_scale_factor=7",
            ),
            "seq-mean-token-sum-norm",
            7,
        ),
        (("+sdpo=trl", "actor_rollout_ref.actor.loss_agg_mode=seq-mean-token-sum"), "seq-mean-token-sum", None),
        (
            (SECTION + "dialect=trl", "actor_rollout_ref.actor.loss_agg_mode=seq-mean-token-sum"),
            "seq-mean-token-sum",
            None,
        ),
    ],
)
def test_aggregation_comes_from_the_actor_unless_it_is_given(overrides, mode, scale):
    options = sdpo_config_of(composed(*overrides))
    assert (options.loss_agg_mode, options.loss_scale_factor) == (mode, scale)


def test_token_sum_has_no_counterpart():
    (problem,) = problems(composed("actor_rollout_ref.actor.loss_agg_mode=token-sum"))
    assert "actor.loss_agg_mode='token-sum'" in problem and "self_distillation.loss_agg_mode" in problem


def test_workers_see_a_part_of_the_configuration():
    config = composed(SECTION + "alpha=0.25")
    assert sdpo_config_of(config.actor_rollout_ref) == sdpo_config_of(config)


def test_reading_changes_nothing():
    config = composed("+sdpo=paper")
    before = OmegaConf.to_yaml(config)
    sdpo_config_of(config)
    check_config(config)
    assert OmegaConf.to_yaml(config) == before


def test_settled_configurations_hold_all_values_and_read_the_same():
    config = composed("+sdpo=paper", SECTION + "apply_chat_template_kwargs={enable_thinking: false}")
    options = settle(config)
    OmegaConf.resolve(config)
    assert OmegaConf.to_container(config.actor_rollout_ref.actor.self_distillation) == options.to_mapping()
    assert omega_conf_to_dataclass(config.actor_rollout_ref.actor).sdpo_config == options
    assert settle(config) == options


def test_a_text_that_verl_would_read_as_a_reference():
    (problem,) = problems(composed(SECTION + "apply_chat_template_kwargs={name: '\\${a}'}"))
    assert "apply_chat_template_kwargs" in problem and "'${'" in problem


def test_the_actor_itself_refuses_wrong_options():
    config = composed(SECTION + "alpha=7")
    with pytest.raises(Exception, match=re.escape("`alpha` must lie in [0, 1], got 7.")):
        omega_conf_to_dataclass(config.actor_rollout_ref.actor)


# The authors' file ----------------------------------------------------------------------------------------------------

AUTHORS_FILE = """
defaults:
  - ppo_trainer
  - _self_
actor_rollout_ref:
  actor:
    ppo_micro_batch_size_per_gpu: 1
    clip_ratio_high: 0.28
    policy_loss:
      loss_mode: sdpo
    self_distillation:
      _target_: verl.workers.config.SelfDistillationConfig
      distillation_topk: 50
      teacher_regularization: ema
      teacher_update_rate: 0.01
      is_clip: 2
  rollout: {name: vllm, n: 4}
  model: {path: Qwen/Qwen3-8B}
algorithm:
  adv_estimator: grpo
"""


def authors(folder, *overrides, extra=""):
    (folder / "mine.yaml").write_text(AUTHORS_FILE + extra)
    with initialize_config_dir(str(folder), version_base=None):
        return compose("mine", overrides=["hydra.searchpath=[pkg://verl.trainer.config]", *overrides])


@pytest.mark.parametrize("dialect", [None, "lasgroup"])
def test_the_authors_file_runs_unchanged(tmp_path, dialect):
    config = authors(tmp_path, f"+sdpo={dialect or 'default'}")
    options = settle(config)
    given = {"distillation_topk": 50, "teacher_regularization": "ema", "teacher_update_rate": 0.01, "is_clip": 2}
    assert options == SDPOConfig.from_mapping(given, dialect)
    actor = omega_conf_to_dataclass(config.actor_rollout_ref.actor)
    assert actor.sdpo_config == options
    assert actor.policy_loss.loss_mode == "vanilla"


def test_without_our_files_the_authors_file_says_what_to_add(tmp_path):
    assert any("+sdpo=default" in problem for problem in problems(authors(tmp_path)))


def test_renamed_and_removed_keys_are_named(tmp_path):
    extra = "custom_reward_function:\n  path: reward.py\nreward_model:\n  reward_manager: naive\n"
    config = authors(tmp_path, "+sdpo=lasgroup", "++actor_rollout_ref.actor.response_only_logits=true", extra=extra)
    found = "\n".join(problems(config))
    assert "`custom_reward_function.path` (given: 'reward.py')" in found
    assert "`reward.custom_reward_function.path`" in found and "`reward.reward_manager.name`" in found
    assert "`actor_rollout_ref.actor.response_only_logits` is no option" in found


def test_an_unknown_option_is_named_with_the_nearest(tmp_path):
    (problem,) = problems(authors(tmp_path, "+sdpo=lasgroup", f"++{SECTION}alhpa=1"))
    assert "`alhpa`" in problem and "Did you mean 'alpha'?" in problem


# verl's settings ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "pieces"),
    [
        ("actor_rollout_ref.actor.entropy_coeff=0.01", ["entropy_coeff=0.01", "entropy_coeff=0"]),
        ("actor_rollout_ref.actor.strategy=fsdp", ["strategy=fsdp`", "strategy=fsdp2"]),
        ("model_engine=megatron", ["model_engine=megatron", "model_engine=dp"]),
        ("model_engine=veomni", ["model_engine=veomni", "model_engine=dp"]),
        ("model_engine=torchtitan", ["model_engine=torchtitan", "model_engine=dp"]),
        ("actor_rollout_ref.actor.ulysses_sequence_parallel_size=2", ["ulysses_sequence_parallel_size=1"]),
        ("actor_rollout_ref.actor.fsdp_config.ulysses_sequence_parallel_size=2", ["ulysses_sequence_parallel_size=1"]),
        ("actor_rollout_ref.actor.fsdp_config.pad_to_length=true", ["fsdp_config.pad_to_length=False"]),
        ("actor_rollout_ref.actor.use_prefix_grouper=true", ["use_prefix_grouper=False"]),
        ("actor_rollout_ref.actor.qat.enable=true", ["qat.enable=False"]),
        ("+actor_rollout_ref.actor.fsdp_config.router_replay.mode=R3", ["router_replay.mode=disabled"]),
        ("actor_rollout_ref.rollout.enable_rollout_routing_replay=true", ["enable_rollout_routing_replay=False"]),
        ("actor_rollout_ref.model.mtp.enable_train=true", ["mtp.enable_train=False"]),
        ("distillation.enabled=true", ["distillation.enabled=False"]),
        ("actor_rollout_ref.hybrid_engine=false", ["hybrid_engine=True"]),
        ("trainer.use_v1=false", ["trainer.use_v1=True"]),
        ("trainer.v1.trainer_mode=separate_async", ["trainer_mode=separate_async", "trainer_mode=sdpo"]),
        ("trainer.v1.trainer_mode=sync", ["trainer_mode=sync", "trainer_mode=sdpo"]),
        ("+ray_kwargs.ray_init.num_gpus=7", ["trainer.n_gpus_per_node=8", "8 ranks", "num_gpus=7"]),
        ("algorithm.adv_estimator=gae", ["adv_estimator=gae", "adv_estimator=grpo"]),
        ("critic.enable=true", ["critic.enable=True", "null"]),
        (SECTION + "teacher=lora_ema", ["lora_rank=0", "lora_rank=32"]),
        (SECTION + "teacher=emma", ["'emma'", "'ema'"]),
        ("actor_rollout_ref.model.path=/no/such/folder", ["/no/such/folder", "no such folder"]),
        ("actor_rollout_ref.model.path=null", ["model.path` is missing"]),
    ],
)
def test_settings_that_are_refused(override, pieces):
    found = problems(composed(override))
    assert len(found) == 1, found
    assert all(piece in found[0] for piece in pieces), found


@pytest.mark.parametrize(
    ("overrides", "piece"),
    [
        (["algorithm.rollout_correction.bypass_mode=true"], "bypass_mode=False"),
        (["actor_rollout_ref.rollout.calculate_log_probs=false"], "calculate_log_probs=True"),
    ],
)
def test_correction_weights_that_would_be_lost(overrides, piece):
    check_config(composed("algorithm.rollout_correction.rollout_is=token"))
    check_config(composed(*overrides))
    (problem,) = problems(composed("algorithm.rollout_correction.rollout_is=token", *overrides))
    assert piece in problem


def test_all_problems_come_at_once():
    found = problems(
        composed(
            "actor_rollout_ref.actor.entropy_coeff=1", "critic.enable=true", SECTION + "alpha=2", SECTION + "is_clip=0"
        )
    )
    assert len(found) == 4


@pytest.mark.parametrize(
    "overrides",
    [
        ["actor_rollout_ref.actor.use_kl_loss=true"],
        ["algorithm.use_kl_in_reward=true"],
        ["algorithm.adv_estimator=rloo", SECTION + "grpo_weight=0.5"],
        ["+ray_kwargs.ray_init.num_gpus=8"],
        ["+ray_kwargs.ray_init.num_gpus=1", "+ray_kwargs.ray_init.address=10.0.0.1:6379"],
        ["actor_rollout_ref.model.lora_rank=8", SECTION + "teacher=lora_ema"],
        ["actor_rollout_ref.model.lora_rank=8", "actor_rollout_ref.actor.use_kl_loss=true"],
        ["actor_rollout_ref.actor.ppo_epochs=2", "actor_rollout_ref.actor.use_dynamic_bsz=true"],
        [SECTION + "enabled=false", "algorithm.adv_estimator=gae", "actor_rollout_ref.actor.strategy=fsdp"],
    ],
)
def test_settings_that_are_fine(overrides):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        config = composed(*overrides)
        settle(config)
        omega_conf_to_dataclass(config.actor_rollout_ref.actor)


def test_one_rollout_without_feedback_teaches_nothing():
    (problem,) = problems(composed("actor_rollout_ref.rollout.n=1", "+sdpo=paper"))
    assert "rollout.n=1" in problem and "rollout.n=8" in problem


@pytest.mark.parametrize(
    ("override", "piece"),
    [
        ("actor_rollout_ref.rollout.n=1", "feedback"),
        ("actor_rollout_ref.model.use_fused_kernels=true", "use_fused_kernels"),
        ("algorithm.filter_groups.enable=true", "filter_groups"),
        ("trainer.default_hdfs_dir=hdfs://cluster/run", "default_local_dir"),
        ("actor_rollout_ref.actor.policy_loss.loss_mode=gspo", "grpo_weight"),
    ],
)
def test_settings_that_are_warned_of(override, piece):
    config = composed(override)
    (notice,) = idle_notices(config, sdpo_config_of(config))
    assert piece in notice
    with pytest.warns(UserWarning, match=piece):
        settle(config)


def test_models_that_see_or_hear(tmp_path):
    (tmp_path / "config.json").write_text('{"vision_config": {}}')
    (problem,) = problems(composed(f"actor_rollout_ref.model.path={tmp_path}"))
    assert "vision or audio" in problem
    check_text_only(None, "model")
    with pytest.raises(HostError, match="object"):
        check_text_only(object(), "model")


@pytest.mark.slow
def test_verl_ends_with_the_list_before_ray_starts(tmp_path):
    command = [sys.executable, "-m", "verl.trainer.main_ppo", "--config-name", "sdpo", *BASE, SECTION + "alpha=2"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command.append(f"hydra.run.dir={tmp_path}")
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 1
    assert "SDPO: `alpha` must lie in [0, 1], got 2." in done.stderr
    assert "Traceback" not in done.stderr and "ray init" not in done.stdout
