"""Presets hold the values of the reference, and nothing else changes."""

import dataclasses

import pytest

from sdpo_plugins import ConfigError, SDPOConfig
from sdpo_plugins.presets import PAPER_HOST_SETTINGS, PRESETS, preset_names, preset_options

# Typed off the table of effective values of the authors' runs, not off the code.
SHARED = {
    "teacher": "ema",
    "is_clip": 2.0,
    "distillation_add_tail": True,
    "environment_feedback_only_without_solution": True,
    "dont_reprompt_on_self_success": True,
    "remove_thinking_from_demonstration": True,
    "success_reward_threshold": 0.5,
    "max_reprompt_len": 10240,
    "reprompt_truncation": "right",
    "thinking_removal": "paired",
    "loss_agg_mode": "token-mean",
    "reprompt_template": "{prompt}{solution}{feedback}\n\nCorrectly solve the original question.",
    "solution_template": "\nCorrect solution:\n\n{successful_previous_attempt}",
    "feedback_template": "\nThe following is feedback from your unsuccessful earlier attempt:\n\n{feedback_raw}",
}
RICH = {"alpha": 1.0, "distillation_topk": 20, "teacher_update_rate": 0.01, "include_environment_feedback": True}
EXPECTED = {
    "paper": {
        "alpha": 0.5,
        "distillation_topk": 100,
        "teacher_update_rate": 0.05,
        "include_environment_feedback": False,
        **SHARED,
    },
    "paper_rich_feedback": {**RICH, **SHARED},
    "paper_test_time": {**RICH, **SHARED},
    "trl": {
        "full_logit_distillation": False,
        "alpha": 1.0,
        "distillation_add_tail": False,
        "is_clip": 2.0,
        "success_reward_threshold": 1.0,
        "include_environment_feedback": False,
        "remove_thinking_from_demonstration": False,
        "teacher_update_rate": 0.05,
        "reprompt_template": "{prompt}{solution}{feedback}\n\nCorrectly solve the original question.\n",
        "solution_template": "\nCorrect solution:\n\n{successful_previous_attempt}\n\n",
        "feedback_template": (
            "\nThe following is feedback from your unsuccessful earlier attempt:\n\n{feedback_raw}\n\n"
        ),
    },
}
HOST = {
    "paper": (1e-5, 10, 32, 8, 32, None),
    "paper_rich_feedback": (1e-6, 0, 32, 8, 1, None),
    "paper_test_time": (1e-6, 0, 1, 16, 1, 5.0),
}


def test_the_names():
    assert set(preset_names()) == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_values(name):
    config = SDPOConfig.preset(name)
    assert {key: getattr(config, key) for key in EXPECTED[name]} == EXPECTED[name]
    untouched = set(PRESETS[name].options) ^ {item.name for item in dataclasses.fields(SDPOConfig)}
    default = SDPOConfig()
    assert all(getattr(config, key) == getattr(default, key) for key in untouched)
    assert PRESETS[name].source


def test_trl_defaults_are_those_of_the_installed_trl(monkeypatch):
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    from trl.experimental.sdpo import SDPOConfig as TheirConfig

    theirs = {item.name: item.default for item in dataclasses.fields(TheirConfig)}
    ours = SDPOConfig.preset("trl")
    translated = SDPOConfig.from_mapping(
        {
            name: theirs[name]
            for name in theirs
            if name.startswith(
                ("distillation_", "teacher_", "success_", "include_env", "environment_", "remove_thinking")
            )
            or name.endswith(("_template", "reprompt_len", "as_teacher", "self_success"))
        },
        dialect="trl",
    )
    assert translated == ours


@pytest.mark.parametrize("name", HOST)
def test_host_settings(name):
    found = PAPER_HOST_SETTINGS[name]
    assert HOST[name] == (
        found.learning_rate,
        found.warmup_steps,
        found.questions_per_batch,
        found.rollouts_per_question,
        found.mini_batch_size,
        found.advantage_clip,
    )
    shared = (found.weight_decay, found.max_grad_norm, found.max_prompt_length, found.max_response_length)
    assert shared == (0.01, 1.0, 2048, 8192)
    assert (found.temperature, found.rollout_is, found.rollout_is_threshold) == (1.0, "token", 2.0)


def test_host_settings_and_presets_are_read_only():
    with pytest.raises(TypeError):
        PAPER_HOST_SETTINGS["paper"] = None
    with pytest.raises(TypeError):
        PRESETS["paper"].options["alpha"] = 0.0
    preset_options("paper")["alpha"] = 0.0
    assert SDPOConfig.preset("paper").alpha == 0.5


def test_overrides_and_aliases_on_top():
    config = SDPOConfig.preset("paper_rich_feedback", ema_tau=0.1, distillation_topk=None)
    assert (config.teacher_update_rate, config.distillation_topk, config.alpha) == (0.1, None, 1.0)


@pytest.mark.parametrize("name", ["papr", "PAPER", 3])
def test_unknown_preset(name):
    with pytest.raises(ConfigError, match="`preset` must be one of 'paper'"):
        SDPOConfig.from_mapping({"preset": name})


def test_unknown_preset_suggests():
    with pytest.raises(ConfigError, match="Did you mean 'paper_rich_feedback'"):
        SDPOConfig.preset("paper_rich_feedbak")


def test_preset_is_no_option_of_the_constructor():
    with pytest.raises(ConfigError, match=r"use SDPOConfig\.preset"):
        SDPOConfig(preset="paper")
