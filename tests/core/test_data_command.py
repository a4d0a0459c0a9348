"""`sdpo data` on the command line: help, output, errors, completion, and nothing but results where output is piped."""

from __future__ import annotations

import dataclasses
import json
import os
import pty
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import datasets
import pytest
from typer.testing import CliRunner

from data_samples import HOSTS, SAMPLES, own_questions, tools, word_problems
from sdpo_plugins.cli import app
from sdpo_plugins.data import SOURCES, CommonOptions
from sdpo_plugins.data.card import flag_of


@pytest.fixture(autouse=True)
def cache_of_this_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))


def run(*words: str) -> Any:
    return CliRunner().invoke(app, ["data", *words], env={"COLUMNS": "200"})


def refused(*words: str) -> str:
    done = run(*words)
    assert done.exit_code == 2 and done.stdout == "" and "Traceback" not in done.stderr
    return str(done.stderr)


def script() -> str:
    path = Path(sysconfig.get_path("scripts")) / "sdpo"
    assert path.exists(), "install the project first: pip install -e '.[trl,dev]'"
    return str(path)


def test_there_is_a_sample_for_every_source() -> None:
    assert list(SAMPLES) == list(SOURCES)


def test_help_names_every_source_and_option() -> None:
    overview = run("--help").stdout
    assert "sdpo data gsm8k" in overview
    for name, source in SOURCES.items():
        assert name in overview
        text = run(name, "--help").stdout
        assert f"sdpo data {name}" in text and source.summary in text
        options = ["--host", "--output", "--from", "--limit", "--overwrite", "--json"]
        options += ["--revision"] if source.home else []
        assert all(option in text for option in options)
    assert all(word in run("gsm8k", "--help").stdout for word in ("--calculator", "--no-think", "--reveal", "--seed"))
    assert all(host in overview + run("mbpp", "--help").stdout for host in HOSTS)


@pytest.mark.parametrize("source", SAMPLES)
def test_what_is_said(source: str, tmp_path: Path) -> None:
    sample = SAMPLES[source]
    words = [source, "--from", str(sample.place(tmp_path / "in")), "--output", str(tmp_path / "out"), *sample.options]
    done = run(*words, "--host", "openrlhf")
    assert done.exit_code == 0, done.stderr
    train, test = sample.counts
    assert f"{train} in train.jsonl and {test} in test.jsonl" in done.stdout and "README.md" in done.stdout
    again = run(*words, "--host", "openrlhf", "--json")
    card = json.loads(again.stdout)
    assert (card["status"], card["folder"]) == ("unchanged", str(tmp_path / "out"))
    assert card["scorer"] in done.stdout
    assert "Nothing to do" in run(*words, "--host", "openrlhf").stdout
    # The command of the card is one that makes it.
    command = card["command"].split()
    assert command[:3] == ["sdpo", "data", source]
    assert json.loads(run(*command[2:], "--json").stdout)["status"] == "unchanged"


def test_the_documents_name_every_option() -> None:
    docs = Path(__file__).parents[2] / "docs"
    guide, overview = ((docs / name).read_text(encoding="utf-8") for name in ("data.md", "cli.md"))
    common = {flag_of(item.name) for item in dataclasses.fields(CommonOptions)}
    for flag in common:
        assert f"| `{flag}" in guide.split("## What is written")[0], flag
        assert f"| `{flag}" in overview.split("## `sdpo data`")[1], flag
    for name, source in SOURCES.items():
        section = guide.split(f"\n## `{name}`\n")[1].split("\n## ")[0]
        for item in dataclasses.fields(source.options):
            assert f"`{flag_of(item.name)}" in section, (name, item.name)


def test_notes_are_no_results(tmp_path: Path) -> None:
    done = run("tooluse", "--from", str(tools(tmp_path / "in")), "--output", str(tmp_path / "out"), "--json")
    assert json.loads(done.stdout)["status"] == "written"
    assert done.stderr.count("note: left out: question") == 2


def test_mistakes_are_messages(tmp_path: Path) -> None:
    source = str(word_problems(tmp_path / "in"))
    assert "'verll'" in refused("gsm8k", "--host", "verll", "--from", source)
    assert "--limit" in refused("gsm8k", "--limit", "0", "--from", source)
    assert "--calculator" in refused("gsm8k", "--reveal", "--from", source)
    assert "none at nowhere" in refused("gsm8k", "--from", "nowhere")
    assert "--from" in refused("jsonl")
    assert "gsm9k" in refused("gsm9k")
    assert "--calculater" in refused("gsm8k", "--calculater")
    assert "--revision" in refused("jsonl", "--revision", "main")
    out = str(tmp_path / "out")
    assert run("gsm8k", "--from", source, "--output", out).exit_code == 0
    message = refused("gsm8k", "--from", source, "--output", out, "--limit", "1")
    assert message.startswith("error: ") and "limit: None there, 1 now" in message and "--overwrite" in message
    assert run("gsm8k", "--from", source, "--output", out, "--limit", "1", "--overwrite").exit_code == 0


def test_several_values(tmp_path: Path) -> None:
    place = str(own_questions(tmp_path))
    words = ["--prompt-column", "question", "--truth-column", "answer", "--drop", "level", "--drop", "about"]
    done = run("jsonl", "--from", place, "--output", str(tmp_path / "out"), "--json", *words)
    card = json.loads(done.stdout)
    assert card["asked"]["options"]["drop"] == ["level", "about"] and "--drop level --drop about" in card["command"]


def test_the_program_pipes_results_alone(tmp_path: Path) -> None:
    source = word_problems(tmp_path / "in")
    command = [script(), "data", "gsm8k", "--from", str(source), "--output", "out"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.startswith("Questions: 4 in train.parquet") and done.stderr == ""
    assert len(datasets.load_dataset(str(tmp_path / "out"), split="train")) == 4
    done = subprocess.run([*command, "--seed", "1"], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and "Traceback" not in done.stderr and "options.seed: None there, 1 now" in done.stderr


def test_a_terminal_sees_how_far_it_is(tmp_path: Path) -> None:
    source = word_problems(tmp_path / "in", ["#### 1"] * 50)
    ours, theirs = pty.openpty()
    try:
        command = [script(), "data", "gsm8k", "--from", str(source), "--output", "out", "--json"]
        environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=theirs, timeout=120, check=True
        )
        seen = os.read(ours, 1 << 16).decode()
    finally:
        os.close(ours)
        os.close(theirs)
    assert "Writing train" in seen and "50/50" in seen
    assert json.loads(done.stdout)["splits"]["train"]["rows"] == 50


def test_bars_of_the_libraries_are_as_before(tmp_path: Path) -> None:
    before = datasets.are_progress_bars_disabled()
    run("gsm8k", "--from", str(word_problems(tmp_path / "in")), "--output", str(tmp_path / "out"))
    assert datasets.are_progress_bars_disabled() == before


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("sdpo data s", ["sciknoweval"]),
        ("sdpo data gsm8k --host v", ["verl"]),
        ("sdpo data sciknoweval --domain P", ["Physics"]),
        ("sdpo data jsonl --scorer mu", ["multiple_choice"]),
    ],
)
def test_names_complete_on_the_tab_key(words: str, found: list[str]) -> None:
    environment = {
        **os.environ,
        "_SDPO_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(words.count(" ")),
    }
    done = subprocess.run([script()], env=environment, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == found


def test_without_the_library_it_says_what_to_install(tmp_path: Path) -> None:
    code = "import sys; sys.modules['datasets'] = None; from sdpo_plugins.cli import app; app()"
    command = [sys.executable, "-c", code, "data", "gsm8k", "--output", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "pip install 'sdpo-plugins[data]'" in done.stderr


def test_the_help_needs_neither_the_library_nor_torch() -> None:
    code = (
        "import sys\nfrom sdpo_plugins.cli import app\n"
        "try:\n    app(['data', 'mbpp', '--help'])\nexcept SystemExit:\n    pass\n"
        "print([name for name in ('torch', 'datasets', 'pyarrow', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
