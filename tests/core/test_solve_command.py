"""`sdpo solve`: where the question comes from, and one helpful message for each mistake."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from sdpo_plugins.cli import app
from sdpo_plugins.solve import read_question

ROW = {"prompt": "Why?", "ground_truth": "B", "kind": 7}


@pytest.fixture
def files(tmp_path):
    (tmp_path / "question.txt").write_text("Why?\n", encoding="utf-8")
    (tmp_path / "row.json").write_text(json.dumps(ROW), encoding="utf-8")
    (tmp_path / "rows.jsonl").write_text(json.dumps(ROW) + "\n" + json.dumps({**ROW, "kind": 8}) + "\n", "utf-8")
    (tmp_path / "tests.json").write_text('{"fn_name": "f"}', encoding="utf-8")
    (tmp_path / "broken.json").write_text("{", encoding="utf-8")
    (tmp_path / "blank.json").write_text('{"prompt": " "}', encoding="utf-8")
    (tmp_path / "talk.json").write_text('{"prompt": [{"role": "assistant", "content": "Hi"}]}', encoding="utf-8")
    return tmp_path


def test_a_question_from_each_place(files):
    asked = [{"role": "user", "content": "Why?"}]
    assert read_question(text="Why?", truth="B").row == {"prompt": asked, "ground_truth": "B"}
    assert read_question(file=files / "question.txt", tests=files / "tests.json").row == {
        "prompt": asked,
        "ground_truth": '{"fn_name": "f"}',
    }
    assert read_question(file=files / "row.json").row == {**ROW, "prompt": asked}
    assert read_question(dataset=files / "rows.jsonl", row=1).row == {**ROW, "kind": 8, "prompt": asked}
    assert read_question(dataset=files / "rows.jsonl", row=1, truth="C").row["ground_truth"] == "C"


MISTAKES = {
    "no question": ([], "exactly one of --question, --question-file and --dataset; got none of them"),
    "two questions": (["--question", "a", "--question-file", "row.json"], "got --question and --question-file"),
    "row alone": (["--question", "a", "--row", "1"], "--dataset and --row belong together"),
    "no row": (["--dataset", "rows.jsonl"], "--dataset and --row belong together"),
    "row too large": (["--dataset", "rows.jsonl", "--row", "2"], "--row must be one of 0 … 1"),
    "two truths": (["--question", "a", "--truth", "b", "--tests", "tests.json"], "leave one out"),
    "no file": (["--question-file", "absent.json"], "absent.json cannot be read"),
    "broken file": (["--question-file", "broken.json"], "broken.json is no JSON file"),
    "many rows": (["--question-file", "rows.jsonl"], "it has 2 rows. Use --dataset"),
    "blank": (["--question-file", "blank.json"], "a text that is not blank"),
    "assistant last": (["--question-file", "talk.json"], "the last is the user's"),
    "budget": (["--question", "a", "--budget", "100"], "multiple of `samples`, got 100 and 16"),
    "small budget": (["--question", "a", "--budget", "4"], "Take 16."),
    "samples": (["--question", "a", "--samples", "1"], "`samples` must be at least 2, got 1"),
    "micro-batch": (["--question", "a", "--micro-batch", "5"], "`micro_batch` must divide `samples`, got 5 and 16"),
    "rate": (["--question", "a", "--learning-rate", "0"], "`learning_rate` must be greater than 0"),
    "baseline": (["--question", "a", "--baseline", "best"], "did you mean 'best-of-k'"),
    "no equals sign": (["--question", "a", "--set", "alpha"], "--set takes key=value, got 'alpha'"),
}


@pytest.mark.parametrize(("words", "said"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_gives_one_message_and_exit_code_2(files, monkeypatch, words, said):
    monkeypatch.chdir(files)
    result = CliRunner().invoke(app, ["solve", "--scorer", "multiple_choice", *words])
    assert result.exit_code == 2, result.output
    assert said.casefold() in " ".join(result.stderr.split()).casefold()
    assert "Traceback" not in result.stderr and not (files / "runs").exists()


def test_the_help_tells_the_exit_codes():
    result = CliRunner().invoke(app, ["solve", "--help"])
    assert "0 if the question is solved, 1 if it is not" in " ".join(result.output.split())
