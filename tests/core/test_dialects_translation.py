"""Other projects' vocabularies: their quick starts work, their defaults apply, what has no equal is refused."""

import dataclasses
import itertools

import pytest

from sdpo_plugins import ConfigError, SDPOConfig
from sdpo_plugins._dialect_tables import DIALECTS, SHARED_ROWS
from sdpo_plugins.dialects import dialect_names, translate

OURS = {item.name for item in dataclasses.fields(SDPOConfig)}


def problem(options, dialect=None):
    with pytest.raises(ConfigError) as caught:
        SDPOConfig.from_mapping(options, dialect)
    return str(caught.value)


def changed(config):
    default = SDPOConfig()
    return {name: getattr(config, name) for name in OURS if getattr(config, name) != getattr(default, name)}


# Quick starts, as their users have them in their files


def test_sdpo_trainer_quick_start():
    config = SDPOConfig(enabled=True, alpha=0.5, distillation_topk=100, teacher_mode="ema", ema_tau=0.05)
    assert config == SDPOConfig()


def test_sdpo_trainer_all_parameters():
    config = SDPOConfig(
        enabled=True,
        alpha=0.5,
        distillation_topk=100,
        teacher_mode="ema",
        ema_tau=0.02,
        ema_update_every=3,
        is_coef=0.0,
        is_clip=2.0,
        reprompt_teacher=True,
        thinking_tag="<think>",
    )
    assert changed(config) == {"teacher_update_rate": 0.02, "teacher_update_every": 3, "is_clip": None}


def test_sdpo_rl_quick_start():
    config = SDPOConfig(
        enabled=True,
        alpha=0.5,
        distillation_topk=100,
        teacher_mode="ema",
        teacher_update_rate=0.05,
        is_clip=2.0,
        include_environment_feedback=True,
        environment_feedback_only_without_solution=True,
        remove_thinking_from_demonstration=True,
    )
    assert config == SDPOConfig()


def test_names_of_several_projects_at_once():
    config = SDPOConfig(ema_tau=0.1, teacher_mode="fixed", distillation_alpha=1)
    assert (config.teacher_update_rate, config.teacher, config.alpha) == (0.1, "frozen", 1.0)


# Every row of every table


@pytest.mark.parametrize(
    ("dialect", "given", "expected"),
    [
        ("lasgroup", {"teacher_regularization": "ema"}, {"teacher": "ema"}),
        ("lasgroup", {"teacher_regularization": "trust-region"}, {"teacher": "trust_region"}),
        ("lasgroup", {"ema_update_rate": 0.01}, {"teacher_update_rate": 0.01}),
        ("lasgroup", {"loss_mode": "sdpo"}, {"enabled": True}),
        ("lasgroup", {"loss_mode": "vanilla"}, {"enabled": False}),
        ("lasgroup", {"_target_": "verl.workers.config.SelfDistillationConfig"}, {}),
        ("lasgroup", {"is_clip": None}, {"is_clip": None}),
        ("sdpo-rl", {"teacher_mode": "trust_region"}, {"teacher": "trust_region"}),
        ("sdpo-rl", {"teacher_mode": "lora_ema"}, {"teacher": "lora_ema"}),
        ("sdpo-rl", {"teacher_mode": "frozen"}, {"teacher": "frozen"}),
        ("sdpo-rl", {"max_reprompt_length": 99}, {"max_reprompt_len": 99}),
        ("sdpo-trainer", {"teacher_mode": "copy"}, {"teacher": "live"}),
        ("sdpo-trainer", {"teacher_mode": "fixed"}, {"teacher": "frozen"}),
        ("sdpo-trainer", {"ema_tau": 0.5}, {"teacher_update_rate": 0.5}),
        (
            "sdpo-trainer",
            {"ema_update_every": 4},
            {"teacher_update_every": 4, "teacher_update_unit": "rollout_batch"},
        ),
        ("sdpo-trainer", {"is_coef": 1.0, "is_clip": 3.0}, {"is_clip": 3.0}),
        ("sdpo-trainer", {"is_coef": 1}, {"is_clip": 2.0}),
        ("sdpo-trainer", {"is_coef": 0, "is_clip": 3.0}, {"is_clip": None}),
        ("sdpo-trainer", {"is_clip": None}, {"is_clip": None}),
        ("sdpo-trainer", {"reprompt_teacher": True}, {}),
        ("trl", {"distillation_alpha": 1.0}, {"alpha": 1.0}),
        ("trl", {"distillation_mode": "sampled_token"}, {"full_logit_distillation": False, "distillation_topk": None}),
        ("trl", {"distillation_mode": "full_logits"}, {"full_logit_distillation": True, "distillation_topk": None}),
        (
            "trl",
            {"distillation_mode": "topk_logits", "distillation_topk": 7},
            {"full_logit_distillation": True, "distillation_topk": 7},
        ),
        ("trl", {"distillation_topk": None}, {"distillation_topk": None}),
        ("trl", {"distillation_add_tail": True}, {"distillation_add_tail": True}),
        ("trl", {"distillation_is_clip": None}, {"is_clip": None}),
        ("trl", {"distillation_weight": 0.9}, {"grpo_weight": 0.1}),
        ("trl", {"distillation_weight": 1}, {"grpo_weight": 0.0}),
        ("trl", {"teacher_model_kind": "base"}, {"teacher": "frozen"}),
        ("trl", {"teacher_model_kind": "live"}, {"teacher": "live"}),
        ("trl", {"teacher_model_kind": "ema"}, {"teacher": "ema"}),
        ("trl", {"teacher_sync_steps": 2}, {"teacher_update_every": 2, "teacher_update_unit": "optimizer_step"}),
        ("trl", {"use_successful_as_teacher": True}, {}),
        (
            "trl",
            {"use_successful_as_teacher": False, "include_environment_feedback": True},
            {"selector": "none", "include_environment_feedback": True},
        ),
    ],
)
def test_rows(dialect, given, expected):
    config = SDPOConfig.from_mapping(given, dialect)
    with_defaults = {**DIALECTS[dialect].defaults, **expected}
    assert {name: getattr(config, name) for name in with_defaults} == with_defaults
    # Every row that translates in its dialect does so without one, except where the name is ours with our meaning.
    if not set(given) & OURS:
        assert translate(given).items() >= expected.items()


def test_every_row_is_covered_above():
    marker = next(mark for mark in test_rows.pytestmark if mark.name == "parametrize")
    refused = {
        "rho",
        "renyi_regularization",
        "renyi_regularization_level",
        "diagnostics_warning_interval",
        "diagnostics_flat_tolerance",
    }
    seen = {(case[0], name) for case in marker.args[1] for name in case[1]}
    rows = {(table.name, name) for table in DIALECTS.values() for name in table.rows if name not in refused}
    assert rows <= seen


@pytest.mark.parametrize(
    ("options", "piece"),
    [
        ({"rho": 0.25}, "later commits than the paper's"),
        ({"renyi_regularization": True}, "later commits"),
        ({"renyi_regularization_level": 0.5}, "later commits"),
        ({"diagnostics_warning_interval": 10}, "cannot be expressed"),
        ({"diagnostics_flat_tolerance": 1e-8}, "cannot be expressed"),
        ({"_target_": "verl.workers.config.ActorConfig"}, "must be 'verl.workers.config.SelfDistillationConfig'"),
        ({"loss_mode": "spdo"}, "Did you mean 'sdpo'?"),
        ({"is_coef": 0.5}, "a blend of the two"),
        ({"is_coef": True}, "must be 0 (no importance ratio) or 1"),
        ({"reprompt_teacher": False}, "knows no more than the student"),
        ({"reprompt_teacher": 1}, "true or false"),
        ({"distillation_mode": "topk_logit"}, "Did you mean 'topk_logits'?"),
        ({"distillation_mode": "topk_logits"}, "needs `distillation_topk`"),
        ({"distillation_mode": "full_logits", "distillation_topk": 5}, "no effect"),
        ({"distillation_mode": "sampled_token", "distillation_topk": 5}, "no effect"),
        ({"distillation_weight": 1.5}, "number in [0, 1], got 1.5"),
        ({"distillation_weight": "0.5"}, "number in [0, 1], got '0.5'"),
        ({"use_successful_as_teacher": "yes"}, "true or false"),
        ({"use_successful_as_teacher": False, "include_environment_feedback": False}, "never know more"),
        ({"teacher_regularization": "trust_region"}, "Did you mean 'trust-region'?"),
    ],
)
def test_values_that_cannot_be_translated(options, piece):
    assert piece in problem(options)


@pytest.mark.parametrize("value", ["EMA", "Base", "LIVE", "ema ", "teacher", None, 1])
@pytest.mark.parametrize("name", ["teacher_model_kind", "teacher_mode", "teacher_regularization"])
def test_no_spelling_becomes_another_teacher(name, value):
    text = problem({name: value})
    assert f"`{name}` must be one of" in text
    assert repr(value) in text


def test_upper_case_suggests_the_lower():
    assert "Did you mean 'ema'?" in problem({"teacher_model_kind": "EMA"})


@pytest.mark.parametrize(
    "pair",
    [
        {"ema_tau": 0.05, "teacher_update_rate": 0.05},
        {"ema_tau": 0.05, "ema_update_rate": 0.05},
        {"alpha": 1.0, "distillation_alpha": 1.0},
        {"teacher": "ema", "teacher_mode": "ema"},
        {"teacher_mode": "ema", "teacher_model_kind": "ema"},
        {"max_reprompt_len": 5, "max_reprompt_length": 5},
        {"ema_update_every": 1, "teacher_sync_steps": 1},
        {"is_clip": 2.0, "distillation_is_clip": 2.0},
        {"grpo_weight": 0.0, "distillation_weight": 1.0},
        {"selector": "first", "use_successful_as_teacher": False},
    ],
    ids=lambda pair: "+".join(pair),
)
def test_option_and_alias_together(pair):
    for order in itertools.permutations(pair):
        text = problem({name: pair[name] for name in order})
        assert f"`{order[0]}` and `{order[1]}` both set" in text


def test_named_dialects_bring_their_documented_defaults():
    assert changed(SDPOConfig.from_mapping({}, "lasgroup")) == {
        "thinking_removal": "paired",
        "reprompt_truncation": "right",
    }
    theirs = changed(SDPOConfig.from_mapping({}, "sdpo-rl"))
    assert theirs["success_reward_threshold"] == 1.0
    assert theirs["reprompt_template"].endswith("question.\n")
    assert changed(SDPOConfig.from_mapping({}, "sdpo-trainer")) == {"is_clip": None}
    assert SDPOConfig.from_mapping({}, "trl") == SDPOConfig.preset("trl")
    assert SDPOConfig.from_mapping({}, None) == SDPOConfig()


def test_the_dialect_may_stand_in_the_mapping():
    assert SDPOConfig.from_mapping({"dialect": "trl", "teacher_sync_steps": 2}).teacher_update_every == 2
    assert "give one of them" in problem({"dialect": "trl"}, "lasgroup")


def test_preset_and_dialect_together():
    assert "both bring defaults" in problem({"preset": "paper"}, "trl")


@pytest.mark.parametrize("dialect", ["TRL", "lasgrup", 3])
def test_unknown_dialect(dialect):
    assert "`dialect` must be one of 'lasgroup', 'sdpo-rl', 'sdpo-trainer', 'trl', or null" in problem({}, dialect)


@pytest.mark.parametrize("dialect", dialect_names())
def test_a_dialect_refuses_names_it_does_not_know(dialect):
    text = problem({"topk_support": "teacher", "nonsense": 1}, dialect)
    assert f"`topk_support` is an option of ours that the dialect {dialect!r} does not know" in text
    assert f"Unknown option `nonsense` in the dialect {dialect!r}" in text


def test_a_dialect_suggests_from_its_own_names():
    assert "Did you mean 'ema_tau'?" in problem({"ema_tua": 0.1}, "sdpo-trainer")
    assert "Did you mean 'max_reprompt_length'?" in problem({"max_reprompt_lenght": 1}, "sdpo-rl")


def test_their_default_makes_an_option_dead():
    assert "`distillation_topk=20` has no effect with TRL's default" in problem({"distillation_topk": 20}, "trl")
    assert "`is_clip=3.0` has no effect with sdpo-trainer's default" in problem({"is_clip": 3.0}, "sdpo-trainer")


# The tables themselves


def test_a_name_in_two_tables_has_a_shared_meaning():
    for one, two in itertools.combinations(DIALECTS.values(), 2):
        common = (set(one.rows) & set(two.rows)) - OURS
        assert common <= set(SHARED_ROWS), (one.name, two.name, common)


def test_tables_name_only_options_that_exist():
    for table in DIALECTS.values():
        assert table.own <= OURS
        assert set(table.defaults) <= OURS
        assert not table.own & set(table.rows)


def test_canonical_names_translate_to_themselves():
    mapping = SDPOConfig.preset("paper").to_mapping()
    assert translate(mapping) == mapping
