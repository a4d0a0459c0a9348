"""OpenRLHF's trainer of the policy, one for each DeepSpeed rank, with SDPO's loss and teacher."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType, SimpleNamespace
from typing import Any

import torch
from openrlhf.trainer.ray.ppo_actor import ActorPPOTrainer
from openrlhf.utils.loss_utils import get_loss_batch_info

from sdpo_openrlhf.captured import Captured
from sdpo_openrlhf.host_loss import HostLoss, host_loss_of, rollout_weights
from sdpo_openrlhf.lora import merged_for_vllm
from sdpo_openrlhf.step import MicroBatch, SDPOStep, StepResult
from sdpo_openrlhf.tokens import taken_fields
from sdpo_openrlhf.windows import SDPOReplayBuffer, Window, Windows
from sdpo_plugins.causal_lm import needed_split
from sdpo_plugins.config import SDPOConfig
from sdpo_plugins.host_term import HostTerm
from sdpo_plugins.plugins import resolve
from sdpo_plugins.step_metrics import RunningSums
from sdpo_plugins.teacher import local_tensors

__all__ = ["SDPOActorTrainer", "is_on_policy", "sum_over_ranks"]


class SDPOActorTrainer(ActorPPOTrainer):
    """Trains by SDPO once `start_sdpo` was called. The host's loop, step, metrics and weight sync run as they are.

    The host's step calls the model and the policy loss; for the time of the step, both calls are ours.
    """

    actor_loss_fn: Any

    def start_sdpo(self, config: SDPOConfig) -> None:
        """Make the teacher, an exact copy of the policy as it is now, and set the loss up.

        Args:
            config: The SDPO options.

        Raises:
            HostError: The model cannot be taken apart into body and head.
            TeacherError: The teacher does not fit the model.
        """
        strategies = resolve(config)
        engine = self.actor.model
        strategies.teacher.check_model(engine.module)
        split = needed_split(engine.module, "OpenRLHF")
        tensors = local_tensors(engine.module)
        strategies.teacher.start(tensors)
        self.sdpo = SDPOStep(
            config=config,
            engine=engine,
            split=split,
            teacher=strategies.teacher,
            tensors=tensors,
            divergence=strategies.divergence,
            temperature=float(self.args.rollout.temperature),
            packed=bool(self.args.ds.packing_samples),
            pad_token_id=int(self.tokenizer.pad_token_id),
            sums=RunningSums(),
            captured=Captured(config),
        )
        self.replay_buffer = SDPOReplayBuffer(
            self.micro_train_batch_size,
            packing_samples=self.args.ds.packing_samples,
            dynamic_batch=self.args.train.dynamic_batch_enable,
        )
        self.rollout_batches = 0
        self._windows = Windows(self.replay_buffer, config.loss_agg_mode, sum_over_ranks)
        self._host_loss: HostLoss | None = host_loss_of(self.actor_loss_fn, self.args.algo.kl, config.grpo_weight)
        self._on_policy = is_on_policy(self.args)
        self._teacher_metrics: Mapping[str, float] = MappingProxyType({})

    @property
    def optimizer_steps(self) -> int:
        """Optimizer steps since training began; DeepSpeed counts them and keeps the count in its checkpoints."""
        return int(self.actor.model.global_steps)

    def ppo_train(self, kl_ctl: float) -> dict[str, Any]:
        """Train on a rollout batch, let the teacher follow if it is time to, and return the metrics of both.

        Args:
            kl_ctl: Coefficient of the KL to the reference model.
        """
        self._windows.begin()
        self.sdpo.captured.begin()
        status: dict[str, Any] = super().ppo_train(kl_ctl)
        self.rollout_batches += 1
        self._follow()
        status.update(self.sdpo.sums.take(sum_over_ranks), **self._teacher_metrics)
        self._teacher_metrics = {}
        return status

    def training_step(
        self, experience: Any, kl_ctl: float, step: int, loss_batch_info: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Take the host's step on a micro-batch, with SDPO's loss.

        Args:
            experience: The micro-batch.
            kl_ctl: Coefficient of the KL to the reference model.
            step: Number of the micro-batch in this epoch.
            loss_batch_info: The host's normalisers; None with dynamic batches.
        """
        fields = taken_fields(experience.info, experience.sequences.device)
        buffer, dynamic = self.replay_buffer, self.args.train.dynamic_batch_enable
        if dynamic:
            # The host takes every micro-batch of a dynamic schedule for a whole accumulation. ZeRO-1 and 2 then keep
            # the gradient of the last one alone.
            self.actor.model.set_gradient_accumulation_boundary(bool(buffer.dynamic_optimizer_step[step]))
        if loss_batch_info is None:
            loss_batch_info = get_loss_batch_info(
                self.strategy, experience.action_mask, replay_buffer=buffer, step=step, dynamic_batch=dynamic
            )
        scale, denominator = self._normalization(self._windows.next(step), len(experience.sequences), loss_batch_info)
        batch = MicroBatch(
            sequences=experience.sequences,
            attention_mask=experience.attention_mask,
            action_mask=experience.action_mask,
            teacher_prompts=fields.teacher_prompts,
            active=fields.active,
            success=fields.success,
            records=fields.records,
            known_log_probs=experience.action_log_probs,
            on_policy=self._on_policy,
            rollout_is_weights=rollout_weights(self.actor_loss_fn, experience),
            scale=scale,
            denominator=denominator,
        )
        with self._in_place(batch, self._host_term(experience, kl_ctl, loss_batch_info)):
            status: dict[str, Any] = super().training_step(experience, kl_ctl, step, loss_batch_info)
        self._follow()
        return status

    def broadcast_to_vllm(self) -> None:
        """Send the policy's weights to the vLLM engines; LoRA adapters as part of the weights that they adapt."""
        with merged_for_vllm(self.actor, self.strategy.args.ds.zero_stage):
            super().broadcast_to_vllm()

    @contextmanager
    def _in_place(self, batch: MicroBatch, host: HostTerm | None) -> Iterator[None]:
        """Within the block, the host's calls of model and policy loss are SDPO's pass and its loss."""
        policy_loss = self.actor_loss_fn
        results: list[StepResult] = []

        def forward(*_: Any, **__: Any) -> tuple[Any, Any]:
            results.append(self.sdpo(batch, host))
            return results[-1].log_probs, SimpleNamespace(entropy=results[-1].entropies)

        def loss(*args: Any, **kwargs: Any) -> tuple[Any, ...]:
            # Behind the loss the host returns metrics, whose number differs between its releases.
            return (results[-1].loss, *policy_loss(*args, **kwargs)[1:])

        self.actor.forward = forward
        self.actor_loss_fn = loss
        try:
            yield
        finally:
            del self.actor.forward
            self.actor_loss_fn = policy_loss

    def _normalization(self, window: Window, rows: int, host: Mapping[str, Any]) -> tuple[float, float | None]:
        """Return what the micro-batch's loss is multiplied by, and what it is divided by; None: its own tokens."""
        config = self.sdpo.config
        # DeepSpeed divides each loss by the number of micro-batches of an optimizer step, and averages over ranks.
        scale = (1.0 - config.grpo_weight) * int(self.actor.model.gradient_accumulation_steps())
        if config.loss_normalization == "reference":
            return scale * rows / window.rows, None
        return scale * int(host["dp_size"]), window.denominator or None

    def _host_term(self, experience: Any, kl_ctl: float, normalisers: Mapping[str, Any]) -> HostTerm | None:
        host_loss = self._host_loss
        if host_loss is None:
            return None
        return HostTerm(1.0, lambda log_probs, _: host_loss(log_probs, experience, kl_ctl, normalisers))

    def _follow(self) -> None:
        teacher = self.sdpo.teacher
        if teacher.due(self.rollout_batches, self.optimizer_steps):
            self._teacher_metrics = teacher.update(self.sdpo.tensors, reduce=sum_over_ranks)


def is_on_policy(args: Any) -> bool:
    """Say whether each rollout batch makes a single optimizer step: π/π_old is then 1 for every token.

    Args:
        args: OpenRLHF's.
    """
    rows = args.rollout.batch_size * args.rollout.n_samples_per_prompt
    return bool(args.train.max_epochs == 1 and rows <= args.train.batch_size)


def sum_over_ranks(values: list[float]) -> list[float]:
    """Add numbers up over the ranks; every rank must call this together."""
    total = torch.tensor(values, dtype=torch.float64, device=torch.cuda.current_device())
    torch.distributed.all_reduce(total)
    return [float(value) for value in total]
