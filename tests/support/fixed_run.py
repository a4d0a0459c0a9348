"""Training runs whose rollouts are a function of the prompt: what they learn may not depend on the cut into
micro-batches and ranks. The jobs of the distributed tests are here too, since ranks import them by name."""

from __future__ import annotations

import os
import random
import tempfile
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import AutoTokenizer

from sdpo_plugins.embedded import checkpoint_path
from sdpo_plugins.teacher import local_tensors, release_gathered
from sdpo_trl import SDPOTrainer
from tiny_trl import digits_reward, questions, tiny_arguments, tiny_model

# One step of plain gradient descent: the change of the weights is the gradient, scale included.
GRADIENT_DESCENT = {"optim": "sgd", "learning_rate": 1.0, "max_grad_norm": 0.0, "shuffle_dataset": False}

Rule = Callable[[int, int, random.Random], tuple[float, str | None]]


def mixed(question: int, sample: int, rng: random.Random) -> tuple[float, str | None]:
    """Some succeed, some get feedback, some neither: how many rows are active differs between questions."""
    if question % 4 == 0:
        return float(sample == 1), f"Wrong, {sample}." if sample % 2 else None
    if question % 4 == 1:
        return 0.0, f"No: {question} {sample}." if sample == 2 else None
    return float(rng.random() < 0.5), None


def nothing(question: int, sample: int, rng: random.Random) -> tuple[float, str | None]:
    """Nothing succeeds, and nobody says why."""
    return 0.0, None


def alternating(question: int, sample: int, rng: random.Random) -> tuple[float, str | None]:
    """With two questions a batch, one for each of two ranks: none active, the first, the second, none, both, none."""
    return 0.0, "Wrong." if question in (2, 5, 8, 9) else None


def one_demonstrates(question: int, sample: int, rng: random.Random) -> tuple[float, str | None]:
    """Of each question the last answer succeeds."""
    return float(sample == 3), None


RULES: dict[str, Rule] = {rule.__name__: rule for rule in (mixed, nothing, alternating, one_demonstrates)}


class FixedRollouts:
    """A `rollout_func`: answers, scores and feedback depend on the prompt, the row in its group and the step.

    Args:
        tokenizer: For prompts and answers.
        rule: Decides on score and feedback.
        feedback_rank: Only this rank returns the feedback column; None: all do.
    """

    def __init__(self, tokenizer: Any, rule: Rule, feedback_rank: int | None = None) -> None:
        self.tokenizer, self.rule, self.feedback_rank = tokenizer, rule, feedback_rank
        special = set(tokenizer.all_special_ids)
        self.letters = [token for token in range(len(tokenizer)) if token not in special][:200]
        self.known = {row["prompt"][-1]["content"]: index for index, row in enumerate(questions(64))}

    def __call__(self, prompts: Sequence[Any], trainer: Any) -> dict[str, Any]:
        rank = trainer.accelerator.process_index
        columns: dict[str, list[Any]] = {"prompt_ids": [], "completion_ids": [], "score": [], "feedback": []}
        for row, prompt in enumerate(prompts):
            question = self.known[prompt[-1]["content"]]
            sample = (rank * len(prompts) + row) % trainer.num_generations
            rng = random.Random(zlib.crc32(f"{question} {sample} {trainer.state.global_step}".encode()))
            score, feedback = self.rule(question, sample, rng)
            answer = [rng.choice(self.letters) for _ in range(rng.randint(1, 5))] + [self.tokenizer.eos_token_id]
            asked = self.tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False)
            for name, value in zip(columns, (asked, answer, score, feedback), strict=True):
                columns[name].append(value)
        if self.feedback_rank not in (None, rank):
            del columns["feedback"]
        return {**columns, "logprobs": None}


def scored(prompts: Sequence[Any], completions: Sequence[Any], score: Sequence[float], **_: Any) -> list[float]:
    """The reward that came with the rollout."""
    return list(score)


REWARDS = {"scored": scored, "digits": digits_reward}


class Watched(SDPOTrainer):
    """Notes what reaches the loss, and the teacher's weights after each optimizer step."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.seen: list[dict[str, Any]] = []
        self.weights_after: list[dict[str, Tensor]] = []
        self.teacher_updates: list[tuple[int, int]] = []
        super().__init__(*args, **kwargs)

    def _compute_loss(self, model: Any, inputs: Any) -> Tensor:
        loss = super()._compute_loss(model, inputs)
        row = {name: value.clone() for name, value in inputs.items() if torch.is_tensor(value)}
        assert self._window is not None
        self.seen.append({**row, "loss": float(loss.detach()), "share": self._window.share, "step": self._step})
        return loss

    def _advance_teacher(self, batches: int, steps: int) -> None:
        teacher = self._strategies.teacher
        before = teacher.updates
        super()._advance_teacher(batches, steps)
        self.weights_after.append(weights_of(self._bare_model()))
        if teacher.updates > before:
            self.teacher_updates.append((batches, steps))


def whole(value: Tensor) -> Tensor:
    """A copy of a tensor, gathered if it is sharded."""
    if hasattr(value, "ds_tensor"):
        import deepspeed

        with deepspeed.zero.GatheredParameters([value]):
            return value.detach().clone()
    return (value.full_tensor() if isinstance(value, DTensor) else value).detach().clone()


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """Copies of the trainable parameters, gathered."""
    release_gathered(model)
    return {name: whole(value) for name, value in model.named_parameters()}


def teacher_of(trainer: SDPOTrainer) -> dict[str, Tensor]:
    """Copies of the teacher's tensors, gathered."""
    slots = local_tensors(trainer._bare_model()).slots
    held = {}
    for name, value in trainer._strategies.teacher.state_dict()["tensors"].items():
        owner = slots[name].owner
        if isinstance(owner, DTensor):
            value = DTensor.from_local(
                value, owner.device_mesh, owner.placements, shape=owner.shape, stride=owner.stride()
            )
        if hasattr(owner, "ds_tensor"):
            parts: list[Any] = [None] * trainer.accelerator.num_processes
            torch.distributed.all_gather_object(parts, value)
            value = torch.cat(parts)[: owner.ds_numel].view(owner.ds_shape)
        held[name] = whole(value)
    return held


def fixed_trainer(
    folder: str,
    args: dict[str, Any],
    *,
    rule: str | None = "mixed",
    reward: str = "scored",
    feedback_rank: int | None = None,
    fsdp2: dict[str, Any] | None = None,
    **kwargs: Any,
) -> Watched:
    """A trainer on fixed rollouts; without a rule, answers are sampled.

    With `fsdp2`, or `deepspeed` among the arguments, the ranks share the weights.
    """
    tokenizer = AutoTokenizer.from_pretrained(checkpoint_path())
    settings: dict[str, Any] = {
        "args": tiny_arguments(folder, **{**GRADIENT_DESCENT, **args}),
        "reward_funcs": REWARDS[reward],
        "train_dataset": questions(),
        "processing_class": tokenizer,
        **kwargs,
    }
    if fsdp2 is not None:
        switch_on_fsdp2(**fsdp2)
    if "deepspeed" in args:
        switch_on_deepspeed(settings["args"])
    if rule is not None:
        settings["rollout_func"] = FixedRollouts(tokenizer, RULES[rule], feedback_rank)
    return Watched(settings.pop("model", None) or tiny_model(), **settings)


def outcome(trainer: Watched) -> dict[str, Any]:
    """What a run led to."""
    tokenizer = trainer.processing_class
    shown = [
        tokenizer.batch_decode([ids[mask.bool()] for ids, mask in zip(row[ids_of], row[mask_of], strict=True)])
        for row in trainer.seen
        for ids_of, mask_of in [("sdpo_prompt_ids", "sdpo_prompt_mask")]
    ]
    return {
        "rank": trainer.accelerator.process_index,
        "weights": weights_of(trainer._bare_model()),
        "weights_after": trainer.weights_after,
        "teacher": teacher_of(trainer),
        "teacher_updates": trainer.teacher_updates,
        "logs": trainer.state.log_history,
        "seen": trainer.seen,
        "teacher_prompts": shown,
        "succeeded": [
            tokenizer.decode(row["completion_ids"][row["sdpo_success"].bool()][0], skip_special_tokens=True)
            if row["sdpo_success"].any()
            else None
            for row in trainer.seen
        ],
        "extra": {name: list(values) for name, values in trainer._logs["extra"].items()},
        "kind": trainer.accelerator.distributed_type.value,
        "held_elements": sum(value.numel() for value in trainer._strategies.teacher.state_dict()["tensors"].values()),
    }


def train(
    args: dict[str, Any], *, evaluate: bool = False, resume_from: str | None = None, **kwargs: Any
) -> dict[str, Any]:
    """Run a trainer to its end in this process, which may be one of several."""
    with tempfile.TemporaryDirectory() as scratch:
        trainer = fixed_trainer(args.pop("output_dir", scratch), args, **kwargs)
        evaluation = trainer.evaluate() if evaluate else None
        trainer.train(resume_from_checkpoint=resume_from)
        return {**outcome(trainer), "evaluation": evaluation}


def switch_on_fsdp2(reshard_after_forward: bool) -> None:
    """Let accelerate's FSDP2 path run on CPU ranks, one shard group for each decoder layer.

    accelerate has all of it, but its list of device types that may switch FSDP on leaves CPUs out, and then trains by
    DDP without a word. The switch is thrown here, once the training arguments have set up the process group.
    """
    os.environ["ACCELERATE_USE_FSDP"] = "true"
    os.environ["FSDP_VERSION"] = "2"
    os.environ["FSDP_AUTO_WRAP_POLICY"] = "TRANSFORMER_BASED_WRAP"
    os.environ["FSDP_TRANSFORMER_CLS_TO_WRAP"] = "Qwen3DecoderLayer"
    os.environ["FSDP_RESHARD_AFTER_FORWARD"] = str(reshard_after_forward).lower()
    os.environ["FSDP_STATE_DICT_TYPE"] = "SHARDED_STATE_DICT"
    Accelerator(cpu=True)
    for state in (PartialState, AcceleratorState):
        state._shared_state["distributed_type"] = DistributedType.FSDP
    AcceleratorState._shared_state["fsdp_plugin"] = FullyShardedDataParallelPlugin()


def switch_on_deepspeed(args: Any) -> None:
    """Let accelerate's DeepSpeed path run on CPU ranks, which it leaves out as it does for FSDP."""
    import deepspeed

    deepspeed.init_distributed(dist_backend="gloo", auto_mpi_discovery=False)
    plugin = args.deepspeed_plugin
    Accelerator(cpu=True, deepspeed_plugin=plugin)
    for state in (PartialState, AcceleratorState):
        state._shared_state["distributed_type"] = DistributedType.DEEPSPEED
    AcceleratorState._shared_state["deepspeed_plugins"] = plugin
    plugin.select(_from_accelerator_state=True)
    # The trainer's own Accelerator takes it from the state.
    args.deepspeed_plugin = None
