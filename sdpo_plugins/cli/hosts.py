"""From the name of a host to a function of its adapter, and the words for what is missing on the way."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from sdpo_plugins._catalogues import HOST_KIND, find
from sdpo_plugins.errors import HostError
from sdpo_plugins.plugins import HostStatus, catalogue, load_adapter

__all__ = ["State", "adapter_function", "advice", "loading_problem", "state"]

State = Literal["ready", "missing", "unsupported", "no adapter"]


def state(status: HostStatus) -> State:
    """Say in one word whether a host can be used.

    Args:
        status: What this environment has of the host.

    Returns:
        "no adapter" comes before the others: without one, installing the host would not help.
    """
    if not status.adapter:
        return "no adapter"
    if status.installed is None:
        return "missing"
    return "ready" if status.supported else "unsupported"


def advice(status: HostStatus) -> str:
    """Say which command makes the host usable; "" if none is needed, or none would help."""
    return status.host.install if state(status) in ("missing", "unsupported") else ""


def loading_problem(status: HostStatus) -> str | None:
    """Say why a host that is ready would not load our adapter, and what to do.

    Args:
        status: What this environment has of the host.

    Returns:
        None if it would, or if the host loads nothing by itself: such adapters have no module `installation`.
    """
    if state(status) != "ready":
        return None
    spec = importlib.util.find_spec(status.host.adapter)
    folders = (spec.submodule_search_locations if spec else None) or []
    # Looked for as a file: asking the import system would import the adapter, and with it the host.
    if not any((Path(folder) / "installation.py").is_file() for folder in folders):
        return None
    problem: str | None = importlib.import_module(f"{status.host.adapter}.installation").loading_problem()
    return problem


def adapter_function(name: str, module: str, function: str, plugins: Sequence[str] = ()) -> Any:
    """Import a function of a host's adapter, after making sure that the host is there and supported.

    Args:
        name: The host's name.
        module: Submodule of the adapter, for example "recipe".
        function: Name in that submodule.
        plugins: Plug-ins beside our own that may provide the host.

    Returns:
        The function.

    Raises:
        ConfigError: There is no host of this name.
        HostError: The host is missing or unsupported, or its adapter does not have this command.
    """
    host = find(catalogue("host", plugins), HOST_KIND, name)
    load_adapter(host)
    path = f"{host.adapter}.{module}"
    try:
        loaded = importlib.import_module(path)
    except ModuleNotFoundError as error:
        if error.name != path:  # the module is there, and something that it needs is not
            raise
        raise HostError(
            f"The adapter of {name!r} has no module {path!r}; this command does not exist for it."
        ) from error
    return getattr(loaded, function)
