"""Teacher prompts stay with their rows on the host's whole way from its experience maker to a micro-batch.

Only the models' passes are left out: the recorded log-probabilities stand where they would have written theirs.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from openrlhf.trainer.ppo_utils import FixedKLController, NaiveReplayBuffer
from openrlhf.trainer.ppo_utils.experience import Experience, balance_experiences
from openrlhf.utils import get_strategy
from torch.utils.data import DataLoader

from openrlhf_direct import arguments
from openrlhf_recorded import GROUP_SIZE, sampled, style
from recorded import recorded, tokenizer
from sdpo_openrlhf.experience import SDPOExperienceMaker
from sdpo_openrlhf.fields import FEEDBACK, OWN_FIELDS
from sdpo_openrlhf.recording import Recording
from sdpo_openrlhf.rollouts import rollouts_of, samples_of
from sdpo_openrlhf.tokens import taken_fields
from sdpo_plugins import SDPOConfig
from sdpo_plugins.embedded import checkpoint_path
from sdpo_plugins.errors import DataError, HostError
from sdpo_plugins.records import NOT_RECORDED, read_run, record_id
from sdpo_plugins.reprompt import build_teacher_contexts, encode_contexts

RANKS = 2


def maker_of(folder: Path, config: SDPOConfig, flags: str = "") -> SDPOExperienceMaker:
    """Return the experience maker of a run on the recorded questions, without any model."""
    path = folder / "questions.jsonl"
    lines = [json.dumps({"input": row.prompt}) + "\n" for row in recorded().rows]
    path.write_text("".join(lines), encoding="utf-8")
    own = (
        f"--data.prompt_dataset {path} --data.input_key input --data.apply_chat_template --rollout.batch_size 4 "
        f"--rollout.micro_batch_size 3 --train.batch_size 16 --actor.num_gpus_per_node {RANKS} "
    )
    strategy = get_strategy(arguments(str(checkpoint_path()), own + flags, config))
    return SDPOExperienceMaker(None, None, None, None, FixedKLController(0.0), strategy, tokenizer())


def rows_of_a_run() -> list[Experience]:
    """Return the recorded rows as the sample generator gives them, each known by its label."""
    rows = sampled(recorded().rows)
    for number, row in enumerate(rows):
        row.labels = [str(number)]
        row.info["acc"] = 1.0 - row.rewards
    return rows


def made_by(maker: SDPOExperienceMaker) -> list[Experience]:
    """Return what `make_experience_batch` gives, but for the models' passes."""
    experiences = maker.split_rollout_samples(rows_of_a_run())
    for experience in experiences:
        experience.kl = torch.zeros_like(experience.action_log_probs)
    maker.teach(experiences)
    made: list[Experience] = maker.compute_advantages_and_returns(experiences)
    return made


def test_the_adapter_reads_the_recorded_rollouts() -> None:
    rows = sampled(recorded().rows)
    read = rollouts_of(samples_of(rows), style(), tokenizer(), SDPOConfig(), GROUP_SIZE)
    for one, other in zip(read, recorded().rollouts, strict=True):
        for name in ("prompt", "response", "reward", "feedback", "is_padding"):
            assert getattr(one, name) == getattr(other, name)
    # Groups go by other names, and the row without a sampled token stands beside the last group's three.
    real = [(one, other) for one, other in zip(read, recorded().rollouts, strict=True) if not other.is_padding]
    assert len({(one.group_id, other.group_id) for one, other in real}) == 4
    assert len({one.group_id for one, _ in real}) == 4
    (turns,) = [row for row in recorded().rows if 0 in row.response_mask and not row.is_padding]
    (at,) = [number for number, row in enumerate(recorded().rows) if row is turns]
    assert "Please check this answer." in read[at].response


@pytest.mark.parametrize("layout", ["micro-batches by rows", "micro-batches by tokens"])
def test_each_row_keeps_its_teacher_until_it_is_trained_on(layout: str, tmp_path: Path) -> None:
    config, dynamic = SDPOConfig(), layout.endswith("tokens")
    flags = "--train.dynamic_batch_enable --rollout.max_tokens_per_gpu 150 --train.max_tokens_per_gpu 150"
    maker = maker_of(tmp_path, config, flags if dynamic else "")
    recording_of(maker, tmp_path)
    experiences = made_by(maker)
    order = [row for experience in experiences for row in experience.index]
    assert sorted(order) == list(range(16)) and (order != list(range(16))) is dynamic
    assert not any(FEEDBACK in experience.info for experience in experiences)
    shares = balance_experiences(experiences, maker.args) if dynamic else experiences

    contexts = build_teacher_contexts(recorded().rollouts, config)
    wanted = encode_contexts(contexts, tokenizer(), config, skip_inactive=True)
    met, recorded_rows = [], []
    for rank in range(RANKS):
        for micro_batch in micro_batches(shares[rank::RANKS], dynamic):
            numbers = [int(label) for label in micro_batch.labels]
            prompts, active, success, records = taken_fields(micro_batch.info, "cpu")
            for place, number in enumerate(numbers):
                row, context = recorded().rows[number], wanted.contexts[number]
                ids = [*row.prompt_ids, *row.response_ids]
                assert micro_batch.sequences[place, : len(ids)].tolist() == ids
                assert int(micro_batch.attention_mask[place].sum()) == len(ids)
                assert prompts[place].tolist() == (context.ids or [tokenizer().pad_token_id])
                assert float(active[place]) == float(context.active)
                assert float(success[place]) == row.reward
                assert int(records[place]) in (NOT_RECORDED, record_id(0, number))
                recorded_rows += [number] * (int(records[place]) != NOT_RECORDED)
            met += numbers
            # The host takes what is left for metrics.
            assert not set(OWN_FIELDS) & set(micro_batch.info)
    assert sorted(met) == list(range(16))
    assert 0 < sum(context.active for context in wanted.contexts) < 16
    lines = [rollout.line for rollout in read_run(tmp_path).rollouts]
    assert sorted(recorded_rows) == [line["row"] for line in lines] and len(lines) == config.record_rollouts
    for line in lines:
        row, context = recorded().rows[line["row"]], wanted.contexts[line["row"]]
        assert line["response_tokens"] == len(row.response_ids) and any(row.response_mask)
        assert (line["reward"], line["feedback"], line["active"]) == (row.reward, row.feedback, context.active)
        if context.active:
            told = ["".join(part["text"] for part in turn["parts"]) for turn in line["teacher_prompt"]]
            assert told == [turn["content"] for turn in context.messages]


def recording_of(maker: SDPOExperienceMaker, folder: Path) -> None:
    """Let a maker record its first batch, as the controller does."""
    maker.args.ckpt.output_dir = str(folder)
    maker.recording = Recording(maker.args, maker.sdpo_config, tokenizer(), lambda text: maker.warn([text]), step=0)
    maker.recording.step = 1


def micro_batches(shares: Sequence[Experience], dynamic: bool) -> list[Experience]:
    """Return what a rank trains on, through the host's replay buffer and data loader."""
    buffer = NaiveReplayBuffer(3, dynamic_batch=dynamic)
    for share in shares:
        buffer.append(share)
    if dynamic:
        places = list(range(len(buffer.items)))
        buffer.dynamic_indices, buffer.sample_batch_size = [places[1::2], places[::2]], 1
    return list(
        DataLoader(buffer, batch_size=buffer.sample_batch_size, shuffle=not dynamic, collate_fn=buffer.collate_fn)
    )


def test_success_is_that_of_the_reward_before_the_host_shapes_it(tmp_path: Path) -> None:
    penalty = "--rollout.max_new_tokens 4 --reward.overlong_buffer_len 4 --reward.overlong_penalty_factor 5"
    maker = maker_of(tmp_path, SDPOConfig(), penalty)
    experiences = made_by(maker)
    rewards = {
        row: float(experience.rewards[at]) for experience in experiences for at, row in enumerate(experience.index)
    }
    success = {
        row: float(experience.info["sdpo_success"][at])
        for experience in experiences
        for at, row in enumerate(experience.index)
    }
    for number, row in enumerate(recorded().rows):
        assert success[number] == row.reward
        assert rewards[number] < row.reward or not any(row.response_mask)


def test_a_named_reward_may_say_who_succeeded(tmp_path: Path) -> None:
    maker = maker_of(tmp_path, SDPOConfig(success_reward_name="acc"))
    for experience in made_by(maker):
        assert experience.info["sdpo_success"].tolist() == [
            1.0 - recorded().rows[row].reward for row in experience.index
        ]


def test_metrics_are_numbers_and_no_rows_without_an_answer_count(tmp_path: Path) -> None:
    maker = maker_of(tmp_path, SDPOConfig())
    made_by(maker)
    assert all(isinstance(value, float) and math.isfinite(value) for value in maker.sdpo_metrics.values())
    real = [row for row in recorded().rows if not row.is_padding]
    assert maker.sdpo_metrics["self_distillation/success_rollout_fraction"] == pytest.approx(
        sum(row.reward for row in real) / len(real)
    )
    assert maker.sdpo_metrics["self_distillation/teacher_prompt_length_max"] > 50


def test_a_run_that_cannot_learn_is_told_so_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    maker = maker_of(tmp_path, SDPOConfig(include_environment_feedback=False))
    recording_of(maker, tmp_path)
    for _ in range(7):
        rows = rows_of_a_run()
        for row in rows:
            row.rewards = torch.zeros(1)
            row.info[FEEDBACK] = [""]
        maker.teach(maker.split_rollout_samples(rows))
    printed = capsys.readouterr().out
    assert (
        printed.count("SDPO: ") == printed.count("SDPO: No rollout has succeeded for 5 rollout batches in a row") == 1
    )
    ((_, told),) = read_run(tmp_path).warnings
    assert f"SDPO: {told}\n" in printed


@pytest.mark.parametrize("name", [None, "acc", "absent"])
def test_without_sdpo_rollouts_are_recorded_as_they_are(name: str | None, tmp_path: Path) -> None:
    maker = maker_of(tmp_path, SDPOConfig(enabled=False, success_reward_name=name, record_rollouts=99))
    recording_of(maker, tmp_path)
    rows = rows_of_a_run()
    # What SDPO refuses is the host's own business here: no number, a log that not every row has, an unknown prompt.
    rows[5].rewards = torch.tensor([math.nan])
    del rows[4].info["acc"]
    rows[7].prompts = ["Who knows?"]
    maker.record(maker.split_rollout_samples(rows))
    lines = {rollout.line["row"]: rollout.line for rollout in read_run(tmp_path).rollouts}
    assert sorted(lines) == [number for number, row in enumerate(recorded().rows) if any(row.response_mask)]
    assert lines[5]["reward"] is None and "acc" not in lines[4]["rewards"] and lines[7]["prompt"] == "Who knows?"
    for number in set(lines) - {3, 4, 5}:  # the fourth row of a micro-batch of three without that log
        row = recorded().rows[number]
        assert lines[number]["success"] is ((1.0 - row.reward if name == "acc" else row.reward) >= 0.5)
        assert lines[number]["teacher_prompt"] is None and lines[number]["feedback"] == (row.feedback or None)


def test_prompts_that_the_student_read_otherwise_are_told_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    maker = maker_of(tmp_path, SDPOConfig())
    for _ in range(2):
        rows = rows_of_a_run()
        for number, row in enumerate(rows[:3]):
            row.sequences, row.attention_mask, row.action_mask = (
                value[:, 2:] for value in (row.sequences, row.attention_mask, row.action_mask)
            )
            if number == 2:
                row.sequences[0, 0] += 1
        maker.teach(maker.split_rollout_samples(rows))
    printed = capsys.readouterr().out
    assert printed.count("SDPO: 2 of 15 prompts are longer than `--data.max_len`") == 1
    assert printed.count("SDPO: 1 of 15 prompts are not what the dataset's question is rendered to") == 1


def test_an_answer_that_begins_inside_of_the_thinking_part_is_known_by_its_prompt() -> None:
    row = next(row for row in recorded().rows if row.reward == 1.0)
    opened = tokenizer()("<think>\n")["input_ids"]
    for more, expected in (([], False), (opened, True)):
        rows = sampled([replace(row, prompt_ids=[*row.prompt_ids, *more])])
        (rollout,) = rollouts_of(samples_of(rows), style(), tokenizer(), SDPOConfig(), 1)
        assert rollout.thinking_opened is expected


def test_answers_to_different_questions_are_never_one_group() -> None:
    rows = sampled(recorded().rows)
    known: dict[str, Any] = {"style": style(), "tokenizer": tokenizer(), "config": SDPOConfig()}
    with pytest.raises(HostError, match="Samples 0 to 7 of the batch should answer the same question"):
        rollouts_of(samples_of(rows), **known, group_size=8)
    with pytest.raises(HostError, match=r"holds 16 samples, which is no multiple .* \(5\)"):
        rollouts_of(samples_of(rows), **known, group_size=5)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_reward_model_that_gives_no_number_is_an_error(value: float, tmp_path: Path) -> None:
    maker = maker_of(tmp_path, SDPOConfig())
    rows = rows_of_a_run()
    rows[5].rewards = torch.tensor([value])
    with pytest.raises(DataError, match=f"is {value}: advantages .* Look at the reward model"):
        maker.teach(maker.split_rollout_samples(rows))


def test_a_log_that_only_some_responses_have_is_an_error_that_names_it(tmp_path: Path) -> None:
    maker = maker_of(tmp_path, SDPOConfig())
    rows = rows_of_a_run()
    del rows[4].info["acc"]
    with pytest.raises(DataError, match="Only 2 of 3 samples have the extra log 'acc'"):
        maker.teach(maker.split_rollout_samples(rows))
