"""What the tab key offers behind options and arguments; nothing heavy is imported before it is pressed."""

from __future__ import annotations

from collections.abc import Callable, Iterable

__all__ = [
    "curves",
    "dialects",
    "names_of",
    "option_words",
    "picture_formats",
    "picture_styles",
    "presets",
    "targets",
    "tasks",
]


def presets(incomplete: str) -> list[str]:
    """Names of presets."""
    from sdpo_plugins.presets import preset_names

    return _starting(incomplete, preset_names())


def dialects(incomplete: str) -> list[str]:
    """Names of other projects."""
    from sdpo_plugins.dialects import dialect_names

    return _starting(incomplete, dialect_names())


def targets(incomplete: str) -> list[str]:
    """Hosts for which `sdpo config` writes settings."""
    from sdpo_plugins.conversion.settings import TARGETS

    return _starting(incomplete, TARGETS)


def tasks(incomplete: str) -> list[str]:
    """Tasks of the embedded model."""
    from sdpo_plugins.embedded import task_names

    return _starting(incomplete, task_names(family=None))


def curves(incomplete: str) -> list[str]:
    """Standard curves of a run."""
    from sdpo_plugins.report.standard import STANDARD

    return _starting(incomplete, [entry.key for entry in STANDARD])


def picture_formats(incomplete: str) -> list[str]:
    """Formats of pictures."""
    from sdpo_plugins.report.drawing import FORMATS

    return _starting(incomplete, FORMATS)


def picture_styles(incomplete: str) -> list[str]:
    """Styles of pictures."""
    from sdpo_plugins.report.drawing import STYLES

    return _starting(incomplete, STYLES)


def option_words(incomplete: str) -> list[str]:
    """Options of SDPO, ready for a value: `alpha=`."""
    import dataclasses

    from sdpo_plugins.config import SDPOConfig

    if not incomplete:  # a file is as likely
        return []
    return _starting(incomplete, [f"{item.name}=" for item in dataclasses.fields(SDPOConfig)])


def names_of(kind: str) -> Callable[[str], list[str]]:
    """Return a function that offers what a catalogue holds.

    Args:
        kind: "scorer", "teacher", "host" or another kind of `sdpo list`.
    """

    def complete(incomplete: str) -> list[str]:
        from sdpo_plugins.plugins import catalogue

        return _starting(incomplete, catalogue(kind))

    return complete


def _starting(incomplete: str, names: Iterable[str]) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]
