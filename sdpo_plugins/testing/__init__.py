"""Contract checks for plug-ins: run them on your own entries in your own tests.

    from sdpo_plugins.testing import check_divergence, check_plugin

    def test_my_divergence():
        check_divergence(MY_ENTRY, options={"order": 0.5})

    def test_my_plugin_as_a_whole():
        check_plugin(my_package)

Each check raises an `AssertionError` that says which part of the contract does not hold, and with what input.
"""

from __future__ import annotations

from sdpo_plugins.testing.divergences import check_divergence
from sdpo_plugins.testing.plugin import check_plugin
from sdpo_plugins.testing.reprompters import check_reprompter
from sdpo_plugins.testing.scorers import check_scorer
from sdpo_plugins.testing.selectors import check_selector
from sdpo_plugins.testing.teachers import check_teacher

__all__ = [
    "check_divergence",
    "check_plugin",
    "check_reprompter",
    "check_scorer",
    "check_selector",
    "check_teacher",
]
