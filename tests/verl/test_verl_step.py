"""The step inside of verl's own FSDP2 engine, without Ray: the same loss and gradient as plain transformers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch.nn.functional import pad
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from verl.trainer.config import CheckpointConfig
from verl.utils import tensordict_utils as tu
from verl.workers.config import FSDPActorConfig, FSDPEngineConfig, FSDPOptimizerConfig, HFModelConfig
from verl.workers.engine import EngineRegistry
from verl.workers.utils.losses import ppo_loss

import verl_cpu.engine  # noqa: F401  registers the engine
from sdpo_plugins import SDPOConfig
from sdpo_plugins.embedded import checkpoint_path
from sdpo_plugins.losses import self_distillation_loss
from sdpo_verl.worker import SDPOTrainingWorker

PROMPTS, CONTEXTS, RESPONSES = (5, 7, 6, 9), (11, 12, 10, 15), (4, 6, 3, 8)
ACTIVE = torch.tensor([1.0, 1.0, 0.0, 1.0])
WRITTEN = [torch.ones(n, dtype=torch.int64) for n in RESPONSES]
# A tool's output inside of three answers, at the end of one of them, and in front of the last token of another.
WITH_TOOLS = [torch.tensor(row) for row in ([1, 0, 0, 1], [1, 1, 0, 1, 0, 0], [1, 1, 1], [1, 1, 0, 0, 0, 0, 0, 1])]


class Worker(SDPOTrainingWorker):
    """The worker's part of SDPO, around an engine that Ray did not make."""

    def __init__(self, engine: Any) -> None:
        self.engine = engine


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A random model whose distributions differ by more than rounding, untied."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoint_path())
    settings = AutoConfig.from_pretrained(checkpoint_path())
    settings.initializer_range, settings.tie_word_embeddings = 0.15, False
    torch.manual_seed(0)
    made = str(tmp_path_factory.mktemp("model"))
    AutoModelForCausalLM.from_config(settings).save_pretrained(made)
    tokenizer.save_pretrained(made)
    return made


def engine(folder: str, removes_padding: bool) -> Any:
    model = HFModelConfig(
        path=folder,
        use_remove_padding=removes_padding,
        enable_gradient_checkpointing=False,
        override_config={"attn_implementation": "sdpa"},
    )
    model.model_type = "language_model"
    wide = {"param_dtype": "fp32", "reduce_dtype": "fp32", "buffer_dtype": "fp32"}
    made = EngineRegistry.new(
        model_type="language_model",
        backend="fsdp2",
        model_config=model,
        engine_config=FSDPEngineConfig(
            strategy="fsdp2", forward_only=False, use_torch_compile=False, model_dtype="fp32", mixed_precision=wide
        ),
        optimizer_config=FSDPOptimizerConfig(lr=0.0, weight_decay=0.0, total_training_steps=10, clip_grad=1e9),
        checkpoint_config=CheckpointConfig(),
    )
    made.initialize()
    return made


def draw(lengths: Any, generator: torch.Generator) -> list[torch.Tensor]:
    return [torch.randint(3, 1000, (length,), generator=generator) for length in lengths]


def jagged(rows: Any) -> torch.Tensor:
    return torch.nested.as_nested_tensor(list(rows), layout=torch.jagged)


class Batch:
    """Four recorded rows, one of them inactive, with what GRPO and a reference would give."""

    def __init__(self, masks: list[torch.Tensor] = WRITTEN) -> None:
        self.masks = masks
        g = torch.Generator().manual_seed(0)
        self.prompts, self.contexts, self.responses = (draw(x, g) for x in (PROMPTS, CONTEXTS, RESPONSES))
        self.ids = [torch.cat(pair) for pair in zip(self.prompts, self.responses, strict=True)]
        self.teacher_ids = [torch.cat(pair) for pair in zip(self.contexts, self.responses, strict=True)]
        self.old, self.reference, self.weights = (
            [low + high * torch.rand(n, generator=g) for n in RESPONSES]
            for low, high in ((-8.0, 3.0), (-8.0, 3.0), (0.5, 1.0))
        )
        self.advantages = [torch.full((n,), value) for n, value in zip(RESPONSES, (1.0, -0.5, 0.7, -1.2), strict=True)]

    @property
    def active_tokens(self) -> int:
        """Tokens that carry SDPO's loss."""
        return int(sum(mask.sum() for mask, active in zip(self.masks, ACTIVE, strict=True) if active))

    def tensordict(self, micro: int, removes_padding: bool) -> TensorDict:
        data = TensorDict(
            {
                "prompts": jagged(self.prompts),
                "responses": jagged(self.responses),
                "input_ids": jagged(self.ids),
                "position_ids": jagged(torch.arange(len(row)) for row in self.ids),
                "response_mask": jagged(self.masks),
                "loss_mask": jagged(self.masks),
                "teacher_input_ids": jagged(self.teacher_ids),
                "teacher_position_ids": jagged(torch.arange(len(row)) for row in self.teacher_ids),
                "old_log_probs": jagged(self.old),
                "ref_log_prob": jagged(self.reference),
                "rollout_is_weights": jagged(self.weights),
                "advantages": jagged(self.advantages),
                "sdpo_active": ACTIVE,
                "sdpo_success": ACTIVE,
            },
            batch_size=4,
        )
        tu.assign_non_tensor(
            data,
            temperature=0.8,
            use_dynamic_bsz=False,
            micro_batch_size_per_gpu=micro,
            use_remove_padding=removes_padding,
            use_fused_kernels=False,
            calculate_entropy=False,
            global_batch_size=4,
        )
        return data


@pytest.fixture(scope="module", params=[False, True], ids=["padded", "no padding"])
def worker(request: Any, one_rank: None, folder: str) -> Any:
    made = Worker(engine(folder, request.param))
    made.removes_padding = request.param
    return made


def padded(rows: Any) -> torch.Tensor:
    width = max(RESPONSES)
    return torch.stack([pad(row, (0, 0) * (row.dim() - 1) + (0, width - row.shape[0])) for row in rows])


def plain(
    folder: str, config: SDPOConfig, actor: Any, batch: Batch, micro: int = 4
) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients from transformers, the core's loss on logits, and verl's loss on its log-probs."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)

    def logits(ids: list[torch.Tensor], before: Any) -> torch.Tensor:
        rows = [model(row[None]).logits[0, start - 1 : -1] for row, start in zip(ids, before, strict=True)]
        return padded(rows)

    student = logits(batch.ids, PROMPTS)
    with torch.no_grad():
        teacher = logits(batch.teacher_ids, CONTEXTS)
    ids, mask = padded(batch.responses), padded([row.float() for row in batch.masks])
    old, weights, loss = padded(batch.old), padded(batch.weights), torch.zeros((), dtype=torch.float64)
    # The authors' normalisation: each micro-batch over its own tokens, weighed by its rows.
    size = micro if config.loss_normalization == "reference" else 4
    for rows in torch.arange(4).split(size):
        part, _ = self_distillation_loss(
            student[rows],
            teacher[rows],
            ids[rows],
            mask[rows],
            config,
            old_log_probs=old[rows],
            rollout_is_weights=weights[rows],
            self_distillation_mask=ACTIVE[rows],
            temperature=0.8,
        )
        loss = loss + size / 4 * part
    if config.grpo_weight > 0.0 or actor.use_kl_loss:
        log_probs = torch.log_softmax(student / 0.8, -1).gather(-1, ids[..., None])[..., 0]
        data = batch.tensordict(4, False)
        data["prompts"] = jagged(batch.prompts)
        tu.assign_non_tensor(data, dp_size=1, batch_num_tokens=int(mask.sum()))
        stream = jagged(
            torch.cat([row.new_zeros(before - 1), row[:n], row.new_zeros(1)])
            for row, before, n in zip(log_probs, PROMPTS, RESPONSES, strict=True)
        )
        policy, _ = ppo_loss(actor, {"log_probs": stream}, data)
        share = config.grpo_weight
        host = policy if share else policy * 0.0
        if actor.use_kl_loss:
            # Together with the policy loss verl gives λ of the KL; the rest is SDPO's own.
            without = FSDPActorConfig(**{**SETTINGS, "use_kl_loss": False})
            pure, _ = ppo_loss(without, {"log_probs": stream}, data)
            host = share * pure + (policy - pure)
        else:
            host = share * host
        loss = host + (1.0 - share) * loss
    loss.backward()
    return float(loss.detach()), {name: p.grad for name, p in model.named_parameters()}


SETTINGS: dict[str, Any] = {
    "strategy": "fsdp2",
    "ppo_micro_batch_size_per_gpu": 2,
    "ppo_mini_batch_size": 4,
    "rollout_n": 1,
    "use_dynamic_bsz": False,
}
OBJECTIVES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "top-K and tail": ({"distillation_topk": 20}, {}),
    "renormalised": ({"distillation_topk": 20, "distillation_add_tail": False}, {}),
    "whole vocabulary": ({"distillation_topk": None, "alpha": 1.0}, {}),
    "sampled token": ({"full_logit_distillation": False, "alpha": 1.0, "distillation_topk": None}, {}),
    "live": ({"teacher": "live"}, {}),
    "trust region": ({"teacher": "trust_region", "teacher_update_rate": 0.5}, {}),
    "sequence mean": ({"loss_agg_mode": "seq-mean-token-mean"}, {}),
    "by micro-batch": ({"loss_normalization": "reference"}, {}),
    "sequence mean by micro-batch": (
        {"loss_normalization": "reference", "loss_agg_mode": "seq-mean-token-mean"},
        {},
    ),
    "hybrid": ({"grpo_weight": 0.3}, {}),
    "reference": ({}, {"use_kl_loss": True, "kl_loss_coef": 0.1}),
    "hybrid with a reference": ({"grpo_weight": 0.3}, {"use_kl_loss": True, "kl_loss_coef": 0.1}),
}


def check_step(worker: Any, folder: str, objective: str, batch: Batch, micro: int = 4, **settings: Any) -> Any:
    """Run the engine over the batch, compare loss and gradient with those of plain transformers; return its record."""
    options, host = OBJECTIVES[objective]
    config, actor = SDPOConfig(**options), FSDPActorConfig(**SETTINGS, **host)
    worker.start_sdpo(config.to_mapping(), actor)
    data = batch.tensordict(micro, worker.removes_padding)
    tu.assign_non_tensor(data, **settings)
    worker.measure(data)
    worker.engine.forward_step = worker.sdpo
    try:
        with worker.engine.train_mode():
            worker.engine.optimizer_zero_grad()
            output = worker.engine.forward_backward_batch(data, None, forward_only=False)
            gradients = {name: p.grad.full_tensor().clone() for name, p in worker.engine.module.named_parameters()}
    finally:
        del worker.engine.forward_step
    loss, expected = plain(folder, config, actor, batch, micro)
    assert sum(output["loss"]) == pytest.approx(loss, rel=1e-5)
    assert gradients.keys() == expected.keys()
    whole, found = (torch.cat([part[name].flatten() for name in expected]) for part in (expected, gradients))
    assert float((found - whole).norm() / whole.norm()) <= 1e-5
    metrics = worker.sdpo.sums.take(lambda local: local)
    assert metrics["self_distillation/active_tokens"] == batch.active_tokens
    return output, metrics


@pytest.mark.parametrize("micro", [4, 1], ids=["whole", "four parts"])
@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
def test_loss_and_gradient_are_those_of_plain_transformers(
    worker: Any, folder: str, objective: str, micro: int
) -> None:
    check_step(worker, folder, objective, Batch(), micro)


@pytest.mark.parametrize("micro", [4, 1], ids=["whole", "four parts"])
@pytest.mark.parametrize("objective", ["top-K and tail", "sequence mean", "hybrid with a reference"])
def test_tool_output_is_read_by_both_models_and_carries_no_loss(
    worker: Any, folder: str, objective: str, micro: int
) -> None:
    batch = Batch(WITH_TOOLS)
    assert batch.active_tokens == 8
    check_step(worker, folder, objective, batch, micro)


@pytest.mark.parametrize("masks", [WRITTEN, WITH_TOOLS], ids=["plain", "tools"])
@pytest.mark.parametrize("objective", ["top-K and tail", "hybrid with a reference"])
def test_a_dynamic_batch_gives_the_same_step(
    worker: Any, folder: str, objective: str, masks: list[torch.Tensor]
) -> None:
    # Rows of 9, 13, 9 and 17 tokens in micro-batches of 18: two rows together, the others alone.
    limits = {"use_dynamic_bsz": True, "max_token_len_per_gpu": 18}
    output, _ = check_step(worker, folder, objective, Batch(masks), **limits)
    assert len(output["loss"]) >= 3


@pytest.mark.parametrize("objective", ["top-K and tail", "renormalised", "sampled token"])
def test_metrics_are_those_of_all_micro_batches(worker: Any, folder: str, objective: str) -> None:
    _, whole = check_step(worker, folder, objective, Batch(), micro=4)
    _, parts = check_step(worker, folder, objective, Batch(), micro=1)
    assert parts == pytest.approx(whole, rel=1e-5)
    # The ratio enters where `is_clip` is on, the gap where the teacher's log-probs are computed.
    assert whole["self_distillation/importance_ratio"] > 0
    assert ("self_distillation/gap" in whole) == (objective != "renormalised")
