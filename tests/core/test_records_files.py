"""Files of records: whole lines, a torn end, a bound on their size."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time

import numpy
import pytest
import torch

from sdpo_plugins import SDPOConfig
from sdpo_plugins.records import BoundedLines, RunRecorder, read_lines, read_run
from sdpo_plugins.records.files import as_json


def _step(step, size=0):
    return {"kind": "step", "step": step, "metrics": {"loss": 0.5}, "filler": "x" * size}


def test_lines_are_read_back_as_they_were_written(tmp_path):
    lines = BoundedLines(tmp_path / "deep" / "steps.jsonl", limit_mb=1)
    given = [{"kind": "warning", "step": 1, "text": "Grüße\n</script>\u2028"}, _step(2)]
    for line in given:
        lines.write(line)
    assert read_lines(lines.path) == (given, [])


def test_numbers_that_are_not_finite_become_null():
    text = as_json({"a": float("nan"), "b": [float("inf"), 1.5, True, None], "c": {"d": -float("inf")}})
    assert json.loads(text) == {"a": None, "b": [None, 1.5, True, None], "c": {"d": None}}


def test_a_torn_end_is_left_out_and_then_cut_off(tmp_path):
    path = tmp_path / "steps.jsonl"
    lines = BoundedLines(path, limit_mb=1)
    lines.write(_step(1))
    with open(path, "ab") as file:
        file.write(b'{"kind":"step","step":2,"metr')
    assert [line["step"] for line in read_lines(path)[0]] == [1]
    BoundedLines(path, limit_mb=1).write(_step(3))
    found, problems = read_lines(path)
    assert [line["step"] for line in found] == [1, 3]
    assert problems == []


def test_a_line_that_is_no_record_is_named(tmp_path):
    path = tmp_path / "steps.jsonl"
    path.write_text('{"kind":"step","step":1,"metrics":{}}\nnonsense\n[1]\n')
    found, problems = read_lines(path)
    assert len(found) == 1
    assert len(problems) == 2
    assert "line 2" in problems[0]
    assert "line 3" in problems[1]


def test_size_stays_bounded_and_steps_stay_evenly_spread(tmp_path):
    path = tmp_path / "steps.jsonl"
    limit = 64 * 1024
    lines = BoundedLines(path, limit_mb=limit / 2**20)
    lines.write({"kind": "run", "step": 0})
    largest = 0
    for step in range(1, 2001):
        lines.write(_step(step, size=500))
        largest = max(largest, path.stat().st_size)
    assert largest < limit + 2000
    steps = [line["step"] for line in read_lines(path)[0] if line["kind"] == "step"]
    gaps = {after - before for before, after in itertools.pairwise(steps)}
    assert len(steps) > 30
    assert max(gaps) <= 2 * min(gaps)
    assert steps[0] == 1
    assert steps[-1] > 2000 - 2 * max(gaps)
    assert any(line["kind"] == "run" for line in read_lines(path)[0])


def test_all_lines_of_a_step_share_its_fate(tmp_path):
    path = tmp_path / "rollouts-00000.jsonl"
    lines = BoundedLines(path, limit_mb=0.03)
    for step in range(1, 200):
        for record in range(3):
            lines.write({"kind": "rollout", "step": step, "id": 10 * step + record, "response": "y" * 100})
        if step > 1:  # token values come one batch later
            for record in range(3):
                lines.write({"kind": "tokens", "step": step - 1, "id": 10 * (step - 1) + record, "ids": [1] * 20})
    found = read_lines(path)[0]
    texts = {line["id"] for line in found if line["kind"] == "rollout"}
    tokens = {line["id"] for line in found if line["kind"] == "tokens"}
    assert len(texts) > 20
    assert tokens <= texts
    assert len(texts - tokens) <= 3  # those of the last step are still to come
    assert all(sum(one // 10 == step for one in texts) == 3 for step in {one // 10 for one in texts})


def test_thinning_goes_on_after_a_restart(tmp_path):
    path = tmp_path / "steps.jsonl"
    limit = 0.03
    lines = BoundedLines(path, limit_mb=limit)
    for step in range(1, 400):
        lines.write(_step(step, size=200))
    before = read_lines(path)[0][0]
    assert before["kind"] == "thinned"
    again = BoundedLines(path, limit_mb=limit)
    for step in range(400, 440):
        again.write(_step(step, size=10))
    written = [line["step"] for line in read_lines(path)[0] if line["kind"] == "step" and line["step"] >= 400]
    assert 40 // before["stride"] - 1 <= len(written) <= 40 // before["stride"] + 1


def test_a_killed_writer_leaves_whole_lines(tmp_path):
    program = (
        "import sys\nfrom pathlib import Path\nfrom sdpo_plugins.records import BoundedLines\n"
        f"lines = BoundedLines(Path({str(tmp_path / 'steps.jsonl')!r}), limit_mb=50)\n"
        "step = 0\nprint('on', flush=True)\n"
        "while True:\n    step += 1\n"
        "    lines.write({'kind': 'step', 'step': step, 'metrics': {'loss': 1.0}, 'filler': 'z' * 5000})\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.3)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait(10)
        process.stdout.close()
    found, problems = read_lines(tmp_path / "steps.jsonl")
    assert problems == []
    assert [line["step"] for line in found] == list(range(1, len(found) + 1))
    assert len(found) > 10


@pytest.mark.parametrize("ranks", [1, 3])
def test_a_resumed_run_supersedes_what_came_after_its_checkpoint(tmp_path, ranks):
    config = SDPOConfig()
    for rank in range(3):
        recorder = RunRecorder(tmp_path, config, rank=rank)
        recorder.start(host="trl", host_version="1", model="m", step=0, ranks=3)
        for step in range(1, 8):
            recorder.metrics(step, {"reward": 0.0})
            recorder.lines([_rollout(step, rank, "old")])
    for rank in range(ranks):
        recorder = RunRecorder(tmp_path, config, rank=rank)
        recorder.start(host="trl", host_version="1", model="m", step=4, ranks=ranks)
        for step in range(5, 7):
            recorder.metrics(step, {"reward": 1.0})
            recorder.lines([_rollout(step, rank, "new")])
        recorder.end(6)
    run = read_run(tmp_path)
    assert run.series("reward") == ([1, 2, 3, 4, 5, 6], [0.0] * 4 + [1.0] * 2)
    assert [header["step"] for header in run.headers] == [0, 4]
    assert run.end is not None
    said = {(one.step, one.line["row"]): one.line["response"] for one in run.rollouts}
    assert said == {
        **{(step, rank): "old" for step in range(1, 5) for rank in range(3)},
        **{(step, rank): "new" for step in (5, 6) for rank in range(ranks)},
    }


def test_a_new_run_in_an_old_folder_starts_from_nothing(tmp_path):
    for ranks in (2, 1):
        for rank in range(ranks):
            recorder = RunRecorder(tmp_path, SDPOConfig(), rank=rank)
            recorder.start(host="trl", host_version="1", model="m", step=0, ranks=ranks)
            recorder.metrics(ranks, {"reward": float(ranks)})
            recorder.lines([_rollout(ranks, rank, str(ranks))])
    run = read_run(tmp_path)
    assert run.series("reward") == ([1], [1.0])
    assert [one.line["response"] for one in run.rollouts] == ["1"]


def test_a_folder_that_cannot_be_written_stops_the_recording_with_one_warning(tmp_path):
    (tmp_path / "records").write_text("a file where the folder should be")
    warnings = []
    recorder = RunRecorder(tmp_path / "records", SDPOConfig(), warnings.append)
    recorder.start(host="trl", host_version="1", model="m", step=0, ranks=1)
    recorder.metrics(1, {"reward": 0.5})
    recorder.end(1)
    assert len(warnings) == 1
    assert "training goes on" in warnings[0]
    assert str(tmp_path / "records") in warnings[0]


def test_only_numbers_are_metrics(tmp_path):
    recorder = RunRecorder(tmp_path, SDPOConfig())
    recorder.start(host="trl", host_version="1", model="m", step=0, ranks=1)
    given = {"loss": 0.25, "count": 3, "name": "text", "flag": True, "nan": float("nan"), "none": None, "list": [1]}
    arrays = {"scalar": torch.tensor(0.5), "vector": torch.ones(2), "numpy": numpy.float32(2), "array": numpy.ones(3)}
    recorder.metrics(1, {**given, **arrays})
    recorder.metrics(1, {"more": 1})
    run = read_run(tmp_path)
    assert len(run.steps) == 1
    assert run.steps[0].metrics == {
        "loss": 0.25,
        "count": 3.0,
        "nan": None,
        "scalar": 0.5,
        "numpy": 2.0,
        "more": 1.0,
    }


def _rollout(step, rank, response):
    return {"kind": "rollout", "step": step, "id": 1000 * step + rank, "row": rank, "response": response}
