"""`SDPOTrainingArguments`: one object for Python, YAML and the command line, with every option of SDPOConfig."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from trl import GRPOConfig, ModelConfig, TrlParser

from sdpo_plugins.errors import ConfigError
from sdpo_trl import SDPOConfig, SDPOTrainingArguments

HOST = {"use_cpu": True, "bf16": False, "report_to": "none"}

# A value other than the default for every option; the test below sees to it that none is forgotten.
OTHER: dict[str, Any] = {
    "enabled": False,
    "alpha": 0.25,
    "divergence": "reverse_kl",
    "divergence_options": {"order": 0.5},
    "full_logit_distillation": True,
    "distillation_topk": None,
    "topk_support": "teacher",
    "distillation_add_tail": False,
    "is_clip": None,
    "per_token_loss_clip": 0.5,
    "grpo_weight": 0.9,
    "loss_agg_mode": "seq-mean-token-sum-norm",
    "loss_normalization": "reference",
    "loss_scale_factor": 64,
    "loss_path": "logits",
    "chunk_memory_mb": 64.0,
    "share_teacher_prefix": False,
    "teacher": "frozen",
    "teacher_options": {"device": "cpu"},
    "teacher_update_rate": 0.01,
    "teacher_update_unit": "optimizer_step",
    "teacher_update_every": 3,
    "selector": "shortest",
    "selector_options": {"of": "tokens"},
    "selector_seed": 7,
    "success_reward_threshold": 1.0,
    "success_reward_name": "correct",
    "dont_reprompt_on_self_success": False,
    "reprompter": "mine",
    "reprompter_options": {"tone": "kind"},
    "remove_thinking_from_demonstration": False,
    "thinking_tag": "<thought>",
    "thinking_removal": "strict",
    "include_environment_feedback": False,
    "environment_feedback_only_without_solution": False,
    "max_reprompt_len": 512,
    "reprompt_truncation": "left",
    "reprompt_template": "{prompt}{solution}{feedback}\nAgain: {{x}}.",
    "solution_template": "S {successful_previous_attempt}",
    "feedback_template": "F {feedback_raw}",
    "apply_chat_template_kwargs": {"enable_thinking": False},
    "record": False,
    "record_dir": "elsewhere",
    "record_rollouts": 9,
    "record_tokens": 100,
    "record_alternatives": 0,
    "record_max_mb": 1.5,
    "record_picture_every": 0,
    "plugins": ("one", "two.three"),
}


@pytest.fixture
def made(tmp_path: Path) -> Callable[..., Any]:
    return lambda **options: SDPOTrainingArguments(output_dir=str(tmp_path), **HOST, **options)


def parsed(*words: str, tmp_path: Path, config: dict[str, Any] | None = None, **kwargs: Any) -> Any:
    """What TrlParser makes of a command line and a YAML file."""
    command = ["--output_dir", str(tmp_path), "--use_cpu", "true", "--bf16", "false", "--report_to", "none", *words]
    if config is not None:
        file = tmp_path / "run.yaml"
        file.write_text(yaml.safe_dump(config))
        command += ["--config", str(file)]
    (arguments,) = TrlParser((SDPOTrainingArguments,)).parse_args_and_config(command, **kwargs)
    return arguments


def test_every_option_is_there_and_arrives(made: Any, tmp_path: Path) -> None:
    names = {item.name for item in dataclasses.fields(SDPOConfig)}
    assert set(OTHER) == names
    defaults = SDPOConfig()
    assert all(getattr(defaults, name) != value for name, value in OTHER.items() if name != "full_logit_distillation")
    wanted = SDPOConfig(**OTHER)
    assert made(**OTHER).to_sdpo_config() == wanted
    assert made(**wanted.to_mapping()).to_sdpo_config() == wanted
    from_yaml = parsed(tmp_path=tmp_path, config={**OTHER, "plugins": ["one", "two.three"]})
    assert from_yaml.to_sdpo_config() == wanted
    words: list[str] = []
    for name, value in OTHER.items():
        words.append(f"--{name}")
        if isinstance(value, tuple):
            words += value
        else:
            words.append(json.dumps(value) if isinstance(value, (dict, bool)) else str(value))
    assert parsed(*words, tmp_path=tmp_path).to_sdpo_config() == wanted
    for item in dataclasses.fields(SDPOTrainingArguments):
        if item.name in names:
            assert item.metadata["help"].startswith(SDPOConfig.__dataclass_fields__[item.name].metadata["help"])


def test_nothing_set_is_the_default(made: Any, tmp_path: Path) -> None:
    assert isinstance(made(), GRPOConfig)
    assert made().to_sdpo_config() == SDPOConfig()
    assert parsed(tmp_path=tmp_path).to_sdpo_config() == SDPOConfig()
    assert parsed(tmp_path=tmp_path, config={"learning_rate": 0.5}).learning_rate == 0.5


NULLABLE = ("distillation_topk", "is_clip", "per_token_loss_clip", "success_reward_name")


@pytest.mark.parametrize("name", NULLABLE)
def test_null_is_a_value_and_absent_is_not(made: Any, tmp_path: Path, name: str) -> None:
    preset = {"preset": "trl"}
    for options, expected in (({}, SDPOConfig()), (preset, SDPOConfig.preset("trl"))):
        assert getattr(made(**options).to_sdpo_config(), name) == getattr(expected, name)
        assert getattr(parsed(tmp_path=tmp_path, config=options).to_sdpo_config(), name) == getattr(expected, name)
        for arguments in (
            made(**options, **{name: None}),
            parsed(tmp_path=tmp_path, config={**options, name: None}),
            parsed(f"--{name}", "none", tmp_path=tmp_path, config=options),
            parsed(f"--{name}", "null", tmp_path=tmp_path, config=options),
        ):
            assert getattr(arguments.to_sdpo_config(), name) is None


def test_a_preset_with_overrides(made: Any, tmp_path: Path) -> None:
    rich = SDPOConfig.preset("paper_rich_feedback")
    assert made(preset="paper_rich_feedback").to_sdpo_config() == rich
    changed = rich.replace(alpha=0.5, distillation_topk=7, is_clip=None)
    assert changed != rich
    overrides = {"alpha": 0.5, "distillation_topk": 7, "is_clip": None}
    assert made(preset="paper_rich_feedback", **overrides).to_sdpo_config() == changed
    file = {"preset": "paper_rich_feedback", **overrides}
    assert parsed(tmp_path=tmp_path, config=file).to_sdpo_config() == changed
    # What is said on the command line wins over the file.
    again = parsed("--alpha", "0.75", "--distillation_topk", "9", tmp_path=tmp_path, config=file)
    assert again.to_sdpo_config() == changed.replace(alpha=0.75, distillation_topk=9)


@pytest.mark.parametrize(
    ("word", "value"), [("false", False), ("no", False), ("0", False), ("true", True), ("1", True)]
)
def test_booleans_of_a_command_line(tmp_path: Path, word: str, value: bool) -> None:
    arguments = parsed("--enabled", word, tmp_path=tmp_path, config={"enabled": not value})
    assert arguments.to_sdpo_config().enabled is value


def test_what_the_command_line_cannot_mean_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, message in (
        (("--alpha", "much"), "invalid float value: 'much'"),
        (("--enabled", "perhaps"), "enabled"),
        (("--max_reprompt_len", "1.5"), "invalid int value: '1.5'"),
    ):
        with pytest.raises(SystemExit):
            parsed(*words, tmp_path=tmp_path)
        assert message in capsys.readouterr().err
    with pytest.raises(ConfigError, match=r"`distillation_topk` must be a whole number or null, got 'many'"):
        parsed("--distillation_topk", "many", tmp_path=tmp_path)
    with pytest.raises(ConfigError, match=r"`is_clip` must be greater than 0, got -1"):
        parsed("--is_clip", "-1", tmp_path=tmp_path)
    with pytest.raises(ConfigError, match=r"`preset` must be one of.*got 'papper'"):
        parsed("--preset", "papper", tmp_path=tmp_path)


def test_unknown_keys_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="alhpa"):
        parsed(tmp_path=tmp_path, config={"alhpa": 0.5})
    with pytest.raises(ValueError, match="alhpa"):
        parsed("--alhpa", "0.5", tmp_path=tmp_path)


def test_beside_the_other_arguments_of_a_trl_script(tmp_path: Path) -> None:
    kinds: Any = (SDPOTrainingArguments, ModelConfig)
    words = ["--output_dir", str(tmp_path), "--use_cpu", "true", "--bf16", "false", "--alpha", "1", "--lora_r", "4"]
    arguments, model = TrlParser(kinds).parse_args_and_config(words)
    assert (arguments.to_sdpo_config().alpha, model.lora_r) == (1.0, 4)


@pytest.mark.parametrize("options", [{}, {"preset": "trl", "alpha": 1.0}, OTHER], ids=["default", "preset", "all"])
def test_the_object_survives_copies_and_texts(made: Any, options: dict[str, Any]) -> None:
    arguments = made(**options)
    config = arguments.to_sdpo_config()
    for twin in (
        pickle.loads(pickle.dumps(arguments)),
        copy.copy(arguments),
        copy.deepcopy(arguments),
    ):
        assert type(twin) is SDPOTrainingArguments
        assert twin.to_sdpo_config() == config
        assert twin.learning_rate == arguments.learning_rate
    as_dict = arguments.to_dict()
    assert json.loads(arguments.to_json_string()) == json.loads(json.dumps(as_dict))
    assert set(arguments.to_sanitized_dict()) >= set(as_dict)
    # What a run's log keeps is enough to make the same configuration again.
    options_again = {name: as_dict[name] for name in [*OTHER, "preset"]}
    assert made(**options_again).to_sdpo_config() == config
    assert "alpha=" in repr(arguments)


def test_the_users_mapping_is_not_the_objects(made: Any) -> None:
    mine = {"enable_thinking": False}
    config = made(apply_chat_template_kwargs=mine).to_sdpo_config()
    mine["enable_thinking"] = True
    assert config.apply_chat_template_kwargs == {"enable_thinking": False}


def test_its_own_two_options(made: Any) -> None:
    assert made(teacher_accuracy_every=2).teacher_accuracy_every == 2
    with pytest.raises(ConfigError, match=r"`teacher_accuracy_every` must be at least 0, got -1"):
        made(teacher_accuracy_every=-1)


def test_it_is_one_class_under_its_own_name() -> None:
    assert SDPOTrainingArguments.__name__ == SDPOTrainingArguments.__qualname__ == "SDPOTrainingArguments"
    assert SDPOTrainingArguments.__module__ == "sdpo_trl.arguments"
    assert "distillation_topk" in (SDPOTrainingArguments.__doc__ or "")
