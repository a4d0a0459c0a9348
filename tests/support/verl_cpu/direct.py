"""One rank's SDPO training worker, made without Ray in a process whose process group is open."""

from __future__ import annotations

import os
from functools import partial
from typing import Any

import torch
from verl.trainer.config import CheckpointConfig
from verl.workers.config import (
    FSDPActorConfig,
    FSDPEngineConfig,
    FSDPOptimizerConfig,
    HFModelConfig,
    TrainingWorkerConfig,
)
from verl.workers.utils.losses import ppo_loss

from sdpo_verl.worker import SDPOTrainingWorker
from verl_cpu import engine as engine  # registers it

__all__ = ["direct_worker"]

_FP32 = {"param_dtype": "fp32", "reduce_dtype": "fp32", "buffer_dtype": "fp32"}


def direct_worker(
    folder: str,
    *,
    removes_padding: bool,
    gradient_checkpointing: bool = False,
    fused_kernels: bool = False,
    **actor: Any,
) -> tuple[SDPOTrainingWorker, FSDPActorConfig]:
    """Make a worker on verl's FSDP2 engine in float32, with its model loaded and verl's policy loss set.

    The learning rate is 0, so that step after step is taken at the same weights; gradients are not clipped.

    Args:
        folder: Of the model.
        removes_padding: verl's `use_remove_padding`.
        gradient_checkpointing: verl's `enable_gradient_checkpointing`.
        fused_kernels: verl's `use_fused_kernels`, with its backend `torch`. It replaces the forward of the model's
            class, for all models of this process.
        actor: More of verl's actor configuration.

    Returns:
        The worker, and the actor configuration that `start_sdpo` takes.
    """
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", "0")  # the group is open: nobody listens
    model = HFModelConfig(
        path=folder,
        use_remove_padding=removes_padding,
        enable_gradient_checkpointing=gradient_checkpointing,
        use_fused_kernels=fused_kernels,
        fused_kernel_options={"impl_backend": "torch"} if fused_kernels else None,
        override_config={"attn_implementation": "sdpa"},
    )
    settings = FSDPActorConfig(
        **{
            "strategy": "fsdp2",
            "ppo_micro_batch_size_per_gpu": 1,
            "ppo_mini_batch_size": 1,
            "rollout_n": 1,
            "use_dynamic_bsz": False,
            **actor,
        }
    )
    worker = SDPOTrainingWorker(
        TrainingWorkerConfig(
            model_type="language_model",
            model_config=model,
            engine_config=FSDPEngineConfig(
                strategy="fsdp2",
                forward_only=False,
                use_torch_compile=False,
                model_dtype="fp32",
                mixed_precision=_FP32,
                use_dynamic_bsz=False,
            ),
            optimizer_config=FSDPOptimizerConfig(lr=0.0, weight_decay=0.0, total_training_steps=10, clip_grad=1e9),
            checkpoint_config=CheckpointConfig(),
        )
    )
    worker.reset()
    worker.set_loss_fn(partial(ppo_loss, config=settings))
    torch.set_num_threads(1)
    return worker, settings
