"""Is the run healthy? Plain words with the run's own numbers, computed from its records."""

from __future__ import annotations

from sdpo_plugins.records import RunRecords
from sdpo_plugins.report.checks import CHECKS, Facts, Finding, Level

__all__ = ["Finding", "findings"]

_ORDER: tuple[Level, ...] = ("bad", "warning", "note", "ok")


def findings(run: RunRecords, *, now: float | None = None) -> list[Finding]:
    """Judge a run: what is wrong, what deserves a look, and what is fine.

    Args:
        run: From `read_run`; of SDPO or GRPO, ended or not.
        now: Seconds since 1970, to tell a run that goes on from one that was killed; None: it cannot be told.

    Returns:
        The worst first. A healthy run has findings of the level "ok" only.

    Example:
        >>> from pathlib import Path
        >>> empty = RunRecords(Path("runs/x"), "x", headers=(), steps=(), rollouts=())
        >>> [finding.title for finding in findings(empty)]
        ['The run has no end', 'No step was recorded yet']
    """
    facts = Facts(run, now)
    found = [finding for check in CHECKS for finding in check(facts)]
    return sorted(found, key=lambda finding: _ORDER.index(finding.level))
