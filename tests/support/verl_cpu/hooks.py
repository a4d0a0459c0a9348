"""Puts verl's parts on a CPU as they are imported; verl loads this in every process.

The modes `sync` and `sdpo` become the same trainers on a CPU, so that a run's own configuration needs no change.
"""

from __future__ import annotations

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
