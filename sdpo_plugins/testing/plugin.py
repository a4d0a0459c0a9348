"""The contract of a plug-in as a whole."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sdpo_plugins._catalogues import DIVERGENCES, KINDS, REPROMPTERS, SELECTORS, TEACHERS, collect
from sdpo_plugins._registry import create_plugin_manager, register
from sdpo_plugins.config import SDPOConfig
from sdpo_plugins.errors import SDPOError
from sdpo_plugins.testing.divergences import check_divergence
from sdpo_plugins.testing.reprompters import check_reprompter
from sdpo_plugins.testing.selectors import check_selector
from sdpo_plugins.testing.teachers import check_teacher

__all__ = ["check_plugin"]

_CHECKS: Mapping[str, Callable[..., None]] = {
    DIVERGENCES.name: check_divergence,
    SELECTORS.name: check_selector,
    REPROMPTERS.name: check_reprompter,
    TEACHERS.name: check_teacher,
}


def check_plugin(plugin: object, *, options: Mapping[str, Mapping[str, Any]] | None = None) -> None:
    """Check that a plug-in's hooks exist, its names are free, and its strategies keep their contracts.

    Every divergence, selector, reprompter and teacher it offers is checked with the default configuration. Scorers
    need samples of their own: use `check_scorer`.

    Args:
        plugin: The module or object that the entry point names.
        options: Options of strategies that need some, by strategy name.

    Raises:
        AssertionError: Says what does not hold.

    Example:
        >>> from sdpo_plugins import builtin
        >>> check_plugin(builtin)
    """
    manager = create_plugin_manager()
    known = dict(manager.list_name_plugin())
    name = next((name for name, other in known.items() if other is plugin), "")
    try:
        if not name:
            name = str(getattr(plugin, "__name__", type(plugin).__name__))
            register(manager, plugin, name)
        offered = {kind.name: collect(manager, kind) for kind in KINDS}
    except SDPOError as error:
        raise AssertionError(str(error)) from error
    problems = manager.hook.sdpo_validate(config=SDPOConfig(), host=None)
    complaints = [problem for found in problems for problem in found]
    assert not complaints, f"the plug-in {name!r} objects even to the default configuration: {complaints}"
    for kind, check in _CHECKS.items():
        for entry in offered[kind].values():
            if entry.provider == name:
                check(entry, options=(options or {}).get(entry.name))
