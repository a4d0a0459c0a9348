"""verl's workers with SDPO's teacher and loss."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from tensordict import TensorDict
from verl.single_controller.base.decorator import Dispatch, register
from verl.utils import tensordict_utils as tu
from verl.workers.engine_workers import ActorRolloutRefWorker, TrainingWorker

from sdpo_plugins.causal_lm import needed_split
from sdpo_plugins.config import SDPOConfig
from sdpo_plugins.errors import HostError
from sdpo_plugins.losses import loss_denominator
from sdpo_plugins.plugins import resolve
from sdpo_plugins.records import TokenValues
from sdpo_plugins.step_metrics import RunningSums
from sdpo_plugins.teacher import load_teacher, local_tensors, save_teacher
from sdpo_verl.host_loss import host_loss_of
from sdpo_verl.jagged import padded_responses
from sdpo_verl.records import CapturedTokens
from sdpo_verl.step import SDPOStep

__all__ = ["SDPOActorRolloutRefWorker", "SDPOTrainingWorker"]


class SDPOTrainingWorker(TrainingWorker):
    """The actor's training worker; trains by SDPO once `start_sdpo` was called."""

    _step: SDPOStep | None = None
    _rollout_batches = 0
    _optimizer_steps = 0
    _teacher_metrics: Mapping[str, float] = MappingProxyType({})

    def start_sdpo(self, options: Mapping[str, Any], actor_config: Any) -> None:
        """Make the teacher, an exact copy of the actor as it is now, and set the loss up.

        Args:
            options: Of an `SDPOConfig`.
            actor_config: verl's actor configuration.

        Raises:
            HostError: The model cannot be taken apart into body and head.
            TeacherError: The teacher does not fit the model.
        """
        config = SDPOConfig.from_mapping(options)
        strategies = resolve(config)
        module = self.engine.module
        strategies.teacher.check_model(module)
        split = needed_split(module, "verl")
        tensors = local_tensors(module)
        strategies.teacher.start(tensors)
        self._step = SDPOStep(
            config=config,
            engine=self.engine,
            split=split,
            teacher=strategies.teacher,
            tensors=tensors,
            divergence=strategies.divergence,
            host_loss=host_loss_of(actor_config, config.grpo_weight),
            sums=RunningSums(),
            captured=CapturedTokens(config),
        )

    @property
    def sdpo(self) -> SDPOStep:
        """The step of SDPO.

        Raises:
            HostError: `start_sdpo` was not called.
        """
        if self._step is None:
            raise HostError("the worker has no teacher yet: the trainer must call `start_sdpo` after `init_model`.")
        return self._step

    def train_batch(self, data: TensorDict) -> TensorDict:
        """Take one optimizer step on a mini-batch; see `loss_normalization`."""
        self.measure(data)
        # An attribute of this engine object, for the time of this step: log-probabilities keep verl's own forward.
        self.engine.forward_step = self.sdpo
        try:
            output: TensorDict = super().train_batch(data)
        finally:
            del self.engine.forward_step
        self._optimizer_steps += 1
        self._follow()
        return output

    def measure(self, data: TensorDict) -> None:
        """Note in a mini-batch what its micro-batches are normalised by. Every rank must call this together.

        Args:
            data: This rank's rows; gets `sdpo_denominator`, over all ranks, and `sdpo_rows`, of this one.
        """
        width = int(data["responses"].offsets().diff().max())
        mask = padded_responses(data["response_mask"], width) * data["sdpo_active"].reshape(-1, 1)
        count = loss_denominator(mask, self.sdpo.config.loss_agg_mode).to(torch.float64)
        (total,) = _sum_over_ranks([float(count)])
        tu.assign_non_tensor(data, sdpo_denominator=total, sdpo_rows=len(data))

    def finish_rollout_batch(self) -> tuple[dict[str, float], list[TokenValues]]:
        """Count a rollout batch, let the teacher follow if it is time to.

        Returns:
            Metrics of all optimizer steps of this batch on all ranks, and the teacher's last ones; token values of the
            recorded rows that this rank had.
        """
        self._rollout_batches += 1
        self._follow()
        metrics = {**self.sdpo.sums.take(_sum_over_ranks), **self._teacher_metrics}
        self._teacher_metrics = {}
        return metrics, self.sdpo.captured.take()

    def _follow(self) -> None:
        teacher = self.sdpo.teacher
        if teacher.due(self._rollout_batches, self._optimizer_steps):
            self._teacher_metrics = teacher.update(self.sdpo.tensors, reduce=_sum_over_ranks)

    def save_sdpo(self, folder: str) -> dict[str, int]:
        """Write this rank's part of the teacher; return what the other arguments of `load_sdpo` must be."""
        rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
        save_teacher(self.sdpo.teacher, folder, rank=rank, world_size=world)
        torch.distributed.barrier()
        return {"rollout_batches": self._rollout_batches, "optimizer_steps": self._optimizer_steps}

    def load_sdpo(self, folder: str, rollout_batches: int, optimizer_steps: int) -> None:
        """Take the teacher up from a checkpoint."""
        rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
        load_teacher(self.sdpo.teacher, folder, self.sdpo.tensors, rank=rank, world_size=world)
        self._rollout_batches, self._optimizer_steps = rollout_batches, optimizer_steps


class SDPOActorRolloutRefWorker(ActorRolloutRefWorker):
    """The colocated worker with an SDPO actor."""

    actor_worker_cls = SDPOTrainingWorker

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def start_sdpo(self, options: dict[str, Any]) -> None:
        """See `SDPOTrainingWorker.start_sdpo`."""
        self.actor.start_sdpo(options, self.loss_fn.keywords["config"])

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def finish_rollout_batch(self) -> tuple[dict[str, float], list[TokenValues]]:
        """See `SDPOTrainingWorker.finish_rollout_batch`."""
        found: tuple[dict[str, float], list[TokenValues]] = self.actor.finish_rollout_batch()
        return found

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def save_sdpo(self, folder: str) -> dict[str, int]:
        """See `SDPOTrainingWorker.save_sdpo`."""
        counters: dict[str, int] = self.actor.save_sdpo(folder)
        return counters

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def load_sdpo(self, folder: str, rollout_batches: int, optimizer_steps: int) -> None:
        """See `SDPOTrainingWorker.load_sdpo`."""
        self.actor.load_sdpo(folder, rollout_batches, optimizer_steps)


def _sum_over_ranks(values: list[float]) -> list[float]:
    from verl.utils.device import get_device_id

    total = torch.tensor(values, dtype=torch.float64, device=get_device_id())
    torch.distributed.all_reduce(total)
    return [float(value) for value in total]
