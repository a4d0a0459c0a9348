"""What `findings` looks for: each check reads a run's facts and gives what it found, or nothing.

A check that has seen too little says nothing; one that finds nothing wrong says what is fine.
"""

from sdpo_plugins.report.checks.facts import Check, Facts, Finding, Level
from sdpo_plugins.report.checks.leakage import LEAKAGE
from sdpo_plugins.report.checks.run import RUN
from sdpo_plugins.report.checks.student import STUDENT
from sdpo_plugins.report.checks.teacher import TEACHER

__all__ = ["CHECKS", "Check", "Facts", "Finding", "Level"]

CHECKS: tuple[Check, ...] = (*RUN, *STUDENT, *TEACHER, *LEAKAGE)
"""In the order in which findings of one level are shown."""
