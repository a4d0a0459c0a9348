"""Puts SDPO's configuration files onto Hydra's search path: `--config-name sdpo` and `+sdpo=paper` for verl.

Hydra imports every module of the namespace package `hydra_plugins` in every program that uses Hydra, so this one
imports nothing else, and its directory's parent has no `__init__.py`: other distributions put theirs beside it.
"""

from __future__ import annotations

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin

__all__ = ["SDPOSearchPath"]


class SDPOSearchPath(SearchPathPlugin):
    """Adds `sdpo_verl.conf` behind the program's own directories: it hides no file of theirs."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Append our directory.

        Args:
            search_path: Hydra's, changed in place.
        """
        search_path.append(provider="sdpo", path="pkg://sdpo_verl.conf")
