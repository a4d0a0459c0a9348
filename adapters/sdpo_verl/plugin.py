"""What verl loads in every process: the entry point `sdpo_verl` of the group `verl.plugins`.

A run is a dozen processes, and one of them makes a trainer. So the mode `sdpo` is registered when verl's trainers are
imported: the other processes are spared seconds, and an error is raised there, where it ends the run, and not here,
where verl would log it at level DEBUG and go on without SDPO.
"""

from __future__ import annotations

from typing import Any

from wrapt import when_imported

__all__ = ["LOADED"]

LOADED = True
"""Whether this process has the plug-in, for a check that it was not lost."""


@when_imported("verl.trainer.ppo.v1")
def _register(trainers: Any) -> None:
    from sdpo_verl import trainer  # noqa: F401  registers the mode as it is imported
