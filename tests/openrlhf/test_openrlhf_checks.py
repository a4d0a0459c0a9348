"""What is refused before anything starts, what is remarked on, and what is fine, through OpenRLHF's real parser."""

import json

import pytest

from sdpo_openrlhf.places import gpus_here
from sdpo_openrlhf.train import prepare
from sdpo_plugins import ConfigError
from sdpo_plugins.errors import HostError

AGENT_FILE = "from openrlhf.utils.agent import AgentExecutorBase\nclass AgentExecutor(AgentExecutorBase):\n    pass\n"


def problems(words):
    with pytest.raises(ConfigError) as caught:
        prepare(words)
    return list(caught.value.problems)


def test_the_base_command_is_fine(words):
    prepared = prepare(words())
    assert prepared.notices == ()
    assert prepared.args.sdpo == prepared.config.to_mapping()
    assert prepared.args.critic.model_name_or_path is None


# The host's settings --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "pieces"),
    [
        (["--train.enable_ema"], ["--train.enable_ema True", "final model"]),
        (["--ds.ring_attn_size", "2"], ["--ds.ring_attn_size 2", "--ds.ring_attn_size 1"]),
        (["--ds.tensor_parallel_size", "2"], ["--ds.tensor_parallel_size 2", "--ds.zero_stage 3"]),
        (["--actor.entropy_coef", "0.01"], ["--actor.entropy_coef 0.01", "entropy"]),
        (["--actor.aux_loss_coef", "0.01"], ["--actor.aux_loss_coef 0.01", "balancing"]),
        (["--data.max_images_per_prompt", "2"], ["--data.max_images_per_prompt 2", "images"]),
        (["--algo.advantage.estimator", "gae"], ["estimator gae", "--algo.advantage.estimator dr_grpo"]),
        (["--vllm.num_engines", "0"], ["--vllm.num_engines 0", "--vllm.num_engines 1"]),
        (["--train.async_enable", "--train.async_queue_size", "0"], ["--train.async_queue_size` must be at least 1"]),
        (["--train.batch_size", "100"], ["makes 128 rollouts", "--train.batch_size 128"]),
        (["--train.micro_batch_size", "3"], ["--train.batch_size 128", "micro_batch_size 3` times 2 policy rank"]),
        (["--rollout.micro_batch_size", "3"], ["128 rollouts", "--rollout.micro_batch_size 3", "wait for each other"]),
        (["--train.micro_batch_size", "0"], ["--train.micro_batch_size` must be at least 1, got 0"]),
        # The host's own check divides by it.
        (["--rollout.micro_batch_size", "0"], ["--rollout.micro_batch_size` must be at least 1, got 0"]),
        (["--train.dynamic_batch_enable", "--actor.num_gpus_per_node", "3"], ["3 policy ranks"]),
        (["--algo.dynamic_filtering_enable"], ["dynamic_filtering_enable", "--sdpo.grpo_weight"]),
        (["--sdpo.loss_path", "logits"], ["--sdpo.loss_path logits", "--sdpo.loss_path auto"]),
        (["--sdpo.teacher", "lora_ema"], ["--ds.lora.rank 0", "--ds.lora.rank 32"]),
        (["--ds.lora.rank", "8", "--ds.zero_stage", "3"], ["--ds.lora.rank 8", "--ds.zero_stage 2"]),
        (["--ds.load_in_4bit", "--ds.lora.rank", "8"], ["--ds.load_in_4bit", "merged"]),
        (["--sdpo.teacher", "emma"], ["'emma'", "'ema'"]),
        (["--sdpo.selector", "fisrt"], ["'fisrt'", "'first'"]),
        (["--sdpo.teacher_options", '{"a": 1}'], ["`teacher_options.a`"]),
        (["--actor.model_name_or_path", "/no/such/model"], ["/no/such/model", "no such folder"]),
        (["--data.prompt_dataset", "/no/such.jsonl"], ["/no/such.jsonl", "no such file"]),
        (["--data.prompt_dataset", "no_such.parquet@part,org/name"], ["no_such.parquet`"]),
        (["--eval.dataset", "./no_such"], ["--eval.dataset ./no_such"]),
        (["--reward.remote_url", "/no/reward.py"], ["/no/reward.py", "cannot be read: No such file"]),
        (["--reward.remote_url", "reward"], ["neither a Python file", "http://"]),
        (["--train.agent_func_path", "/no/agent.py"], ["/no/agent.py", "cannot be read"]),
        (["--train.agent_func_path", "agent"], ["must be a Python file", "`AgentExecutor`"]),
        (["--actor.num_gpus_per_node", "8"], ["9 GPU(s)", "this machine has 8", "RAY_ADDRESS"]),
        (["--train.colocate_all"], ["colocate_all", "is 2 and", "is 1. Make them equal"]),
    ],
)
def test_settings_that_are_refused(words, more, pieces):
    found = problems(words(*more))
    assert len(found) == 1, found
    assert all(piece in found[0] for piece in pieces), found


@pytest.mark.parametrize(
    "more",
    [
        ["--actor.entropy_coef", "0"],
        ["--algo.kl.use_loss", "--algo.kl.init_coef", "0.001", "--ref.num_gpus_per_node", "2"],
        ["--algo.kl.init_coef", "0.001", "--ref.num_gpus_per_node", "2", "--sdpo.grpo_weight", "0.5"],
        ["--algo.advantage.estimator", "rloo", "--sdpo.grpo_weight", "0.5"],
        ["--algo.advantage.is_correction_level", "off"],
        ["--algo.advantage.is_correction_level", "seq", "--algo.advantage.is_correction_mode", "mask"],
        ["--actor.policy_loss_type", "gspo", "--sdpo.grpo_weight", "0.5"],
        ["--ds.lora.rank", "8", "--sdpo.teacher", "lora_ema"],
        ["--ds.zero_stage", "3", "--train.max_epochs", "2"],
        ["--train.async_enable", "--train.partial_rollout_enable"],
        ["--train.dynamic_batch_enable", "--train.micro_batch_size", "3"],
        ["--train.colocate_all", "--vllm.num_engines", "2", "--vllm.enable_sleep", "--ds.enable_sleep"],
        ["--train.batch_size", "32"],
        ["--reward.remote_url", "http://127.0.0.1:5000/score,http://127.0.0.1:5001/score"],
        ["--data.prompt_dataset", "org/name@folder,s3://bucket/file.jsonl,data/*.jsonl"],
        ["--sdpo.success_reward_name", "exact"],
        ["--sdpo.loss_agg_mode", "seq-mean-token-sum-norm", "--sdpo.loss_scale_factor", "64"],
        ["--sdpo.preset", "paper"],
    ],
)
def test_settings_that_are_fine(words, more):
    assert prepare(words(*more)).notices == ()


def test_without_sdpo_only_the_host_checks(words):
    more = ["--train.enable_ema", "--actor.entropy_coef", "0.01", "--algo.advantage.estimator", "gae"]
    prepared = prepare(words(*more, "--sdpo.enabled", "false", "--train.batch_size", "100"))
    assert not prepared.config.enabled and prepared.args.sdpo["enabled"] is False
    assert prepared.args.critic.model_name_or_path == prepared.args.actor.model_name_or_path
    (problem,) = problems(words("--sdpo.enabled", "false", "--sdpo.teacher", "emma"))
    assert "'ema'" in problem


def test_all_problems_come_at_once(words):
    more = ["--train.enable_ema", "--sdpo.alpha", "2", "--sdpo.is_clip", "0", "--actor.entropy_coef", "1"]
    found = problems(words(*more, "--algo.advantage.estimator", "rloo", "--rollout.n_samples_per_prompt", "1"))
    assert sum("must lie in [0, 1]" in each or "greater than 0" in each for each in found) == 2
    assert sum("enable_ema" in each or "entropy_coef" in each for each in found) == 2
    assert "rloo requires n_samples_per_prompt > 1" in found  # the host's own words
    assert len(found) == 6 and any("makes 16 rollouts" in each for each in found)


@pytest.mark.parametrize(
    ("more", "piece"),
    [
        (["--train.partial_rollout_enable"], "--train.partial_rollout_enable requires --train.async_enable"),
        (["--algo.advantage.is_correction_threshold", "1", "2", "3"], "takes HIGH or LOW HIGH"),
        (["--rollout.vllm_generate_batch_size", "99"], "requires --train.async_enable"),
    ],
)
def test_what_the_host_asserts_is_told_like_the_rest(words, more, piece):
    (problem,) = problems(words(*more))
    assert piece in problem


def test_a_missing_flag_on_which_the_hosts_check_stumbles(words):
    without = [word for word in words("--ds.packing_samples") if word not in ("--vllm.num_engines", "1")]
    (problem,) = problems(without)
    assert "--vllm.num_engines None" in problem
    # Without SDPO nothing of ours explains it.
    (problem,) = problems([*without, "--sdpo.enabled", "false"])
    assert "OpenRLHF's own check of its flags ended with TypeError" in problem


def test_nothing_is_given():
    found = "\n".join(problems([]))
    for flag in ("actor.model_name_or_path", "data.prompt_dataset", "vllm.num_engines", "reward.remote_url"):
        assert f"`--{flag}" in found


def test_one_rollout_without_feedback_teaches_nothing(words):
    alone = words("--rollout.n_samples_per_prompt", "1", "--train.batch_size", "16")
    (problem,) = problems([*alone, "--sdpo.include_environment_feedback", "false"])
    assert "--rollout.n_samples_per_prompt 8" in problem
    (notice,) = prepare(alone).notices
    assert "feedback" in notice


@pytest.mark.parametrize(
    ("more", "piece"),
    [
        (["--algo.dynamic_filtering_enable", "--sdpo.grpo_weight", "0.5"], "dynamic_filtering_enable"),
        (["--actor.policy_loss_type", "gspo"], "--actor.policy_loss_type gspo"),
        (["--actor.loss_agg_mode", "seq-mean-token-mean"], "--sdpo.loss_agg_mode token-mean"),
        (["--sdpo.loss_agg_mode", "seq-mean-token-sum-norm"], "--sdpo.loss_scale_factor"),
        (["--ds.use_liger_kernel"], "--ds.use_liger_kernel"),
        (["--algo.kl.init_coef", "0.01", "--ref.num_gpus_per_node", "2"], "without effect"),
        (["--algo.kl.use_loss", "--algo.kl.init_coef", "0"], "--algo.kl.init_coef 0"),
        (["--sdpo.feedback_template", r"\n{feedback_raw}"], "--sdpo.feedback_template"),
        (["--ckpt.save_steps", "10", "--ckpt.max_num", "1"], "--ckpt.max_num 2"),
    ],
)
def test_settings_that_are_remarked_on(words, more, piece):
    (notice,) = prepare(words(*more)).notices
    assert piece in notice


def test_the_same_aggregation_for_both_is_no_remark(words):
    more = ["--actor.loss_agg_mode", "seq-mean-token-mean", "--sdpo.loss_agg_mode", "seq-mean-token-mean"]
    assert prepare(words(*more)).notices == ()


# Files ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["vision_config", "audio_config"])
def test_models_that_see_or_hear(words, tmp_path, part):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps({part: {}}))
    (problem,) = problems(words("--actor.model_name_or_path", str(tmp_path / "model")))
    assert "vision or audio model" in problem


def test_a_home_folder_that_the_shell_did_not_expand(words, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model").mkdir()
    (problem,) = problems(words("--actor.model_name_or_path", "~/model"))
    assert "without `~`" in problem


@pytest.mark.parametrize(
    ("text", "piece"),
    [
        ("def reward_fun(queries, prompts, labels): ...", "Did you mean 'reward_fun'?"),
        ("class A:\n    def reward_func(self): ...", "does not define `reward_func`"),
        ("def reward_func(:", "is no valid Python"),
        ("async def reward_func(queries, prompts, labels): ...", "Define it with `def`"),
        ("", "does not define `reward_func`"),
    ],
)
def test_reward_files_that_are_refused(words, tmp_path, text, piece):
    (tmp_path / "mine.py").write_text(text)
    (problem,) = problems(words("--reward.remote_url", str(tmp_path / "mine.py")))
    assert piece in problem and "mine.py" in problem


@pytest.mark.parametrize(
    "text",
    [
        "from rewards import exact as reward_func",
        "from rewards import *",
        "reward_func = make(3)",
        "try:\n    from fast import reward_func\nexcept ImportError:\n    def reward_func(q, p, l): ...",
        "if True:\n    reward_func: object = lambda q, p, l: {}",
        "raise SystemExit('executed')\ndef reward_func(q, p, l): ...",
    ],
)
def test_reward_files_that_are_fine(words, tmp_path, text):
    (tmp_path / "mine.py").write_text(text)
    prepare(words("--reward.remote_url", str(tmp_path / "mine.py")))


def test_one_reward_file_at_a_time(words, tmp_path):
    path = tmp_path / "reward.py"
    (problem,) = problems(words("--reward.remote_url", f"{path},{path}"))
    assert "names 2 sources" in problem


def test_agents(words, tmp_path):
    path = tmp_path / "agent.py"
    path.write_text(AGENT_FILE)
    assert prepare(words("--train.agent_func_path", str(path))).args.reward.remote_url == ["agent"]
    path.write_text("class AgentExecutr: ...")
    (problem,) = problems(words("--train.agent_func_path", str(path)))
    assert "does not define `AgentExecutor`" in problem and "Did you mean 'AgentExecutr'?" in problem
    path.write_text("def AgentExecutor(): ...")
    (problem,) = problems(words("--train.agent_func_path", str(path)))
    assert "must be a class" in problem


# Places and plug-ins --------------------------------------------------------------------------------------------------


def test_a_cluster_is_not_counted(words, tmp_path, monkeypatch):
    many = words("--actor.num_gpus_per_node", "32")
    assert len(problems(many)) == 1
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    prepare(many)
    monkeypatch.delenv("RAY_ADDRESS")
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text("10.0.0.1:6379")
    prepare(many)


def test_resources_that_are_told_to_ray(words, monkeypatch):
    line = words()
    monkeypatch.setenv("RAY_OVERRIDE_RESOURCES", '{"GPU": 2}')
    assert gpus_here() == 2
    (problem,) = problems(line)
    assert "3 GPU(s) (2 for `--actor.num_gpus_per_node`, 1 for `--vllm.num_engines`)" in problem
    monkeypatch.setenv("RAY_OVERRIDE_RESOURCES", "GPU=2")
    with pytest.raises(HostError, match="RAY_OVERRIDE_RESOURCES is no JSON: 'GPU=2'"):
        prepare(line)


def test_a_plug_in_that_is_not_there(words):
    (problem,) = problems(words("--sdpo.plugins", "no_such_plugin"))
    assert "'no_such_plugin', which is not installed" in problem


def test_template_arguments_without_a_template_are_refused(words):
    given = ["--sdpo.apply_chat_template_kwargs", '{"enable_thinking": false}']
    (problem,) = problems(words(*given))
    assert "would be ignored" in problem and "--data.apply_chat_template" in problem
    prepare(words(*given, "--data.apply_chat_template"))
