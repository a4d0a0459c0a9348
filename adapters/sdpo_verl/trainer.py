"""verl's synchronous trainer with SDPO's teacher contexts, teacher updates and checkpoints: the mode `sdpo`."""

from __future__ import annotations

import json
import os
from functools import cached_property
from pathlib import Path
from typing import Any

import ray
import transfer_queue as tq
from verl.trainer.ppo.utils import Role
from verl.trainer.ppo.v1 import PPOTrainerSync, register_trainer

from sdpo_plugins.config import SDPOConfig
from sdpo_plugins.errors import HostError, TeacherError
from sdpo_plugins.health import HealthMonitor
from sdpo_plugins.plugins import extra_metrics, resolve
from sdpo_plugins.records import record_folder
from sdpo_plugins.types import TeacherContext
from sdpo_verl.config import settle
from sdpo_verl.config_checks import check_text_only
from sdpo_verl.prompts import PromptStyle, prompt_style
from sdpo_verl.records import FIELD, RecordedBatch, RunRecords, record_field, rollout_lines
from sdpo_verl.rollouts import FIELDS, idle_rows, rollouts_of, teacher_fields
from sdpo_verl.transfer import field_names, read_rows, with_reward_fields, without_odd_feedback
from sdpo_verl.worker import SDPOActorRolloutRefWorker

__all__ = ["SDPOTrainer"]

# Inside of the actor's folder, which verl removes as a whole when it keeps only the newest checkpoints.
_FOLDER = "actor/sdpo"

# From the message with which verl's replay buffer ends a run.
_NO_ROLLOUTS = "no materializable trajectories"

_UNKNOWN_PROMPTS = (
    "{} of {} prompts are not what the chat template makes of their `raw_prompt`, with the configuration's tools or "
    "without: an agent loop renders them in its own way, or they were cut. The teacher reads prompts made by the "
    "template, without tools. Its prompts should differ from the student's by demonstration and feedback alone."
)

_EARLIER_OUTPUTS = (
    "{} rows of this batch are earlier outputs of a session. SDPO learns from the last output of each session alone: "
    "parts of one session may not demonstrate for each other."
)


@register_trainer("sdpo")
class SDPOTrainer(PPOTrainerSync):
    """Trains by SDPO where `trainer.v1.trainer_mode=sdpo`; everything but contexts, loss and teacher is verl's.

    Args:
        config: verl's configuration with `actor_rollout_ref.actor.self_distillation`.

    Raises:
        ConfigError: Every problem with the SDPO options and with options of verl that SDPO cannot honour, at once.
    """

    worker_cls = SDPOActorRolloutRefWorker

    # verl compares its mode with the literal "sync" to choose the replay buffer and what a checkpoint holds.
    trainer_mode = property(lambda self: "sync", lambda self, value: None)

    def __init__(self, config: Any) -> None:
        self.sdpo_config = settle(config)
        self._strategies = resolve(self.sdpo_config)
        self._health = HealthMonitor()
        self._reward_fields: list[str] = []
        self._told: set[str] = set()
        super().__init__(config)

    def _init_resource_pool_mgr(self) -> None:
        super()._init_resource_pool_mgr()
        if not self.sdpo_config.enabled:
            return  # verl's own workers, and verl's own algorithm
        for role in (Role.Actor, Role.ActorRollout, Role.ActorRolloutRef):
            if role in self.role_worker_mapping:
                self.role_worker_mapping[role] = ray.remote(self.worker_cls)

    # Records of the run

    @cached_property
    def _records(self) -> RunRecords:
        folder = record_folder(self.sdpo_config, self.config.trainer.default_local_dir)
        return RunRecords(folder, self.sdpo_config, self.tokenizer)

    def fit(self, agent_loop_manager: Any) -> None:
        """Train, or only validate, which leaves the records of a training alone."""
        settings = self.config.trainer
        if not (settings.get("val_before_train", True) and settings.get("val_only", False)):
            self._records.start(
                model=str(self.config.actor_rollout_ref.model.path),
                step=self.global_steps,
                ranks=int(self.actor_rollout_wg.world_size),
            )
        with self._records.ending():
            super().fit(agent_loop_manager)

    # verl has made its loggers by the first of these two.

    def on_validate_begin(self) -> None:
        """Record the validation before training too."""
        super().on_validate_begin()
        self._records.attach(self.logger)

    def on_train_begin(self) -> None:
        """Record metrics where there was no validation before training."""
        super().on_train_begin()
        self._records.attach(self.logger)

    def _recorded_batch(self, batch: Any, idle: list[bool]) -> RecordedBatch:
        number = (self.global_steps - 1) * self.parameter_sync_step + self.local_trigger_step
        return self._records.batch(number, self.global_steps, batch.keys, idle)

    def _record(self, batch: RecordedBatch, rollouts: Any, contexts: Any, responses: Any, config: SDPOConfig) -> None:
        longest = int(self.config.actor_rollout_ref.rollout.response_length)
        end = self.tokenizer.eos_token_id
        lines = rollout_lines(batch, rollouts, contexts, responses, config, longest=longest, end=end)
        self._records.rollouts(batch, lines)

    def _record_without_teacher(self, batch: Any) -> None:
        recorded = self._recorded_batch(batch, _idle(batch))
        if not recorded.rows:
            return
        # A run of verl's own algorithm reads no more of its rows than are written down.
        data = read_rows(batch, [*FIELDS, *self._reward_fields], recorded.of(batch.keys))
        data = without_odd_feedback(with_reward_fields(data, self._reward_fields))
        config = self.sdpo_config
        rollouts = rollouts_of(data, [False] * len(recorded.rows), self.tokenizer, config)
        if any(config.success_reward_name not in (rollout.rewards or {}) for rollout in rollouts):
            config = config.replace(success_reward_name=None)
        contexts = [(TeacherContext("", active=False), None)] * len(rollouts)
        self._record(recorded, rollouts, contexts, list(data["responses"].unbind()), config)

    # Rollouts → teacher contexts

    def _step_once(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super()._step_once(*args, **kwargs)
        except RuntimeError as error:
            if _NO_ROLLOUTS not in str(error):
                raise
            raise HostError(
                "No rollout of this batch came to its end: each failed in its agent loop or in the reward function. "
                "The first `Error in _run_prompt` above says why. A reward function returns a number, or a mapping "
                "with the number `score` and, if it has something to say, the text `feedback`; `KeyError: 'score'` "
                "means that the mapping has no `score`."
            ) from error

    @cached_property
    def _style(self) -> PromptStyle:
        return prompt_style(self.config, self.tokenizer)

    def _compute_reward_colocate(self, batch: Any, metrics: dict[str, Any] | None = None) -> Any:
        # What a reward function says beside its score then becomes fields of their own, under names that it chose.
        before = field_names(batch)
        batch = super()._compute_reward_colocate(batch, metrics)
        self._reward_fields = sorted(field_names(batch) - before - {"rm_scores"})
        return batch

    def _compute_advantage(self, batch: Any, metrics: dict[str, Any]) -> Any:
        batch = super()._compute_advantage(batch, metrics)
        if not self.sdpo_config.enabled:
            self._record_without_teacher(batch)
            return batch
        config = self.sdpo_config
        idle = _idle(batch)
        padding = _padding(batch)
        own = ["extra_info"] if self._style.schemas and "extra_info" in field_names(batch) else []
        data = with_reward_fields(read_rows(batch, [*FIELDS, *own, *self._reward_fields]), self._reward_fields)
        rollouts = rollouts_of(data, idle, self.tokenizer, config)
        contexts = self._strategies.reprompter(rollouts)
        prompts = [row.tolist() for row in data["prompts"].unbind()]
        extra = [getattr(row, "data", row) for row in data.get("extra_info", [None] * len(prompts))]
        renders, unknown = self._style.renders(rollouts, prompts, extra, config)
        if unknown:
            self._warn_once(_UNKNOWN_PROMPTS.format(unknown, len(idle) - sum(idle)), _UNKNOWN_PROMPTS)
        if sum(idle) > sum(padding):
            self._warn_once(_EARLIER_OUTPUTS.format(sum(idle) - sum(padding)), _EARLIER_OUTPUTS)
        responses = list(data["responses"].unbind())
        fields, encoded = teacher_fields(rollouts, contexts, responses, self.tokenizer, config, renders)
        recorded = self._recorded_batch(batch, idle)
        if recorded.rows:
            fields[FIELD] = record_field(recorded)
            pairs = list(zip(contexts.contexts, encoded.contexts, strict=True))
            self._record(recorded, recorded.of(rollouts), recorded.of(pairs), recorded.of(responses), config)
        found = {**contexts.metrics, **encoded.metrics, **extra_metrics(config, rollouts, contexts)}
        metrics.update(found)
        lengths = [len(row) for row, skip in zip(responses, idle, strict=True) if not skip]
        self._warn(self._health.batch(found, sum(lengths) / max(1, len(lengths))))
        return tq.kv_batch_put(keys=batch.keys, partition_id=batch.partition_id, fields=fields)

    # The update

    def _update_actor(self, batch: Any, metrics: dict[str, Any]) -> Any:
        batch = super()._update_actor(batch, metrics)
        if not self.sdpo_config.enabled:
            return batch
        finished = self.actor_rollout_wg.finish_rollout_batch()
        self._records.tokens(self.global_steps, [values for _, tokens in finished for values in tokens])
        found = finished[0][0]
        metrics.update(found)
        self._warn(
            self._health.step(found.get("self_distillation/divergence", 0.0), found["self_distillation/active_tokens"])
        )
        return batch

    def _warn_once(self, message: str, kind: str) -> None:
        if kind not in self._told:
            self._told.add(kind)
            self._warn([message])

    def _warn(self, messages: Any) -> None:
        for message in messages:
            print(f"SDPO: {message}", flush=True)
            self._records.warning(self.global_steps, message)

    # Checkpoints

    def _save_checkpoint(self) -> None:
        if self.sdpo_config.enabled:
            self._save_sdpo()
        super()._save_checkpoint()

    def _save_sdpo(self) -> None:
        # Before verl's own part, which ends by naming this checkpoint the latest.
        folder = Path(self.config.trainer.default_local_dir) / f"global_step_{self.global_steps}" / _FOLDER
        counters = self.actor_rollout_wg.save_sdpo(str(folder.absolute()))[0]
        state = {"counters": counters, "health": self._health.state_dict()}
        folder.mkdir(parents=True, exist_ok=True)  # the workers may be on other machines
        (folder / "state.json").write_text(json.dumps(state) + "\n", encoding="utf-8")

    def _load_checkpoint(self) -> None:
        if not self.sdpo_config.enabled:
            super()._load_checkpoint()
            return
        # verl calls this once the workers have their models: the teacher begins as the model that was given.
        check_text_only(self.processor, self.config.actor_rollout_ref.model.path)
        self.actor_rollout_wg.start_sdpo(self.sdpo_config.to_mapping())
        super()._load_checkpoint()
        if self.global_steps == 0:
            return
        root = self.config.trainer.default_local_dir
        if self.config.trainer.resume_mode == "resume_path":
            folder = Path(os.path.abspath(self.config.trainer.resume_from_path)) / _FOLDER
        else:
            folder = Path(os.path.abspath(root)) / f"global_step_{self.global_steps}" / _FOLDER
        state = _read_state(folder)
        self.actor_rollout_wg.load_sdpo(str(folder), **state["counters"])
        self._health.load_state_dict(state["health"])


def _padding(batch: Any) -> list[bool]:
    return [bool(tag.get("is_padding", False)) for tag in batch.tags]


def _idle(batch: Any) -> list[bool]:
    return idle_rows(batch.keys, _padding(batch))


def _read_state(folder: Path) -> dict[str, Any]:
    path = folder / "state.json"
    if not path.is_file():
        raise TeacherError(
            f"The checkpoint {folder.parent} holds no SDPO teacher (no {_FOLDER}/state.json), so resuming would "
            "silently start a new one. Was it written by another trainer mode? To begin SDPO from its weights, give "
            "the model's folder as `actor_rollout_ref.model.path` and set `trainer.resume_mode=disable`."
        )
    state: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return state
