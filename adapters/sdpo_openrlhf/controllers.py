"""OpenRLHF's controllers with SDPO's sample generator and experience maker; each is a Ray actor.

All that is decorated is decorated where it is defined: Ray pickles the host's wrapped methods by value, and their
`super()` would not know an undecorated class that is imported by name.
"""

from __future__ import annotations

from typing import Any

import openrlhf.trainer.ppo_trainer_async as host_async
import ray
from openrlhf.trainer.ppo_trainer import PPOTrainer
from ray.util.queue import Queue

from sdpo_openrlhf.experience import SDPOExperienceMaker
from sdpo_openrlhf.recording import Recording
from sdpo_openrlhf.samples import SDPOSamplesGenerator
from sdpo_plugins.errors import ConfigError

__all__ = ["HEALTH", "SDPOPPOTrainer", "SDPOPPOTrainerAsync"]

HEALTH = "sdpo_health"
"""The health monitor's entry in a checkpoint's client states."""


class _SDPOTraining:
    """What SDPO adds to the host's `BasePPOTrainer`, in front of which it stands: metrics, warnings, records."""

    experience_maker: SDPOExperienceMaker
    tensorboard_logger: Any

    def use_sdpo(self) -> None:
        """Put SDPO's experience maker in the place of the host's, which holds nothing yet."""
        host: Any = self
        self.experience_maker = SDPOExperienceMaker(
            host.actor_model_group,
            host.critic_model_group,
            host.reward_model_group,
            host.reference_model_group,
            host.kl_ctl,
            host.strategy,
            host.tokenizer,
        )

    def train_step(self, rollout_samples: Any, global_step: int) -> tuple[dict[str, Any], int]:
        """Take the host's step on a rollout batch; return SDPO's metrics among its own.

        Args:
            rollout_samples: The batch.
            global_step: Steps so far.
        """
        host: Any = super()
        if self._recording is not None:
            self._recording.step = global_step + 1
        status, global_step = host.train_step(rollout_samples, global_step)
        self._record_tokens()
        maker = self.experience_maker
        status.update(maker.sdpo_metrics)
        # The policy is not trained while `--critic.freezing_steps` lasts.
        if "self_distillation/active_tokens" in status:
            divergence = status.get("self_distillation/divergence", 0.0)
            maker.warn(maker.health.step(divergence, status["self_distillation/active_tokens"]))
        return status, global_step

    def save_logs_and_checkpoints(self, global_step: int, logs_dict: Any = None, client_states: Any = None) -> None:
        """Do as the host does, with what has been warned of in the checkpoint.

        Args:
            global_step: Steps so far.
            logs_dict: Metrics.
            client_states: The host's entries of the checkpoint.
        """
        host: Any = super()
        if self._recording is not None:
            board = self.tensorboard_logger
            self._recording.pictures.log(global_step, writer=None if board is None else board.writer)
            self._recording.metrics(global_step, logs_dict or {})
        host.save_logs_and_checkpoints(global_step, logs_dict, self._with_health(client_states))

    def save_best_checkpoint(self, eval_metrics: Any, global_step: int, client_states: Any = None) -> None:
        """Do as the host does, with what has been warned of in the checkpoint.

        Args:
            eval_metrics: Metrics of an evaluation.
            global_step: Steps so far.
            client_states: The host's entries of the checkpoint.
        """
        host: Any = super()
        if self._recording is not None:
            # The host calls this after each evaluation, the best or not; its loggers put this in front of the names.
            found = {f"eval/{name}": value for name, value in (eval_metrics or {}).items()}
            self._recording.metrics(global_step, found)
        host.save_best_checkpoint(eval_metrics, global_step, self._with_health(client_states))

    def init_checkpoint_states(self) -> dict[str, Any]:
        """Return the host's entries of the checkpoint to resume from, take up what had been warned of, and record."""
        host: Any = super()
        states: dict[str, Any] = host.init_checkpoint_states()
        # A checkpoint without SDPO's part is refused by the policy actors, unless SDPO is off.
        if HEALTH in states:
            self.experience_maker.health.load_state_dict(states[HEALTH])
        self._start_recording(int(states["global_step"]))
        return states

    def fit(self, *args: Any, **kwargs: Any) -> None:
        """Train as the host does; a run that comes to its end says so in its records."""
        host: Any = super()
        host.fit(*args, **kwargs)
        if self._recording is not None:
            self._recording.end()

    @property
    def _recording(self) -> Recording | None:
        return self.experience_maker.recording

    def _start_recording(self, step: int) -> None:
        host: Any = self
        maker = self.experience_maker
        if maker.sdpo_config.record:
            maker.recording = Recording(
                host.args, maker.sdpo_config, host.tokenizer, lambda message: maker.warn([message]), step=step
            )

    def _record_tokens(self) -> None:
        host: Any = self
        config = self.experience_maker.sdpo_config
        if self._recording is not None and config.enabled and config.record_rollouts:
            found = ray.get(host.actor_model_group.async_run_method(method_name="take_recorded"))
            self._recording.tokens(values for of_rank in found for values in of_rank)

    def _with_health(self, client_states: dict[str, Any] | None) -> dict[str, Any]:
        # Not a copy: the host writes into these, and reads it later.
        states = {} if client_states is None else client_states
        if self.experience_maker.sdpo_config.enabled:
            states[HEALTH] = self.experience_maker.health.state_dict()
        return states


@ray.remote
class SDPOPPOTrainer(_SDPOTraining, PPOTrainer.__ray_actor_class__):
    """The synchronous controller; takes the host's arguments."""

    samples_generator: Any

    def __init__(self, pretrain: str, strategy: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(pretrain, strategy, *args, **kwargs)
        self.samples_generator = _with_feedback(self.samples_generator)
        self.use_sdpo()


@ray.remote
class SDPOGenerateSamplesActor(host_async.GenerateSamplesActor.__ray_actor_class__):
    """Generates while `SDPOTrainingActor` trains."""

    samples_generator: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.samples_generator = _with_feedback(self.samples_generator)


@ray.remote
class SDPOTrainingActor(_SDPOTraining, host_async.TrainingActor.__ray_actor_class__):
    """Trains while `SDPOGenerateSamplesActor` generates."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.use_sdpo()


@ray.remote
class SDPOPPOTrainerAsync(host_async.PPOTrainerAsync.__ray_actor_class__):
    """The asynchronous controller; takes the host's arguments."""

    # The host names the classes of its two actors in its own `__init__`, which is the same in all supported releases.
    def __init__(
        self,
        pretrain: str,
        strategy: Any,
        actor_model_group: Any,
        critic_model_group: Any,
        reward_model_group: Any,
        reference_model_group: Any,
        vllm_engines: Any,
        **generate_kwargs: Any,
    ) -> None:
        for section, name in ((strategy.args.eval, "steps"), (strategy.args.ckpt, "save_steps")):
            if getattr(section, name) == -1:  # never
                setattr(section, name, float("inf"))
        size = strategy.args.train.async_queue_size
        if size <= 0:
            raise ConfigError(f"`--train.async_queue_size` must be positive, got {size}.")
        self.rollout_queue, self.rollout_slots = Queue(maxsize=size), Queue(maxsize=size)
        for _ in range(size):
            self.rollout_slots.put(0, block=True)
        shared = {
            "vllm_lock": host_async.VLLMLock.remote(),
            "rollout_queue": self.rollout_queue,
            "rollout_slots": self.rollout_slots,
        }
        self.generator_actor = SDPOGenerateSamplesActor.remote(
            pretrain, strategy, vllm_engines, **shared, **generate_kwargs
        )
        self.trainer_actor = SDPOTrainingActor.remote(
            pretrain,
            strategy,
            actor_model_group,
            critic_model_group,
            reward_model_group,
            reference_model_group,
            vllm_engines,
            **shared,
        )


def _with_feedback(host: Any) -> SDPOSamplesGenerator:
    """Return a sample generator like the host's, which has not begun yet, that takes feedback texts."""
    return SDPOSamplesGenerator(
        strategy=host.strategy,
        prompts_dataloader=host.prompts_dataloader,
        eval_dataloader=host.eval_dataloader,
        tokenizer=host.tokenizer,
        vllm_engines=host.vllm_engines,
    )
