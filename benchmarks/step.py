"""Whole training steps on the same rollouts: SDPO through this project's trainer, TRL's own SDPO, and GRPO."""

from __future__ import annotations

import dataclasses
import random
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch

from benchmarks.process import in_fresh_process, measured, medians, with_cost
from sdpo_plugins.config import SDPOConfig
from sdpo_plugins.embedded import checkpoint_path

__all__ = ["TRAINERS", "StepShape", "cost_of", "run_steps"]

TRAINERS = {
    "ours": "ours",
    "ours_unshared": "ours, each teacher prompt on its own",
    "ours_logits": "ours, on logits",
    "trl": "TRL experimental.sdpo",
    "grpo": "TRL GRPO",
}
_WORDS = ("one", "two", "six", "ten", "red", "sun", "sea", "day")


@dataclass(frozen=True)
class StepShape:
    """Sizes of a training step.

    Args:
        prompt: Tokens of a question.
        response: Tokens of an answer.
        group: G answers to a question; a step takes one question.
        vocabulary: V of the model.
        width: Of its hidden states.
        layers: Decoder layers.
        top_k: K.
        steps: Steps that are measured, after one that is not.
    """

    prompt: int = 512
    response: int = 128
    group: int = 8
    vocabulary: int = 151_936
    width: int = 512
    layers: int = 4
    top_k: int = 100
    steps: int = 3


def cost_of(trainer: str, shape: dict[str, Any], threads: int | None = None) -> dict[str, Any]:
    """Train some steps and return the median cost of one, generation left out.

    Returns:
        CPU and wall seconds of a step, the peak over all steps, CPU seconds of a step that went into decoder passes
        without gradient (the teacher's), and the last loss.
    """
    if threads:
        torch.set_num_threads(threads)
    sizes = StepShape(**shape)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = _save_model(sizes, folder)
        model = _load_model(folder)
        watch = _Watch()
        built: Any = None

        def work() -> None:
            nonlocal built
            built = _build(trainer, model, tokenizer, sizes, folder, watch)
            with watch.passes_without_gradient():
                built.train()

        _, cost = measured(work)
    losses = [entry["loss"] for entry in built.state.log_history if "loss" in entry]
    return with_cost({**watch.per_step(), "loss": losses[-1]}, dataclasses.replace(cost, **watch.step_cost()))


def run_steps(
    shape: StepShape,
    repeats: int = 1,
    only: Iterable[str] | None = None,
    threads: int | None = None,
    tell: Callable[[str], None] = print,
    call: Callable[..., dict[str, Any]] = in_fresh_process,
) -> dict[str, dict[str, Any]]:
    """Measure the trainers in turn; `call` runs `cost_of`, elsewhere than in a fresh process if it is replaced."""
    names = [name for name in TRAINERS if only is None or name in set(only)]
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for turn in range(repeats):
        for name in names:
            values = call("step", "cost_of", trainer=name, shape=asdict(shape), threads=threads)
            found[name].append(values)
            tell(f"step {turn + 1}/{repeats} {name}: {values['cpu_seconds']:.1f} s CPU a step")
    return {name: medians(values) for name, values in found.items()}


class _Watch:
    """CPU and wall time at the end of each step, and of decoder passes that build no graph."""

    def __init__(self) -> None:
        self.ends: list[tuple[float, float, float]] = []
        self.without_gradient = 0.0
        self._began: list[float] = []

    def callback(self) -> Any:
        from transformers import TrainerCallback

        watch = self

        class AtStepEnd(TrainerCallback):
            def on_step_end(self, *args: Any, **kwargs: Any) -> None:
                watch.ends.append((time.process_time(), time.perf_counter(), watch.without_gradient))

        return AtStepEnd()

    def passes_without_gradient(self) -> Any:
        """Within the block, the time of decoder passes without gradient is added up."""
        from contextlib import ExitStack

        from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
        from transformers import Qwen3Model

        def before(module: Any, *_: Any) -> None:
            if isinstance(module, Qwen3Model) and not torch.is_grad_enabled():
                self._began.append(time.process_time())

        def after(module: Any, *_: Any) -> None:
            if isinstance(module, Qwen3Model) and not torch.is_grad_enabled():
                self.without_gradient += time.process_time() - self._began.pop()

        stack = ExitStack()
        for handle in (register_module_forward_pre_hook(before), register_module_forward_hook(after)):
            stack.callback(handle.remove)
        return stack

    def step_cost(self) -> dict[str, float]:
        """Return medians over the steps after the first."""
        steps = [
            {"cpu_seconds": end[0] - start[0], "wall_seconds": end[1] - start[1]}
            for start, end in zip(self.ends, self.ends[1:], strict=False)
        ]
        return medians(steps)

    def per_step(self) -> dict[str, float]:
        """Return the teacher's time of a step."""
        steps = [{"teacher_seconds": b[2] - a[2]} for a, b in zip(self.ends, self.ends[1:], strict=False)]
        return medians(steps)


def _save_model(shape: StepShape, folder: str) -> Any:
    from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(checkpoint_path())
    heads = max(1, shape.width // 64)
    config = Qwen3Config(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=3 * shape.width,
        num_hidden_layers=shape.layers,
        num_attention_heads=heads,
        num_key_value_heads=max(1, heads // 2),
        head_dim=min(64, shape.width),
        max_position_embeddings=4 * (shape.prompt + shape.response),
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    torch.manual_seed(0)
    Qwen3ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return tokenizer


def _load_model(folder: str) -> Any:
    # From a folder, as TRL's SDPO reads its teacher from the path that the model was loaded from.
    from transformers import Qwen3ForCausalLM

    return Qwen3ForCausalLM.from_pretrained(folder, dtype=torch.float32)


def _build(trainer: str, model: Any, tokenizer: Any, shape: StepShape, folder: str, watch: _Watch) -> Any:
    common: dict[str, Any] = {
        "output_dir": f"{folder}/out",
        "per_device_train_batch_size": shape.group,
        "num_generations": shape.group,
        "max_completion_length": shape.response,
        "max_steps": shape.steps + 1,
        "learning_rate": 1e-5,
        "temperature": 1.0,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": "none",
        "logging_steps": 1,
        "save_strategy": "no",
        "disable_tqdm": True,
    }
    given: dict[str, Any] = {
        "model": model,
        "reward_funcs": _reward,
        "train_dataset": _questions(tokenizer, shape),
        "processing_class": tokenizer,
        "callbacks": [watch.callback()],
    }
    script = _Script(tokenizer, shape)
    if trainer == "trl":
        from trl.experimental.sdpo import SDPOConfig as PeerConfig
        from trl.experimental.sdpo import SDPOTrainer as PeerTrainer

        class Peer(PeerTrainer):
            def _generate(self, prompt_ids: Any) -> Any:
                return prompt_ids, script(len(prompt_ids), self.state.global_step)

        peer = PeerConfig(
            **common,
            distillation_mode="topk_logits",
            distillation_topk=shape.top_k,
            distillation_add_tail=True,
            distillation_alpha=0.5,
            distillation_weight=1.0,
            teacher_model_kind="ema",
            success_reward_threshold=0.5,
            dont_reprompt_on_self_success=True,
        )
        return Peer(args=peer, **given)

    from trl import GRPOConfig, GRPOTrainer

    from sdpo_trl import SDPOTrainer

    class Scripted:
        def _generate_single_turn(self, prompt_ids: Any, *_: Any, **__: Any) -> Any:
            return script(len(prompt_ids), self.state.global_step), None  # type: ignore[attr-defined]

    arguments = GRPOConfig(**common)
    if trainer == "grpo":
        return type("Grpo", (Scripted, GRPOTrainer), {})(args=arguments, **given)
    options: dict[str, Any] = {"alpha": 0.5, "distillation_topk": shape.top_k, "distillation_add_tail": True}
    options |= {
        "ours": {"loss_path": "fused", "share_teacher_prefix": True},
        "ours_unshared": {"loss_path": "fused", "share_teacher_prefix": False},
        "ours_logits": {"loss_path": "logits", "share_teacher_prefix": False},
    }[trainer]
    config = SDPOConfig(success_reward_threshold=0.5, dont_reprompt_on_self_success=True, **options)
    return type("Ours", (Scripted, SDPOTrainer), {})(args=arguments, sdpo_config=config, **given)


class _Script:
    """Writes the answers of a step: half of a group succeed. Every trainer gets the same."""

    def __init__(self, tokenizer: Any, shape: StepShape) -> None:
        self.length = shape.response
        self.starts = [tokenizer(word, add_special_tokens=False)["input_ids"] for word in ("yes", "no")]
        self.words = [tokenizer(f" {word}", add_special_tokens=False)["input_ids"] for word in _WORDS]
        self.end = tokenizer.eos_token_id

    def __call__(self, rows: int, step: int) -> list[list[int]]:
        draw = random.Random(step)
        answers = []
        for row in range(rows):
            ids = list(self.starts[row % 2])
            while len(ids) < self.length - 1:
                ids += draw.choice(self.words)
            answers.append([*ids[: self.length - 1], self.end])
        return answers


def _reward(completions: list[Any], **_: Any) -> list[float]:
    texts = [one if isinstance(one, str) else one[-1]["content"] for one in completions]
    return [float(text.startswith("yes")) for text in texts]


def _questions(tokenizer: Any, shape: StepShape) -> Any:
    from datasets import Dataset

    rows = []
    for number in range(shape.steps + 1):
        draw = random.Random(1000 + number)
        words: list[str] = []
        while len(_prompt_ids(tokenizer, words)) < shape.prompt:
            words += [
                draw.choice(_WORDS) for _ in range(max(1, (shape.prompt - len(_prompt_ids(tokenizer, words))) // 4))
            ]
        rows.append({"prompt": [{"role": "user", "content": " ".join(words)}]})
    return Dataset.from_list(rows)


def _prompt_ids(tokenizer: Any, words: list[str]) -> list[int]:
    message = [{"role": "user", "content": " ".join(words)}]
    ids: list[int] = tokenizer.apply_chat_template(message, add_generation_prompt=True, return_dict=True)["input_ids"]
    return ids
