"""SDPO's options inside of verl's configuration: where they stand, how they are read, how they are checked.

They keep the authors' path, `actor_rollout_ref.actor.self_distillation`. verl builds its actor configuration from a
dataclass that refuses unknown keys; `SDPOActorConfig` is that dataclass with one key more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from omegaconf import DictConfig, OmegaConf, flag_override
from verl.workers.config import FSDPActorConfig

from sdpo_plugins.config import SDPOConfig
from sdpo_plugins.errors import ConfigError
from sdpo_plugins.plugins import validate
from sdpo_plugins.presets import preset_options
from sdpo_verl.config_checks import idle_notices, setting_problems, warn_of

__all__ = ["SECTION", "UNSET", "SDPOActorConfig", "check_config", "sdpo_config_of", "settle"]

SECTION = "actor_rollout_ref.actor.self_distillation"

UNSET = "unset"
"""Value of an option that was not given. `sdpo.yaml` lists all options with it, so that a command line can set each
without a `+`, while a preset, another name of the option, or the default decides wherever nobody did. Null is a value
of its own ("no clip")."""

_SUM_NORM = "seq-mean-token-sum-norm"


@dataclass
class SDPOActorConfig(FSDPActorConfig):
    """verl's FSDP actor with SDPO's options; Megatron and verl's other engines are refused by `check_config`.

    Args:
        self_distillation: Options of `SDPOConfig`, other projects' names included, and `preset` or `dialect`.
    """

    self_distillation: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Validate verl's part, then the options."""
        super().__post_init__()
        _ = self.sdpo_config

    @property
    def sdpo_config(self) -> SDPOConfig:
        """The validated options."""
        return _options(self.self_distillation, self.loss_agg_mode, self.loss_scale_factor, None)


def sdpo_config_of(config: DictConfig) -> SDPOConfig:
    """Read SDPO's options out of verl's configuration; nothing is changed.

    Valid are our names, every unambiguous name of other projects (the authors' `teacher_regularization` and
    `ema_update_rate`), and the keys `preset` and `dialect`. With `dialect: lasgroup` the authors' names alone are, and
    their defaults apply. `loss_agg_mode` and `loss_scale_factor` come from the actor where the section leaves them
    out; the scale of `seq-mean-token-sum-norm` is at last the longest response, as verl documents it.

    Args:
        config: The whole configuration, or its part `actor_rollout_ref`, which is all that workers see.

    Returns:
        The validated options.

    Raises:
        ConfigError: Lists every unknown name and every invalid value.
    """
    part = config.actor_rollout_ref if "actor_rollout_ref" in config else config
    section = OmegaConf.select(part, "actor.self_distillation")
    if isinstance(section, DictConfig):
        section = OmegaConf.to_container(section, resolve=True)
    return _options(
        {} if section is None else section,
        OmegaConf.select(part, "actor.loss_agg_mode"),
        OmegaConf.select(part, "actor.loss_scale_factor"),
        OmegaConf.select(part, "rollout.response_length"),
    )


def check_config(config: DictConfig) -> None:
    """Refuse what SDPO cannot work with, before anything starts.

    Args:
        config: verl's whole configuration.

    Raises:
        ConfigError: Lists every problem of SDPO's options and of verl's settings.
    """
    problems: list[str] = []
    options: SDPOConfig | None = None
    try:
        options = sdpo_config_of(config)
        problems += _references(options)
        validate(options, "verl")
    except ConfigError as error:
        problems += error.problems
    if options is None or options.enabled:
        problems += setting_problems(config, options)
    if problems:
        raise ConfigError(problems)


def settle(config: DictConfig) -> SDPOConfig:
    """Check a configuration and write SDPO's options into it in full, under our names.

    verl logs, saves and ships the configuration: so the values that were in effect are in every record, and no worker
    meets a preset, another project's name, or the authors' `_target_`, a class that verl does not have.

    Args:
        config: verl's whole configuration; its `self_distillation` is replaced, and the authors'
            `policy_loss.loss_mode: sdpo` by `vanilla`, which is verl's own part of the hybrid objective.

    Returns:
        The options.

    Raises:
        ConfigError: As `check_config`.
    """
    check_config(config)
    options = sdpo_config_of(config)
    actor = config.actor_rollout_ref.actor
    with flag_override(actor, ["struct", "readonly"], [False, False]):
        actor.self_distillation = options.to_mapping()
        if OmegaConf.select(actor, "policy_loss.loss_mode") == "sdpo":
            actor.policy_loss.loss_mode = "vanilla"
    if options.enabled:
        warn_of(idle_notices(config, options))
    return options


def _options(section: Any, mode: Any, scale: Any, longest: Any) -> SDPOConfig:
    if not isinstance(section, Mapping):
        raise ConfigError(f"`{SECTION}` must be a mapping of options, got {section!r} ({type(section).__name__}).")
    given = {name: value for name, value in section.items() if not (isinstance(value, str) and value == UNSET)}
    # Apart from the rest: where the section leaves them out the actor's hold, in any dialect.
    loss = {name: given.pop(name) for name in ("loss_agg_mode", "loss_scale_factor") if name in given}
    options = SDPOConfig.from_mapping(given)
    if "loss_agg_mode" not in loss and mode is not None and not _decides_mode(given):
        if mode == "token-sum":
            raise ConfigError(
                "`actor_rollout_ref.actor.loss_agg_mode='token-sum'` has no counterpart in SDPO, whose loss must not "
                f"grow with the batch. Set `{SECTION}.loss_agg_mode`, for example to 'token-mean'."
            )
        loss["loss_agg_mode"] = mode
    if loss.get("loss_agg_mode", options.loss_agg_mode) == _SUM_NORM and loss.get("loss_scale_factor") is None:
        loss["loss_scale_factor"] = scale if scale is not None else longest
    return options.replace(**loss) if loss else options


def _decides_mode(given: Mapping[str, Any]) -> bool:
    preset = given.get("preset")
    return preset is not None and "loss_agg_mode" in preset_options(preset)


def _references(options: SDPOConfig) -> list[str]:
    """Refuse what would become a reference into the configuration once verl has resolved it, escaped or not."""
    return [
        f"`{SECTION}.{name}` holds the text '${{', which verl's configuration cannot carry. Write it differently, for "
        "example with a space between."
        for name, value in options.to_mapping().items()
        if "${" in str(value)
    ]
