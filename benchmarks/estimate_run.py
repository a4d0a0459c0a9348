"""A training run whose live bytes are booked phase by phase, for `benchmarks.estimate`."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.live import LiveBytes
from sdpo_plugins.config import SDPOConfig
from sdpo_plugins.embedded import checkpoint_path

__all__ = ["PHASES", "Case", "config_of", "measured_run"]

PHASES = ("generation", "teacher", "loss", "backward", "optimizer", "update")
"""What is compared; TRL's pass for reference log-probabilities is a kernel on a GPU, and no measure here."""

_WORDS = ("one", "two", "six", "ten", "red", "sun", "sea", "day")


@dataclass(frozen=True)
class Case:
    """A run that is measured: a random model, and what of its settings moves memory.

    Args:
        kind: "qwen2" or "qwen3".
        layers: L.
        width: H.
        intermediate: F.
        heads: Attention heads, of 64.
        kv_heads: Heads of keys and values.
        vocabulary: V.
        tied: Whether head and embeddings are one.
        dtype: Of the weights.
        bf16: Autocast, TRL's `bf16`.
        checkpointing: Gradient checkpointing.
        attention: Implementation.
        lora: Rank, or None.
        teacher: Strategy.
        loss_path: "fused" or "logits".
        top_k: K, or None.
        share: `share_teacher_prefix`.
        beta: Of the KL to a reference.
        accumulation: Micro-batches a step.
        answers: Of a micro-batch.
        prompt: Tokens of a question.
        completion: Tokens of an answer.
    """

    kind: str = "qwen3"
    layers: int = 4
    width: int = 256
    intermediate: int = 768
    heads: int = 4
    kv_heads: int = 2
    vocabulary: int = 4096
    tied: bool = True
    dtype: str = "float32"
    bf16: bool = False
    checkpointing: bool = False
    attention: str = "sdpa"
    lora: int | None = None
    teacher: str = "ema"
    loss_path: str = "fused"
    top_k: int | None = 100
    share: bool = False
    beta: float = 0.0
    accumulation: int = 1
    answers: int = 4
    prompt: int = 96
    completion: int = 32


def measured_run(case: Mapping[str, Any]) -> dict[str, Any]:
    """Train three steps, and return what the last two held: peaks of the phases, parts by what they are, lengths."""
    import torch

    torch.set_num_threads(1)  # what is counted are bytes; threads would only spin
    shape = Case(**case)
    with tempfile.TemporaryDirectory() as folder:
        _save_model(shape, folder)
        live, found = LiveBytes("setup"), dict[str, Any]()
        with live, _teacher_phase(live):
            trainer = _trainer(shape, folder, live, found)
            trainer.train()
            found["held"] = live.alive()
    model = trainer.accelerator.unwrap_model(trainer.model)
    teacher = trainer._strategies.teacher
    weights = dict(model.named_parameters())
    adapters = sum(value.nbytes for name, value in weights.items() if "lora_" in name)
    parts = {
        "weights": sum(value.nbytes for value in weights.values()) - adapters,
        "adapters": adapters,
        "optimizer states": sum(
            value.nbytes for state in trainer.optimizer.state.values() for value in state.values() if value.dim()
        ),
        "teacher": sum(value.nbytes for value in (teacher._held or {}).values() if value.is_floating_point())
        - sum(value.nbytes for name, value in (teacher._held or {}).items() if "inv_freq" in name),
        "teacher, cast": sum(value.nbytes for value in teacher._working.values()),
        "gradients": found["gradients"],
    }
    return {
        "phases": {name: live.peaks[name] for name in PHASES},
        "parts": parts,
        "held": found["held"],
        "lengths": found["lengths"],
    }


def config_of(case: Case) -> Any:
    """Return the configuration of a case's model."""
    from transformers import AutoTokenizer, Qwen2Config, Qwen3Config

    tokenizer = AutoTokenizer.from_pretrained(checkpoint_path())
    common: dict[str, Any] = {
        "vocab_size": case.vocabulary,
        "hidden_size": case.width,
        "intermediate_size": case.intermediate,
        "num_hidden_layers": case.layers,
        "num_attention_heads": case.heads,
        "num_key_value_heads": case.kv_heads,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": case.tied,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": None,
    }
    return Qwen3Config(**common, head_dim=64) if case.kind == "qwen3" else Qwen2Config(**common)


@contextmanager
def _teacher_phase(live: LiveBytes) -> Iterator[None]:
    """Within the block, the teacher's passes are booked as a phase of their own."""
    from sdpo_trl.fused_path import FusedPath
    from sdpo_trl.logits_path import LogitsPath

    with ExitStack() as leave:
        for owner, name in ((FusedPath, "teacher_states"), (LogitsPath, "teacher_logits")):
            plain = getattr(owner, name)

            def booked(*given: Any, _plain: Any = plain) -> Any:
                with live.within("teacher"):
                    return _plain(*given)

            leave.callback(setattr, owner, name, plain)
            setattr(owner, name, booked)
        yield


def _save_model(case: Case, folder: str) -> None:
    # To a folder, as TRL reads a reference model from where the model came from.
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config_of(case), dtype=getattr(torch, case.dtype)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(checkpoint_path()).save_pretrained(folder)


def _trainer(case: Case, folder: str, live: LiveBytes, found: dict[str, Any]) -> Any:
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig

    from sdpo_trl import SDPOTrainer

    class Phases(TrainerCallback):
        def on_pre_optimizer_step(self, *_: Any, model: Any = None, **__: Any) -> None:
            given = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
            found["gradients"] = sum(gradient.nbytes for gradient in given)
            live.begin("optimizer")

        def on_step_end(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
            # The first step has no optimizer states yet, and tries out what the model can do.
            if state.global_step == 1:
                live.forget()
            # By now the gradients are gone; the trainer's own callback, which is called later, lets the teacher follow.
            live.begin("update")

    class Booked(SDPOTrainer):
        def _generate_single_turn(self, *given: Any, **more: Any) -> Any:
            with live.within("generation"):
                return super()._generate_single_turn(*given, **more)

        def training_step(self, *given: Any, **more: Any) -> Any:
            live.begin("rollouts")
            return super().training_step(*given, **more)

        def _compute_loss(self, model: Any, inputs: Any) -> Any:
            widths = {name: inputs[name].shape[1] for name in ("prompt_ids", "completion_ids", "sdpo_prompt_ids")}
            lengths = zip(("prompt_length", "completion_length", "teacher_prompt_length"), widths.values(), strict=True)
            found["lengths"] = {name: max(width, found.get("lengths", {}).get(name, 0)) for name, width in lengths}
            live.begin("loss")
            loss = super()._compute_loss(model, inputs)
            live.begin("backward")
            return loss

    more: dict[str, Any] = {}
    if case.lora is not None:
        from peft import LoraConfig

        more["peft_config"] = LoraConfig(r=case.lora, target_modules="all-linear", task_type="CAUSAL_LM")
    arguments = GRPOConfig(
        output_dir=str(Path(folder) / "out"),
        per_device_train_batch_size=case.answers,
        num_generations=case.answers,
        gradient_accumulation_steps=case.accumulation,
        max_completion_length=case.completion,
        generation_kwargs={"min_new_tokens": case.completion},
        max_steps=3,
        use_cpu=True,
        bf16=case.bf16,
        beta=case.beta,
        gradient_checkpointing=case.checkpointing,
        model_init_kwargs={"dtype": case.dtype, "attn_implementation": case.attention},
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        logging_strategy="no",
    )
    options = SDPOConfig(
        teacher=case.teacher,
        loss_path=case.loss_path,
        distillation_topk=case.top_k,
        share_teacher_prefix=case.share,
        include_environment_feedback=False,
    )
    return Booked(
        model=folder,
        reward_funcs=_reward,
        args=arguments,
        train_dataset=Dataset.from_list(_questions(case, folder)),
        sdpo_config=options,
        callbacks=[Phases()],
        **more,
    )


def _reward(completions: list[Any], **_: Any) -> list[float]:
    # Half of a group succeed, so that every answer has a teacher.
    return [float(row % 2) for row in range(len(completions))]


def _questions(case: Case, folder: str) -> list[dict[str, Any]]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)

    def length(words: list[str]) -> int:
        message = [{"role": "user", "content": " ".join(words)}]
        given = tokenizer.apply_chat_template(message, add_generation_prompt=True, return_dict=True)
        return len(given["input_ids"])

    words: list[str] = []
    while length(words) < case.prompt:
        words.append(_WORDS[len(words) % len(_WORDS)])
    return [{"prompt": [{"role": "user", "content": " ".join(words)}]}] * 8
