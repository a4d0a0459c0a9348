"""Which hidden states predict which action tokens, and what an optimizer step is normalised by."""

from __future__ import annotations

import pytest
import torch

import openrlhf_cpu.hooks

openrlhf_cpu.hooks.install()

from openrlhf.trainer.ppo_utils.experience import Experience  # noqa: E402

from openrlhf_recorded import experiences  # noqa: E402
from sdpo_openrlhf.fields import ACTIVE, OWN_FIELDS, TEACHER_PROMPT  # noqa: E402
from sdpo_openrlhf.tokens import ActionTokens, pass_input, student_rows, taken_fields, teacher_rows  # noqa: E402
from sdpo_openrlhf.windows import SDPOReplayBuffer, Windows  # noqa: E402
from sdpo_plugins import SDPOConfig  # noqa: E402
from sdpo_plugins.errors import DataError  # noqa: E402
from sdpo_plugins.losses import loss_denominator  # noqa: E402


@pytest.fixture
def batch() -> Experience:
    return Experience.concat_experiences(experiences(SDPOConfig()), 0)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("picked", [[0, 1, 2, 5], list(range(16)), [3]])
def test_states_lie_before_the_tokens_that_they_predict(batch: Experience, packed: bool, picked: list[int]) -> None:
    prompts, active, success, _ = taken_fields(batch.info, "cpu")
    tokens = ActionTokens.of(batch.sequences, batch.action_mask, active, success)
    rows = student_rows(batch.sequences, batch.attention_mask)
    read, shift = teacher_rows(rows, batch.action_mask, prompts)
    row, position = tokens.places(everyone=True)
    taken = torch.isin(row, torch.tensor(picked))
    row, position = row[taken], position[taken]
    for side, moved in ((rows, torch.zeros_like(shift)), (read, shift)):
        source = pass_input(side, picked, moved, packed=packed, pad_token_id=0)
        ids = source.arguments["input_ids"].reshape(-1)
        # The token behind a state is the one that it predicts.
        assert torch.equal(ids[source.flat(row, position) + 1], tokens.ids[row, position])
        places = source.arguments["position_ids"].reshape(-1)
        assert torch.equal(places[source.flat(row, position)], position + moved[row])
    assert len(row) > 0


def test_every_sampled_token_is_in_one_of_the_two_lists(batch: Experience) -> None:
    _, active, success, _ = taken_fields(batch.info, "cpu")
    tokens = ActionTokens.of(batch.sequences, batch.action_mask, active, success)
    row, position = tokens.places(everyone=True)
    seen = torch.zeros_like(batch.action_mask)
    seen[row, position] += 1
    assert torch.equal(seen, batch.action_mask)
    assert torch.equal(active[tokens.row], torch.ones(len(tokens.row)))
    assert not active[tokens.other_row].any()
    assert 0 < len(tokens.row) < len(row)


def test_where_no_row_takes_part_the_first_stands_in() -> None:
    rows = [torch.tensor([5, 6, 7]), torch.tensor([5, 6])]
    made = pass_input(rows, [], torch.zeros(2, dtype=torch.long), packed=False, pad_token_id=0)
    assert made.arguments["input_ids"].tolist() == [[5, 6, 7]]


def test_experiences_of_another_maker_are_refused(batch: Experience) -> None:
    del batch.info[TEACHER_PROMPT]
    with pytest.raises(DataError, match=r"hold no sdpo_teacher_prompt in `info`.*python -m sdpo_openrlhf.train"):
        taken_fields(batch.info, "cpu")


def test_fields_are_taken_out_of_what_the_host_logs(batch: Experience) -> None:
    taken_fields(batch.info, "cpu")
    assert not set(OWN_FIELDS) & batch.info.keys() and "reward" in batch.info


# Windows --------------------------------------------------------------------------------------------------------------


def filled(batch: Experience, *, dynamic: bool = False) -> SDPOReplayBuffer:
    buffer = SDPOReplayBuffer(4, dynamic_batch=dynamic)
    buffer.append(batch)
    return buffer


def twice(values: list[float]) -> list[float]:
    return [2 * value for value in values]


@pytest.mark.parametrize("mode", ["token-mean", "seq-mean-token-mean"])
def test_a_window_counts_what_was_collated_for_it(batch: Experience, mode: str) -> None:
    buffer = filled(batch)
    windows = Windows(buffer, mode, twice)
    windows.begin()
    seen = []
    for start in (0, 8):  # two optimizer steps of two micro-batches each: the host collates a step's before the first
        for at in (start, start + 4):
            buffer.collate_fn(buffer.items[at : at + 4])
        seen += [windows.next(step) for step in (start // 4, start // 4 + 1)]
    masks = [item.action_mask.float() * float(item.info[ACTIVE]) for item in buffer.items]
    for window, rows in zip(seen, (masks[:8], masks[:8], masks[8:], masks[8:]), strict=True):
        assert window.denominator == 2 * sum(float(loss_denominator(mask[None], mode)) for mask in rows)
        assert window.rows == 8
    assert seen[0].denominator != seen[2].denominator


def test_a_window_of_a_dynamic_schedule(batch: Experience) -> None:
    buffer = filled(batch, dynamic=True)
    buffer.dynamic_indices = [[0, 5], [1], [2, 3, 4], [6]]
    buffer.dynamic_optimizer_step = [0, 1, 0, 1]
    windows = Windows(buffer, "token-mean", lambda values: values)
    windows.begin()
    counts = [float(item.action_mask.sum()) * float(item.info[ACTIVE]) for item in buffer.items]
    first, second = counts[0] + counts[5] + counts[1], counts[2] + counts[3] + counts[4] + counts[6]
    assert [windows.next(step).denominator for step in range(4)] == [first, first, second, second]
    windows.begin()
    assert windows.next(0).rows == 3


def test_what_another_rollout_batch_left_does_not_count(batch: Experience) -> None:
    buffer = filled(batch)
    buffer.collate_fn(buffer.items[:4])
    windows = Windows(buffer, "token-mean", lambda values: values)
    windows.begin()
    buffer.collate_fn(buffer.items[4:8])
    assert windows.next(0).rows == 4
