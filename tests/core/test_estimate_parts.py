"""Weights, gradients, optimizer states, teachers: what is exact is exact, host by host."""

from __future__ import annotations

import pytest

from published_models import QWEN3_8B, QWEN_7B, QWEN_HALF
from sdpo_plugins.config import SDPOConfig
from sdpo_plugins.estimate import GIB, RunFacts, comparison, estimate, facts_of_config, fits
from sdpo_plugins.estimate.held import four_bit_bytes, gradient_bytes, optimizer_bytes, teacher_bytes
from sdpo_plugins.estimate.loss import chunk_size

HALF, SEVEN, EIGHT = (facts_of_config(config) for config in (QWEN_HALF, QWEN_7B, QWEN3_8B))


def run(teacher="ema", **given):
    return RunFacts(sdpo=SDPOConfig(teacher=teacher), **given)


def phases(model, facts):
    return {phase.name: phase for phase in estimate(model, facts).phases}


@pytest.mark.parametrize(
    ("facts", "held", "cast", "aside"),
    [
        (run("ema"), 4, 0, 0),
        (run("ema", dtype="bfloat16"), 4, 2, 0),
        (run("frozen", dtype="bfloat16"), 2, 0, 0),
        (run("trust_region"), 4, 0, 0),
        (run("live"), 0, 0, 0),
        (run("ema", host="openrlhf"), 4, 2, 0),
        (run("frozen", host="openrlhf"), 2, 0, 0),
        (run("ema", host="openrlhf", sharding="zero3", ranks=4), 1, 0, 0.5),
        (run("ema", host="verl", ranks=4), 1, 0, 1),
        (run("frozen", host="verl", ranks=4), 1, 0, 1),
        (run("live", host="verl", ranks=4), 0, 0, 0),
    ],
)
def test_bytes_of_the_teacher_for_each_parameter(facts, held, cast, aside):
    """The tables of docs/trl.md, docs/verl.md and docs/openrlhf.md."""
    assert teacher_bytes(EIGHT, facts) == tuple(int(size * EIGHT.parameters) for size in (held, cast, aside))


@pytest.mark.parametrize(
    ("facts", "gradients", "states"),
    [
        (run(), 4, 8),
        (run(dtype="bfloat16"), 2, 4),
        (run(optimizer="sgd"), 4, 0),
        (run(optimizer="lion"), 4, 4),
        (run(host="verl", ranks=4), 1, 2),
        (run(host="openrlhf", sharding="none"), 2, 12),
        (run(host="openrlhf", sharding="zero1", ranks=4), 2, 3),
        (run(host="openrlhf", sharding="zero2", ranks=4), 0.5, 3),
        (run(host="openrlhf", sharding="zero3", ranks=8), 0.25, 1.5),
    ],
)
def test_bytes_of_gradients_and_optimizer_for_each_parameter(facts, gradients, states):
    assert gradient_bytes(EIGHT, facts) == gradients * EIGHT.parameters
    assert optimizer_bytes(EIGHT, facts) == states * EIGHT.parameters


def test_the_recipes_of_verl_hold_what_their_readme_says():
    """recipes/verl/README.md: Qwen3-8B on 4 GPUs; weights, gradients, Adam, teacher, student set aside in GiB."""
    found = phases(EIGHT, run(host="verl", ranks=4, batch_size=1, prompt_length=2048, completion_length=8192))
    teacher = {name: round(size / GIB, 1) for name, size in found["teacher"].parts.items()}
    assert teacher["weights"] == teacher["teacher"] == teacher["student, set aside"] == 7.6
    assert teacher["optimizer states"] == 15.3
    loss = {name: round(size / GIB, 1) for name, size in found["loss"].parts.items()}
    assert loss["teacher's head, copied"] == 1.2


def test_a_lora_teacher_holds_adapters_alone():
    facts = run("lora_ema", lora_rank=16, dtype="bfloat16")
    held = estimate(SEVEN, facts).phases[0].parts
    adapters = sum(16 * (linear.inputs + linear.outputs) * linear.count for linear in SEVEN.linears)
    assert held["adapters"] == held["teacher"] == 4 * adapters
    assert held["optimizer states"] == 8 * adapters
    assert held["weights"] == 2 * SEVEN.parameters
    # On 4 bits TRL trains adapters in bfloat16, so that the average needs a copy of its type.
    held = estimate(SEVEN, facts.replace(load_in_4bit=True)).phases[0].parts
    assert held["adapters"] == held["teacher, cast"] == 2 * adapters
    assert held["teacher"] == 4 * adapters
    assert held["weights"] == 2 * (SEVEN.parameters - SEVEN.linear_weights)


def test_weights_of_four_bits():
    """What `bitsandbytes.functional.quantize_4bit` of version 0.50 gives for [896, 4864], constants included."""
    assert four_bit_bytes(896 * 4864, double_quant=False) == 2_451_456
    assert four_bit_bytes(896 * 4864, double_quant=True) == 2_248_232


def test_states_of_eight_bits_leave_embeddings_wide():
    found = optimizer_bytes(HALF, run(optimizer="adamw_8bit"))
    assert 2 * HALF.parameters < found < 8 * HALF.parameters
    assert found > 2 * HALF.linear_weights + 8 * HALF.head_entries


def test_the_chunk_of_the_loss_keeps_its_budget():
    for budget in (64.0, 512.0):
        facts = RunFacts(sdpo=SDPOConfig(chunk_memory_mb=budget), dtype="bfloat16")
        assert 0.5 * budget < chunk_size(EIGHT, facts) / (1 << 20) <= budget


def test_logits_cost_more_than_the_fused_loss():
    totals = {
        path: phases(EIGHT, RunFacts(sdpo=SDPOConfig(loss_path=path), dtype="bfloat16", batch_size=32))["loss"].total
        for path in ("fused", "logits")
    }
    # 32 · 512 tokens · 151,936 · 2 bytes for student and teacher, and what is made of them; against the head's gradient
    assert totals["logits"] - totals["fused"] > 9 * GIB


def test_what_costs_memory_raises_the_estimate():
    base = run(dtype="bfloat16")
    peak = estimate(HALF, base).peak.total
    more = [
        {"gradient_checkpointing": False},
        {"attention": "eager"},
        {"batch_size": 16},
        {"completion_length": 2048},
        {"reference": True},
        {"gradient_accumulation": 4},
        {"dtype": "float32"},
        {"ranks": 2},
    ]
    for changes in more:
        assert estimate(HALF, base.replace(**changes)).peak.total > peak, changes
    for changes in ({"optimizer": "sgd"}, {"lora_rank": 8}, {"sharding": "fsdp2", "ranks": 8}):
        assert estimate(HALF, base.replace(**changes)).peak.total < peak, changes


def test_scores_of_eager_attention_grow_with_the_square():
    def activations(length, attention):
        facts = run(gradient_checkpointing=False, completion_length=length, attention=attention, padding=False)
        return phases(HALF, facts)["loss"].parts["activations"]

    assert activations(1536, "sdpa") == pytest.approx(2 * activations(512, "sdpa"), rel=1e-6)
    assert activations(1536, "eager") > 2.5 * activations(512, "eager")


def test_vllm_takes_its_share_of_each_gpu():
    found = estimate(HALF, run(generation="vllm", vllm_gpu_memory_utilization=0.5))
    assert found.needs(100 * GIB) - found.needs(50 * GIB) == 25 * GIB
    asleep = estimate(HALF, run(generation="vllm", vllm_gpu_memory_utilization=0.5, vllm_sleep=True))
    assert [phase.share for phase in asleep.phases] == [0.5] + [0.0] * (len(asleep.phases) - 1)
    assert asleep.needs(80 * GIB) < found.needs(80 * GIB)


def test_verdicts_of_gpus_follow_their_size():
    verdicts = [fit.verdict for fit in fits(estimate(SEVEN, run("lora_ema", lora_rank=16, load_in_4bit=True)))]
    assert verdicts[0] == "fits"
    assert {fit.verdict for fit in fits(estimate(SEVEN, run()))} == {"does not fit"}
    order = ["does not fit", "tight", "fits"]
    ranked = [order.index(fit.verdict) for fit in fits(estimate(HALF, run()))]
    assert ranked == sorted(ranked)


def test_a_comparison_has_every_teacher_and_what_can_be_trained():
    rows = comparison(SEVEN, RunFacts())
    assert len(rows) == 5 * 3 - 1
    assert {row.teacher for row in rows} == {"ema", "frozen", "live", "trust_region", "lora_ema"}
    totals = {(row.teacher, row.trained): row.found.peak.total for row in rows}
    assert totals["live", "all weights"] < totals["ema", "all weights"]
    assert totals["ema", "4-bit LoRA"] < totals["ema", "LoRA"] < totals["ema", "all weights"]
    assert {row.trained for row in comparison(SEVEN, RunFacts(host="verl"))} == {"all weights", "LoRA"}
    assert {row.trained for row in comparison(SEVEN, RunFacts(host="openrlhf", sharding="zero3"))} == {"all weights"}
