"""Records: what is noted beside the loss changes nothing of it and is right, and a run without SDPO is recorded too."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import QUESTIONS, ROLLOUTS, TIME_LIMIT, overrides
from transformers import AutoModelForCausalLM
from verl.utils.tracking import Tracking

from launch import run_ranks
from recorded import recorded, tokenizer, write_student
from sdpo_plugins import SDPOConfig
from sdpo_plugins.embedded import checkpoint_path
from sdpo_plugins.records import TokenValues, read_run, record_id
from sdpo_plugins.reprompt import build_teacher_contexts, encode_contexts
from sdpo_verl.records import RunRecords, rollout_lines
from verl_cpu.run import run
from verl_recorded import Case, steps

ALTERNATIVES, LIMIT = 3, 6
OPTIONS = {
    # KL(q‖p) over the whole vocabulary, which is easily written down a second time.
    "distillation_topk": None,
    "alpha": 0.0,
    "record_alternatives": ALTERNATIVES,
    "record_tokens": LIMIT,
}
# A layout for each number of ranks: each engine takes seconds to build.
MODEL = {1: {"removes_padding": False}, 2: {"removes_padding": True}}


def cases(world: int) -> dict[str, Case]:
    plain = Case(options=OPTIONS, model=MODEL[world], micro_batches=4, other_teacher=True)
    hybrid = replace(plain, options={**OPTIONS, "grpo_weight": 0.3}, tokens=100)
    return {
        "plain": plain,
        "plain, recorded": replace(plain, records=True),
        "hybrid, by tokens": hybrid,
        "hybrid, by tokens, recorded": replace(hybrid, records=True),
        "two epochs, recorded": replace(plain, records=True, epochs=2),
    }


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_student(tmp_path_factory.mktemp("student"))


@pytest.fixture(scope="module")
def found(one_rank: None, student: str) -> dict[int, list[dict[str, Any]]]:
    """What each rank found, by the number of ranks."""
    models = {"student": student, "teacher": str(checkpoint_path())}
    ranks = run_ranks("verl_recorded:steps", 2, options={"cases": cases(2), **models}, time_limit=400)
    return {1: [steps(cases(1), **models)], 2: ranks}


def tokens_of(ranks: list[dict[str, Any]], name: str) -> list[TokenValues]:
    return sorted((values for rank in ranks for values in rank[name]["tokens"]), key=lambda values: values.id)


@pytest.mark.parametrize("name", ["plain", "hybrid, by tokens"])
@pytest.mark.parametrize("world", [1, 2])
def test_loss_and_gradient_are_bit_for_bit_those_without_records(
    found: dict[int, list[dict[str, Any]]], world: int, name: str
) -> None:
    assert tokens_of(found[world], name) == []
    assert tokens_of(found[world], f"{name}, recorded")
    for rank in found[world]:
        without, recording = rank[name], rank[f"{name}, recorded"]
        for value in ("loss", "grad_norm", "metrics", "micro_batches"):
            assert recording[value] == without[value]
        assert recording["gradients"].keys() == without["gradients"].keys()
        for parameter, gradient in without["gradients"].items():
            assert torch.equal(recording["gradients"][parameter], gradient), parameter


@pytest.mark.parametrize("name", ["plain, recorded", "hybrid, by tokens, recorded", "two epochs, recorded"])
@pytest.mark.parametrize("world", [1, 2])
def test_token_values_are_those_of_plain_transformers(
    found: dict[int, list[dict[str, Any]]], student: str, world: int, name: str
) -> None:
    config = cases(world)[name].config
    rows, rollouts = recorded().rows, recorded().rollouts
    contexts = encode_contexts(build_teacher_contexts(rollouts, config), tokenizer(), config).contexts
    models = [AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64) for path in (student, checkpoint_path())]
    values_of = {values.id: values for values in tokens_of(found[world], name)}
    # Each once, whatever the epochs; nothing of rows that carry no loss.
    assert len(values_of) == len(tokens_of(found[world], name))
    assert set(values_of) == {row for row, context in enumerate(contexts) if context.active and rows[row].response_mask}
    assert any(not all(rows[row].response_mask) for row in values_of)
    for at, values in values_of.items():
        row = rows[at]
        ids, written = row.response_ids[:LIMIT], row.response_mask[:LIMIT]
        assert (values.ids, values.mask) == (ids, written)
        assert values.length == len(row.response_ids)
        p, q = (
            log_probs(model, prompt, row.response_ids)[:LIMIT]
            for model, prompt in zip(models, (row.prompt_ids, contexts[at].ids), strict=True)
        )
        sampled = torch.tensor(ids)[:, None]
        expected = {
            "student": p.gather(-1, sampled)[:, 0],
            "teacher": q.gather(-1, sampled)[:, 0],
            "divergence": (q.exp() * (q - p)).sum(-1),
            "entropy": -(p.exp() * p).sum(-1),
        }
        for part, numbers in expected.items():
            wanted = [value if kept else None for value, kept in zip(numbers.tolist(), written, strict=True)]
            assert getattr(values, part) == pytest.approx(wanted, abs=2e-5), part
        for tops, distribution in ((values.student_top, p), (values.teacher_top, q)):
            for top, kept, one in zip(tops, written, distribution, strict=True):
                assert (top is not None) == bool(kept)
                if top is not None:
                    likeliest = one.topk(ALTERNATIVES)
                    assert [token for token, _ in top] == likeliest.indices.tolist()
                    assert [value for _, value in top] == pytest.approx(likeliest.values.tolist(), abs=2e-5)


@torch.no_grad()
def log_probs(model: Any, prompt: list[int], response: list[int]) -> torch.Tensor:
    logits = model(torch.tensor([[*prompt, *response]])).logits[0, len(prompt) - 1 : -1]
    return torch.log_softmax(logits / recorded().temperature, -1)


# The driver -----------------------------------------------------------------------------------------------------------


def driver(folder: Path, tracking: Tracking, **options: Any) -> RunRecords:
    records = RunRecords(folder, SDPOConfig(**options), tokenizer())
    records.start(model="tiny", step=0, ranks=2)
    records.attach(tracking)
    return records


def feed(records: RunRecords, tracking: Tracking, number: int, tokens: list[TokenValues]) -> None:
    """Give a driver the recorded batch, its token values, and the metrics of its step."""
    rows, rollouts = recorded().rows, recorded().rollouts
    batch = records.batch(number, number + 1, [f"{row.group}_0_0" for row in rows], [row.is_padding for row in rows])
    encoded = build_teacher_contexts(rollouts, SDPOConfig())
    contexts = encode_contexts(encoded, tokenizer(), SDPOConfig()).contexts
    pairs = list(zip(encoded.contexts, contexts, strict=True))
    responses = [torch.tensor(row.response_ids) for row in rows]
    lines = rollout_lines(
        batch, batch.of(rollouts), batch.of(pairs), batch.of(responses), SDPOConfig(), longest=8, end=2
    )
    records.rollouts(batch, lines)
    found = [replace(values, id=record_id(number, values.id)) for values in tokens if values.id in batch.rows]
    records.tokens(number + 1, found)
    tracking.log({"reward": 0.5 + number, "note": "no number"}, number + 1)


@pytest.fixture
def tracking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tracking:
    monkeypatch.setenv("TENSORBOARD_DIR", str(tmp_path / "tensorboard"))
    return Tracking("project", "experiment", ["tensorboard"])


def test_a_logger_that_fails_ends_the_pictures_and_not_the_run(
    found: dict[int, list[dict[str, Any]]],
    tracking: Tracking,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tokens = tokens_of(found[1], "plain, recorded")

    def full(*_: Any, **__: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(tracking.logger["tensorboard"].writer, "add_image", full)
    monkeypatch.setattr(tracking.logger["tensorboard"], "log", lambda data, step: None)
    records = driver(tmp_path, tracking, record_rollouts=16, record_picture_every=1)
    with records.ending():
        for number in range(3):
            feed(records, tracking, number, tokens)
    said = capsys.readouterr().out
    assert said.count("SDPO: The picture of a rollout's tokens could not be logged (OSError: No space left") == 1
    read = read_run(tmp_path)
    assert read.series("reward") == ([1, 2, 3], [0.5, 1.5, 2.5])
    assert len(read.rollouts) == 3 * sum(not row.is_padding for row in recorded().rows)
    assert sum(rollout.tokens is not None for rollout in read.rollouts) == 3 * len(tokens)
    assert {rollout.line["group"] for rollout in read.rollouts} == {0, 1, 2, 3}  # the fifth is padding
    # An answer of eight tokens was as long as it could be; one that ends there ends by itself.
    for rollout in read.rollouts:
        ids = recorded().rows[rollout.line["row"]].response_ids
        assert rollout.line["cut_off"] is (len(ids) >= 8 and ids[-1] != 2)


def test_how_a_training_ended_is_recorded(tracking: Tracking, tmp_path: Path) -> None:
    records = driver(tmp_path, tracking)
    with pytest.raises(RuntimeError, match="out of memory"), records.ending():
        tracking.logger.pop("tensorboard")
        tracking.log({"reward": 0.5}, 3)
        raise RuntimeError("out of memory")
    end = read_run(tmp_path).end
    assert end is not None and (end["step"], end["reason"]) == (3, "failed")


def test_with_record_off_nothing_is_written_and_no_row_is_marked(tracking: Tracking, tmp_path: Path) -> None:
    folder = tmp_path / "records"
    records = driver(folder, tracking, record=False)
    assert list(tracking.logger) == ["tensorboard"]
    with records.ending():
        assert records.batch(0, 1, ["a_0_0", "a_1_0"], [False, False]).rows == []
        records.warning(1, "Careful.")
        records.tokens(1, [])
    assert not folder.exists()


# verl's own algorithm -------------------------------------------------------------------------------------------------

STEPS = 2


@pytest.mark.slow
def test_a_run_without_sdpo_is_recorded(tmp_path: Path) -> None:
    reward = tmp_path / "reward_of_a_user.py"
    # SDPO would refuse feedback that is no text; verl does not look at it.
    reward.write_text(
        "def compute_score(data_source, solution_str, ground_truth, extra_info=None, **_):\n"
        "    return {'score': float(len(solution_str) % 2), 'acc': 0.0, 'feedback': 1.5}\n",
        encoding="utf-8",
    )
    metrics = run(
        [
            *overrides(tmp_path, STEPS, enabled=False, success_reward_name="absent", record_rollouts=3),
            "trainer.val_before_train=True",
            f"reward.custom_reward_function.path={reward}",
        ],
        TIME_LIMIT,
        log=tmp_path / "log.txt",
    )
    assert sorted(metrics) == [0, *range(1, STEPS + 1)]
    records = read_run(tmp_path)
    (header,) = records.headers
    assert (header["host"], header["method"], header["ranks"], header["step"]) == ("verl", "grpo", 1, 0)
    assert records.end is not None and records.end["step"] == STEPS
    # The validation before training is verl's step 0.
    assert [step.step for step in records.steps] == sorted(metrics)
    for step in records.steps:
        assert step.metrics == pytest.approx(metrics[step.step])
        assert not any(name.startswith("self_distillation/") for name in step.metrics)
    assert [rollout.step for rollout in records.rollouts] == [1, 1, 1, 2, 2, 2]
    for rollout in records.rollouts:
        line = rollout.line
        assert rollout.tokens is None and line["teacher_prompt"] is None
        assert (line["active"], line["demonstration_index"], line["feedback"]) == (False, None, None)
        assert line["reward"] == len(line["response"]) % 2
        assert line["success"] == (line["reward"] == 1.0)
        assert line["prompt"][-1]["content"].startswith("What is the atomic number of")
        assert 0 <= line["group"] < QUESTIONS and 0 <= line["row"] < QUESTIONS * ROLLOUTS
