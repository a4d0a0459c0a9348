"""What verl loads in every process: the entry point `sdpo_verl` of the group `verl.plugins`.

verl logs an error of a plug-in at level DEBUG and goes on without it, so this module imports nothing that can fail for
lack of a package, and notes that it was loaded.
"""

from __future__ import annotations

__all__ = ["LOADED"]

LOADED = False

from sdpo_verl import trainer  # noqa: E402, F401  registers the mode `sdpo`

LOADED = True
