"""Puts verl's parts on a CPU as they are imported; verl loads this in every process.

The modes `sync` and `sdpo` become the same trainers on a CPU, so that a run's own configuration needs no change.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from typing import Any

from wrapt import when_imported

__all__: list[str] = []


@when_imported("verl.workers.rollout")
def _rollout_server(rollouts: Any) -> None:
    from verl_cpu import rollout  # noqa: F401  registers the server `hf_cpu`


@when_imported("verl.trainer.ppo.v1")
def _trainers(trainers: Any) -> None:
    from verl_cpu import trainer

    trainer.put_on_cpu()


@when_imported("verl.experimental.agent_loop.agent_loop")
def _agent_loops(loops: Any) -> None:
    # An agent loop is made for every answer, and hydra's way to make an object takes longer than our model's answer.
    loops.hydra = types.SimpleNamespace(utils=types.SimpleNamespace(instantiate=_instantiate))


def _instantiate(config: Mapping[str, Any], **arguments: Any) -> Any:
    """Do what `hydra.utils.instantiate` does with a plain `_target_`, whose own arguments are constants."""
    from hydra.utils import get_object

    constants = {name: value for name, value in config.items() if name != "_target_"}
    return get_object(config["_target_"])(**{**constants, **arguments})
