"""Whole runs: Ray, vLLM and DeepSpeed as they are, with what users bring along."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForCausalLM

from openrlhf_cpu.run import base_arguments, run
from sdpo_plugins.embedded import checkpoint_path
from sdpo_plugins.records import read_run

pytestmark = pytest.mark.slow

LIMIT = 900.0
QUESTIONS, ROLLOUTS = 8, 4


@dataclass(frozen=True)
class Run:
    """What a run left behind: its folder, metrics by step, all that was printed."""

    folder: Path
    metrics: dict[int, dict[str, float]]
    printed: str


def trained(folder: Path, steps: int, *more: str, ranks: int = 1) -> Run:
    words = base_arguments("facts", folder, steps=steps, questions=QUESTIONS, rollouts=ROLLOUTS, ranks=ranks)
    if "--sdpo.scorer" in more:
        at = words.index("--reward.remote_url")
        words[at : at + 2] = []
    metrics = run(
        [*words, *more],
        LIMIT,
        log=folder / "log.txt",
    )
    return Run(folder, metrics, (folder / "log.txt").read_text(encoding="utf-8", errors="replace"))


# Two ranks of ZeRO-3, packed rows, dynamic batches, GRPO's share, a reference model beside an EMA teacher.

GRPO_WEIGHT, KL_COEFFICIENT = 0.3, 0.5


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("shards")
    return trained(
        folder,
        3,
        *("--ds.zero_stage", "3", "--ds.packing_samples"),
        *("--train.dynamic_batch_enable", "--train.max_tokens_per_gpu", "200", "--rollout.max_tokens_per_gpu", "400"),
        *("--actor.adam.lr", "1e-3"),
        *("--algo.kl.init_coef", str(KL_COEFFICIENT), "--algo.kl.use_loss", "--algo.kl.estimator", "k3"),
        *("--ref.num_gpus_per_node", "2", "--train.colocate_actor_ref"),
        *("--sdpo.grpo_weight", str(GRPO_WEIGHT), "--sdpo.teacher_update_rate", "0.2"),
        *("--sdpo.record_picture_every", "2", "--logger.tensorboard_dir", str(folder / "board")),
        ranks=2,
    )


def test_metrics_of_batch_loss_and_teacher_reach_the_hosts_loggers(shards: Run) -> None:
    assert sorted(shards.metrics) == [1, 2, 3]
    for step, found in shards.metrics.items():
        assert found["self_distillation/active_tokens"] > 0
        assert found["self_distillation/feedback_used_fraction"] > 0.5
        assert found["self_distillation/group_count"] == QUESTIONS
        assert found["teacher/updates"] == step
        assert found["actor_grad_norm"] > 0


def test_the_reference_holds_the_policy(shards: Run) -> None:
    kl = [shards.metrics[step]["kl"] for step in (1, 2, 3)]
    assert kl[0] == pytest.approx(0.0, abs=1e-4)
    assert min(kl[1:]) > 1e-5


def test_vllm_samples_from_the_trained_weights(shards: Run) -> None:
    # Mean log-probability of the samples, vLLM's minus DeepSpeed's: both compute in bfloat16.
    for found in shards.metrics.values():
        assert abs(found["vllm_kl"]) < 0.02


def test_rows_that_were_dealt_out_anew_keep_their_records(shards: Run) -> None:
    # Dynamic batches are cut and dealt to ranks by length.
    records = read_run(shards.folder)
    assert len(records.rollouts) == 12
    for rollout in records.rollouts:
        assert (rollout.tokens is not None) is rollout.line["active"]
        if rollout.tokens is not None:
            assert rollout.line["response"].strip() in "".join(
                rollout.tokens["pieces"][str(token)] for token in rollout.tokens["ids"]
            )


def test_every_other_batch_is_drawn_for_tensorboard(shards: Run) -> None:
    (board,) = (shards.folder / "board").iterdir()
    events = EventAccumulator(str(board)).Reload()
    assert [image.step for image in events.Images("sdpo/tokens")] == [1, 3]
    assert all(image.width == 900 and image.height > 50 for image in events.Images("sdpo/tokens"))
    assert len(events.Scalars("train/policy_loss")) == 3


def test_the_saved_model_is_a_model(shards: Run) -> None:
    saved = AutoModelForCausalLM.from_pretrained(shards.folder / "model")
    first = AutoModelForCausalLM.from_pretrained(checkpoint_path())
    moved = [
        not torch.equal(one.float(), other.float())
        for one, other in zip(saved.parameters(), first.to(torch.bfloat16).parameters(), strict=True)
    ]
    # In bfloat16 the weights of some norms stay what they were.
    assert sum(moved) > len(moved) / 2


# LoRA with a teacher of adapters.


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return trained(
        tmp_path_factory.mktemp("adapters"),
        3,
        *("--ds.lora.rank", "8", "--ds.lora.alpha", "16", "--actor.adam.lr", "1e-2"),
        *("--sdpo.teacher", "lora_ema", "--sdpo.teacher_update_rate", "0.5"),
        # A plug-in's scorer by its name, with workers of its own in the vLLM engine.
        *("--sdpo.scorer", "embedded", "--sdpo.plugins", "embedded_scorer", "--sdpo.scorer_options", '{"workers": 1}'),
        *("--sdpo.record", "false"),
    )


def test_merged_adapters_are_what_is_sampled_from(adapters: Run) -> None:
    # The policy is another one after each step, and vLLM's follows: the host alone would send names that vLLM refuses.
    assert adapters.metrics[3]["teacher/distance"] > 1e-3
    for found in adapters.metrics.values():
        assert abs(found["vllm_kl"]) < 0.03
    divergences = [adapters.metrics[step]["self_distillation/divergence"] for step in (1, 3)]
    assert divergences[0] > 0 and divergences[1] > 0


def test_a_scorer_of_the_catalogue_rewards_and_gives_feedback(adapters: Run) -> None:
    assert (adapters.folder / "model" / "sdpo_reward.py").is_file()
    for found in adapters.metrics.values():
        assert found["acc"] == pytest.approx(found["reward"])
        assert found["scoring_crashed"] == found["scoring_timed_out"] == 0.0
        assert found["self_distillation/feedback_used_fraction"] > 0.5


def test_without_records_there_is_no_folder_of_them(adapters: Run) -> None:
    assert not list(adapters.folder.rglob("records"))


def test_the_adapter_is_saved(adapters: Run) -> None:
    saved = load_file(adapters.folder / "model" / "adapter_model.safetensors")
    assert any(bool(value.abs().max() > 0) for name, value in saved.items() if "lora_B" in name)
    assert json.loads((adapters.folder / "model" / "adapter_config.json").read_text())["r"] == 8


# The host's own algorithm, with a reward file that says something.


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return trained(tmp_path_factory.mktemp("plain"), 2, "--sdpo.enabled", "false", "--ckpt.save_steps", "2")


def test_without_sdpo_the_host_is_as_it_was(plain: Run) -> None:
    for found in plain.metrics.values():
        assert not [name for name in found if name.startswith(("self_distillation/", "teacher/", "sdpo"))]
        assert "rollout/reward_mean" in found and "policy_loss" in found
    checkpoint = plain.folder / "checkpoints" / "_actor" / "global_step2"
    assert checkpoint.is_dir() and not (checkpoint / "sdpo").exists()
