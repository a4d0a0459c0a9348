"""The plug-in system: choose strategies by name, build them once, ask all plug-ins what they think.

    manager = create_plugin_manager(config.plugins)   # our own strategies, and the plug-ins that the run names
    strategies = resolve(config)                      # divergence, selector, reprompter, teacher: built before training

Installing a plug-in never changes a run; naming it in `plugins` does. No hook is called inside of the loss.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pluggy

from sdpo_plugins._catalogues import (
    DIVERGENCES,
    HOST_KIND,
    KINDS,
    REPROMPTERS,
    SCORERS,
    SELECTORS,
    TEACHERS,
    Kind,
    call_each,
    collect,
    find,
    parse_options,
)
from sdpo_plugins._hosts import HostStatus, host_status, load_adapter
from sdpo_plugins._registry import (
    InstalledPlugin,
    create_plugin_manager,
    installed_plugins,
    register,
    shared_manager,
)
from sdpo_plugins.errors import ConfigError, HostError, PluginError
from sdpo_plugins.types import Host, Rollout, TeacherContexts

if TYPE_CHECKING:
    from sdpo_plugins.config import SDPOConfig

__all__ = [
    "HostStatus",
    "InstalledPlugin",
    "Strategies",
    "attach",
    "build_divergence",
    "build_reprompter",
    "build_scorer",
    "build_selector",
    "build_teacher",
    "catalogue",
    "create_plugin_manager",
    "extra_metrics",
    "host_status",
    "installed_plugins",
    "load_adapter",
    "register",
    "resolve",
    "validate",
]

_CHOSEN: tuple[Kind[Any], ...] = (DIVERGENCES, SELECTORS, REPROMPTERS, TEACHERS)


@dataclass(frozen=True)
class Strategies:
    """What a run uses, built once before training.

    Args:
        divergence: f(student_logp, teacher_logp): log-probabilities [..., K] → nats [...].
        selector: select(index, candidates, rollouts) → position in the batch, or None.
        reprompter: reprompt(rollouts) → `TeacherContexts`.
        teacher: An object with the methods of `sdpo_plugins.teacher.Teacher`.
    """

    divergence: Callable[..., Any]
    selector: Callable[..., int | None]
    reprompter: Callable[[Sequence[Rollout]], TeacherContexts]
    teacher: Any


def catalogue(kind: str, plugins: Sequence[str] = ()) -> dict[str, Any]:
    """Return everything of one kind by name.

    Args:
        kind: "divergence", "selector", "reprompter", "scorer", "teacher" or "host".
        plugins: Plug-ins in use beside our own.

    Returns:
        Typed entries (`sdpo_plugins.types`), each with the `provider` it came from.

    Raises:
        PluginError: A plug-in broke the contract of its hook.

    Example:
        >>> list(catalogue("teacher"))
        ['ema', 'frozen', 'live', 'trust_region', 'lora_ema']
    """
    kinds = {each.name: each for each in KINDS}
    if kind not in kinds:
        raise ConfigError(f"There is no catalogue {kind!r}; there are {', '.join(kinds)}.")
    return collect(shared_manager(tuple(plugins)), kinds[kind])


def build_divergence(config: SDPOConfig) -> Callable[..., Any]:
    """Return the configured per-token divergence f(student_logp, teacher_logp): [..., K] → [...] in nats.

    It holds no state, so the same configuration gives the same function again.

    Example:
        >>> from sdpo_plugins import SDPOConfig
        >>> divergence = build_divergence(SDPOConfig(divergence="reverse_kl"))
    """
    return _stateless_divergence(config)


@functools.lru_cache(maxsize=32)
def _stateless_divergence(config: SDPOConfig) -> Callable[..., Any]:
    return _built(config, DIVERGENCES)


def build_selector(config: SDPOConfig) -> Callable[..., int | None]:
    """Return a fresh select(index, candidates, rollouts) → position of the demonstrating rollout, or None."""
    return _built(config, SELECTORS)


def build_reprompter(config: SDPOConfig) -> Callable[[Sequence[Rollout]], TeacherContexts]:
    """Return a fresh reprompt(rollouts) → `TeacherContexts`."""
    return _built(config, REPROMPTERS)


def build_teacher(config: SDPOConfig) -> Any:
    """Return a fresh teacher with the methods of `sdpo_plugins.teacher.Teacher`."""
    return _built(config, TEACHERS)


def build_scorer(config: SDPOConfig, name: str, options: dict[str, Any] | None = None) -> Callable[..., Any]:
    """Return the scorer called `name`: score(response, sample) → `Score`.

    Args:
        config: The run's options; its `plugins` are searched too.
        name: A name of `catalogue("scorer")`.
        options: The scorer's own options.
    """
    entry = find(collect(shared_manager(config.plugins), SCORERS), SCORERS, name)
    return entry.build(config, parse_options(entry, SCORERS, options or {}))


def resolve(config: SDPOConfig) -> Strategies:
    """Find and build everything a run needs by name, before its first step.

    Args:
        config: The run's options.

    Returns:
        The built strategies.

    Raises:
        ConfigError: Lists every unknown strategy and every invalid strategy option together.
        PluginError: A plug-in broke its contract.
    """
    manager = shared_manager(config.plugins)
    problems = _choice_problems(config, manager)
    if problems:
        raise ConfigError(problems)
    return Strategies(
        divergence=build_divergence(config),
        selector=build_selector(config),
        reprompter=build_reprompter(config),
        teacher=build_teacher(config),
    )


def validate(config: SDPOConfig, host: str | None = None) -> None:
    """Raise everything that is wrong with a configuration, before anything is built.

    Args:
        config: The run's options.
        host: "trl", "verl", "openrlhf", or a plug-in's; None if unknown.

    Raises:
        ConfigError: Unknown strategies, invalid strategy options, and what plug-ins object to, together.
        PluginError: A plug-in broke its contract.

    Example:
        >>> from sdpo_plugins import SDPOConfig
        >>> validate(SDPOConfig(), host="trl")
    """
    manager = shared_manager(config.plugins)
    problems = _choice_problems(config, manager)
    if host is not None:
        try:
            find(collect(manager, HOST_KIND), HOST_KIND, host)
        except ConfigError as error:
            problems += error.problems
    for plugin, result in call_each(manager, "sdpo_validate", config=config, host=host):
        if not isinstance(result, (list, tuple)) or not all(isinstance(problem, str) for problem in result):
            raise PluginError(f"Plug-in {plugin!r}, hook `sdpo_validate`, must return a list of texts, got {result!r}.")
        problems += result
    if problems:
        raise ConfigError(problems)


def extra_metrics(config: SDPOConfig, rollouts: Sequence[Rollout], contexts: TeacherContexts) -> dict[str, float]:
    """Ask the run's plug-ins for more metrics of a rollout batch.

    Args:
        config: The run's options.
        rollouts: The batch.
        contexts: Its teacher contexts; their metrics are not repeated in the result.

    Returns:
        The plug-ins' metrics, merged.

    Raises:
        PluginError: A key exists already (both owners are named), or a value is no finite number.
    """
    owners = dict.fromkeys(contexts.metrics, "sdpo_plugins")
    merged: dict[str, float] = {}
    manager = shared_manager(config.plugins)
    for plugin, result in call_each(manager, "sdpo_metrics", config=config, rollouts=rollouts, contexts=contexts):
        where = f"Plug-in {plugin!r}, hook `sdpo_metrics`"
        if not isinstance(result, dict):
            raise PluginError(f"{where}, must return a dict of numbers, got {result!r}.")
        for key, value in result.items():
            if key in owners:
                raise PluginError(f"{where}, gives the metric {key!r}, which {owners[key]!r} gives too. Rename it.")
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
                raise PluginError(f"{where}: the metric {key!r} must be a finite number, got {value!r}.")
            owners[key] = plugin
            merged[key] = float(value)
    return merged


def attach(target: object, plugins: Sequence[str] = ()) -> ModuleType:
    """Find and import the adapter for a trainer or a host's configuration.

    Args:
        target: The trainer or configuration object.
        plugins: Plug-ins in use beside our own.

    Returns:
        The adapter package, e.g. `sdpo_trl`.

    Raises:
        HostError: No plug-in knows the object, or the adapter is not there.

    Example:
        >>> attach(object())  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        sdpo_plugins.errors.HostError: No host knows what to do with a builtins.object; the hosts are trl, ...
    """
    host = shared_manager(tuple(plugins)).hook.sdpo_attach(target=target)
    if host is None:
        known = ", ".join(catalogue("host", plugins))
        made_by = f"{type(target).__module__}.{type(target).__qualname__}"
        raise HostError(f"No host knows what to do with a {made_by}; the hosts are {known}.")
    if not isinstance(host, Host):
        raise PluginError(f"The hook `sdpo_attach` must return a Host or None, got {host!r}.")
    return load_adapter(host)


def _built(config: SDPOConfig, kind: Kind[Any]) -> Any:
    entry, options = _chosen(config, shared_manager(config.plugins), kind)
    return entry.build(config, options)


def _chosen(config: SDPOConfig, manager: pluggy.PluginManager, kind: Kind[Any]) -> tuple[Any, Any]:
    entry = find(collect(manager, kind), kind, getattr(config, kind.name))
    return entry, parse_options(entry, kind, getattr(config, f"{kind.name}_options"))


def _choice_problems(config: SDPOConfig, manager: pluggy.PluginManager) -> list[str]:
    problems: list[str] = []
    for kind in _CHOSEN:
        try:
            _chosen(config, manager, kind)
        except ConfigError as error:
            problems += error.problems
    return problems
