"""Runs of verl's `main_ppo`: tools, adapters, reward managers and what else users bring along."""

from __future__ import annotations

import math
from typing import Any

import agents
import pytest
import reward_model
import torch
from runs import QUESTIONS, ROLLOUTS, Run, agent_loop, checkpoint_tensors, decode, overrides, trained
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForCausalLM, AutoTokenizer

from sdpo_plugins.embedded import checkpoint_path
from sdpo_plugins.records import RunRecords

pytestmark = pytest.mark.slow

ROWS = QUESTIONS * ROLLOUTS
ACTOR, MODEL, ROLLOUT = "actor_rollout_ref.actor", "actor_rollout_ref.model", "actor_rollout_ref.rollout"


# A tool between two answers; importance weights; a reference beside an EMA teacher; micro-batches.

KL_COEFFICIENT, STEPS_WITH_TOOLS, PICTURE_EVERY = 0.5, 3, 2


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("tools")
    return trained(
        folder,
        overrides(
            folder,
            STEPS_WITH_TOOLS,
            *agent_loop(folder, "ToolTurn"),
            "data.max_response_length=48",
            f"reward.custom_reward_function.path={agents.__file__}",
            "reward.custom_reward_function.name=last_answer",
            f"{ACTOR}.ppo_micro_batch_size_per_gpu={ROWS // 4}",
            f"{ACTOR}.use_kl_loss=True",
            f"{ACTOR}.kl_loss_coef={KL_COEFFICIENT}",
            f"{ACTOR}.kl_loss_type=low_var_kl",
            "algorithm.rollout_correction.rollout_is=token",
            "algorithm.rollout_correction.rollout_is_threshold=2.0",
            'trainer.logger=["console","file","tensorboard"]',
            teacher="ema",
            record_picture_every=PICTURE_EVERY,
        ),
    )


def test_a_tools_tokens_are_read_by_the_teacher_and_learnt_by_nobody(tools: Run) -> None:
    for step in range(1, STEPS_WITH_TOOLS + 1):
        rows, active_tokens = tools.rows(step), 0
        assert len(rows) == ROWS
        for row in rows:
            mask, response = row["response_mask"], row["responses"]
            said = [token for token, kept in zip(response, mask, strict=True) if not kept]
            assert decode(said) == f"<|im_start|>tool\n{agents.TOOL_SAYS}<|im_end|>\n<|im_start|>assistant\n"
            assert mask[0] == mask[-1] == 1
            if row["sdpo_active"]:
                active_tokens += sum(mask)
                assert row["teacher_input_ids"][-len(response) :] == response
        assert tools.metrics[step]["self_distillation/active_tokens"] == active_tokens > 0
        assert tools.metrics[step]["training/num_turns/mean"] == 4


def test_feedback_about_a_turn_reaches_the_teacher(tools: Run) -> None:
    told = 0
    for row in tools.rows(1):
        context = decode(row["teacher_input_ids"][: -len(row["responses"])])
        first = decode(row["responses"]).partition("<|im_end|>")[0]
        if row["sdpo_active"] and "unsuccessful earlier attempt" in context:
            assert f"At first it was {first.strip()!r}." in context
            told += 1
    assert told / ROWS == pytest.approx(tools.metrics[1]["self_distillation/feedback_used_fraction"])
    assert told > ROWS // 2


def test_importance_weights_scale_the_distillation_and_the_reference_holds_the_policy(tools: Run) -> None:
    weight = math.exp(agents.UNDERSTATED)
    for step, found in tools.metrics.items():
        for row in tools.rows(step):
            kept = [value for value, mask in zip(row["rollout_is_weights"], row["response_mask"], strict=True) if mask]
            assert kept == pytest.approx([weight] * len(kept), rel=1e-4)
        distilled = weight * found["self_distillation/divergence"]
        assert found["actor/loss"] == pytest.approx(distilled + KL_COEFFICIENT * found["actor/kl_loss"], rel=1e-4)
    kl = [tools.metrics[step]["actor/kl_loss"] for step in range(1, STEPS_WITH_TOOLS + 1)]
    assert kl[0] == pytest.approx(0.0, abs=1e-6)
    assert min(kl[1:]) > 1e-5
    assert tools.metrics[STEPS_WITH_TOOLS]["teacher/updates"] == STEPS_WITH_TOOLS


def check_records(run: Run, steps: int) -> RunRecords:
    """Compare a run's records with what verl logged, and with the rows that the workers were given."""
    records = run.records()
    assert records.end is not None and records.end["step"] == steps and records.end["reason"] == "finished"
    assert [step.step for step in records.steps] == list(range(1, steps + 1))
    for step in records.steps:
        assert step.metrics == pytest.approx(run.metrics[step.step])
    assert len(records.rollouts) == steps * 4
    for rollout in records.rollouts:
        row = run.rows(rollout.step)[rollout.line["row"]]
        assert rollout.id == (rollout.step - 1) * 2**20 + rollout.line["row"]
        assert rollout.line["active"] == bool(row["sdpo_active"])
        assert rollout.line["success"] == bool(row["sdpo_success"])
        assert rollout.line["reward"] == sum(row["rm_scores"])
        assert rollout.line["response_tokens"] == len(row["responses"])
        if rollout.tokens is not None:
            assert (rollout.tokens["ids"], rollout.tokens["mask"]) == (row["responses"], row["response_mask"])
    return records


def test_the_records_student_is_verls(tools: Run) -> None:
    for rollout in check_records(tools, STEPS_WITH_TOOLS).rollouts:
        if rollout.tokens is None:
            continue
        # One optimizer step a batch: at its beginning the actor is what verl's own pass has seen.
        row = tools.rows(rollout.step)[rollout.line["row"]]
        for ours, theirs, kept in zip(
            rollout.tokens["student"], row["old_log_probs"], row["response_mask"], strict=True
        ):
            assert (ours is not None) == bool(kept)
            assert ours is None or ours == pytest.approx(theirs, abs=1e-4)


def test_every_second_batch_gives_the_loggers_a_picture(tools: Run) -> None:
    events = EventAccumulator(str(tools.folder / "tensorboard"), size_guidance={"images": 0}).Reload()
    pictures = events.Images("sdpo/tokens")
    assert [picture.step for picture in pictures] == [1, 1 + PICTURE_EVERY]
    assert all(picture.width == 900 and picture.height > 100 for picture in pictures)
    scalars = events.Scalars("self_distillation/divergence")
    assert [one.step for one in scalars] == list(range(1, STEPS_WITH_TOOLS + 1))


# LoRA adapters with a teacher of adapters, and GRPO's share of the objective.

GRPO_WEIGHT, RATE, STEPS_WITH_ADAPTERS = 0.3, 0.5, 3


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("adapters")
    return trained(
        folder,
        overrides(
            folder,
            STEPS_WITH_ADAPTERS,
            f"{MODEL}.lora_rank=4",
            f"{MODEL}.lora_alpha=8",
            f"{MODEL}.lora.merge=True",
            f"{ACTOR}.ppo_micro_batch_size_per_gpu={ROWS // 2}",
            f"{ACTOR}.optim.lr=1e-2",
            "trainer.save_freq=1",
            # A plug-in's scorer by its name, with workers of its own in each of verl's reward workers.
            "reward.custom_reward_function.path=pkg://sdpo_plugins.feedback.verl",
            "reward.custom_reward_function.name=compute_score",
            "+reward.custom_reward_function.reward_kwargs={scorer:embedded,plugins:[embedded_scorer],workers:1}",
            teacher="lora_ema",
            teacher_update_rate=RATE,
            grpo_weight=GRPO_WEIGHT,
        ),
    )


def actor_tensors(run: Run, step: int) -> dict[str, torch.Tensor]:
    tensors = checkpoint_tensors(run.checkpoint(step) / "actor")
    prefix = "model_world_size_1_rank_0.pt/"
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def teacher_tensors(run: Run, step: int) -> dict[str, torch.Tensor]:
    tensors = checkpoint_tensors(run.checkpoint(step) / "actor" / "sdpo")
    return {name.partition("/")[2]: value for name, value in tensors.items()}


def test_only_adapters_move_and_the_teachers_follow(adapters: Run) -> None:
    base = checkpoint_tensors(checkpoint_path())
    students = [actor_tensors(adapters, step) for step in range(1, STEPS_WITH_ADAPTERS + 1)]
    names = [name for name in students[-1] if "lora_" in name]
    assert len(names) == 2 * 7 * 3
    for name, value in students[-1].items():
        if name not in names:
            stem = name.removeprefix("base_model.model.").replace(".base_layer", "")
            tied = stem.replace("lm_head", "model.embed_tokens")
            torch.testing.assert_close(value, base[f"model.safetensors/{tied}"], rtol=0, atol=0)
    for name in names:
        assert float((students[-1][name] - students[0][name]).abs().max()) > 1e-4, name
    teachers = [teacher_tensors(adapters, step) for step in range(1, STEPS_WITH_ADAPTERS + 1)]
    assert all(set(teacher) == set(names) for teacher in teachers)
    for before, now, student in zip(teachers, teachers[1:], students[1:], strict=False):
        for name in names:
            torch.testing.assert_close(now[name], torch.lerp(before[name], student[name], RATE), rtol=0, atol=1e-6)


def test_merged_adapters_are_what_is_sampled_from(adapters: Run) -> None:
    # verl sends merged weights in bfloat16.
    found = adapters.metrics[STEPS_WITH_ADAPTERS]["training/rollout_probs_diff_mean"]
    base = AutoModelForCausalLM.from_pretrained(checkpoint_path(), dtype=torch.float32)
    differences = []
    for row in adapters.rows(STEPS_WITH_ADAPTERS):
        ids = torch.tensor([row["prompts"] + row["responses"]])
        with torch.no_grad():
            log_probs = base(ids).logits[0, len(row["prompts"]) - 1 : -1].log_softmax(-1)
        unmoved = log_probs.gather(-1, ids[0, len(row["prompts"]) :, None])[:, 0].exp()
        differences += (unmoved - torch.tensor(row["old_log_probs"]).exp()).abs().tolist()
    assert found < 0.01 < 0.05 < sum(differences) / len(differences)


def test_a_scorer_of_the_catalogue_rewards_and_gives_feedback(adapters: Run) -> None:
    for step, found in adapters.metrics.items():
        rows = adapters.rows(step)
        told = [row for row in rows if "Wrong. The atomic number of" in decode(row["teacher_input_ids"])]
        assert len(told) / ROWS == found["self_distillation/feedback_used_fraction"] > 0.5
        assert 0.0 <= found["critic/score/mean"] <= 1.0 - len(told) / ROWS


def test_the_hybrid_loss_is_the_weighted_sum(adapters: Run) -> None:
    for found in adapters.metrics.values():
        expected = (1.0 - GRPO_WEIGHT) * found["self_distillation/divergence"] + GRPO_WEIGHT * found["actor/pg_loss"]
        assert found["actor/loss"] == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_records_of_adapters_and_of_the_hybrid(adapters: Run) -> None:
    records = check_records(adapters, STEPS_WITH_ADAPTERS)
    assert records.config["grpo_weight"] == GRPO_WEIGHT
    known = [rollout for rollout in records.rollouts if rollout.tokens is not None]
    assert known
    for rollout in known:
        row = adapters.rows(rollout.step)[rollout.line["row"]]
        assert rollout.tokens["student"] == pytest.approx(row["old_log_probs"], abs=1e-4)
        assert rollout.line["feedback_used"] is (rollout.line["demonstration_index"] is None)


# Nobody succeeds and nobody says why; rewards from a manager beside the actor, as of a colocated reward model.

LAST = agents.BARREN_BATCHES + 1


@pytest.fixture(scope="module")
def barren(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("barren")
    model = "reward.reward_model"
    return trained(
        folder,
        overrides(
            folder,
            LAST,
            "reward.reward_manager.source=importlib",
            f"reward.reward_manager.module.path={agents.__file__}",
            "reward.reward_manager.name=Barren",
            f"{model}.enable=True",
            f"{model}.model_path={checkpoint_path()}",
            f"{model}.rollout.name={reward_model.NAME}",
            f"{model}.rollout.tensor_model_parallel_size=1",
            f"trainer.save_freq={agents.BARREN_BATCHES}",
            teacher="frozen",
        ),
        modules=["reward_model"],
    )


def test_a_run_without_any_success_goes_on_and_says_so(barren: Run) -> None:
    assert sorted(barren.metrics) == list(range(1, LAST + 1))
    for step in range(1, LAST):
        found = barren.metrics[step]
        assert found["self_distillation/active_tokens"] == 0
        assert found["self_distillation/reprompt_sample_fraction"] == 0
        assert found["actor/loss"] == found["actor/grad_norm"] == 0
        assert not any(math.isnan(value) for value in found.values())
    assert barren.log.count("SDPO: No rollout has succeeded for 5 rollout batches in a row") == 1


def test_weights_stay_while_there_is_nothing_to_learn(barren: Run) -> None:
    base = checkpoint_tensors(checkpoint_path())
    before, after = (actor_tensors(barren, step) for step in (agents.BARREN_BATCHES, LAST))
    for name, value in before.items():
        initial = base[f"model.safetensors/{name.replace('lm_head', 'model.embed_tokens')}"]
        torch.testing.assert_close(value, initial, rtol=0, atol=0)
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_feedback_beside_a_colocated_reward_model_reaches_the_teacher(barren: Run) -> None:
    found = barren.metrics[LAST]
    assert found["self_distillation/feedback_used_fraction"] == 1
    assert found["actor/grad_norm"] > 0
    for row in barren.rows(LAST):
        assert "Wrong, whatever the atomic number of " in decode(row["teacher_input_ids"])


def test_records_tell_the_whole_story(barren: Run) -> None:
    records = check_records(barren, LAST)
    ((step, text),) = records.warnings
    assert step == agents.BARREN_BATCHES
    assert text.startswith("No rollout has succeeded for 5 rollout batches in a row")
    for rollout in records.rollouts:
        assert rollout.line["active"] is (rollout.step == LAST)
        assert (rollout.line["feedback"] is None) is (rollout.step < LAST)
        assert (rollout.line["teacher_prompt"] is None) is (rollout.step < LAST)


def test_token_values_follow_from_the_recorded_prompts_and_the_checkpoint(barren: Run) -> None:
    # Until now nothing was learnt: student and teacher are the checkpoint, before different prompts.
    tokenizer = AutoTokenizer.from_pretrained(checkpoint_path())
    model = AutoModelForCausalLM.from_pretrained(checkpoint_path(), dtype=torch.float64)

    @torch.no_grad()
    def log_probs(messages: Any, response: list[int]) -> torch.Tensor:
        prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        logits: torch.Tensor = model(torch.tensor([[*prompt, *response]])).logits[0, len(prompt) - 1 : -1]
        return logits.log_softmax(-1)

    rollouts = [rollout for rollout in barren.records().rollouts if rollout.step == LAST]
    assert len(rollouts) == 4
    for rollout in rollouts:
        tokens, ids = rollout.tokens, rollout.tokens["ids"]
        taught = [
            {"role": turn["role"], "content": "".join(part["text"] for part in turn["parts"])}
            for turn in rollout.line["teacher_prompt"]
        ]
        p, q = log_probs(rollout.line["prompt"], ids), log_probs(taught, ids)
        at = torch.tensor(ids)[:, None]
        expected = {
            "student": p.gather(-1, at)[:, 0],
            "teacher": q.gather(-1, at)[:, 0],
            "entropy": -(p.exp() * p).sum(-1),
        }
        for name, values in expected.items():
            assert tokens[name] == pytest.approx(values.tolist(), abs=1e-4), name
        assert max(tokens["divergence"]) > 1e-2
        pieces = tokens["pieces"]
        assert "".join(pieces[str(token)] for token in ids) == tokenizer.decode(ids)
        for top, distribution in ((tokens["student_top"], p), (tokens["teacher_top"], q)):
            found = [[token for token, _ in row] for row in top]
            assert found == distribution.topk(5).indices.tolist()
            assert all(str(token) in pieces for row in found for token in row)
