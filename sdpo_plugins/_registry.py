"""Finding plug-ins by name, loading them, and checking that their hooks are ours."""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import importlib.util
import inspect
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pluggy

from sdpo_plugins import builtin, hookspecs
from sdpo_plugins._catalogues import (
    DIVERGENCES,
    HOST_KIND,
    REPROMPTERS,
    SCORERS,
    SELECTORS,
    TEACHERS,
    collect,
)
from sdpo_plugins.errors import ConfigError, PluginError, nearest
from sdpo_plugins.types import Divergence, Host, Reprompter, Scorer, Selector, TeacherStrategy

__all__ = [
    "BUILTIN",
    "InstalledPlugin",
    "SDPOPluginManager",
    "create_plugin_manager",
    "installed_plugins",
    "register",
    "shared_manager",
]

BUILTIN = "builtin"
_OURS = "sdpo-plugins"


@dataclass(frozen=True)
class InstalledPlugin:
    """A plug-in that this Python environment offers.

    Args:
        name: What `plugins` takes.
        distribution: The installed distribution it comes from.
        version: Of that distribution.
        active: True if the run names it; our own strategies always are.
    """

    name: str
    distribution: str
    version: str
    active: bool


class SDPOPluginManager(pluggy.PluginManager):
    """pluggy's manager, with what its plug-ins offer as catalogues: entries by name, typed and checked.

    Each method raises `PluginError` if a plug-in gave something of the wrong type, or two gave the same name.
    """

    def divergences(self) -> dict[str, Divergence]:
        """Return the per-token divergences."""
        return collect(self, DIVERGENCES)

    def selectors(self) -> dict[str, Selector]:
        """Return the rules for who demonstrates."""
        return collect(self, SELECTORS)

    def reprompters(self) -> dict[str, Reprompter]:
        """Return the builders of teacher contexts."""
        return collect(self, REPROMPTERS)

    def scorers(self) -> dict[str, Scorer]:
        """Return the functions that give reward and feedback."""
        return collect(self, SCORERS)

    def teachers(self) -> dict[str, TeacherStrategy]:
        """Return the strategies for the teacher's weights."""
        return collect(self, TEACHERS)

    def hosts(self) -> dict[str, Host]:
        """Return the training frameworks."""
        return collect(self, HOST_KIND)


def create_plugin_manager(names: Iterable[str] = ()) -> SDPOPluginManager:
    """Load our own strategies and the named plug-ins, and nothing else.

    Args:
        names: Entry-point names of the group `sdpo_plugins`, or import paths "package.module" or
            "package.module:attribute". Workers call this again with the same names.

    Returns:
        A plug-in manager whose hooks have all been checked.

    Raises:
        ConfigError: A plug-in is not installed; lists all such names with the choices and the nearest.
        PluginError: A plug-in fails to import, or a hook of it is misspelt or takes arguments that do not exist.

    Example:
        >>> list(create_plugin_manager().selectors())
        ['first', 'random', 'shortest', 'best_reward', 'none']
    """
    manager = SDPOPluginManager(hookspecs.PROJECT_NAME)
    manager.add_hookspecs(hookspecs)
    register(manager, builtin, BUILTIN)
    loaded: list[tuple[str, object]] = []
    problems: list[str] = []
    for name in dict.fromkeys(names):
        try:
            loaded.append((name, _load(name)))
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    for name, plugin in loaded:
        register(manager, plugin, name)
    return manager


@functools.lru_cache(maxsize=32)
def shared_manager(names: tuple[str, ...]) -> SDPOPluginManager:
    """Return one checked manager for each set of names; read it, do not register with it."""
    return create_plugin_manager(names)


def register(manager: SDPOPluginManager, plugin: object, name: str) -> None:
    """Register one plug-in and check its hooks.

    Args:
        manager: Made by `create_plugin_manager`.
        plugin: A module or object with functions marked by `hookimpl`.
        name: Its name in messages and in `plugins`.

    Raises:
        PluginError: Names the plug-in, the hook, and its nearest match.
    """
    for other, known in manager.list_name_plugin():
        if known is plugin or other == name:
            raise PluginError(f"Plug-in {name!r} is the same as the plug-in {other!r}; name it once.")
    try:
        manager.register(plugin, name)
    except pluggy.PluginValidationError as error:
        raise PluginError(f"Plug-in {name!r}: {error}") from error
    _check_spelling(manager, plugin, name)
    manager.check_pending()


def installed_plugins(names: Iterable[str] = ()) -> tuple[InstalledPlugin, ...]:
    """List what `plugins` could name, without importing any of it.

    Args:
        names: The plug-ins that a run names.

    Returns:
        Our own strategies first, then entry points by name, then named import paths.

    Example:
        >>> installed_plugins()[0].name
        'builtin'
    """
    from sdpo_plugins._version import __version__

    wanted = list(dict.fromkeys(names))
    found = [InstalledPlugin(BUILTIN, _OURS, __version__, True)]
    for point in sorted(_entry_points(), key=lambda point: point.name):
        distribution, version = _origin(point)
        found.append(InstalledPlugin(point.name, distribution, version, point.name in wanted))
    known = {plugin.name for plugin in found}
    found += [InstalledPlugin(name, "(import path)", "", True) for name in wanted if name not in known]
    return tuple(found)


def _check_spelling(manager: SDPOPluginManager, plugin: object, name: str) -> None:
    hooks = _hook_names()
    callers = manager.get_hookcallers(plugin) or []
    for caller in callers:
        if not caller.has_spec():
            raise PluginError(
                f"Plug-in {name!r} implements the hook `{caller.name}`, which does not exist."
                f"{nearest(caller.name, hooks)} The hooks are {', '.join(hooks)}."
            )
    marked = {caller.name for caller in callers}
    for attribute in dir(plugin):
        if attribute in hooks and attribute not in marked and inspect.isroutine(getattr(plugin, attribute)):
            raise PluginError(
                f"Plug-in {name!r} has a function `{attribute}` without the `@hookimpl` mark, so it would never be "
                "called. Add the mark from sdpo_plugins.hookspecs."
            )
    if not callers:
        raise PluginError(f"Plug-in {name!r} implements no hook. The hooks are {', '.join(hooks)}.")


def _hook_names() -> tuple[str, ...]:
    return tuple(sorted(name for name in vars(hookspecs) if name.startswith("sdpo_")))


def _entry_points() -> tuple[importlib.metadata.EntryPoint, ...]:
    return tuple(importlib.metadata.entry_points(group=hookspecs.ENTRY_POINT_GROUP))


def _origin(point: importlib.metadata.EntryPoint) -> tuple[str, str]:
    if point.dist is None:
        return "(unknown distribution)", ""
    return point.dist.name, point.dist.version


def _load(name: str) -> object:
    points = [point for point in _entry_points() if point.name == name]
    targets = {point.value for point in points}
    if len(targets) > 1:
        origins = " and ".join(sorted(_origin(point)[0] for point in points))
        raise PluginError(f"Two distributions provide a plug-in {name!r}: {origins}. Uninstall one of them.")
    if points:
        return _import(name, points[0].load, f" of the distribution {_origin(points[0])[0]!r}")
    module = name.partition(":")[0]
    if name == BUILTIN or not _importable(module):
        choices = sorted({point.name for point in _entry_points()})
        listing = ", ".join(map(repr, choices)) if choices else "none"
        raise ConfigError(
            f"`plugins` names {name!r}, which is not installed. Installed are: {listing}.{nearest(name, choices)} "
            "Give the name of an entry point, or an import path such as 'my_package.my_module' or 'my_module:plugin'."
        )
    return _import(name, functools.partial(_follow, name), "")


def _importable(module: str) -> bool:
    if not all(part.isidentifier() for part in module.split(".")):
        return False
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # a parent package does not exist
        return False


def _follow(path: str) -> object:
    module, _, attribute = path.partition(":")
    found: object = importlib.import_module(module)
    for part in filter(None, attribute.split(".")):
        found = getattr(found, part)
    return found


def _import(name: str, load: Any, origin: str) -> object:
    try:
        plugin: object = load()
    except Exception as error:
        raise PluginError(f"Plug-in {name!r}{origin} could not be loaded: {type(error).__name__}: {error}") from error
    return plugin
