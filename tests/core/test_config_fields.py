"""Every field of SDPOConfig: what it takes, what it refuses, and how it says so."""

import copy
import dataclasses
import inspect
import json
import math
import pickle

import pytest

from sdpo_plugins import ConfigError, SDPOConfig

FIELDS = {item.name: item for item in dataclasses.fields(SDPOConfig)}

# For each field: values that must be refused, each with a piece of the message.
REFUSED = {
    "enabled": [(1, "true or false"), ("yes", "true or false"), (None, "true or false")],
    "alpha": [
        (1.7, "lie in [0, 1]"),
        (-0.1, "lie in [0, 1]"),
        (math.nan, "finite"),
        (True, "a number"),
        ("0.5", "quotes"),
    ],
    "divergence": [(None, "a text"), (3, "a text")],
    "divergence_options": [([], "a mapping"), ({1: 2}, "a mapping")],
    "full_logit_distillation": [(0, "true or false")],
    "distillation_topk": [(0, "at least 1"), (-5, "at least 1"), (10.0, "whole number"), (True, "whole number")],
    "topk_support": [("both", "'student', 'teacher'"), (1, "one of")],
    "distillation_add_tail": [("true", "true or false")],
    "is_clip": [(0.0, "greater than 0"), (-1, "greater than 0"), (math.inf, "finite"), (False, "a number")],
    "per_token_loss_clip": [(0, "greater than 0"), (math.nan, "finite")],
    "grpo_weight": [(1.01, "lie in [0, 1]"), (-0.5, "lie in [0, 1]"), (None, "a number")],
    "loss_agg_mode": [("token_mean", "Did you mean 'token-mean'?"), (None, "one of")],
    "loss_normalization": [("local", "'global', 'reference'")],
    "loss_scale_factor": [(0, "at least 1"), (1.5, "whole number")],
    "loss_path": [("chunked", "'auto', 'fused', 'logits'"), (True, "one of")],
    "chunk_memory_mb": [(0, "greater than 0"), (math.inf, "finite"), ("256", "quotes")],
    "share_teacher_prefix": [(1, "true or false")],
    "teacher": [(None, "a text"), (True, "a text")],
    "teacher_options": [("x", "a mapping")],
    "teacher_update_rate": [(1.5, "lie in [0, 1]"), (-0.01, "lie in [0, 1]"), (10**400, "finite"), ("5e-2", "1.0e-5")],
    "teacher_update_unit": [("steps", "'rollout_batch', 'optimizer_step'")],
    "teacher_update_every": [(0, "at least 1"), (2.0, "whole number"), (True, "whole number")],
    "selector": [(0, "a text")],
    "selector_options": [(None, "a mapping")],
    "selector_seed": [(-1, "at least 0"), (0.5, "whole number")],
    "success_reward_threshold": [(math.nan, "finite"), (math.inf, "finite"), ("1", "a number")],
    "success_reward_name": [(3, "a text or null")],
    "dont_reprompt_on_self_success": [(1, "true or false")],
    "reprompter": [([], "a text")],
    "reprompter_options": [(["a"], "a mapping")],
    "remove_thinking_from_demonstration": [(None, "true or false")],
    "thinking_tag": [("think", "opening tag"), ("</think>", "opening tag"), ("<>", "opening tag"), (None, "a text")],
    "thinking_removal": [("pair", "Did you mean 'paired'?")],
    "include_environment_feedback": [("no", "true or false")],
    "environment_feedback_only_without_solution": [(0, "true or false")],
    "max_reprompt_len": [(0, "at least 1"), (1e4, "whole number")],
    "reprompt_truncation": [("middle", "'sections', 'left', 'right', 'error'")],
    "reprompt_template": [
        ("{prompt} {solution}", "{feedback} is missing"),
        ("{prompt}{solution}{feedback}{extra}", "unknown placeholder {extra}"),
        ("{prompt}{solution}{feedback", "no valid template"),
        ("{prompt!r}{solution}{feedback}", "formats a placeholder"),
        (None, "a text"),
    ],
    "solution_template": [("Solution:", "{successful_previous_attempt} is missing"), (1, "a text")],
    "feedback_template": [("Said.", "{feedback_raw} is missing"), (True, "a text")],
    "apply_chat_template_kwargs": [("enable_thinking", "a mapping")],
    "record": [(1, "true or false"), ("no", "true or false")],
    "record_dir": [(3, "a text or null")],
    "record_rollouts": [(-1, "at least 0"), (1.5, "whole number")],
    "record_tokens": [(0, "at least 1"), (None, "whole number")],
    "record_alternatives": [(-1, "at least 0"), (True, "whole number")],
    "record_max_mb": [(0, "greater than 0"), (math.inf, "finite")],
    "record_picture_every": [(-1, "at least 0")],
    "plugins": [("renyi", "a list of texts"), ([1], "a list of texts"), (None, "a list of texts")],
}

# For each field: values other than the default that must be taken (together with options that they need).
TAKEN = {
    "enabled": [False],
    "alpha": [0, 1, 0.25],
    "divergence": ["js"],
    "divergence_options": [{"order": 0.5}],
    "full_logit_distillation": [(False, {"alpha": 1.0})],
    "distillation_topk": [1, None],
    "topk_support": ["teacher"],
    "distillation_add_tail": [False],
    "is_clip": [None, 1, 1e-3],
    "per_token_loss_clip": [0.5],
    "grpo_weight": [0.9, 1],
    "loss_agg_mode": ["seq-mean-token-sum-norm"],
    "loss_normalization": ["reference"],
    "loss_scale_factor": [(1024, {"loss_agg_mode": "seq-mean-token-sum-norm"})],
    "loss_path": ["fused", "logits"],
    "chunk_memory_mb": [64, 0.5],
    "share_teacher_prefix": [False],
    "teacher": ["trust_region", "a_plugin's"],
    "teacher_options": [{"a": 1}],
    "teacher_update_rate": [0, 1.0],
    "teacher_update_unit": ["optimizer_step"],
    "teacher_update_every": [10],
    "selector": ["none", "random"],
    "selector_options": [{"a": None}],
    "selector_seed": [7],
    "success_reward_threshold": [-1, 1.0],
    "success_reward_name": ["accuracy"],
    "dont_reprompt_on_self_success": [False],
    "reprompter": ["mine"],
    "reprompter_options": [{"a": [1, 2]}],
    "remove_thinking_from_demonstration": [False],
    "thinking_tag": ["<reasoning>"],
    "thinking_removal": ["paired", "strict"],
    "include_environment_feedback": [False],
    "environment_feedback_only_without_solution": [False],
    "max_reprompt_len": [1],
    "reprompt_truncation": ["left", "right", "error"],
    "reprompt_template": ["{{literal}} {prompt}{solution}{feedback}"],
    "solution_template": ["{successful_previous_attempt}"],
    "feedback_template": ["Said: {feedback_raw}"],
    "apply_chat_template_kwargs": [{"enable_thinking": False}],
    "record": [False],
    "record_dir": ["elsewhere"],
    "record_rollouts": [0, 64],
    "record_tokens": [1],
    "record_alternatives": [0],
    "record_max_mb": [0.5, 1],
    "record_picture_every": [0, 1],
    "plugins": [["renyi"], ("a", "b")],
}


def test_every_field_is_covered_here():
    assert set(REFUSED) == set(FIELDS) == set(TAKEN)


@pytest.mark.parametrize(("name", "value", "piece"), [(n, v, p) for n, cases in REFUSED.items() for v, p in cases])
def test_refused(name, value, piece):
    with pytest.raises(ConfigError) as caught:
        SDPOConfig(**{name: value})
    assert len(caught.value.problems) == 1
    assert f"`{name}`" in str(caught.value)
    assert piece in str(caught.value)


@pytest.mark.parametrize(("name", "case"), [(n, c) for n, cases in TAKEN.items() for c in cases])
def test_taken_and_round_trip(name, case):
    value, beside = case if isinstance(case, tuple) and len(case) == 2 and isinstance(case[1], dict) else (case, {})
    config = SDPOConfig(**{name: value, **beside})
    wanted = tuple(value) if name == "plugins" else value
    assert getattr(config, name) == wanted
    plain = json.loads(json.dumps(config.to_mapping()))
    again = SDPOConfig.from_mapping(plain)
    assert again == config
    assert hash(again) == hash(config)
    assert config != SDPOConfig()


def test_every_field_has_help():
    assert [name for name, item in FIELDS.items() if not item.metadata["help"].endswith(".")] == []


def test_all_problems_in_one_error():
    with pytest.raises(ConfigError) as caught:
        SDPOConfig(
            alpha=2, distillation_topk=0, is_clip=math.nan, distillation_tpk=3, ema_tau=0.1, teacher_update_rate=0.2
        )
    text = str(caught.value)
    assert text.startswith("5 problems in the SDPO configuration:\n  - ")
    assert len(caught.value.problems) == 5
    assert "Unknown option `distillation_tpk`. Did you mean 'distillation_topk'?" in text
    assert "`ema_tau` and `teacher_update_rate` both set `teacher_update_rate`" in text
    for name in ("alpha", "distillation_topk", "is_clip"):
        assert f"  - `{name}` must" in text


def test_an_error_is_a_value_error():
    with pytest.raises(ValueError, match="alpha"):
        SDPOConfig(alpha=-1)


@pytest.mark.parametrize(
    ("options", "piece"),
    [
        ({"full_logit_distillation": False, "alpha": 0.5}, "needs `alpha=1.0`, got alpha=0.5"),
        ({"full_logit_distillation": False, "alpha": 1.0, "divergence": "js"}, "divergence='js'"),
        ({"selector": "none", "include_environment_feedback": False}, "never know more than the student"),
        ({"loss_scale_factor": 5}, "seq-mean-token-sum-norm"),
    ],
)
def test_combinations_refused(options, piece):
    with pytest.raises(ConfigError, match="`") as caught:
        SDPOConfig(**options)
    assert piece in str(caught.value)


@pytest.mark.parametrize("name", ["learning_rate", "num_generations", "beta"])
def test_options_of_the_trainer_are_sent_there(name):
    with pytest.raises(ConfigError, match="option of the trainer"):
        SDPOConfig(**{name: 1})


def test_unknown_option_without_a_near_match_points_to_the_reference():
    with pytest.raises(ConfigError, match=r"Unknown option `zzz`\. All options stand in docs/configuration\.md"):
        SDPOConfig(zzz=1)


def test_frozen():
    config = SDPOConfig()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.alpha = 1.0


def test_users_objects_are_neither_changed_nor_aliased():
    options = {
        "preset": "paper",
        "apply_chat_template_kwargs": {"tools": ["a"], "deep": {"x": 1}},
        "plugins": ["one"],
        "ema_tau": 0.3,
    }
    before = copy.deepcopy(options)
    config = SDPOConfig.from_mapping(options)
    assert options == before
    options["apply_chat_template_kwargs"]["deep"]["x"] = 2
    options["apply_chat_template_kwargs"]["tools"].append("b")
    options["plugins"].append("two")
    assert config.apply_chat_template_kwargs == before["apply_chat_template_kwargs"]
    assert config.plugins == ("one",)
    config.to_mapping()["apply_chat_template_kwargs"]["deep"]["x"] = 3
    assert config.apply_chat_template_kwargs["deep"] == {"x": 1}


def test_two_configurations_share_no_default():
    SDPOConfig().divergence_options["order"] = 1
    assert SDPOConfig().divergence_options == {}


@pytest.mark.parametrize("copied", [lambda c: pickle.loads(pickle.dumps(c)), copy.deepcopy, copy.copy], ids="pdc")
def test_pickle_and_copy(copied):
    config = SDPOConfig(alpha=0.25, teacher_options={"a": {"b": 1}}, plugins=("x",))
    again = copied(config)
    assert again == config
    assert hash(again) == hash(config)
    assert type(again) is SDPOConfig


def test_equal_and_hashable():
    assert SDPOConfig(alpha=1) == SDPOConfig(alpha=1.0)
    assert {SDPOConfig(alpha=1): "found"}[SDPOConfig(distillation_alpha=1.0)] == "found"
    assert SDPOConfig(divergence_options={"a": 1}) != SDPOConfig(divergence_options={"a": 2})


def test_signature_is_the_dataclass_own():
    parameters = inspect.signature(SDPOConfig).parameters
    assert list(parameters) == list(FIELDS)
    assert all(parameter.kind is inspect.Parameter.KEYWORD_ONLY for parameter in parameters.values())
    assert parameters["alpha"].default == 0.5


def test_replace_validates():
    config = SDPOConfig(alpha=0.25)
    assert config.replace(distillation_topk=5) == SDPOConfig(alpha=0.25, distillation_topk=5)
    assert dataclasses.replace(config, alpha=1.0).alpha == 1.0
    with pytest.raises(ConfigError, match="alpha"):
        config.replace(alpha=3)


@pytest.mark.parametrize("given", [None, ["alpha"], "alpha: 1"])
def test_from_mapping_wants_a_mapping(given):
    with pytest.raises(ConfigError, match="must be a mapping"):
        SDPOConfig.from_mapping(given)


def test_names_that_are_no_text():
    with pytest.raises(ConfigError, match=r"must be texts, got 3 \(int\)"):
        SDPOConfig.from_mapping({3: 1})
