"""What verl loads in every process: the entry point `sdpo_verl` of the group `verl.plugins`.

A run is a dozen processes, and one of them makes a trainer. So the mode `sdpo` is registered when verl's trainers are
imported: the other processes are spared seconds, and an error is raised there, where it ends the run, and not here,
where verl would log it at level DEBUG and go on without SDPO.
"""

from __future__ import annotations

from typing import Any

from wrapt import when_imported

from sdpo_plugins.errors import HostError
from sdpo_verl.installation import check_version

__all__ = ["LOADED"]

LOADED = True
"""Whether this process has the plug-in, for a check that it was not lost."""


@when_imported("verl.trainer.ppo.v1")
def _register(trainers: Any) -> None:
    try:
        check_version()
    except HostError as error:
        _refuse(trainers, error)
        return
    from sdpo_verl import trainer  # noqa: F401  registers the mode as it is imported


def _refuse(trainers: Any, reason: HostError) -> None:
    """Give an unsupported verl a mode `sdpo` that says why it cannot run; runs in other modes are not concerned."""
    base = getattr(trainers, "PPOTrainer", None)
    register = getattr(trainers, "register_trainer", None)
    if base is None or register is None:
        return  # a verl without trainer modes refuses the name itself

    def raise_reason(cls: type, *args: Any, **kwargs: Any) -> None:
        raise reason

    register("sdpo")(type("UnsupportedVerl", (base,), {"__new__": raise_reason, "__module__": __name__}))
