"""Which of OpenRLHF's own settings SDPO cannot work with, and which do nothing beside it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sdpo_openrlhf.file_checks import agent_problems, dataset_problems, folder_problem, reward_problems
from sdpo_openrlhf.places import place_problems
from sdpo_plugins.config import SDPOConfig

__all__ = ["host_notices", "host_problems"]

# Flag, what of it is fine, why nothing else is, what to do.
_ONLY: tuple[tuple[str, tuple[Any, ...], str, str], ...] = (
    (
        "train.enable_ema",
        (False,),
        "OpenRLHF's average is no teacher: it is saved as the final model and in no checkpoint. SDPO keeps its own",
        "Leave it out; `--sdpo.teacher ema` is the default",
    ),
    (
        "ds.ring_attn_size",
        (1,),
        "sequences cut over ranks do not line up with the teacher's, whose prompts are longer",
        "Set `--ds.ring_attn_size 1`",
    ),
    (
        "ds.tensor_parallel_size",
        (1,),
        "the teacher's weights are exchanged by name, and DeepSpeed's tensor parallelism cuts them into slices that "
        "the fused loss cannot read",
        "Set `--ds.tensor_parallel_size 1`, and `--ds.zero_stage 3` where the model does not fit",
    ),
    (
        "actor.entropy_coef",
        (None, 0),
        "the fused loss has no gradient of the entropy",
        "Leave it out, or set it to 0, which logs the entropy",
    ),
    (
        "actor.aux_loss_coef",
        (0,),
        "the loss is made from the model's hidden states, with which no balancing loss of experts comes",
        "Leave `--actor.aux_loss_coef` at 0",
    ),
    (
        "data.max_images_per_prompt",
        (0,),
        "SDPO's teacher contexts cannot carry images",
        "Leave `--data.max_images_per_prompt` at 0 and take prompts of text",
    ),
)


def host_problems(args: Any, config: SDPOConfig | None, *, written: bool = False) -> list[str]:
    """Say which of the host's settings SDPO cannot honour; empty if all is well, or if SDPO is off.

    Args:
        args: The host's nested arguments.
        config: SDPO's options; None if they are invalid themselves.
        written: Whether the reward file will be written by the launcher, before the run.
    """
    if config is not None and not config.enabled:
        return []
    problems = []
    for flag, fine, why, instead in _ONLY:
        value = _get(args, flag)
        if value is not None and value not in fine:
            problems.append(f"`--{flag} {value}` is not supported: {why}. {instead}.")
    problems += [*_estimator(args), *_model(args), *_adapters(args), *_engines(args), *_batches(args)]
    problems += place_problems(args)
    problems += [] if written else _rewards(args)
    problems += dataset_problems(args.data.prompt_dataset, "data.prompt_dataset", needed=True)
    problems += dataset_problems(args.eval.dataset, "eval.dataset")
    if config is not None:
        problems += [*_loss_path(config), *_rollouts(args, config), *_filtering(args, config), *_teacher(args, config)]
        problems += _template(args, config)
    return problems


def host_notices(args: Any, config: SDPOConfig) -> list[str]:
    """Say which settings are valid but probably not what was meant.

    Args:
        args: The host's nested arguments.
        config: SDPO's options.
    """
    if not config.enabled:
        return []
    notices = [*_reference_notices(args, config)]
    alone = config.grpo_weight == 0.0
    if args.rollout.n_samples_per_prompt == 1 and _needs_others(config):
        notices.append(
            "`--rollout.n_samples_per_prompt 1`: no other rollout of a prompt can demonstrate, so all is learnt from "
            "the environment's feedback. A rollout without feedback adds no loss."
        )
    if args.algo.dynamic_filtering_enable and not alone:
        notices.append(
            "`--algo.dynamic_filtering_enable` drops groups whose rollouts all succeed or all fail. SDPO's part of the "
            "objective could learn from both: from the successes, and from feedback on failures."
        )
    if alone and args.actor.policy_loss_type != "ppo":
        notices.append(
            f"`--actor.policy_loss_type {args.actor.policy_loss_type}` has no effect: SDPO replaces the policy loss. "
            "Set `--sdpo.grpo_weight` above 0 for the hybrid objective."
        )
    mode = _get(args, "actor.loss_agg_mode")
    if alone and mode not in (None, "token-mean") and mode != config.loss_agg_mode:
        notices.append(
            f"`--actor.loss_agg_mode {mode}` is for the policy loss, which SDPO replaces. SDPO's own is "
            f"`--sdpo.loss_agg_mode {config.loss_agg_mode}`."
        )
    if config.loss_agg_mode == "seq-mean-token-sum-norm" and config.loss_scale_factor is None:
        notices.append(
            "`--sdpo.loss_agg_mode seq-mean-token-sum-norm` without `--sdpo.loss_scale_factor` divides by the padded "
            "length of each micro-batch, so the loss depends on how rows are cut. Set the factor, for example to "
            "`--rollout.max_new_tokens`."
        )
    if args.ckpt.max_num == 1 and args.ckpt.save_steps != -1 and not args.ckpt.disable_ds:
        notices.append(
            "`--ckpt.max_num 1`: OpenRLHF removes the only checkpoint before it writes the next one, so a run that "
            "ends in between has none. Set `--ckpt.max_num 2` or more."
        )
    if args.ds.use_liger_kernel:
        notices.append(
            "`--ds.use_liger_kernel` only speeds up the model's layers and OpenRLHF's own passes: SDPO's step has a "
            "fused loss of its own."
        )
    notices += [
        f"`--sdpo.{name}` holds the two characters '\\n', not a line break. In Bash write $'\\n', or put the template "
        "into a file for `--sdpo.config`."
        for name in ("reprompt_template", "solution_template", "feedback_template")
        if "\\n" in getattr(config, name)
    ]
    return notices


def _get(args: Any, flag: str) -> Any:
    """Return the value of a flag; None where this release does not have it."""
    for part in flag.split("."):
        args = getattr(args, part, None)
    return args


def _estimator(args: Any) -> Iterator[str]:
    if args.algo.advantage.estimator == "gae":
        instead = "dr_grpo" if args.rollout.n_samples_per_prompt > 1 else "reinforce"
        yield (
            "`--algo.advantage.estimator gae` trains a critic, whose values SDPO never uses. Leave it out, or set "
            f"`--algo.advantage.estimator {instead}`."
        )


def _model(args: Any) -> Iterator[str]:
    path = args.actor.model_name_or_path
    if path is None:
        yield "`--actor.model_name_or_path` is missing: set it to a model's folder, or its name on the hub."
        return
    problem = folder_problem(path, "actor.model_name_or_path")
    if problem:
        yield problem
        return
    try:
        described = json.loads((Path(path) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return  # a name on the hub, or a file that the loader itself will complain about
    if isinstance(described, dict) and {"vision_config", "audio_config"} & set(described):
        yield (
            f"`--actor.model_name_or_path {path}` is a vision or audio model, whose prompts SDPO's teacher contexts "
            "cannot carry. Take a text-only model."
        )


def _adapters(args: Any) -> Iterator[str]:
    """Refuse weights into which an adapter cannot be merged: vLLM gets merged ones, as it holds the bare model."""
    if args.ds.lora.rank > 0 and args.ds.zero_stage == 3:
        yield (
            f"`--ds.lora.rank {args.ds.lora.rank}` with `--ds.zero_stage 3` is not supported: adapters cannot be "
            "merged for vLLM from shards. Set `--ds.zero_stage 2`: the base model has no gradients and no optimizer "
            "state."
        )
    if args.ds.load_in_4bit:
        yield (
            "`--ds.load_in_4bit` is not supported: adapters cannot be merged for vLLM into weights of 4 bits. Leave it "
            "out."
        )


def _engines(args: Any) -> Iterator[str]:
    if not args.vllm.num_engines:
        yield (
            f"`--vllm.num_engines {args.vllm.num_engines}`: nothing would write rollouts, as this OpenRLHF generates "
            "with vLLM alone. Set `--vllm.num_engines 1` or more."
        )
    if args.train.async_enable and args.train.async_queue_size < 1:
        yield f"`--train.async_queue_size` must be at least 1, got {args.train.async_queue_size}."


def _batches(args: Any) -> Iterator[str]:
    """Refuse sizes with which the host drops rows, mixes two optimizer steps, or lets ranks wait for each other."""
    ranks = args.actor.num_nodes * args.actor.num_gpus_per_node
    sizes = {
        "rollout.batch_size": args.rollout.batch_size,
        "rollout.n_samples_per_prompt": args.rollout.n_samples_per_prompt,
        "rollout.micro_batch_size": args.rollout.micro_batch_size,
        "train.batch_size": args.train.batch_size,
        "train.micro_batch_size": args.train.micro_batch_size,
        "actor.num_nodes": args.actor.num_nodes,
        "actor.num_gpus_per_node": args.actor.num_gpus_per_node,
    }
    wrong = [f"`--{flag}` must be at least 1, got {value}." for flag, value in sizes.items() if value < 1]
    if wrong:
        yield from wrong
        return
    rows = args.rollout.batch_size * args.rollout.n_samples_per_prompt
    made = (
        f"`--rollout.batch_size {args.rollout.batch_size}` times `--rollout.n_samples_per_prompt "
        f"{args.rollout.n_samples_per_prompt}` makes {rows} rollouts"
    )
    whole = args.train.batch_size
    if rows % whole:
        yield (
            f"{made}, which is no multiple of `--train.batch_size {whole}`: the last rollouts would be dropped or "
            f"mixed into the next batch's step. Set `--train.batch_size {rows}`, or a divisor of {rows} for more steps."
        )
    each, share = args.train.micro_batch_size, args.rollout.micro_batch_size
    if args.train.dynamic_batch_enable:
        if whole % ranks:
            yield f"`--train.batch_size {whole}` is no multiple of the {ranks} policy ranks. Set it to a multiple."
        return
    if whole % (each * ranks):
        yield (
            f"`--train.batch_size {whole}` is no multiple of `--train.micro_batch_size {each}` times {ranks} policy "
            "rank(s): optimizer steps would not begin where a batch does. Change one of them."
        )
    if rows % (share * ranks):
        yield (
            f"{made}, which is no multiple of `--rollout.micro_batch_size {share}` times {ranks} policy rank(s): ranks "
            "would get different numbers of them and wait for each other. Change one of them."
        )


def _rewards(args: Any) -> Iterator[str]:
    if args.train.agent_func_path:
        yield from agent_problems(args.train.agent_func_path)
        return
    given = args.reward.remote_url
    endpoints = given.split(",") if isinstance(given, str) else given or []
    if endpoints:
        yield from reward_problems(endpoints)
    elif not args.reward.model_name_or_path:
        yield (
            "Nothing gives rewards. Set `--sdpo.scorer` to a scorer (`sdpo list` shows them), `--reward.remote_url` to "
            "a Python file with `reward_func` or to a server, `--train.agent_func_path` to a file with "
            "`AgentExecutor`, or `--reward.model_name_or_path` to a model."
        )
    else:
        problem = folder_problem(args.reward.model_name_or_path, "reward.model_name_or_path")
        yield from [problem] if problem else []


def _loss_path(config: SDPOConfig) -> Iterator[str]:
    if config.loss_path == "logits":
        yield (
            "`--sdpo.loss_path logits` is not supported: inside of OpenRLHF the loss is always computed from hidden "
            "states, a chunk of logits at a time. Set `--sdpo.loss_path auto` or `fused`."
        )


def _needs_others(config: SDPOConfig) -> bool:
    """Whether a rollout can only learn from another one, feedback aside."""
    return config.dont_reprompt_on_self_success or config.selector == "none"


def _rollouts(args: Any, config: SDPOConfig) -> Iterator[str]:
    alone = args.rollout.n_samples_per_prompt == 1 and _needs_others(config)
    if alone and not config.include_environment_feedback:
        yield (
            "`--rollout.n_samples_per_prompt 1` with `--sdpo.include_environment_feedback false`: nobody can "
            "demonstrate and there is no feedback, so nothing would ever be learnt. Set "
            "`--rollout.n_samples_per_prompt 8`, or turn feedback on."
        )


def _filtering(args: Any, config: SDPOConfig) -> Iterator[str]:
    if args.algo.dynamic_filtering_enable and config.grpo_weight == 0.0:
        yield (
            "`--algo.dynamic_filtering_enable` drops groups whose rollouts all succeed or all fail, and SDPO learns "
            "from both: from the successes, and from feedback on failures. Leave it out; the hybrid objective "
            "(`--sdpo.grpo_weight` above 0) may use it."
        )


def _teacher(args: Any, config: SDPOConfig) -> Iterator[str]:
    if config.teacher == "lora_ema" and args.ds.lora.rank <= 0:
        yield (
            f"`--sdpo.teacher lora_ema` averages LoRA adapters, but `--ds.lora.rank {args.ds.lora.rank}` trains the "
            "whole model. Set `--ds.lora.rank 32` (any rank above 0), or `--sdpo.teacher ema`."
        )


def _template(args: Any, config: SDPOConfig) -> Iterator[str]:
    if config.apply_chat_template_kwargs and not args.data.apply_chat_template:
        yield (
            f"`--sdpo.apply_chat_template_kwargs {json.dumps(dict(config.apply_chat_template_kwargs))}` would be "
            "ignored: without `--data.apply_chat_template` no chat template is applied. Set the latter, or leave the "
            "former out."
        )


def _reference_notices(args: Any, config: SDPOConfig) -> Iterator[str]:
    coefficient, in_loss = args.algo.kl.init_coef, args.algo.kl.use_loss
    if coefficient > 0 and not in_loss and config.grpo_weight == 0.0:
        yield (
            f"`--algo.kl.init_coef {coefficient:g}` without `--algo.kl.use_loss` lowers rewards, which only the hybrid "
            "objective reads (`--sdpo.grpo_weight` above 0). It loads a reference model without effect."
        )
    if coefficient == 0 and in_loss:
        yield (
            "`--algo.kl.use_loss` has no effect with `--algo.kl.init_coef 0`: OpenRLHF loads no reference model then."
        )
