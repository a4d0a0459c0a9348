"""Whether SDPO can run in this environment's verl: asked before a name of verl is imported that it may not have."""

from __future__ import annotations

import os
import sys
from importlib.metadata import EntryPoint, entry_points

from sdpo_plugins._hosts import host_status
from sdpo_plugins.builtin import HOSTS
from sdpo_plugins.errors import HostError

__all__ = ["check_loaded", "check_version", "loading_problem"]

_GROUP = "verl.plugins"
_NAME = "sdpo_verl"
_MODULE = "sdpo_verl.plugin"
_POLICY = "VERL_USE_EXTERNAL_PLUGINS"
_MODULES = "VERL_USE_EXTERNAL_MODULES"

_HOST = next(host for host in HOSTS if host.name == "verl")


def check_version() -> None:
    """Refuse a verl that SDPO was not tested with.

    Raises:
        HostError: Names the version found and those supported.
    """
    status = host_status(_HOST)
    if not status.supported:
        found = f"verl {status.installed} is installed" if status.installed else "verl is not installed"
        raise HostError(f"{found}, but SDPO needs verl {_HOST.requirement}. Run: {_HOST.install}")


def check_loaded() -> None:
    """Refuse to start where verl did not load our plug-in, of which verl itself says nothing.

    Raises:
        HostError: Says why it was not loaded, and what to do.
    """
    if _loaded():
        return
    reason = loading_problem() or (
        f"it could be loaded now: {_POLICY} or the installation changed after verl was imported. Start again in a new "
        "process."
    )
    raise HostError(f"verl did not load the plug-in {_NAME!r}, without which it has no trainer mode `sdpo`: {reason}")


def loading_problem() -> str | None:
    """Say why verl would not load our plug-in in this environment, and what to do; None if it would."""
    if _MODULE in _listed(os.environ.get(_MODULES, "")):
        return None  # verl lets errors of these modules through
    found = [entry for entry in entry_points(group=_GROUP) if entry.name == _NAME]
    if not found:
        return (
            f"sdpo-plugins has no entry point {_NAME!r} in the group {_GROUP!r}. It is used from a folder without "
            f"being installed, or an older release is. Run: {_HOST.install}, or, from a clone: pip install -e "
            f"'.[verl]'; or set {_MODULES}={_MODULE}"
        )
    # verl reads the whole variable in lower case.
    policy = os.environ.get(_POLICY, "auto").strip().lower()
    if policy == "none":
        return f"{_POLICY}={policy} turns plug-ins off. Unset it, or set {_POLICY}={_NAME}"
    if policy != "auto" and _NAME not in _listed(policy):
        wanted = ",".join([*_listed(policy), _NAME])
        return f"{_POLICY}={policy} leaves {_NAME!r} out. Set {_POLICY}={wanted}"
    return _error_of(found[0])


def _error_of(entry: EntryPoint) -> str | None:
    try:
        entry.load()
    except Exception as error:  # whatever verl would have logged at level DEBUG
        said = f"{type(error).__name__}: {error}"
        return f"the plug-in cannot be imported ({said}). Repair the installation: {_HOST.install}"
    return None


def _loaded() -> bool:
    return bool(getattr(sys.modules.get(_MODULE), "LOADED", False))


def _listed(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]
