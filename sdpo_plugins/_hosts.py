"""What this environment has of a host framework, and the way to its adapter."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
from dataclasses import dataclass
from types import ModuleType

from packaging.specifiers import SpecifierSet

from sdpo_plugins.errors import HostError
from sdpo_plugins.types import Host

__all__ = ["HostStatus", "host_status", "load_adapter"]


@dataclass(frozen=True)
class HostStatus:
    """What this environment has of a host.

    Args:
        host: The catalogue entry.
        installed: Version of the host's distribution, or None.
        supported: True if that version lies in the entry's requirement; pre-releases and local builds count too.
        adapter: True if the adapter package can be imported; it is not imported to find out.
    """

    host: Host
    installed: str | None
    supported: bool
    adapter: bool


def host_status(host: Host) -> HostStatus:
    """Say what this environment has of a host, without importing the host or its adapter.

    Args:
        host: A catalogue entry.

    Returns:
        Its status here.

    Example:
        >>> host_status(Host("none", "no-such-distribution", ">=1", "no_such_adapter", "")).installed is None
        True
    """
    try:
        installed: str | None = importlib.metadata.version(host.distribution)
    except importlib.metadata.PackageNotFoundError:
        installed = None
    supported = installed is not None and SpecifierSet(host.requirement).contains(installed, prereleases=True)
    adapter = importlib.util.find_spec(host.adapter.partition(".")[0]) is not None
    return HostStatus(host, installed, supported, adapter)


def load_adapter(host: Host) -> ModuleType:
    """Import a host's adapter, after checking that adapter and host are there, and the host's version supported.

    Args:
        host: A catalogue entry.

    Returns:
        The adapter package, e.g. `sdpo_trl`.

    Raises:
        HostError: Says what is missing and the command that installs it.
    """
    status = host_status(host)
    if not status.adapter:
        raise HostError(f"The adapter {host.adapter!r} for {host.name} is not installed here. Run: {host.install}")
    if not status.supported:
        found = f"version {status.installed} is installed" if status.installed else "it is not installed"
        raise HostError(f"{host.distribution} {host.requirement} is needed, but {found}. Run: {host.install}")
    return importlib.import_module(host.adapter)
