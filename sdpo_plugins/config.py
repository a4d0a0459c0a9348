"""`SDPOConfig`: every option of the algorithm, its default, its range, in one place."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sdpo_plugins._options import LOSS_AGG_MODES, option, problems_of, to_plain
from sdpo_plugins.errors import ConfigError

__all__ = ["SDPOConfig"]


@dataclass(frozen=True, kw_only=True)
class SDPOConfig:
    r"""Options of Self-Distilled Policy Optimization; the names are the authors' where the authors have one.

    Names of other projects (`ema_tau`, `distillation_alpha`, …) are accepted too and translated by
    `sdpo_plugins.dialects`. All problems of a configuration are reported in one `ConfigError`.

    Orientation, stated once: S is the student, T the teacher, both distributions over the vocabulary at one token.
    `alpha` = 0 is the forward KL(T‖S), `alpha` = 1 the reverse KL(S‖T), and between them the generalized
    Jensen–Shannon divergence (1−α)·KL(S‖M) + α·KL(T‖M) with M = (1−α)·S + α·T. `teacher_update_rate` r moves the
    teacher towards the student: θ' ← (1−r)·θ' + r·θ.

    Example:
        >>> SDPOConfig(alpha=1.0, distillation_topk=20).teacher
        'ema'

    Source: arXiv 2601.20802, and the defaults of its authors' YAML (actor/actor.yaml).
    """

    enabled: bool = option(True, "Replace the policy loss by SDPO's; false leaves the host's own algorithm as it is.")

    # Divergence between student and teacher
    alpha: float = option(
        0.5, "0: forward KL(T‖S), 1: reverse KL(S‖T), between: generalized Jensen–Shannon.", low=0.0, high=1.0
    )
    divergence: str = option("generalized_jsd", "Name of the per-token divergence; see `sdpo list`.")
    divergence_options: Mapping[str, Any] = option({}, "Options of the divergence.")
    full_logit_distillation: bool = option(
        True, "False: compare only the sampled token's log-probabilities (needs alpha = 1)."
    )
    distillation_topk: int | None = option(100, "Size K of the support; null: the whole vocabulary.", low=1)
    topk_support: str = option("student", "Whose top-K tokens are compared.", choices=("student", "teacher"))
    distillation_add_tail: bool = option(
        True, "True: one more entry holds the mass outside the top-K; false: renormalise within the top-K."
    )
    is_clip: float | None = option(
        2.0, "Upper clip of the importance ratio π/π_old per token; null: no ratio.", low=0.0, exclusive=True
    )
    per_token_loss_clip: float | None = option(
        None, "Upper clip of each token's loss in nats, before weights; null: none.", low=0.0, exclusive=True
    )
    grpo_weight: float = option(
        0.0, "λ of the hybrid λ·GRPO + (1−λ)·SDPO; 0 is SDPO alone, 1 is GRPO alone.", low=0.0, high=1.0
    )
    loss_agg_mode: str = option("token-mean", "How token losses become one number.", choices=LOSS_AGG_MODES)
    loss_normalization: str = option(
        "global",
        "'global': over the active tokens of the whole mini-batch across ranks; 'reference': per micro-batch.",
        choices=("global", "reference"),
    )
    loss_scale_factor: int | None = option(
        None, "Divisor of seq-mean-token-sum-norm in tokens; null: the padded response length.", low=1
    )

    # How the loss is computed; the result is the same
    loss_path: str = option(
        "auto",
        "'fused': from hidden states, a chunk of logits at a time; 'logits': from whole logits; 'auto': fused wherever "
        "the model's head can be found.",
        choices=("auto", "fused", "logits"),
    )
    chunk_memory_mb: float | None = option(
        None, "Working memory of the fused loss in MiB; null: 256 on a CPU, 1024 on a GPU.", low=0.0, exclusive=True
    )
    share_teacher_prefix: bool = option(
        True, "Compute what teacher prompts have in common once, where the model can cache it (fused path)."
    )

    # Teacher
    teacher: str = option("ema", "Name of the teacher strategy; see `sdpo list`.")
    teacher_options: Mapping[str, Any] = option({}, "Options of the teacher strategy.")
    teacher_update_rate: float = option(
        0.05, "r in θ' ← (1−r)·θ' + r·θ; for trust_region the share of the student's logits.", low=0.0, high=1.0
    )
    teacher_update_unit: str = option(
        "rollout_batch", "What `teacher_update_every` counts.", choices=("rollout_batch", "optimizer_step")
    )
    teacher_update_every: int = option(1, "Update the teacher every n units.", low=1)

    # Who demonstrates
    selector: str = option("first", "Which successful rollout demonstrates; see `sdpo list`.")
    selector_options: Mapping[str, Any] = option({}, "Options of the selector.")
    selector_seed: int = option(0, "Seed of selectors that draw at random.", low=0)
    success_reward_threshold: float = option(0.5, "A rollout succeeded if its reward is at least this.")
    success_reward_name: str | None = option(
        None, "Judge success by this named reward function alone; null: by the total reward."
    )
    dont_reprompt_on_self_success: bool = option(True, "A rollout never demonstrates for itself.")

    # What the teacher reads
    reprompter: str = option("template", "Name of the builder of teacher contexts; see `sdpo list`.")
    reprompter_options: Mapping[str, Any] = option({}, "Options of the reprompter.")
    remove_thinking_from_demonstration: bool = option(True, "Take the thinking part out of demonstrations.")
    thinking_tag: str = option("<think>", "Opening tag of a thinking part.")
    thinking_removal: str = option(
        "tolerant",
        "'paired': only <think>…</think>, as the authors; 'tolerant': also parts that the chat template opened or that "
        "were never closed, unless nothing would remain; 'strict': the same, and a rollout with nothing left does not "
        "demonstrate.",
        choices=("paired", "tolerant", "strict"),
    )
    include_environment_feedback: bool = option(True, "Show the environment's feedback to the teacher.")
    environment_feedback_only_without_solution: bool = option(
        True, "Show feedback only to rollouts for which no one demonstrates."
    )
    max_reprompt_len: int = option(10240, "Longest teacher prompt in tokens.", low=1)
    reprompt_truncation: str = option(
        "sections",
        "How a longer one is cut: 'sections' shortens the demonstration, then the feedback; 'left', 'right' and "
        "'error' are the authors'.",
        choices=("sections", "left", "right", "error"),
    )
    reprompt_template: str = option(
        "{prompt}{solution}{feedback}\n\nCorrectly solve the original question.",
        "The teacher's user message.",
        placeholders=("prompt", "solution", "feedback"),
    )
    solution_template: str = option(
        "\nCorrect solution:\n\n{successful_previous_attempt}",
        "The demonstration's section.",
        placeholders=("successful_previous_attempt",),
    )
    feedback_template: str = option(
        "\nThe following is feedback from your unsuccessful earlier attempt:\n\n{feedback_raw}",
        "The feedback's section.",
        placeholders=("feedback_raw",),
    )
    apply_chat_template_kwargs: Mapping[str, Any] = option(
        {}, "More arguments of the chat template for teacher prompts, e.g. {'enable_thinking': false}."
    )

    # What a run leaves to be looked at; none of it changes the training
    record: bool = option(True, "Write the run's records, which `sdpo report` and `sdpo plot` read.")
    record_dir: str | None = option(None, "Folder of the records; null: `records` in the host's output folder.")
    record_rollouts: int = option(4, "Rollouts recorded of each rollout batch; 0: metrics alone.", low=0)
    record_tokens: int = option(2048, "Tokens recorded of a rollout, from its beginning on.", low=1)
    record_alternatives: int = option(
        5, "Likeliest tokens of student and teacher that are recorded at each token; 0: none.", low=0
    )
    record_max_mb: float = option(
        128.0,
        "Largest size of each file of records in MiB; over it every second step is dropped.",
        low=0.0,
        exclusive=True,
    )
    record_picture_every: int = option(
        50, "Log a picture of a rollout's tokens every n rollout batches, where a logger takes images; 0: never.", low=0
    )

    plugins: tuple[str, ...] = option(
        (), "Plug-ins in use, by entry-point name or import path; installing one changes nothing."
    )

    def __post_init__(self) -> None:
        problems: list[str] = []
        for item in dataclasses.fields(self):
            value, found = problems_of(item, getattr(self, item.name))
            problems += found
            object.__setattr__(self, item.name, value)
        if not problems:
            problems = list(combination_problems(self))
        if problems:
            raise ConfigError(problems)

    @classmethod
    def from_mapping(cls, options: Mapping[str, Any], dialect: str | None = None) -> SDPOConfig:
        """Make a configuration from a plain mapping, in our own or another project's vocabulary.

        Args:
            options: Option names and values; it is copied. A key `preset` starts from that preset, a key `dialect`
                does what the argument does.
            dialect: "lasgroup", "sdpo-rl", "sdpo-trainer" or "trl": also apply that project's defaults and accept its
                names only. None: our names, with any project's unambiguous names translated.

        Returns:
            The validated configuration.

        Raises:
            ConfigError: Lists every unknown name with its nearest match and every invalid value.

        Example:
            >>> SDPOConfig.from_mapping({"preset": "paper_rich_feedback", "ema_tau": 0.1}).teacher_update_rate
            0.1
        """
        from sdpo_plugins.dialects import translation
        from sdpo_plugins.presets import preset_options

        if not isinstance(options, Mapping):
            raise ConfigError(f"SDPO options must be a mapping, got {options!r} ({type(options).__name__}).")
        given = dict(options)
        preset, named = given.pop("preset", None), given.pop("dialect", None)
        if dialect is not None and named not in (None, dialect):
            raise ConfigError(f"The options name the dialect {named!r}, the call {dialect!r}; give one of them.")
        dialect = named if dialect is None else dialect
        if preset is not None and dialect is not None:
            raise ConfigError(
                f"The preset {preset!r} and the dialect {dialect!r} both bring defaults of their own; give one of them."
                " Without a dialect, other projects' option names are translated all the same."
            )
        base = {} if preset is None else preset_options(preset)
        translated, problems = translation(given, dialect)
        return _construct(cls, {**base, **translated}, problems)

    def to_mapping(self) -> dict[str, Any]:
        """Return all options as plain values (JSON and YAML can hold them); `from_mapping` gives the same back."""
        return {item.name: to_plain(getattr(self, item.name)) for item in dataclasses.fields(self)}

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> SDPOConfig:
        """Return a named setting, see `sdpo_plugins.presets`.

        Example:
            >>> SDPOConfig.preset("paper_rich_feedback").alpha
            1.0
        """
        return cls.from_mapping({"preset": name, **overrides})

    def replace(self, **changes: Any) -> SDPOConfig:
        """Return a copy with some options changed and everything validated again."""
        return type(self).from_mapping({**self.to_mapping(), **changes})


def combination_problems(config: SDPOConfig) -> list[str]:
    """Say which options contradict each other; empty if none do."""
    problems = []
    if not config.full_logit_distillation and config.alpha != 1.0:
        problems.append(
            "`full_logit_distillation=False` (sampled-token mode) estimates the reverse KL and needs `alpha=1.0`, got "
            f"alpha={config.alpha}. Set alpha=1.0, or use full_logit_distillation=True."
        )
    if not config.full_logit_distillation and config.divergence != "generalized_jsd":
        problems.append(
            "`full_logit_distillation=False` (sampled-token mode) has no other divergence, got "
            f"divergence={config.divergence!r}. Leave `divergence` out, or use full_logit_distillation=True."
        )
    if config.selector == "none" and not config.include_environment_feedback:
        problems.append(
            "`selector='none'` takes the demonstrations away and `include_environment_feedback=False` the feedback: "
            "the teacher would never know more than the student. Turn one of them on."
        )
    if config.loss_scale_factor is not None and config.loss_agg_mode != "seq-mean-token-sum-norm":
        problems.append(
            f"`loss_scale_factor={config.loss_scale_factor}` has an effect only with "
            f"`loss_agg_mode='seq-mean-token-sum-norm'`, got {config.loss_agg_mode!r}. Leave it out, or change "
            "the mode."
        )
    if not re.fullmatch(r"<[^<>/][^<>]*>", config.thinking_tag):
        problems.append(f"`thinking_tag` must be an opening tag such as '<think>', got {config.thinking_tag!r}.")
    return problems


def _construct(cls: type[SDPOConfig], options: Mapping[str, Any], problems: list[str]) -> SDPOConfig:
    if problems:
        raise ConfigError([*problems, *_value_problems(cls, options)])
    build: Callable[..., SDPOConfig] = cls
    return build(**options)


def _value_problems(cls: type[SDPOConfig], options: Mapping[str, Any]) -> list[str]:
    """Check the values alone, so that unknown names and invalid values are reported together."""
    given = (item for item in dataclasses.fields(cls) if item.name in options)
    return [problem for item in given for problem in problems_of(item, options[item.name])[1]]


_plain_init = SDPOConfig.__init__


def _init_with_dialects(self: SDPOConfig, **options: Any) -> None:
    from sdpo_plugins.dialects import translation

    translated, problems = translation(options, None)
    if problems:
        raise ConfigError([*problems, *_value_problems(type(self), translated)])
    _plain_init(self, **translated)


# Users of other projects construct their `SDPOConfig(ema_tau=…)` by keyword; the same line must work here. The
# signature that tools see stays the dataclass's own.
_init_with_dialects.__wrapped__ = _plain_init  # type: ignore[attr-defined]
_init_with_dialects.__doc__ = _plain_init.__doc__
SDPOConfig.__init__ = _init_with_dialects  # type: ignore[method-assign]
