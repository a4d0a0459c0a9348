"""Files as users of other projects have them, for `sdpo config --from`."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

TRL_YAML = """\
model_name_or_path: Qwen/Qwen3-0.6B
dataset_name: mine.jsonl
learning_rate: 3e-6
warmup_steps: 5
weight_decay: 0.1
per_device_train_batch_size: 8
gradient_accumulation_steps: 4
steps_per_generation: 8
num_generations: 8
max_completion_length: 1024
temperature: 0.9
max_steps: 100
beta: 0.02
epsilon: 0.2
epsilon_high: 0.28
seed: 7
use_vllm: true
distillation_alpha: 0.25
distillation_mode: topk_logits
distillation_topk: 50
distillation_add_tail: true
teacher_model_kind: ema
teacher_update_rate: 0.02
teacher_sync_steps: 2
include_environment_feedback: true
"""

AUTHORS_YAML = """\
defaults:
  - ppo_trainer
  - _self_
data:
  train_files: [a.parquet]
  train_batch_size: 32
  max_prompt_length: 2048
  max_response_length: 8192
  apply_chat_template_kwargs: {enable_thinking: false}
actor_rollout_ref:
  model: {path: Qwen/Qwen3-8B}
  actor:
    ppo_mini_batch_size: 16
    ppo_epochs: 1
    use_kl_loss: true
    kl_loss_coef: 0.001
    optim: {lr: 1e-5, lr_warmup_steps: 10, weight_decay: 0.01}
    policy_loss: {loss_mode: sdpo}
    self_distillation:
      _target_: verl.workers.config.SelfDistillationConfig
      distillation_topk: 50
      teacher_regularization: trust-region
      ema_update_rate: 0.01
      max_reprompt_len: ${data.max_response_length}
  rollout: {name: vllm, n: 8, temperature: 1.0, top_k: -1}
algorithm:
  adv_estimator: grpo
  rollout_correction: {rollout_is: token, rollout_is_threshold: 2.0}
trainer: {n_gpus_per_node: 4, nnodes: 2, total_epochs: 30, project_name: theirs}
"""

AUTHORS_SCRIPT = """\
#!/bin/bash
python -m verl.trainer.main_ppo --config-name baseline \\
    actor_rollout_ref.actor.optim.lr=1e-6 \\
    actor_rollout_ref.rollout.n=8 data.train_batch_size=32 \\
    actor_rollout_ref.model.path=$MODEL \\
    "actor_rollout_ref.actor.self_distillation.distillation_topk=20" \\
    actor_rollout_ref.actor.self_distillation.alpha=1.0
"""

SDPO_TRAINER_PY = """\
import os
from sdpo_trainer import SDPOTrainer, SDPOConfig
from trl import GRPOConfig
from transformers import AutoModelForCausalLM

raise SystemExit("a converter reads this file and never runs it")
LR = 1e-5
model = AutoModelForCausalLM.from_pretrained("Qwen/Qwen2.5-0.5B-Instruct")
grpo_config = GRPOConfig(
    output_dir="./output",
    num_generations=4,
    max_completion_length=128,
    learning_rate=LR,
    seed=int(os.environ["SEED"]),
)
sdpo_config = SDPOConfig(
    enabled=True,
    alpha=0.5,
    distillation_topk=100,
    teacher_mode="copy",
    ema_tau=0.1,
    is_coef=1.0,
    is_clip=3.0,
    reprompt_teacher=True,
    thinking_tag="<think>",
)
"""

SDPO_RL_PY = """\
from trl import GRPOConfig
from sdpo_rl import SDPOConfig, SDPOTrainer

grpo_config = GRPOConfig(
    output_dir="./output",
    num_generations=4,
    max_completion_length=128,
    temperature=0.7,
    per_device_train_batch_size=4,
    gradient_accumulation_steps=2,
    learning_rate=1e-5,
    bf16=True,
    remove_unused_columns=False,
)
sdpo_config = SDPOConfig(
    enabled=True,
    alpha=0.5,
    distillation_topk=100,
    teacher_mode="ema",
    teacher_update_rate=0.05,
    is_clip=2.0,
    max_reprompt_length=512,
    include_environment_feedback=True,
    environment_feedback_only_without_solution=True,
    remove_thinking_from_demonstration=True,
)
"""

FILES = {
    "trl": ("grpo.yaml", TRL_YAML),
    "lasgroup": ("authors.yaml", AUTHORS_YAML),
    "sdpo-trainer": ("trainer.py", SDPO_TRAINER_PY),
    "sdpo-rl": ("rl.py", SDPO_RL_PY),
}
"""A file of each project: its name and its text."""


def arguments_of(script: str, folder: Path, **variables: str) -> list[str]:
    """Return what a launch script would start, with bash's own quoting: a program that prints words takes its place.

    Args:
        script: The text.
        folder: Where it may be written.
        variables: Of its environment.
    """
    (folder / "run.sh").write_text(script, encoding="utf-8")
    printer = folder / "printer"
    printer.write_text("#!/bin/sh\nprintf '%s\\0' \"$@\"\n")
    printer.chmod(0o755)
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHON": str(printer),
        "DATA_DIR": "data",
        "REWARD": "r.py",
        **variables,
    }
    done = subprocess.run(
        ["bash", str(folder / "run.sh")], env=environment, capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout.split("\0")[:-1]
