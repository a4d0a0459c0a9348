"""SDPO's flags beside OpenRLHF's own in its real parser: values, precedence, changed defaults, unknown flags."""

import argparse
import dataclasses
import json
from types import SimpleNamespace

import pytest
import yaml

from sdpo_openrlhf.flags import RENAMED, suggestion, unknown_flags
from sdpo_openrlhf.host_cli import HostProgram
from sdpo_openrlhf.host_defaults import HOST_DEFAULTS, host_defaults
from sdpo_openrlhf.options import add_arguments, config_of, parse, settle
from sdpo_plugins import ConfigError, SDPOConfig
from sdpo_plugins.presets import preset_names

TOKEN, CLIP, THRESHOLD, GATING = (
    f"algo.advantage.is_correction_{name}" for name in ("level", "mode", "threshold", "gating")
)


def flat(*words):
    return vars(parse(HostProgram.find().build_parser(), words))


def settled(*words):
    args = HostProgram.find().check(argparse.Namespace(**flat(*words))).args
    config = settle(args)
    assert args.sdpo == config.to_mapping()
    return config


def problems(*words):
    with pytest.raises(ConfigError) as caught:
        settled(*words)
    return list(caught.value.problems)


def known_flags():
    parser = HostProgram.find().build_parser()
    add_arguments(parser)
    return [flag for action in parser._actions for flag in action.option_strings]


# Values ---------------------------------------------------------------------------------------------------------------


def test_without_flags_the_options_are_the_defaults():
    assert settled() == SDPOConfig()


@pytest.mark.parametrize("name", [item.name for item in dataclasses.fields(SDPOConfig)])
def test_every_option_is_a_flag(name):
    assert f"--sdpo.{name}" in known_flags()


@pytest.mark.parametrize("preset", preset_names())
def test_every_option_can_be_written_out(preset):
    wanted = SDPOConfig.preset(preset)
    words = []
    for name, value in wanted.to_mapping().items():
        texts = value if isinstance(value, list) else [json.dumps(value) if isinstance(value, dict) else str(value)]
        words += [f"--sdpo.{name}", *texts]
    assert settled(*words) == wanted


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        (["--sdpo.enabled"], "enabled", True),
        (["--sdpo.enabled", "false"], "enabled", False),
        (["--sdpo.enabled=No"], "enabled", False),
        (["--sdpo.alpha", "1"], "alpha", 1.0),
        (["--sdpo.alpha", "0.3", "--sdpo.alpha", "0.7"], "alpha", 0.7),
        (["--sdpo.teacher_update_rate", "1e-5"], "teacher_update_rate", 1e-5),
        (["--sdpo.distillation_topk", "20"], "distillation_topk", 20),
        (["--sdpo.distillation_topk", "none"], "distillation_topk", None),
        (["--sdpo.is_clip", "NULL"], "is_clip", None),
        (["--sdpo.selector", "none"], "selector", "none"),
        (["--sdpo.success_reward_name", "exact"], "success_reward_name", "exact"),
        (["--sdpo.apply_chat_template_kwargs", '{"a": false}'], "apply_chat_template_kwargs", {"a": False}),
        (["--sdpo.apply_chat_template_kwargs", "a: false"], "apply_chat_template_kwargs", {"a": False}),
        (["--sdpo.plugins"], "plugins", ()),
        (["--sdpo.feedback_template", "No:\n{feedback_raw}"], "feedback_template", "No:\n{feedback_raw}"),
    ],
)
def test_values(words, name, value):
    found = getattr(settled(*words), name)
    assert found == value and type(found) is type(value)


def test_lists_are_several_words():
    assert config_of({"plugins": ["one", "two"]}).plugins == ("one", "two")
    assert flat("--sdpo.plugins", "one", "two", "--sdpo.alpha", "1")["sdpo.plugins"] == ["one", "two"]


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        (["--sdpo.ema_update_rate", "0.2"], "teacher_update_rate", 0.2),
        (["--sdpo.ema_tau", "0.2"], "teacher_update_rate", 0.2),
        (["--sdpo.teacher_mode", "fixed"], "teacher", "frozen"),
        (["--sdpo.teacher_regularization", "trust-region"], "teacher", "trust_region"),
        (["--sdpo.distillation_alpha", "1.0"], "alpha", 1.0),
        (["--sdpo.distillation_mode", "full_logits"], "distillation_topk", None),
        (["--sdpo.distillation_is_clip", "none"], "is_clip", None),
        (["--sdpo.use_successful_as_teacher", "false"], "selector", "none"),
    ],
)
def test_other_projects_names_are_flags_too(words, name, value):
    assert getattr(settled(*words), name) == value


@pytest.mark.parametrize(
    ("words", "pieces"),
    [
        (["--sdpo.alpha", "2"], ["`alpha` must lie in [0, 1], got 2"]),
        (["--sdpo.alpha", "much"], ["`alpha` must be a number, got 'much'"]),
        (["--sdpo.distillation_topk", "1.5"], ["`distillation_topk` must be a whole number or null, got 1.5"]),
        (["--sdpo.enabled", "maybe"], ["`enabled` must be true or false, got 'maybe'"]),
        (["--sdpo.teacher_options", "5"], ["`teacher_options` must be a mapping, got 5"]),
        (["--sdpo.teacher_options", "{a: ["], ["`--sdpo.teacher_options` must be a mapping in JSON or YAML", "{a: ["]),
        (["--sdpo.topk_support", "techer"], ["'student', 'teacher'", "Did you mean 'teacher'?"]),
        (["--sdpo.feedback_template", "x"], ["`feedback_template` must contain {feedback_raw}"]),
        (["--sdpo.preset", "papre"], ["'papre'", "Did you mean 'paper'?"]),
        (["--sdpo.config", "/no/such.yaml"], ["`--sdpo.config /no/such.yaml` cannot be read: No such file"]),
        (["--sdpo.teacher_mode", "Ema"], ["`teacher_mode` must be one of", "Did you mean 'ema'?"]),
        (["--sdpo.teacher_mode", "ema", "--sdpo.teacher", "ema"], ["`teacher`", "`teacher_mode`", "give one of them"]),
        (["--sdpo.rho", "0.5"], ["`rho` (given: 0.5) cannot be expressed", "plug-in divergence"]),
    ],
)
def test_values_that_are_refused(words, pieces):
    (problem,) = problems(*words)
    assert all(piece in problem for piece in pieces), problem


def test_all_wrong_options_come_at_once():
    assert len(problems("--sdpo.alpha", "2", "--sdpo.is_clip", "0", "--sdpo.distillation_weight", "7")) == 3


# Preset, file, flags --------------------------------------------------------------------------------------------------


def test_flags_beat_the_file_and_the_file_the_preset(tmp_path):
    path = tmp_path / "sdpo.yaml"
    path.write_text("preset: paper_rich_feedback\nalpha: 0.5\ndistillation_topk: 30\n")
    base = SDPOConfig.preset("paper_rich_feedback")
    assert (base.alpha, base.distillation_topk, base.teacher_update_rate) == (1.0, 20, 0.01)
    config = settled("--sdpo.config", str(path), "--sdpo.distillation_topk", "40")
    assert config == base.replace(alpha=0.5, distillation_topk=40)


def test_a_preset_on_the_command_line_beats_the_files(tmp_path):
    path = tmp_path / "sdpo.yaml"
    path.write_text("preset: paper_rich_feedback\nselector: random\n")
    wanted = SDPOConfig.preset("paper", selector="random")
    assert settled("--sdpo.config", str(path), "--sdpo.preset", "paper") == wanted


def test_the_default_written_out_beats_a_preset():
    assert SDPOConfig().alpha == 0.5
    assert settled("--sdpo.preset", "paper_rich_feedback", "--sdpo.alpha", "0.5").alpha == 0.5


@pytest.mark.parametrize(
    ("dialect", "text"),
    [
        ("lasgroup", "teacher_regularization: trust-region\nema_update_rate: 0.2\n"),
        ("sdpo-rl", "teacher_mode: frozen\nmax_reprompt_length: 99\n"),
        ("trl", "distillation_mode: full_logits\nteacher_sync_steps: 3\n"),
        (None, "ema_tau: 0.2\nalpha: 1.0\n"),
    ],
)
def test_files_in_other_dialects(tmp_path, dialect, text):
    path = tmp_path / "sdpo.yaml"
    path.write_text(text + (f"dialect: {dialect}\n" if dialect else ""))
    assert settled("--sdpo.config", str(path)) == SDPOConfig.from_mapping(yaml.safe_load(text), dialect)
    assert settled("--sdpo.config", str(path), "--sdpo.selector", "random").selector == "random"


def test_the_authors_whole_file(tmp_path):
    path = tmp_path / "theirs.yaml"
    path.write_text(
        "dialect: lasgroup\nactor_rollout_ref:\n  actor:\n    policy_loss: {loss_mode: sdpo}\n"
        "    self_distillation: {distillation_topk: 50, is_clip: 2}\n"
    )
    wanted = SDPOConfig.from_mapping({"distillation_topk": 50, "is_clip": 2}, "lasgroup")
    assert settled("--sdpo.config", str(path)) == wanted


@pytest.mark.parametrize(
    ("text", "more", "pieces"),
    [
        ("[1, 2]", [], ["must hold a mapping", "(list)"]),
        ("a: [", [], ["is no valid YAML"]),
        ("alhpa: 1", [], ["`alhpa`", "Did you mean 'alpha'?"]),
        ("dialect: trl", ["--sdpo.preset", "paper"], ["'paper'", "'trl'", "give one of them"]),
        ("alpha: 2", [], ["`alpha` must lie in [0, 1], got 2"]),
    ],
)
def test_files_that_are_refused(tmp_path, text, more, pieces):
    path = tmp_path / "sdpo.yaml"
    path.write_text(text)
    (problem,) = problems("--sdpo.config", str(path), *more)
    assert all(piece in problem for piece in pieces), problem


def test_an_empty_file_changes_nothing(tmp_path):
    (tmp_path / "sdpo.yaml").touch()
    assert settled("--sdpo.config", str(tmp_path / "sdpo.yaml")) == SDPOConfig()


def test_what_is_settled_is_plain():
    args = SimpleNamespace(sdpo=SimpleNamespace(preset="paper", plugins=[]))
    config = settle(args)
    assert SDPOConfig.from_mapping(json.loads(json.dumps(args.sdpo))) == config


# Changed defaults of the host -----------------------------------------------------------------------------------------


def test_the_hosts_defaults_while_sdpo_is_on():
    found = flat("--rollout.n_samples_per_prompt", "8")
    assert found["algo.kl.init_coef"] == 0.0
    assert found["algo.advantage.estimator"] == "dr_grpo"
    assert (found[TOKEN], found[CLIP], found[THRESHOLD], found[GATING]) == ("token", "clip", [0.0, 2.0], "ratio")


def test_one_rollout_has_no_group_to_compare_with():
    assert flat()["algo.advantage.estimator"] == "reinforce"


@pytest.mark.parametrize(
    "words", [["--sdpo.enabled", "false"], ["--sdpo.enabled=off", "--rollout.n_samples_per_prompt", "8"]]
)
def test_without_sdpo_the_hosts_defaults_are_its_own(words):
    parser = HostProgram.find().build_parser()
    own = vars(parser.parse_args([word for word in words if word.startswith("--rollout") or word == "8"]))
    found = {name: value for name, value in flat(*words).items() if not name.startswith("sdpo.")}
    assert found.pop("logger.wandb.run_name").startswith("ppo_") and own.pop("logger.wandb.run_name")
    assert found == own
    assert own["algo.advantage.estimator"] == "gae"


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        (["--algo.kl.init_coef", "0.01"], "algo.kl.init_coef", 0.01),
        (["--algo.kl.use_loss"], "algo.kl.init_coef", 0.01),
        (["--algo.kl.target", "6"], "algo.kl.init_coef", 0.01),
        (["--algo.advantage.estimator", "gae"], "algo.advantage.estimator", "gae"),
        (["--algo.advantage.estimator", "rloo"], "algo.advantage.estimator", "rloo"),
        ([f"--{TOKEN}", "off"], TOKEN, "off"),
        ([f"--{TOKEN}", "off"], CLIP, "mask"),
        ([f"--{TOKEN}", "seq"], CLIP, "mask"),
        ([f"--{TOKEN}", "seq"], THRESHOLD, [0.5, 5.0]),
        ([f"--{CLIP}", "mask"], TOKEN, "token"),
        ([f"--{CLIP}", "mask"], THRESHOLD, [0.5, 5.0]),
        ([f"--{THRESHOLD}", "0", "3"], THRESHOLD, [0.0, 3.0]),
        ([f"--{THRESHOLD}", "0", "3"], CLIP, "clip"),
        ([f"--{GATING}", "tv"], TOKEN, "off"),
        ([f"--{GATING}", "tv"], CLIP, "mask"),
    ],
)
def test_what_the_user_sets_holds(words, name, value):
    assert flat(*words)[name] == value


def test_releases_before_0_11_2_name_the_correction_otherwise():
    prefix = "algo.advantage.is_correction_"
    values = {prefix + "enable": False, prefix + "type": "tis", prefix + "threshold": [0.5, 5.0]}
    on, cut = (prefix + "enable", True), (prefix + "threshold", (0.0, 2.0))
    assert host_defaults(values, ()) == [on, cut]
    assert host_defaults(values, {prefix + "type"}) == [on]
    assert host_defaults(values, {prefix + "enable", prefix + "threshold"}) == []


def test_where_the_correction_can_only_be_turned_on_a_flag_turns_it_off():
    host = argparse.ArgumentParser()
    host.add_argument("--algo.advantage.is_correction_enable", action="store_true", default=False)
    assert vars(parse(host, []))["algo.advantage.is_correction_enable"] is True
    host = argparse.ArgumentParser()
    host.add_argument("--algo.advantage.is_correction_enable", action="store_true", default=False)
    found = vars(parse(host, ["--algo.advantage.no_is_correction_enable"]))
    assert found["algo.advantage.is_correction_enable"] is False


def test_the_flag_that_turns_the_correction_off_is_not_needed_here():
    assert "--algo.advantage.no_is_correction_enable" not in known_flags()


def test_every_changed_default_has_a_reason():
    assert all(each.why for each in HOST_DEFAULTS)
    assert {"", "one", "several"} == {each.rollouts for each in HOST_DEFAULTS}


# Flags that do not exist ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "pieces"),
    [
        (["--sdpo.alhpa", "1"], ["`--sdpo.alhpa`", "`--sdpo.alpha`"]),
        (["--sdpo.alp", "1"], ["`--sdpo.alp`", "`--sdpo.alpha`"]),
        (["--sdpo.topk=20"], ["`--sdpo.topk`", "`--sdpo.distillation_topk`"]),
        (["--sdpo.teacher-update-rate", "1"], ["`--sdpo.teacher_update_rate`"]),
        (["--teacher_update_rate", "1"], ["`--sdpo.teacher_update_rate`"]),
        (["--actor.adam", "1"], ["`--actor.adam`", "`--actor.adam.lr`"]),
        (["--rollout.batch_siz", "1"], ["`--rollout.batch_size`"]),
        (["--pretrain", "model"], ["Here it is `--actor.model_name_or_path`"]),
        (["--remote_rm_url", "x.py"], ["Here it is `--reward.remote_url`"]),
        (["--n_samples_per_prompt", "8"], ["Here it is `--rollout.n_samples_per_prompt`"]),
        (["--init_kl_coef", "0"], ["Here it is `--algo.kl.init_coef`"]),
        (["--advantage_estimator", "rloo"], ["Here it is `--algo.advantage.estimator`"]),
        (["--zero_stage", "3"], ["`--ds.zero_stage`"]),
        (["--micro_train_batch_size", "3"], ["Here it is `--train.micro_batch_size`"]),
        (["--colocate_all_models"], ["Here it is `--train.colocate_all`"]),
        (["--actor_learning_rate", "1"], ["Here it is `--actor.adam.lr`"]),
        (["--lora_rank", "8"], ["`--ds.lora.rank`"]),
        (["--algo.advantage.is_correction_enable"], ["Here it is `--algo.advantage.is_correction_level token`"]),
        (["--ref_reward_offload"], ["`--ref.offload` and `--reward.offload`"]),
        (["--qwertyuiop"], ["`--help` lists all flags"]),
        (["alpha=1"], ["'alpha=1' belongs to no flag"]),
    ],
)
def test_flags_that_do_not_exist(words, pieces):
    (problem,) = problems(*words)
    assert all(piece in problem for piece in pieces), problem


def test_all_unknown_flags_come_at_once():
    assert len(problems("--pretrain", "a", "--sdpo.alhpa", "1", "--zero_stage", "3")) == 3


@pytest.mark.parametrize(
    ("words", "piece"),
    [
        (["--rollout.batch_size", "many"], "Argument --rollout.batch_size: invalid int value: 'many'"),
        (["--algo.kl.estimator", "k9"], "Argument --algo.kl.estimator: invalid choice: 'k9'"),
        (["--sdpo.alpha"], "Argument --sdpo.alpha: expected one argument"),
    ],
)
def test_values_that_the_hosts_parser_refuses(words, piece):
    (problem,) = problems(*words)
    assert problem.startswith(piece)


def test_names_of_the_other_way_round_are_known_for_older_releases():
    known = ["--algo.advantage.is_correction_enable", "--algo.advantage.is_correction_type"]
    assert suggestion("--algo.advantage.is_correction_level", known).startswith(f" Here it is `{known[0]}`")
    assert suggestion("--use_icepop", known) == f" Here it is `{known[1]} icepop`."
    (problem,) = unknown_flags(["--algo.advantage.is_correction_mode", "clip"], known)
    assert known[1] in problem


@pytest.mark.parametrize("name", sorted(RENAMED))
def test_renamed_flags_exist_in_this_release_or_are_its_own(name):
    known = known_flags()
    there = [text for text in RENAMED[name] if text.partition(" ")[0] in known]
    assert bool(there) != (f"--{name}" in known)
