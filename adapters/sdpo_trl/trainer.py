"""`SDPOTrainer`: TRL's GRPO trainer with SDPO's loss; it wraps GRPO's methods and copies none."""

from __future__ import annotations

import textwrap
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from sdpo_plugins.config import SDPOConfig
from sdpo_plugins.errors import ConfigError
from sdpo_plugins.health import HealthMonitor
from sdpo_plugins.host_term import HostTerm
from sdpo_plugins.plugins import extra_metrics, resolve, validate
from sdpo_plugins.reprompt import EncodedContext, decode_responses, thinking_opened
from sdpo_plugins.types import Rollout, TeacherContext
from sdpo_trl.checks import (
    argument_problems,
    check_dataset,
    check_in_memory,
    check_model,
    check_probe,
    check_prompts_of,
    check_reward_name,
    warn_of_idle_arguments,
)
from sdpo_trl.clock import TeacherClock
from sdpo_trl.contexts import ContextBuilder
from sdpo_trl.distill import Distiller
from sdpo_trl.metrics import step_metrics
from sdpo_trl.micro_batch import PathSettings
from sdpo_trl.probe import TeacherProbe, as_turns, one_per_question, successes, teacher_answers
from sdpo_trl.records import RunRecords
from sdpo_trl.resume import TeacherHost
from sdpo_trl.rewards import FeedbackRecorder
from sdpo_trl.rollouts import ScoredBatch, batch_rollouts
from sdpo_trl.setup import settle_options, warn_if_patched_since
from sdpo_trl.window import Window, Windows, measure

__all__ = ["SDPOTrainer"]


class SDPOTrainer(TeacherHost):
    r"""Train with Self-Distilled Policy Optimization wherever a script trains with `GRPOTrainer`.

    Everything but the loss is GRPO's: generation (transformers, vLLM), tools, environments, `rollout_func`, images,
    rewards, logging, checkpoints. After each generation, answers that succeeded and feedback go into a teacher
    context; the loss pulls the policy at every answer token towards the teacher's distribution there.

    Args:
        model: As for `GRPOTrainer`.
        reward_funcs: As for `GRPOTrainer`; they may return feedback too, see `sdpo_trl.rewards.normalize_rewards`.
        args: A `GRPOConfig`, or `SDPOTrainingArguments` with the SDPO options inside.
        train_dataset: As for `GRPOTrainer`.
        *rest: Further positional arguments of `GRPOTrainer`.
        sdpo_config: The SDPO options, if `args` is a `GRPOConfig`: an `SDPOConfig` or a mapping of its options.
        **kwargs: Every other argument of `GRPOTrainer`.

    Raises:
        ConfigError: Options that are invalid, contradict each other, or that SDPO cannot honour; all at once.
        DataError: An empty dataset, prompts that end in an assistant turn, a tokenizer without a chat template.
        TeacherError: The teacher does not fit the model, e.g. `lora_ema` on a model without LoRA.

    Example::

        trainer = SDPOTrainer(model, reward_funcs=grade, args=GRPOConfig("out"),
                              sdpo_config=SDPOConfig(alpha=0.5), train_dataset=dataset)
        trainer.train()

    Source: arXiv 2601.20802.
    """

    _tag_names: ClassVar[list[str]] = ["trl", "grpo", "sdpo"]
    _name = "SDPO"
    _paper: ClassVar[dict[str, str]] = {
        "title": "Reinforcement Learning via Self-Distillation",
        "id": "2601.20802",
        "citation": textwrap.dedent("""\
            @article{sdpo2026,
                title  = {{Reinforcement Learning via Self-Distillation}},
                year   = 2026,
                eprint = {arXiv:2601.20802},
            }"""),
    }

    def __init__(
        self,
        model: Any,
        reward_funcs: Any = None,
        args: Any = None,
        train_dataset: Any = None,
        *rest: Any,
        sdpo_config: SDPOConfig | Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        warn_if_patched_since(SDPOTrainer)
        args, config = settle_options(model, args, sdpo_config)
        self.sdpo_config = config
        # Contexts, loss and teacher only exist where SDPO is on: off, this class is GRPOTrainer to the bit.
        self._sdpo_on = config.enabled and config.grpo_weight < 1.0
        if self._sdpo_on:
            problems = argument_problems(args, config)
            if problems:
                raise ConfigError(problems)
            validate(config, "trl")
            if isinstance(model, torch.nn.Module):
                check_in_memory(model)
        self._strategies = resolve(config)
        self._recorder = FeedbackRecorder()
        self._records = RunRecords(config)
        self._scored: ScoredBatch | None = None
        self._window: Window | None = None
        self._windows = Windows()
        self._sampler: Any = None
        self._health = HealthMonitor()
        single = not isinstance(reward_funcs, (list, tuple))
        funcs = None if reward_funcs is None else [reward_funcs] if single else list(reward_funcs)
        if funcs is not None:
            funcs = [self._recorder.wrap(func) for func in funcs]
        super().__init__(model, funcs, args, train_dataset, *rest, **kwargs)
        if not hasattr(self, "_tokenizer"):  # TRL before 1.4
            self._tokenizer = getattr(self.processing_class, "tokenizer", self.processing_class)
            self._is_vlm = self._tokenizer is not self.processing_class
        if self._sdpo_on:
            self._prepare_sdpo()
        self._prepare_records()

    def _prepare_sdpo(self) -> None:
        """Check what only exists now, before anything is generated, and set up what the hooks below use."""
        config = self.sdpo_config
        warn_of_idle_arguments(self.args, config)
        check_reward_name(config, self.reward_func_names)
        if config.success_reward_name is None and len(self.reward_func_names) > 1:
            names = ", ".join(self.reward_func_names)
            warnings.warn(
                f"Success is judged by the weighted sum of the rewards ({names}); a bonus for format can move it. Set "
                "`success_reward_name` to judge by one of them.",
                stacklevel=4,
            )
        module = self.accelerator.unwrap_model(self.model)
        check_model(module, self._tokenizer)
        self._strategies.teacher.check_model(module)
        self._contexts = ContextBuilder(
            config=config,
            reprompt=self._strategies.reprompter,
            tokenizer=self._tokenizer,
            processor=self.processing_class if self._is_vlm else None,
            chat_template=getattr(self, "chat_template", None),
            chat_template_kwargs=dict(getattr(self, "chat_template_kwargs", None) or {}),
        )
        check_dataset(self.train_dataset, prompts_needed=not self._has_environments)
        if not self._has_environments:
            # A processor would have to load the pictures to count tokens.
            check_prompts_of(
                self.train_dataset,
                self.processing_class if self._is_vlm else self._tokenizer,
                None if self._is_vlm else config,
                self._contexts.chat_template,
            )
        self._probe = TeacherProbe(every=getattr(self.args, "teacher_accuracy_every", 0))
        check_probe(
            self._probe.every,
            tools=bool(getattr(self, "tools", None)),
            environments=self._has_environments,
            images=self._is_vlm,
            vllm=bool(getattr(self, "use_vllm", False)),
        )
        self._distiller = Distiller(
            PathSettings(
                config=config,
                divergence=self._strategies.divergence,
                teacher=self._strategies.teacher,
                temperature=self.temperature,
                beta=self.beta,
                weigh_kl=getattr(self.args, "use_bias_correction_kl", False),
                scale_factor=config.loss_scale_factor or int(self.max_completion_length or 1),
                autocast=self._forward_autocast,
                balance_experts=self._balance_weight > 0.0,
            ),
            self._warn,
        )
        self._clock = TeacherClock(
            start=self._start_teacher,
            step_begins=self._windows.step_begins,
            advance=self._advance_teacher,
            position=lambda: self._step,
            batch_size=lambda: self._options.steps_per_generation * self.num_iterations,
        )
        self.add_callback(self._clock)

    # Rollouts → teacher contexts

    def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any) -> Tensor:
        rewards: Tensor = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        count = len(prompts)
        column = [row.get("feedback") for row in inputs] if any("feedback" in row for row in inputs) else None
        feedback = self._recorder.take(count, column)
        if feedback is not None or self._sdpo_on:
            # Also where there is none: the completions table shifts a column that only some batches fill.
            self._pending_extra_logs["feedback"] = [text or "" for text in feedback or [None] * count]
        if self._sdpo_on or self._records_rollouts:
            ends = self._end_tokens
            self._scored = ScoredBatch(
                prompts=list(prompts),
                responses=decode_responses(self._tokenizer, completion_ids_list, self.sdpo_config.thinking_tag),
                feedback=feedback or [None] * count,
                thinking_opened=[False] * count,
                rewards=rewards,
                lengths=[len(ids) for ids in completion_ids_list],
                cut_off=[int(ids[-1]) not in ends if len(ids) else None for ids in completion_ids_list],
            )
        return rewards

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        output: dict[str, Any] = super()._generate_and_score_completions(inputs)
        if self._scored is not None:
            output.update(self._our_inputs(self._scored, inputs, output))
            self._scored = None
        return output

    def _our_inputs(self, scored: ScoredBatch, inputs: Any, output: dict[str, Any]) -> dict[str, Any]:
        """Return what TRL is to split with this rank's batch: its teacher contexts, and which rows are recorded."""
        opened = thinking_opened(self._tokenizer, output["prompt_ids"], self.sdpo_config.thinking_tag)
        scored = replace(scored, thinking_opened=opened)
        rollouts, mine = batch_rollouts(
            scored, self.reward_func_names, self.reward_weights, self._group_size, self.accelerator.process_index
        )
        tensors: dict[str, Any] = {}
        contexts = encoded = None
        if self._sdpo_on:
            tensors, contexts, encoded = self._teacher_inputs(rollouts, mine, inputs, output)
        return {**tensors, **self._record_rollouts(rollouts, mine, scored, contexts, encoded)}

    def _teacher_inputs(
        self, rollouts: Sequence[Rollout], mine: slice, inputs: Any, output: dict[str, Any]
    ) -> tuple[dict[str, Any], Sequence[TeacherContext], Sequence[EncodedContext]]:
        """Build this rank's teacher contexts as tensors, and all ranks' as texts."""
        mode = self._mode
        tools = self._tools_of_rows(len(output["prompt_ids"]))
        tensors, contexts, encoded, metrics = self._contexts.tensors(rollouts, mine, output, tools)
        metrics.update(extra_metrics(self.sdpo_config, rollouts, contexts))
        self._note(mode, metrics)
        if mode == "train":
            self._warn(self._health.batch(metrics, self._mean_length()))
            if self._probe.due():
                accuracy = self._teacher_accuracy(rollouts[mine], inputs, output, tensors, self._group_size)
                self._note(mode, accuracy)
        return tensors, contexts.contexts, encoded

    def _teacher_accuracy(
        self, rollouts: Sequence[Rollout], inputs: Any, output: Any, tensors: Any, group: int
    ) -> dict[str, float]:
        """Let the teacher answer one question of each group from its context, and score it like any answer."""
        rows = one_per_question(tensors["sdpo_active"].tolist(), group, self.accelerator.process_index)
        # Scoring gathers over ranks, so every rank hands in the same number; what is repeated counts nothing.
        filled = (rows + [rows[0] if rows else 0] * len(rollouts))[: -(-len(rollouts) // group) + 1]
        counted = torch.arange(len(filled), device=self.accelerator.device) < len(rows)
        prefix, prompts = ("sdpo_", tensors) if rows else ("", output)
        ids = teacher_answers(
            self._bare_model(),
            self._strategies.teacher,
            prompts[f"{prefix}prompt_ids"][filled],
            prompts[f"{prefix}prompt_mask"][filled],
            self.generation_config,
        )
        texts = decode_responses(self._tokenizer, ids, self.sdpo_config.thinking_tag)
        questions = [rollouts[row].prompt for row in filled]
        # What the reward functions log of these answers is no part of the batch's completions.
        logs, figures = dict(self._pending_extra_logs), dict(self._pending_metrics)
        rewards = super()._calculate_rewards(
            [inputs[row] for row in filled], questions, as_turns(questions, texts), ids
        )
        self._recorder.take(len(filled))
        for pending, kept in ((self._pending_extra_logs, logs), (self._pending_metrics, figures)):
            pending.clear()
            pending.update(kept)
        judged = self.accelerator.gather(counted)
        success = successes(rewards[judged], self.reward_func_names, self.reward_weights, self.sdpo_config)
        return {"self_distillation/teacher_accuracy": sum(success) / len(success)} if success else {}

    # The loss

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        inputs = super()._prepare_inputs(generation_batch)
        if self._sdpo_on:
            if self._mode == "train":
                first = self._step % self._options.steps_per_generation
                known = cast(list[dict[str, Any]], self._buffered_inputs)[first:]
                self._window = self._windows.current(known, self.current_gradient_accumulation_steps, self._measure)
            else:
                self._window = self._measure([inputs], share=1.0)
        return inputs

    def _measure(self, batches: Sequence[dict[str, Any]], share: float) -> Window:
        config = self.sdpo_config
        if config.loss_normalization == "reference":
            # The authors' way: every micro-batch by its own count, then the mean over micro-batches.
            share = 1.0 / self.current_gradient_accumulation_steps if self._mode == "train" else 1.0
        return measure(
            batches,
            config.loss_agg_mode,
            share,
            lambda sums: self.accelerator.reduce(sums, reduction="sum"),
        )

    def _compute_loss(self, model: Any, inputs: Any) -> Tensor:
        if not self._sdpo_on:
            loss: Tensor = super()._compute_loss(model, inputs)
            return loss
        assert self._window is not None
        config = self.sdpo_config
        module = self._bare_model()
        self._distiller.choose_path(module, inputs, self._window)
        # Gradients are averaged over ranks, while the window's divisor already counts all of them.
        ranks = self.accelerator.num_processes if config.loss_normalization == "global" else 1
        host = None
        if config.grpo_weight > 0.0 and self._distiller.fused is not None:
            share = config.grpo_weight / ((1.0 - config.grpo_weight) * ranks)
            host = HostTerm(share, partial(self._policy_loss, model, inputs))
        watch = self._watch(inputs)
        loss, balance, sums = self._distiller.loss(model, module, inputs, self._window, host, watch)
        self._records.tokens(watch)
        loss = loss * ranks
        if balance is not None:
            # As in GRPO: its mean over micro-batches and ranks, whatever the tokens are divided by.
            parts = self.current_gradient_accumulation_steps if self._mode == "train" else 1
            loss = loss + self._balance_weight * balance / parts
        self._note_step(sums, inputs["sdpo_active"].device)
        loss = (1.0 - config.grpo_weight) * loss
        if config.grpo_weight > 0.0 and host is None:
            loss = loss + config.grpo_weight * super()._compute_loss(model, inputs)
        return loss

    def _policy_loss(self, model: Any, inputs: Any, log_probs: Tensor, entropies: Tensor) -> Tensor:
        """Return GRPO's loss from log-probs and entropies [B, T] that are known already."""
        with self._using_log_probs(log_probs, entropies):
            loss: Tensor = super()._compute_loss(model, inputs)
        return loss

    # Metrics

    def _note_step(self, sums: Mapping[str, Tensor], device: torch.device) -> None:
        metrics = step_metrics(sums, device, lambda local: self.accelerator.reduce(local, reduction="sum"))
        self._note(self._mode, metrics)
        if self._mode == "train":
            divergence = metrics.get("self_distillation/divergence", 0.0)
            self._warn(self._health.step(divergence, metrics["self_distillation/active_tokens"]))
