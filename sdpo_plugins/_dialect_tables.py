"""The vocabularies of other SDPO implementations: one table for each, foreign name → our options."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sdpo_plugins.errors import nearest
from sdpo_plugins.presets import DATACLASS_TEMPLATES, PRESETS

__all__ = ["DIALECTS", "SHARED_ROWS", "Dialect", "Row", "Untranslatable"]


class Untranslatable(Exception):
    """A foreign value that none of our options can express; the text says why and what to do."""


@dataclass(frozen=True)
class Row:
    """How one foreign option is said in ours.

    Args:
        name: The foreign name.
        ours: Our option or options, for the documentation.
        values: How values change, for the documentation; "" if they stay.
        translate: `translate(value, given)` → our options; `given` holds all options of the call.
        absorbs: Other options that `translate` reads together with this one.
    """

    name: str
    ours: str
    values: str
    translate: Callable[[Any, Mapping[str, Any]], Mapping[str, Any]]
    absorbs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Dialect:
    """The vocabulary of one project.

    Args:
        name: What `dialect` takes.
        source: The project and version the table was made from.
        own: Options it shares with us, name and meaning.
        rows: Options that need a translation.
        defaults: Our options at that project's documented defaults.
    """

    name: str
    source: str
    own: frozenset[str]
    rows: Mapping[str, Row]
    defaults: Mapping[str, Any] = field(default_factory=dict)


def _rename(name: str, ours: str) -> Row:
    return Row(name, f"`{ours}`", "", lambda value, given: {ours: value})


def _choose(name: str, ours: str, words: Mapping[str, str]) -> Row:
    def translate(value: Any, given: Mapping[str, Any]) -> Mapping[str, Any]:
        if not isinstance(value, str) or value not in words:
            # An upper-case spelling is refused like any other: guessing here could train with another teacher.
            choices = ", ".join(map(repr, words))
            raise Untranslatable(f"`{name}` must be one of {choices}, got {value!r}.{nearest(str(value), words)}")
        return {ours: words[value]}

    return Row(name, f"`{ours}`", ", ".join(f"`{theirs}` → `{mine}`" for theirs, mine in words.items()), translate)


def _only_true(name: str, why: str, otherwise: Mapping[str, Any] | None = None, shown: str = "–") -> Row:
    def translate(value: Any, given: Mapping[str, Any]) -> Mapping[str, Any]:
        if not isinstance(value, bool):
            raise Untranslatable(f"`{name}` must be true or false, got {value!r} ({type(value).__name__}).")
        if not value and otherwise is None:
            raise Untranslatable(f"`{name}=False` cannot be expressed: {why}")
        return {} if value else dict(otherwise or {})

    return Row(name, shown, "`true`: nothing to set; `false`: " + ("refused" if otherwise is None else why), translate)


def _refuse(name: str, why: str) -> Row:
    def translate(value: Any, given: Mapping[str, Any]) -> Mapping[str, Any]:
        raise Untranslatable(f"`{name}` (given: {value!r}) cannot be expressed: {why}")

    return Row(name, "–", "refused: " + why, translate)


# lasgroup/SDPO ------------------------------------------------------------------------------------------------------

_LASGROUP_TARGET = "verl.workers.config.SelfDistillationConfig"


def _hydra_target(value: Any, given: Mapping[str, Any]) -> Mapping[str, Any]:
    if value != _LASGROUP_TARGET:
        raise Untranslatable(f"`_target_` must be {_LASGROUP_TARGET!r} if it is given, got {value!r}.")
    return {}


# "sdpo" turns self-distillation on; the others are verl's own objectives.
_LOSS_MODES = ("sdpo", "vanilla", "clip-cov", "kl-cov", "gpg", "gspo", "geo_mean")


def _loss_mode(value: Any, given: Mapping[str, Any]) -> Mapping[str, Any]:
    if value not in _LOSS_MODES:
        choices = ", ".join(map(repr, _LOSS_MODES))
        raise Untranslatable(f"`loss_mode` must be one of {choices}, got {value!r}.{nearest(str(value), _LOSS_MODES)}")
    return {"enabled": value == "sdpo"}


_LATER_AUTHORS = "it belongs to later commits than the paper's (0e6d510); use a plug-in divergence for Rényi's."

_AUTHORS_OWN = frozenset(
    {
        "full_logit_distillation",
        "alpha",
        "distillation_topk",
        "distillation_add_tail",
        "is_clip",
        "success_reward_threshold",
        "teacher_update_rate",
        "reprompt_truncation",
        "dont_reprompt_on_self_success",
        "remove_thinking_from_demonstration",
        "include_environment_feedback",
        "environment_feedback_only_without_solution",
        "reprompt_template",
        "solution_template",
        "feedback_template",
    }
)

# sdpo-trainer -------------------------------------------------------------------------------------------------------

_SDPO_TRAINER_IS_CLIP = 2.0


def _is_coef(value: Any, given: Mapping[str, Any]) -> Mapping[str, Any]:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value not in (0, 1):
        raise Untranslatable(
            f"`is_coef` must be 0 (no importance ratio) or 1 (the ratio, clipped at `is_clip`), got {value!r}: a blend "
            "of the two cannot be expressed."
        )
    return {"is_clip": given.get("is_clip", _SDPO_TRAINER_IS_CLIP) if value else None}


def _is_clip_alone(value: Any, given: Mapping[str, Any]) -> Mapping[str, Any]:
    if value is not None:
        raise Untranslatable(
            f"`is_clip={value!r}` has no effect with sdpo-trainer's default `is_coef=0.0`: set `is_coef=1.0` to use "
            "it, or leave it out."
        )
    return {"is_clip": None}


_RL_TEACHERS = {"ema": "ema", "frozen": "frozen", "lora_ema": "lora_ema", "trust_region": "trust_region"}
_TRAINER_TEACHERS = {"ema": "ema", "copy": "live", "fixed": "frozen"}

# trl.experimental.sdpo ----------------------------------------------------------------------------------------------


def _distillation_mode(value: Any, given: Mapping[str, Any]) -> Mapping[str, Any]:
    modes = ("sampled_token", "full_logits", "topk_logits")
    if value not in modes:
        raise Untranslatable(
            f"`distillation_mode` must be one of {', '.join(map(repr, modes))}, got {value!r}."
            f"{nearest(str(value), modes)}"
        )
    topk = given.get("distillation_topk")
    if value == "topk_logits":
        if topk is None:
            raise Untranslatable("`distillation_mode='topk_logits'` needs `distillation_topk`, for example 100.")
        return {"full_logit_distillation": True, "distillation_topk": topk}
    if topk is not None:
        raise Untranslatable(
            f"`distillation_topk={topk!r}` has no effect with `distillation_mode={value!r}`: leave it out, or use "
            "distillation_mode='topk_logits'."
        )
    return {"full_logit_distillation": value == "full_logits", "distillation_topk": None}


def _topk_alone(value: Any, given: Mapping[str, Any]) -> Mapping[str, Any]:
    if value is not None:
        raise Untranslatable(
            f"`distillation_topk={value!r}` has no effect with TRL's default `distillation_mode='sampled_token'`: add "
            "distillation_mode='topk_logits', or leave it out."
        )
    return {"distillation_topk": None}


def _distillation_weight(value: Any, given: Mapping[str, Any]) -> Mapping[str, Any]:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0.0 <= value <= 1.0:
        raise Untranslatable(f"`distillation_weight` must be a number in [0, 1], got {value!r}.")
    return {"grpo_weight": round(1.0 - value, 12)}  # 1 − 0.9 shall read 0.1


def _updates(name: str, unit: str) -> Row:
    def translate(value: Any, given: Mapping[str, Any]) -> Mapping[str, Any]:
        return {"teacher_update_every": value, "teacher_update_unit": unit}

    return Row(name, "`teacher_update_every`, `teacher_update_unit`", f"unit `{unit}`", translate)


_SILENT = "SDPO's own warnings come once for each cause; nothing has to be tuned."


def _rows(*rows: Row) -> dict[str, Row]:
    return {row.name: row for row in rows}


_LASGROUP = Dialect(
    "lasgroup",
    "lasgroup/SDPO at 0e6d510, actor_rollout_ref.actor.self_distillation.*",
    _AUTHORS_OWN | {"enabled", "max_reprompt_len", "loss_agg_mode", "loss_scale_factor"},
    _rows(
        _choose("teacher_regularization", "teacher", {"ema": "ema", "trust-region": "trust_region"}),
        _rename("ema_update_rate", "teacher_update_rate"),
        Row("loss_mode", "`enabled`", "`sdpo` → `true`, verl's own objectives → `false`", _loss_mode),
        Row("_target_", "–", f"only `{_LASGROUP_TARGET}`: nothing to set", _hydra_target),
        _refuse("rho", _LATER_AUTHORS),
        _refuse("renyi_regularization", _LATER_AUTHORS),
        _refuse("renyi_regularization_level", _LATER_AUTHORS),
    ),
    {"thinking_removal": "paired", "reprompt_truncation": "right"},
)

_SDPO_RL = Dialect(
    "sdpo-rl",
    "sdpo-rl 0.0.3, SDPOConfig",
    _AUTHORS_OWN | {"enabled", "apply_chat_template_kwargs"},
    _rows(_choose("teacher_mode", "teacher", _RL_TEACHERS), _rename("max_reprompt_length", "max_reprompt_len")),
    {
        "success_reward_threshold": 1.0,
        "thinking_removal": "paired",
        "reprompt_truncation": "right",
        **DATACLASS_TEMPLATES,
    },
)

_SDPO_TRAINER = Dialect(
    "sdpo-trainer",
    "sdpo-trainer, README",
    frozenset({"enabled", "alpha", "distillation_topk", "thinking_tag"}),
    _rows(
        _choose("teacher_mode", "teacher", _TRAINER_TEACHERS),
        _rename("ema_tau", "teacher_update_rate"),
        _updates("ema_update_every", "rollout_batch"),
        Row(
            "is_coef", "`is_clip`", "`0` → null, `1` → the given `is_clip` or 2.0, else refused", _is_coef, ("is_clip",)
        ),
        Row("is_clip", "`is_clip`", "only together with `is_coef`", _is_clip_alone),
        _only_true(
            "reprompt_teacher", "without a reprompt the teacher knows no more than the student, and nothing is learnt."
        ),
    ),
    {"is_clip": None},
)

_TRL = Dialect(
    "trl",
    "trl 1.16, trl.experimental.sdpo.SDPOConfig",
    (_AUTHORS_OWN | {"max_reprompt_len"})
    - {
        "full_logit_distillation",
        "alpha",
        "distillation_topk",
        "distillation_add_tail",
        "is_clip",
        "reprompt_truncation",
    },
    _rows(
        _rename("distillation_alpha", "alpha"),
        Row(
            "distillation_mode",
            "`full_logit_distillation`, `distillation_topk`",
            "`sampled_token` → `false`, null; `full_logits` → `true`, null; `topk_logits` → `true`, K",
            _distillation_mode,
            ("distillation_topk",),
        ),
        Row("distillation_topk", "`distillation_topk`", "only with `distillation_mode: topk_logits`", _topk_alone),
        _rename("distillation_add_tail", "distillation_add_tail"),
        _rename("distillation_is_clip", "is_clip"),
        Row("distillation_weight", "`grpo_weight`", "w → 1 − w", _distillation_weight),
        _choose("teacher_model_kind", "teacher", {"base": "frozen", "live": "live", "ema": "ema"}),
        _updates("teacher_sync_steps", "optimizer_step"),
        _only_true("use_successful_as_teacher", "`none`", {"selector": "none"}, "`selector`"),
        _refuse("diagnostics_warning_interval", _SILENT),
        _refuse("diagnostics_flat_tolerance", _SILENT),
    ),
    PRESETS["trl"].options,
)

DIALECTS: Mapping[str, Dialect] = {table.name: table for table in (_LASGROUP, _SDPO_RL, _SDPO_TRAINER, _TRL)}

# Names that two projects use for the same thing with different words; without a dialect, both sets are accepted.
SHARED_ROWS: Mapping[str, Row] = _rows(_choose("teacher_mode", "teacher", {**_RL_TEACHERS, **_TRAINER_TEACHERS}))
