"""The demo, its results, and recipes: what `make demo` and `sdpo train` run."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from sdpo_plugins.embedded import load_task, task_names
from sdpo_plugins.embedded.results import Run, draw_curves, print_table, write_results
from sdpo_plugins.embedded.settings import run_settings
from sdpo_plugins.errors import ConfigError
from sdpo_plugins.records import read_run
from sdpo_trl import demo
from sdpo_trl.demo import train_once
from sdpo_trl.embedded import dataset_of, reward_of
from sdpo_trl.recipe import import_function, parse

ROOT = Path(__file__).resolve().parents[2]
FIELDS = {"task", "method", "seed", "accuracy_before", "accuracy_after", "generations", "seconds"}


def sdpo(*words: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sdpo_plugins.cli", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=cwd)


@pytest.mark.parametrize(
    "task", [*task_names(), *(pytest.param(n, marks=pytest.mark.slow) for n in task_names("code"))]
)
@pytest.mark.parametrize("method", ["grpo", "sdpo"])
def test_a_run_of_the_demo_says_what_it_cost_and_gained(task: str, method: str) -> None:
    settings = replace(run_settings(task, method), steps=2, questions_per_step=2, rollouts_per_question=2)
    run = train_once(settings, seed=3)
    assert (run.task, run.method, run.seed, run.generations) == (task, method, 3, 8)
    assert len(run.curve) == 2
    assert 0.0 <= run.accuracy_after <= 1.0
    low, high = {"sums": (0.4, 0.65), "facts": (0.0, 0.03), "programs": (0.0, 0.1)}[task]
    assert low <= run.accuracy_before <= high


def test_the_demo_leaves_records_of_every_run_and_a_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    short = {"steps": 3, "questions_per_step": 2, "rollouts_per_question": 2}
    monkeypatch.setattr(demo, "run_settings", lambda task, method: replace(run_settings(task, method), **short))
    demo.run(1, ["facts"], tmp_path)
    grpo, sdpo = (read_run(tmp_path / f"facts-{method}-0") for method in demo.METHODS)
    assert [run.headers[0]["method"] for run in (grpo, sdpo)] == ["grpo", "sdpo"]
    for run in (grpo, sdpo):
        assert run.end is not None and [step.step for step in run.steps] == [1, 2, 3]
        assert len(run.series("reward")[0]) == 3
    assert grpo.rollouts == () and any(rollout.tokens for rollout in sdpo.rollouts)
    assert f"Report: {tmp_path / 'report.html'}" in capsys.readouterr().out
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "facts-grpo-0" in page and "facts-sdpo-0" in page


def test_facts_are_learnt_from_feedback_and_not_from_rewards() -> None:
    """The demo's claim, seed 0, as it stands in its documentation."""
    learnt = train_once(run_settings("facts", "sdpo"), seed=0)
    not_learnt = train_once(run_settings("facts", "grpo"), seed=0)
    assert learnt.generations == not_learnt.generations
    assert learnt.accuracy_after >= 0.8
    assert not_learnt.accuracy_after < 0.15


def made_up_runs() -> list[Run]:
    return [
        Run("facts", method, seed, 0.01, accuracy, 128, 1.5, 64, [0.0, accuracy])
        for seed in (0, 1)
        for method, accuracy in (("grpo", 0.02), ("sdpo", (0.9, 0.94)[seed]))
    ]


def test_results_are_a_list_of_plain_records(tmp_path: Path) -> None:
    path = write_results(made_up_runs(), tmp_path)
    rows = json.loads(path.read_text())
    assert path.name == "results.json"
    assert [set(row) for row in rows] == [FIELDS] * 4
    assert rows[3] == {
        "task": "facts",
        "method": "sdpo",
        "seed": 1,
        "accuracy_before": 0.01,
        "accuracy_after": 0.94,
        "generations": 128,
        "seconds": 1.5,
    }
    assert json.loads((tmp_path / "curves.json").read_text())[3] == {"generations_per_step": 64, "curve": [0.0, 0.94]}


def test_the_table_has_a_row_a_task_with_means(capsys: Any) -> None:
    print_table(made_up_runs())
    text = capsys.readouterr().out
    assert "2 seeds" in text
    (row,) = [line for line in text.splitlines() if "facts" in line]
    assert "1 ± 0 %" in row
    assert "2 ± 0 %" in row
    assert "92 ± 3 %" in row
    assert "128" in row


def test_learning_curves_are_a_picture(tmp_path: Path) -> None:
    path = draw_curves(made_up_runs(), tmp_path / "facts.png")
    assert path.read_bytes().startswith(b"\x89PNG")


def test_the_reward_scores_and_explains() -> None:
    task = load_task("facts")
    rows = [row for row in dataset_of(task) if "iron" in row["subject"]]
    (row,) = rows
    columns = {"truth": [row["truth"]] * 2, "subject": [row["subject"]] * 2}
    answers = [[{"role": "assistant", "content": text}] for text in ("26", "54")]
    assert reward_of("facts")([row["prompt"]] * 2, answers, **columns) == [
        {"score": 1.0, "feedback": None},
        {"score": 0.0, "feedback": "Wrong. The atomic number of iron is 26, not 54."},
    ]


@pytest.mark.parametrize("recipe", sorted((ROOT / "recipes" / "trl").glob("*.yaml")), ids=lambda path: path.name)
def test_every_recipe_runs_by_either_method(recipe: Path, tmp_path: Path) -> None:
    short = ["max_steps=1", "per_device_train_batch_size=8", "num_generations=4", "logging_steps=1"]
    for method in ("sdpo", "grpo"):
        enabled = "true" if method == "sdpo" else "false"
        done = sdpo("train", str(recipe), *short, f"output_dir={tmp_path / method}", f"enabled={enabled}")
        assert done.returncode == 0, done.stderr
        (row,) = json.loads((tmp_path / method / "results.json").read_text())
        assert set(row) == FIELDS
        assert (row["method"], row["generations"]) == (method, 8)
        assert "accuracy after 1 steps" in done.stdout
        assert f"Report: sdpo report {tmp_path / method}" in done.stdout.replace("\n", "")
        assert read_run(tmp_path / method).headers[0]["method"] == method
        AutoModelForCausalLM.from_pretrained(tmp_path / method)


def test_a_recipe_for_ones_own_data(tmp_path: Path) -> None:
    prompts = [{"prompt": [{"role": "user", "content": f"What is {n} + 1?"}], "answer": str(n + 1)} for n in range(8)]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts))
    (tmp_path / "grading.py").write_text(
        "def grade(completions, answer, **_):\n"
        "    open('called', 'w').close()\n"
        "    return [{'score': float(c[0]['content'] == a), 'feedback': f'It is {a}.'}\n"
        "            for c, a in zip(completions, answer)]\n"
    )
    (tmp_path / "mine.yaml").write_text(
        "host: trl\nmodel_name_or_path: embedded\ndataset_name: questions.jsonl\nreward_functions: [grading.py:grade]\n"
        "preset: paper_rich_feedback\noutput_dir: out\nmax_steps: 1\nper_device_train_batch_size: 4\n"
        "num_generations: 2\nmax_completion_length: 4\nbf16: false\nreport_to: none\nsave_strategy: 'no'\n"
    )
    done = sdpo("train", "mine.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "called").exists()
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_a_recipes_mistakes_are_messages_not_stack_traces(tmp_path: Path) -> None:
    recipe = ROOT / "recipes" / "trl" / "facts.yaml"
    done = sdpo("train", str(recipe), "alhpa=0.5", f"output_dir={tmp_path}")
    assert done.returncode == 2
    assert "alhpa" in done.stderr
    assert "Traceback" not in done.stderr
    done = sdpo("train", str(recipe), "output_dir=")
    assert done.returncode == 2 and "`output_dir` must name a folder" in done.stderr

    done = sdpo("train", str(recipe), "alpha=1.7", f"output_dir={tmp_path}")
    assert done.returncode == 2
    assert "`alpha` must lie in [0, 1], got 1.7" in done.stderr.replace("\n", " ")


def test_overrides_win_over_the_file() -> None:
    _, args, _ = parse(ROOT / "recipes" / "trl" / "facts.yaml", ["alpha=1.0", "sdpo.teacher=ema", "learning_rate=0.5"])
    config = args.to_sdpo_config()
    assert (config.alpha, config.teacher, config.distillation_topk) == (1.0, "ema", None)
    assert args.learning_rate == 0.5


@pytest.mark.parametrize("name", ["grade", "no_such_module:grade", "json:no_such_function", "absent.py:grade"])
def test_a_reward_function_that_is_not_there(name: str) -> None:
    with pytest.raises(ConfigError, match=name.split(":")[0]):
        import_function(name)
