"""Findings: each kind of trouble is found on a run that has it, and nothing on a healthy one."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from made_records import TROUBLES, make_run
from sdpo_plugins.health import TROUBLES as TOLD
from sdpo_plugins.health import HealthMonitor
from sdpo_plugins.records import RunRecords, Step, read_run
from sdpo_plugins.report.checks.leakage import phrases_of, quoted
from sdpo_plugins.report.health import Finding, findings

# Trouble → what must be found, with its level. Nothing else may be wrong, except what follows from the trouble itself.
EXPECTED = {
    "collapse": {"length": "bad"},
    "leak": {"leakage": "bad"},
    "nothing_succeeds": {"success": "bad"},
    "teacher_is_student": {"differs": "bad", "approval": "note"},
    "frozen_ema": {"weights": "bad"},
    "truncation": {"truncation": "warning"},
    "cut_off": {"cut_off": "bad"},
    "entropy_collapse": {"entropy": "warning"},
    "feedback_unused": {"feedback": "warning"},
    "teacher_worsens": {"teacher_accuracy": "bad", "approval": "warning"},
    "ema_runs_away": {"weights": "warning"},
    "gap_inverted": {"approval": "warning"},
    "no_end": {"ending": "warning"},
    "warned": {"warned_0": "warning"},
}


def found_in(run: RunRecords, **options) -> dict[str, Finding]:
    found = findings(run, **options)
    assert len({one.key for one in found}) == len(found)
    return {one.key: one for one in found}


def wrong(found: dict[str, Finding]) -> dict[str, str]:
    return {key: one.level for key, one in found.items() if one.level != "ok"}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    runs: dict[str, RunRecords] = {}

    def run_of(trouble: str | None = None, **options) -> RunRecords:
        name = f"{trouble}-{'-'.join(map(str, options.values()))}"
        if name not in runs:
            settings = {"steps": 15, "rollouts_per_step": 12, "tokens": 14, **options}
            runs[name] = read_run(make_run(folder / name, trouble=trouble, **settings))
        return runs[name]

    return run_of


def with_metrics(run: RunRecords, name: str, values: list[float | None]) -> RunRecords:
    steps = [
        dataclasses.replace(step, metrics={**step.metrics, name: value})
        for step, value in zip(run.steps, values, strict=True)
    ]
    return dataclasses.replace(run, steps=tuple(steps))


def test_every_made_trouble_is_expected():
    assert set(EXPECTED) == set(TROUBLES)


@pytest.mark.parametrize("trouble", TROUBLES)
def test_a_trouble_is_found_and_no_other(made, trouble):
    found = found_in(made(trouble))
    assert wrong(found) == EXPECTED[trouble]
    for key in EXPECTED[trouble]:
        assert any(sign.isdigit() for sign in found[key].text), "a finding gives numbers"


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("host", ["trl", "verl", "openrlhf"])
def test_a_healthy_run_hears_only_what_is_fine(made, host, seed):
    found = found_in(made(None, host=host, seed=seed))
    assert wrong(found) == {}
    everything = {key for expected in EXPECTED.values() for key in expected} - {"warned_0"}
    assert everything <= set(found), "what can go wrong is said to be fine"
    assert found["approval"].title == "The teacher approves what succeeded"


def test_a_healthy_grpo_run_hears_nothing_of_teachers(made):
    found = found_in(made(None, method="grpo"))
    assert wrong(found) == {}
    assert set(found) == {"ending", "success", "length", "cut_off", "entropy"}


def test_the_worst_comes_first(made):
    levels = [one.level for one in findings(made("teacher_worsens"))]
    order = ["bad", "warning", "note", "ok"]
    assert levels == sorted(levels, key=order.index) and levels[0] == "bad"


def test_numbers_are_the_runs_own(made):
    found = found_in(made("nothing_succeeds"))
    assert "for 15 rollout batches in a row" in found["success"].text
    run = made("leak")
    said = found_in(run)["leakage"].text
    example = int(said.split("rollout ")[1].split()[0])
    assert next(one for one in run.rollouts if one.id == example).line["response"].startswith("As the correct solution")
    hits = sum("correct solution" in one.line["response"] for one in run.rollouts)
    assert said.startswith(f"{hits} of {len(run.rollouts)} recorded answers")


def test_texts_are_those_of_the_running_monitor(made):
    monitor = HealthMonitor()
    told = [monitor.step(0.0, 10.0) for _ in range(5)][-1][0]
    found = found_in(with_metrics(made(None), "self_distillation/divergence", [0.5] * 10 + [0.0] * 5))["differs"]
    assert f"{found.text} {found.advice}" == told
    assert found_in(made("nothing_succeeds"))["success"].advice == TOLD["nothing_succeeded"].advice


def test_patience_is_that_of_the_running_monitor(made):
    run = made(None)
    name = "self_distillation/divergence"
    assert found_in(with_metrics(run, name, [0.5] * 11 + [0.0] * 4))["differs"].level != "bad"
    assert found_in(with_metrics(run, name, [0.0] * 14 + [0.5]))["differs"].level == "ok"


def test_nothing_active_is_found_where_something_succeeds(made):
    run = with_metrics(made(None), "self_distillation/reprompt_sample_fraction", [1.0] * 9 + [0.0] * 6)
    found = found_in(run)["active"]
    assert (found.level, found.title) == ("bad", "Nothing is active") and "for 6 rollout batches" in found.text


def test_no_success_but_feedback_is_a_warning(made):
    run = with_metrics(made(None), "self_distillation/success_rollout_fraction", [0.5] * 9 + [0.0] * 6)
    run = with_metrics(run, "self_distillation/feedback_used_fraction", [1.0] * 15)
    assert found_in(run)["success"].level == "warning"


def test_falling_accuracy_is_told_from_noise(made):
    run, name = made(None), "self_distillation/success_rollout_fraction"
    falling = with_metrics(run, name, [0.8 - 0.04 * at for at in range(15)])
    assert found_in(falling)["success"].title == "Accuracy falls"
    noisy = with_metrics(run, name, [0.5 + 0.3 * (-1) ** at for at in range(15)])
    assert found_in(noisy)["success"].title == "Accuracy holds"


def test_rising_doubt_is_no_trouble_where_most_answers_succeed(made):
    run = with_metrics(
        made(None), "self_distillation/gap_on_failure", [min(-0.5 + 0.05 * at, -0.02) for at in range(15)]
    )
    run = with_metrics(run, "self_distillation/success_rollout_fraction", [0.9] * 15)
    assert found_in(run)["approval"].level == "ok"
    run = with_metrics(run, "self_distillation/success_rollout_fraction", [0.2] * 15)
    assert found_in(run)["approval"].title == "The teacher no longer doubts what failed"


@pytest.mark.parametrize(("teacher", "rate"), [("frozen", 0.0), ("live", 1.0), ("ema", 1.0), ("trust_region", 0.05)])
def test_a_distance_of_zero_is_fine_for_teachers_that_have_none(made, teacher, rate):
    run = made("frozen_ema")
    header = {**run.headers[0], "config": {**run.config, "teacher": teacher, "teacher_update_rate": rate}}
    assert "weights" not in found_in(dataclasses.replace(run, headers=(header,)))


def test_a_few_steps_are_not_judged(made):
    found = found_in(made("teacher_is_student", steps=3))
    assert wrong(found) == {"beginning": "note"} and "3 steps" in found["beginning"].text
    assert found_in(dataclasses.replace(made(None), steps=()))["beginning"].title == "No step was recorded yet"


def test_a_run_that_goes_on_is_told_from_one_that_was_killed(made):
    run = made("no_end")
    last = run.steps[-1].time
    assert found_in(run, now=last + 60)["ending"].title == "The run goes on"
    killed = found_in(run, now=last + 86_400)["ending"]
    assert killed.level == "warning" and "step is 15" in killed.text
    early = dataclasses.replace(run, end={"kind": "end", "step": 9, "reason": "KeyboardInterrupt"})
    assert "step 9: KeyboardInterrupt" in found_in(early)["ending"].text


def test_a_warning_that_was_told_often_is_shown_once(made):
    run = dataclasses.replace(made(None), warnings=((2, "Mind it."), (4, "Other."), (5, "Mind it.")))
    found = found_in(run)
    assert found["warned_0"].title == "The run warned (2 times, first at step 2)" and found["warned_1"].text == "Other."


def test_unreadable_lines_are_told(made):
    found = found_in(dataclasses.replace(made(None), problems=("steps.jsonl, line 3, is no JSON.",)))
    assert found["problems"].level == "note" and "line 3" in found["problems"].text


def test_phrases_come_from_the_runs_own_templates_and_from_what_feedback_repeats():
    lines = [
        {"response": f"answer {at}", "feedback": f"Wrong {at}.\nCase was not accepted by the checker"}
        for at in range(3)
    ]
    phrases = phrases_of({"solution_template": "\nA winning answer reads:\n\n{successful_previous_attempt}"}, lines)
    assert "a winning answer reads" in phrases and "case was not accepted by the checker" in phrases
    assert not any("wrong" in phrase for phrase in phrases)
    twice = phrases_of({}, lines[:2])
    assert "case was not accepted by the checker" not in twice


@pytest.mark.parametrize(
    ("prompt", "response", "hit"),
    [
        ("2+2?", "As THE  correct\nsolution says, 4.", True),
        ("2+2?", "4", False),
        ("Find the correct solution: 2+2?", "The correct solution is 4.", False),
        ([{"role": "user", "content": "What is the correct solution?"}], "The correct solution is 4.", False),
    ],
)
def test_a_quote_counts_only_if_the_students_own_prompt_does_not_have_it(prompt, response, hit):
    found = quoted({"prompt": prompt, "response": response}, phrases_of({}, []))
    assert (found == "the correct solution") is hit


def test_phrases_that_were_there_from_the_start_are_a_note(made):
    run = made(None)
    lines = [dict(one.line, response=f"The correct solution: {one.line['response']}") for one in run.rollouts]
    changed = [dataclasses.replace(one, line=line) for one, line in zip(run.rollouts, lines, strict=True)]
    assert found_in(dataclasses.replace(run, rollouts=tuple(changed)))["leakage"].level == "note"


def test_a_run_without_metrics_of_ours_is_judged_by_its_rollouts(made):
    run = made(None)
    bare = tuple(Step(step.step, step.time, {}) for step in run.steps)
    found = found_in(dataclasses.replace(run, steps=bare))
    assert found["success"].level == "ok" and found["length"].level == "ok"


def test_records_survive_being_read_from_their_own_folder(tmp_path: Path):
    folder = make_run(tmp_path / "run", steps=6, tokens=12)
    assert findings(read_run(folder)) == findings(read_run(folder / "records"))


def test_a_student_that_knows_everything_need_not_explore(made):
    run = made("entropy_collapse")
    mastered = with_metrics(run, "self_distillation/success_rollout_fraction", [0.97] * len(run.steps))
    assert found_in(mastered)["entropy"].level == "ok"
    assert found_in(run)["entropy"].level == "warning"


@pytest.mark.parametrize("name", ["loss", "actor/grad_norm"])
def test_a_loss_that_is_no_number_is_bad(made, name):
    run = made(None)
    values = [None if number == 3 else 0.1 for number in range(len(run.steps))]
    found = found_in(with_metrics(run, name, values))["finite"]
    assert found.level == "bad"
    assert f"step {run.steps[3].step}" in found.text
