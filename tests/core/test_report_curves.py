"""Curves of a run: found under each host's names, gaps and nulls left out, GRPO runs too."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from made_records import make_run
from sdpo_plugins.config import SDPOConfig
from sdpo_plugins.errors import DataError
from sdpo_plugins.records import RunRecorder, read_lines, read_run
from sdpo_plugins.report.curves import curve, metric_curve, metrics_of, smooth, standard_curves
from sdpo_plugins.report.standard import STANDARD

OF_GRPO = {"reward", "accuracy", "loss", "length", "entropy", "cut_off", "gradient"}
OF_SDPO = OF_GRPO | {
    "divergence",
    "active",
    "success_groups",
    "gap",
    "gap_on_success",
    "gap_on_failure",
    "teacher_distance",
    "teacher_accuracy",
    "truncated",
}


def run_of(folder: Path, **options):
    return read_run(make_run(folder, steps=6, tokens=12, **options))


def with_steps(folder: Path, metrics: list[dict[str, float | None]]):
    (folder / "records").mkdir()
    lines = [{"kind": "run", "format": 1, "host": "trl", "method": "sdpo", "step": 0, "config": {}}]
    lines += [{"kind": "step", "step": at + 1, "time": 0.0, "metrics": found} for at, found in enumerate(metrics)]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "records" / "steps.jsonl").write_text(text, encoding="utf-8")
    return read_run(folder)


@pytest.mark.parametrize("host", ["trl", "verl", "openrlhf"])
def test_every_hosts_names_give_the_same_curves(tmp_path, host):
    of_host = {found.key: found for found in standard_curves(run_of(tmp_path / host, host=host))}
    of_trl = {found.key: found for found in standard_curves(run_of(tmp_path / "trl_again", host="trl"))}
    assert set(of_host) == OF_SDPO
    for key, found in of_host.items():
        assert (found.steps, found.values) == (of_trl[key].steps, of_trl[key].values), key
        assert len(found.steps) == len(found.values) <= 6
        assert found.title and found.help.endswith(".")


def test_curves_stand_in_the_tables_order_and_say_where_they_come_from(tmp_path):
    found = standard_curves(run_of(tmp_path, host="verl"))
    order = [entry.key for entry in STANDARD]
    assert [one.key for one in found] == [key for key in order if key in OF_SDPO]
    assert {one.key: one.metric for one in found}["length"] == "response_length/mean"


def test_values_are_those_of_the_records(tmp_path):
    run = run_of(tmp_path)
    found = curve(run, "gap_on_failure")
    known = [(step.step, step.metrics.get("self_distillation/gap_on_failure")) for step in run.steps]
    assert list(zip(found.steps, found.values, strict=True)) == [pair for pair in known if pair[1] is not None]


@pytest.mark.parametrize("host", ["trl", "openrlhf"])
def test_a_grpo_run_has_curves_and_its_accuracy_is_that_of_the_recorded_rollouts(tmp_path, host):
    run = run_of(tmp_path, method="grpo", host=host)
    found = {one.key: one for one in standard_curves(run)}
    assert set(found) == OF_GRPO
    successes = [rollout.line["success"] for rollout in run.rollouts if rollout.step == 3]
    assert found["accuracy"].metric == "rollouts"
    assert found["accuracy"].values[2] == pytest.approx(sum(successes) / len(successes))
    assert "sample" in found["accuracy"].help


def test_nulls_and_missing_values_are_left_out(tmp_path):
    run = with_steps(tmp_path, [{"reward": 1.0}, {"reward": None}, {"loss": 2.0}, {"reward": 0.5}])
    found = curve(run, "reward")
    assert (found.steps, found.values) == ((1, 4), (1.0, 0.5))
    assert [one.key for one in standard_curves(run)] == ["reward", "loss"]


def test_the_first_name_with_values_counts(tmp_path):
    run = with_steps(tmp_path, [{"self_distillation/entropy": None, "entropy": 0.25}])
    assert curve(run, "entropy").metric == "entropy"


def test_an_empty_run_has_no_curves(tmp_path):
    assert standard_curves(with_steps(tmp_path, [])) == []


def test_any_metric_is_a_curve_under_its_own_name(tmp_path):
    run = run_of(tmp_path)
    own = metric_curve(run, "self_distillation/demonstration_chars_mean")
    assert (own.unit, own.title) == ("characters", "demonstration chars mean") and len(own.steps) == 6
    hosts = curve(run, "learning_rate")
    assert (hosts.title, hosts.help, set(hosts.values)) == ("learning_rate", "", {1e-6})
    assert "not_finite" not in metrics_of(run)


def test_an_unknown_name_names_the_nearest_and_lists_all(tmp_path):
    run = run_of(tmp_path)
    with pytest.raises(DataError, match=r"no metric 'acuracy'\. Did you mean 'accuracy'\?.*Metrics: .*learning_rate"):
        curve(run, "acuracy")


def test_a_standard_curve_without_values_is_told_from_an_unknown_one(tmp_path):
    with pytest.raises(DataError, match=r"recorded no values for 'zero_spread'\. It has: reward"):
        curve(run_of(tmp_path), "zero_spread")


def test_smoothing_is_a_weighted_mean_without_a_pull_to_the_first_value():
    values = [3.0, 0.0, 0.0, 0.0]
    keep = 1 - 2 / (4 + 1)
    expected = [
        sum(keep ** (t - s) * values[s] for s in range(t + 1)) / sum(keep ** (t - s) for s in range(t + 1))
        for t in range(4)
    ]
    assert smooth(values, 4) == pytest.approx(expected)
    assert smooth(values, 1) == values
    assert smooth([2.0] * 9, 5) == pytest.approx([2.0] * 9)
    assert smooth([], 5) == []


@pytest.mark.parametrize("span", [0.5, math.nan])
def test_smoothing_refuses_a_span_below_one(span):
    with pytest.raises(ValueError, match="at least 1"):
        smooth([1.0], span)


def test_made_records_have_the_shape_that_the_recorder_writes(tmp_path):
    recorder = RunRecorder(tmp_path / "real" / "records", SDPOConfig())
    recorder.start(host="trl", host_version="1.16.1", model="tiny", step=0, ranks=1)
    recorder.metrics(1, {"reward": 0.5})
    recorder.warning(1, "Mind it.")
    recorder.end(1)
    make_run(tmp_path / "made", steps=1, tokens=8, trouble="warned")
    shapes = []
    for name in ("real", "made"):
        lines, _ = read_lines(tmp_path / name / "records" / "steps.jsonl")
        shapes.append({line["kind"]: set(line) for line in lines})
    assert shapes[0] == shapes[1]
