"""Test-time self-distillation: one hard question, many attempts, and how soon a solution is discovered. No torch.

The loop itself is an adapter's (`sdpo_trl.solve`); here is what it reads and what it leaves behind.
"""

from __future__ import annotations

from sdpo_plugins.solve.attempts import Attempt, AttemptLog
from sdpo_plugins.solve.discovery import best_of_k, discovery_at_k
from sdpo_plugins.solve.folder import RunFolder
from sdpo_plugins.solve.question import Question, read_question
from sdpo_plugins.solve.results import Outcome, outcome_of
from sdpo_plugins.solve.settings import SolveSettings

__all__ = [
    "Attempt",
    "AttemptLog",
    "Outcome",
    "Question",
    "RunFolder",
    "SolveSettings",
    "best_of_k",
    "discovery_at_k",
    "outcome_of",
    "read_question",
]
