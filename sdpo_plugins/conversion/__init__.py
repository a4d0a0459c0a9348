"""From one project's options to another's: SDPO's own, and the host's settings through one table (`settings`)."""

from sdpo_plugins.conversion.documents import Given
from sdpo_plugins.conversion.hosts import HOST_NAMES
from sdpo_plugins.conversion.resolution import Became, Origin, Resolved, resolve
from sdpo_plugins.conversion.settings import SETTINGS, TARGETS, Setting
from sdpo_plugins.conversion.sources import Source, read_source
from sdpo_plugins.conversion.transfer import FORMATS, Known, emit, known_settings
from sdpo_plugins.conversion.values import Found, shown

__all__ = [
    "FORMATS",
    "HOST_NAMES",
    "SETTINGS",
    "TARGETS",
    "Became",
    "Found",
    "Given",
    "Known",
    "Origin",
    "Resolved",
    "Setting",
    "Source",
    "emit",
    "known_settings",
    "read_source",
    "resolve",
    "shown",
]
