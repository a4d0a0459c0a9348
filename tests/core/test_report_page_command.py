"""`sdpo report`: what it prints, its mistakes, and following a run."""

from __future__ import annotations

import importlib.metadata
import json
import os
import signal
import subprocess
import sys
import time

import pytest
from typer.testing import CliRunner

from made_records import make_run
from sdpo_plugins.cli import app
from sdpo_plugins.report.page import assets

WIDE = {"COLUMNS": "200"}
LIMIT_S = 60


@pytest.fixture
def folder(tmp_path):
    return make_run(tmp_path / "run", steps=6, rollouts_per_step=4, tokens=8)


def called(*arguments):
    return CliRunner().invoke(app, ["report", *map(str, arguments)], env=WIDE)


def test_the_page_stands_in_the_folder_of_the_run(folder):
    result = called(folder)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == f"1 run, 24 rollouts: {folder / 'report.html'}"
    assert (folder / "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    assert called(folder / "records").stdout == result.stdout


def test_json_names_file_runs_counts_and_findings(folder, tmp_path):
    other = make_run(tmp_path / "other", steps=12, rollouts_per_step=4, tokens=24, trouble="collapse")
    result = called(folder, other, "--output", tmp_path / "both.html", "--max-rollouts", 20, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["file"] == str(tmp_path / "both.html")
    assert found["rollouts"] == {"shown": 20, "recorded": 72}
    assert [run["name"] for run in found["runs"]] == ["run", "other"]
    levels = {each["key"]: each["level"] for each in found["runs"][1]["findings"]}
    assert "bad" in levels.values()


def test_findings_that_matter_are_printed(tmp_path):
    result = called(make_run(tmp_path / "run", steps=12, rollouts_per_step=4, tokens=24, trouble="collapse"))
    assert result.stdout.startswith("problem: ")


def one_line(result, *words):
    assert result.exit_code == 2, result.output
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), lines
    for word in words:
        assert str(word) in lines[0]


def test_mistakes_give_one_helpful_line(folder, tmp_path):
    one_line(called(tmp_path / "nowhere"), "no folder", tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    one_line(called(tmp_path / "empty"), "holds no records", "record")
    one_line(called(folder / "records" / "steps.jsonl"), "is a file")
    one_line(called(folder, "--output", tmp_path), "is a folder", "--output")
    (tmp_path / "file").touch()
    one_line(called(folder, "--output", tmp_path / "file" / "x.html"), "cannot be written", "--output")
    one_line(called(folder, "--watch", "--json"), "--watch")
    one_line(called(tmp_path / "nowhere", "--watch"), "no folder")


def test_records_that_cannot_be_read_are_named(folder):
    (folder / "records" / "steps.jsonl").unlink()
    (folder / "records" / "steps.jsonl").symlink_to("steps.jsonl")
    one_line(called(folder), "steps.jsonl", "cannot be read")


@pytest.mark.parametrize("package", ["bokeh.resources", "itables", "jinja2"])
def test_a_missing_library_names_the_extra(folder, monkeypatch, package):
    assets.libraries.cache_clear()
    monkeypatch.setitem(sys.modules, package, None)
    one_line(called(folder), package.partition(".")[0], "pip install 'sdpo-plugins[report]'")
    assets.libraries.cache_clear()


def test_licences_of_what_the_page_contains_stand_in_it(folder):
    called(folder)
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert f"BokehJS ({importlib.metadata.version('bokeh')}; BSD-3-Clause" in text
    assert "DataTables" in text and "MIT" in text


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Ctrl+C reaches a process of its own only on POSIX")
def test_following_waits_for_records_and_ends_by_ctrl_c(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    said = tmp_path / "said.txt"
    command = [sys.executable, "-m", "sdpo_plugins.cli", "report", str(folder), "--watch", "--every", "0.2"]
    with said.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    try:
        wait_for(lambda: "Waiting for the first records" in said.read_text())
        make_run(folder, steps=2, rollouts_per_step=4, tokens=8, trouble="no_end")
        stamp = folder / "report.html.stamp.js"
        wait_for(stamp.exists)
        assert '"stampFile": "report.html.stamp.js"' in (folder / "report.html").read_text(encoding="utf-8")
        process.send_signal(signal.SIGINT)
        assert process.wait(LIMIT_S) == 0
    finally:
        process.kill()
        process.wait(LIMIT_S)
    assert "Stopped following" in said.read_text()
    assert not stamp.exists()
    assert '"stampFile": null' in (folder / "report.html").read_text(encoding="utf-8")


def wait_for(true):
    limit = time.monotonic() + LIMIT_S
    while not true():
        assert time.monotonic() < limit
        time.sleep(0.05)
