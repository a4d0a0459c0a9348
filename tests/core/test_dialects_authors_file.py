"""The authors' YAML, whole, nested or dotted: SDPO's options are found, the rest is the host's."""

import copy

import pytest

from sdpo_plugins import ConfigError, SDPOConfig

SECTION = {
    "_target_": "verl.workers.config.SelfDistillationConfig",
    "alpha": 1.0,
    "is_clip": None,
    "teacher_regularization": "trust-region",
    "ema_update_rate": 0.01,
    "reprompt_truncation": "error",
}
WHOLE_FILE = {
    "actor_rollout_ref": {
        "model": {"path": "Qwen/Qwen3-8B"},
        "actor": {
            "optim": {"lr": 1e-6},
            "policy_loss": {"loss_mode": "sdpo", "clip_cov_ratio": 0.0002},
            "loss_agg_mode": "seq-mean-token-sum-norm",
            "loss_scale_factor": 8192,
            "self_distillation": SECTION,
        },
    },
    "data": {"train_batch_size": 32},
    "trainer": {"n_gpus_per_node": 4},
}


def problem(options, dialect=None):
    with pytest.raises(ConfigError) as caught:
        SDPOConfig.from_mapping(options, dialect)
    return str(caught.value)


@pytest.mark.parametrize("dialect", [None, "lasgroup"])
def test_the_authors_whole_file(dialect):
    before = copy.deepcopy(WHOLE_FILE)
    config = SDPOConfig.from_mapping(WHOLE_FILE, dialect)
    assert before == WHOLE_FILE
    assert (config.alpha, config.is_clip, config.teacher) == (1.0, None, "trust_region")
    assert (config.teacher_update_rate, config.reprompt_truncation) == (0.01, "error")
    assert (config.loss_agg_mode, config.loss_scale_factor, config.enabled) == ("seq-mean-token-sum-norm", 8192, True)


def test_dotted_names():
    prefix = "actor_rollout_ref.actor.self_distillation."
    options = {
        prefix + "alpha": 0.0,
        prefix + "distillation_topk": None,
        "actor_rollout_ref.actor.policy_loss.loss_mode": "vanilla",
        "actor_rollout_ref.actor.optim.lr": 1e-5,
    }
    config = SDPOConfig.from_mapping(options, "lasgroup")
    assert (config.alpha, config.distillation_topk, config.enabled) == (0.0, None, False)
    assert SDPOConfig(**{prefix + "alpha": 0.0}).alpha == 0.0


@pytest.mark.parametrize(
    ("options", "piece"),
    [
        ({"actor_rollout_ref": {"actor": {"self_distillation": {"alhpa": 1}}}}, "Did you mean 'alpha'?"),
        ({"actor_rollout_ref": {"actor": {"self_distillation": 3}}}, "must be a mapping, got 3"),
        ({"actor_rollout_ref": None}, "`actor_rollout_ref` must be a mapping"),
        ({"actor_rollout_ref": {"actor": {"self_distillation": {"alpha": 1}}}, "alpha": 0}, "given twice"),
        ({"actor_rollout_ref": {}, "alhpa": 1}, "Did you mean 'alpha'?"),
        ({"trainer": {"total_epochs": 1}}, "Unknown option `trainer`"),
    ],
)
def test_problems_inside_the_authors_file(options, piece):
    assert piece in problem(options)


def test_other_dialects_do_not_know_the_authors_path():
    assert "Unknown option `actor_rollout_ref`" in problem(WHOLE_FILE, "trl")
