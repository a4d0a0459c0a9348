"""OpenRLHF's policy actor, one process for each rank, with SDPO's trainer and its part of checkpoints."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

import ray
import torch
from openrlhf.trainer.ray.ppo_actor import PolicyModelActor

from sdpo_openrlhf.actor_trainer import SDPOActorTrainer
from sdpo_openrlhf.checkpoint import STATE, load_sdpo, save_sdpo, saved_first, sdpo_state
from sdpo_plugins.config import SDPOConfig
from sdpo_plugins.records import TokenValues

__all__ = ["SDPOPolicyModelActor"]


# Decorated where it is defined: Ray pickles the host's wrapped methods by value, and their `super()` would not know an
# undecorated class that is imported by name.
@ray.remote(num_gpus=1)
class SDPOPolicyModelActor(PolicyModelActor.__ray_actor_class__):
    """Trains by SDPO unless `--sdpo.enabled false`; then it is the host's own actor."""

    def init_model_from_pretrained(
        self, strategy: Any, pretrain: str, max_steps: int | None = None, vllm_engines: Any = None
    ) -> None:
        """Load the policy and its checkpoint as the host does; then make, or take up, the teacher.

        Args:
            strategy: The host's, whose `args.sdpo` holds the SDPO options.
            pretrain: Folder or name of the model.
            max_steps: Optimizer steps of the whole run.
            vllm_engines: Get the weights after each rollout batch.
        """
        config = SDPOConfig.from_mapping(strategy.args.sdpo)
        self._enabled = config.enabled
        # The trainer that the host makes is replaced below, so it must not meet the engines for the weight sync.
        super().init_model_from_pretrained(strategy, pretrain, max_steps, None if config.enabled else vllm_engines)
        if not config.enabled:
            return
        args = strategy.args
        self.vllm_engines = vllm_engines
        self.trainer = SDPOActorTrainer(
            strategy,
            self.actor,
            ema_model=None,
            actor_optim=self.actor_optim,
            actor_scheduler=self.actor_scheduler,
            micro_train_batch_size=args.train.micro_batch_size,
            tokenizer=self.tokenizer,
            eps_clip=args.actor.eps_clip,
            ema_beta=args.train.ema_beta,
            vllm_engines=vllm_engines,
        )
        self.trainer.start_sdpo(config)
        if self.checkpoint_states:
            self._resume(os.path.join(args.ckpt.path, "_actor"))
        if args.ds.enable_sleep:
            self.trainer.sdpo.teacher.move("cpu")

    def offload_states(self) -> None:
        """Make room for vLLM, as the host does (`--ds.enable_sleep`): the teacher waits in main memory too."""
        super().offload_states()
        if self._enabled:
            self.trainer.sdpo.teacher.move("cpu")

    def reload_states(self) -> None:
        """Take the host's states and the teacher back onto the device."""
        super().reload_states()
        if self._enabled:
            self.trainer.sdpo.teacher.move(torch.cuda.current_device())

    def save_checkpoint(self, tag: str, client_states: Any = None, **kwargs: Any) -> None:
        """Save the host's checkpoint with SDPO's part in it.

        Args:
            tag: Name of the checkpoint.
            client_states: The host's.
            kwargs: The host's others.
        """
        if not self._enabled:
            super().save_checkpoint(tag, client_states, **kwargs)
            return
        states = {**(client_states or {}), STATE: {"tag": tag, "rollout_batches": self.trainer.rollout_batches}}
        save = partial(save_sdpo, self.trainer.sdpo.teacher, sharded=self._sharded)
        with saved_first(self.actor.model, save):
            super().save_checkpoint(tag, states, **kwargs)

    def take_recorded(self) -> list[TokenValues]:
        """Return the token values of the rows that this rank trained on last and that are recorded, and forget them."""
        return self.trainer.sdpo.captured.take() if self._enabled else []

    @property
    def _sharded(self) -> bool:
        return bool(self.strategy.args.ds.zero_stage == 3)

    def _resume(self, root: str) -> None:
        state = sdpo_state(self.checkpoint_states, root)
        sdpo = self.trainer.sdpo
        load_sdpo(sdpo.teacher, Path(root) / state["tag"], sdpo.tensors, sharded=self._sharded)
        self.trainer.rollout_batches = int(state["rollout_batches"])
