"""Collecting what plug-ins offer, checked, and finding one entry of it by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import pluggy

from sdpo_plugins._options import problems_of
from sdpo_plugins.errors import ConfigError, PluginError, nearest
from sdpo_plugins.types import Divergence, Host, Reprompter, Scorer, Selector, TeacherStrategy

__all__ = ["DIVERGENCES", "HOST_KIND", "KINDS", "REPROMPTERS", "SCORERS", "SELECTORS", "TEACHERS", "Kind"]

Entry = TypeVar("Entry", Divergence, Selector, Reprompter, Scorer, TeacherStrategy, Host)


@dataclass(frozen=True)
class Kind(Generic[Entry]):
    """One catalogue.

    Args:
        name: What messages call an entry; also the option of `SDPOConfig` that chooses one, if there is such an option.
        hook: The hook that gives entries.
        entry: The type of an entry.
    """

    name: str
    hook: str
    entry: type[Entry]


DIVERGENCES = Kind("divergence", "sdpo_divergences", Divergence)
SELECTORS = Kind("selector", "sdpo_selectors", Selector)
REPROMPTERS = Kind("reprompter", "sdpo_reprompters", Reprompter)
SCORERS = Kind("scorer", "sdpo_scorers", Scorer)
TEACHERS = Kind("teacher", "sdpo_teachers", TeacherStrategy)
HOST_KIND = Kind("host", "sdpo_hosts", Host)
KINDS: tuple[Kind[Any], ...] = (DIVERGENCES, SELECTORS, REPROMPTERS, SCORERS, TEACHERS, HOST_KIND)


def collect(manager: pluggy.PluginManager, kind: Kind[Entry]) -> dict[str, Entry]:
    """Collect the entries of one kind from all plug-ins of a manager.

    Args:
        manager: Made by `create_plugin_manager`.
        kind: Which catalogue.

    Returns:
        Entries by name, in the order of registration.

    Raises:
        PluginError: A plug-in gave something of the wrong type, or two gave the same name; both are named.
    """
    found: dict[str, Entry] = {}
    providers: dict[str, str] = {}
    for plugin, result in call_each(manager, kind.hook):
        for entry in _entries(plugin, kind, result):
            if entry.name in found:
                raise PluginError(
                    f"Two plug-ins provide the {kind.name} {entry.name!r}: {providers[entry.name]!r} and {plugin!r}. "
                    "Rename one of them, or name only one of the plug-ins in `plugins`."
                )
            providers[entry.name] = plugin
            found[entry.name] = entry if isinstance(entry, Host) else dataclasses.replace(entry, provider=plugin)
    return found


def call_each(manager: pluggy.PluginManager, hook: str, **arguments: Any) -> Iterable[tuple[str, Any]]:
    """Call one hook plug-in by plug-in, so that every result and every failure has a name.

    Args:
        manager: Made by `create_plugin_manager`.
        hook: The hook's name.
        **arguments: The hook's arguments.

    Yields:
        Plug-in name and result, in the order of registration.

    Raises:
        PluginError: An implementation raised; the message names plug-in and hook, the cause is chained.
    """
    implementing = {implementation.plugin_name for implementation in getattr(manager.hook, hook).get_hookimpls()}
    plugins = manager.list_name_plugin()
    for name, _ in plugins:
        if name not in implementing:
            continue
        others = [plugin for other, plugin in plugins if other != name and plugin is not None]
        try:
            results = manager.subset_hook_caller(hook, others)(**arguments)
        except Exception as error:
            raise PluginError(f"Plug-in {name!r}, hook `{hook}`, raised {type(error).__name__}: {error}") from error
        # pluggy leaves None out; for a hook that must give something, None is a mistake to be named.
        yield from ((name, result) for result in (results or [None]))


def find(catalogue: Mapping[str, Entry], kind: Kind[Entry], name: str) -> Entry:
    """Return the entry called `name`.

    Raises:
        ConfigError: There is none; the message lists the choices and the nearest.
    """
    if name not in catalogue:
        choices = ", ".join(map(repr, catalogue)) or "none"
        raise ConfigError(
            f"`{kind.name}` must be one of {choices}, got {name!r}.{nearest(name, catalogue)} "
            "If a plug-in provides it, name the plug-in in `plugins`."
        )
    return catalogue[name]


def parse_options(entry: Any, kind: Kind[Any], given: Mapping[str, Any]) -> Any:
    """Make a strategy's options object from the plain mapping of the configuration.

    Args:
        entry: The catalogue entry; its `options` is a dataclass or None.
        kind: Its kind, for messages.
        given: Option names and values, e.g. `config.divergence_options`.

    Returns:
        An instance of `entry.options`, or None if the strategy has no options.

    Raises:
        ConfigError: Lists unknown options with their nearest match, missing ones, and invalid values.
    """
    label = f"{kind.name}_options"
    fields = {item.name: item for item in dataclasses.fields(entry.options) if item.init} if entry.options else {}
    values: dict[str, Any] = {}
    problems: list[str] = []
    for name, value in given.items():
        if name not in fields:
            valid = f"its options are {', '.join(fields)}" if fields else "it has none"
            hint = nearest(name, fields)
            problems.append(f"`{label}.{name}` is no option of the {kind.name} {entry.name!r}; {valid}.{hint}")
            continue
        values[name], found = problems_of(fields[name], value, entry.options, f"{label}.{name}")
        problems += found
    problems += [
        f"`{label}.{name}` is missing; the {kind.name} {entry.name!r} needs it."
        for name, item in fields.items()
        if name not in given and item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
    ]
    if problems:
        raise ConfigError(problems)
    if entry.options is None:
        return None
    try:
        return entry.options(**values)
    except ConfigError:
        raise
    except (TypeError, ValueError) as error:  # the dataclass's own `__post_init__`
        raise ConfigError(f"`{label}` of the {kind.name} {entry.name!r}: {error}") from error


def _entries(plugin: str, kind: Kind[Entry], result: Any) -> list[Entry]:
    where = f"Plug-in {plugin!r}, hook `{kind.hook}`"
    if isinstance(result, (str, bytes, Mapping)) or not isinstance(result, Iterable):
        raise PluginError(f"{where}, must return a list of {kind.entry.__name__}, got {result!r}.")
    entries = list(result)
    for entry in entries:
        if not isinstance(entry, kind.entry):
            raise PluginError(f"{where}, must return entries of type {kind.entry.__name__}, got {entry!r}.")
        if not isinstance(entry.name, str) or not entry.name:
            raise PluginError(f"{where}: the name of an entry must be a non-empty text, got {entry.name!r}.")
        if not isinstance(entry, Host):
            _check_strategy(where, entry)
    return entries


def _check_strategy(where: str, entry: Any) -> None:
    if not callable(entry.build):
        raise PluginError(f"{where}: `build` of {entry.name!r} must be callable, got {entry.build!r}.")
    if entry.options is not None and not (isinstance(entry.options, type) and dataclasses.is_dataclass(entry.options)):
        raise PluginError(f"{where}: `options` of {entry.name!r} must be a dataclass or None, got {entry.options!r}.")
