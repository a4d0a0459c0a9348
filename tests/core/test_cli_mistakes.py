"""Mistakes of users, for every command: exit code 2, one message that names what was given and what is valid."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from console_script import script
from sdpo_plugins.cli import app

FILES = {
    "broken.yaml": "host: trl\nalpha: [1\n",
    "list.yaml": "- host\n",
    "empty.yaml": "# nothing yet\n",
    "no_host.yaml": "alpha: 1\n",
    "strange_host.yaml": "host: trll\n",
    "binary.yaml": b"\xff\xfe\x00host: trl",
    "options.yaml": "alpha: 7\nalhpa: 1\n",
    "rows.jsonl": "".join(f'{{"question": "1 + {one}?", "answer": "{1 + one}"}}\n' for one in range(20)),
    "not.jsonl": "{\n",
    "config.json": '{"model_type": "no-such-model"}',
}

# Command line; what the message must name: what was given, and what is valid or what to do.
MISTAKES = [
    # all commands
    ("trian", ["'trian'", "Did you mean 'train'?", "sdpo --help"]),
    ("--colour list", ["--colour", "sdpo --help"]),
    ("list --jsn", ["--jsn", "--json", "sdpo list --help"]),
    ("list everything", ["everything", "sdpo list --help"]),
    ("list --json=yes", ["--json"]),
    ("doctor --jsn", ["--jsn", "--json"]),
    ("doctor trl", ["trl", "sdpo doctor --help"]),
    ("doctor --json=1", ["--json"]),
    # train
    ("train", ["config", "sdpo train --help"]),
    ("train nowhere.yaml", ["nowhere.yaml", "does not exist"]),
    ("train folder", ["folder", "is a directory"]),
    ("train broken.yaml", ["broken.yaml", "line 3", "not a YAML file"]),
    ("train list.yaml", ["list.yaml", "mapping", "list"]),
    ("train empty.yaml", ["empty.yaml is empty", "`host: trl`"]),
    ("train no_host.yaml", ["no_host.yaml", "`host: trl`", "sdpo list"]),
    ("train strange_host.yaml", ["'trll'", "Did you mean 'trl'?"]),
    ("train binary.yaml", ["binary.yaml", "not a YAML file"]),
    ("train no_host.yaml alpha", ["'alpha'", "key=value"]),
    # demo
    ("demo --task summs", ["'summs'", "sums, facts", "Did you mean 'sums'?"]),
    ("demo --seeds 0", ["--seeds", "got '0'"]),
    ("demo --seeds many", ["--seeds", "got 'many'"]),
    ("demo --output rows.jsonl", ["--output", "rows.jsonl", "is a file"]),
    ("demo sums", ["sums", "sdpo demo --help"]),
    # config
    ("config nowhere.yaml", ["nowhere.yaml", "No such file"]),
    ("config folder", ["folder", "Is a directory"]),
    ("config broken.yaml", ["broken.yaml", "line 3", "not a YAML file"]),
    ("config binary.yaml", ["binary.yaml", "no text file"]),
    ("config options.yaml", ["2 problems", "`alpha` must lie in [0, 1], got 7", "Did you mean 'alpha'?"]),
    ("config --preset papper", ["'papper'", "'paper_rich_feedback'", "Did you mean 'paper'?"]),
    ("config alhpa=1", ["`alhpa`", "Did you mean 'alpha'?"]),
    ("config --from authors options.yaml", ["'authors'", "lasgroup, sdpo-rl"]),
    ("config --to vrl", ["'vrl'", "trl, verl, openrlhf"]),
    ("config --overwrite alpha=1", ["`--overwrite`", "`--output`"]),
    ("config --gpus 0", ["--gpus", "got '0'"]),
    # data
    ("data gsm8", ["'gsm8'", "gsm8k"]),
    ("data gsm8k --host torch", ["--host", "'torch'", "'verl'"]),
    ("data gsm8k --limit 0", ["--limit", "got '0'"]),
    ("data jsonl", ["--from"]),
    ("data jsonl --from nowhere.jsonl", ["nowhere.jsonl"]),
    ("data jsonl --from not.jsonl --prompt-column question", ["not.jsonl"]),
    ("data jsonl --from rows.jsonl --prompt-column quest", ["'quest'", "'question'"]),
    ("data jsonl --from rows.jsonl --prompt-column question --truth-column answer --scorer mth", ["'mth'", "'math'"]),
    # estimate
    ("estimate", ["--model", "sdpo estimate --help"]),
    ("estimate --model folder", ["folder"]),
    ("estimate --model config.json", ["no-such-model"]),
    ("estimate --model config.json --teacher emma", ["'emma'", "Did you mean 'ema'?"]),
    ("estimate --model config.json --host torch", ["`host`", "'torch'", "'verl'"]),
    ("estimate --model config.json --batch-size 0", ["`batch_size`", "0"]),
    ("estimate --model config.json --ranks two", ["--ranks", "got 'two'"]),
    # report and plot
    ("report", ["PATH", "sdpo report --help"]),
    ("report nowhere", ["nowhere"]),
    ("report folder", ["folder", "records"]),
    ("report folder --max-rollouts 0", ["--max-rollouts", "'0'"]),
    ("report folder --every 5", ["--every 5", "--watch"]),
    ("report folder --watch --json", ["--watch", "--json"]),
    ("plot", ["sdpo plot --help"]),
    ("plot nowhere", ["nowhere"]),
    ("plot folder", ["folder", "records"]),
    ("plot folder --rollout 3 --smooth", ["`--rollout`", "`--smooth`"]),
    ("plot folder --metric", ["--metric"]),
    # solve
    ("solve", ["sdpo solve --help"]),
    ("solve --scorer mth --question 1+1", ["'mth'", "'math'"]),
    ("solve --scorer math", ["question"]),
    ("solve --scorer math --question-file nowhere.txt", ["nowhere.txt cannot be read: No such file or directory."]),
]
COMMANDS = tuple(name for name in typer.main.get_command(app).commands)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for name, text in FILES.items():
        (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path


@pytest.mark.parametrize(("line", "words"), MISTAKES, ids=[line for line, _ in MISTAKES])
def test_a_mistake_gets_one_message(folder, line, words):
    result = CliRunner().invoke(app, line.split(), env={"COLUMNS": "80"}, prog_name="sdpo")
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output and not result.stdout
    message = result.stderr
    assert message.startswith("error: ") and message.count("error: ") == 1
    # One paragraph: no blank line, no box, no usage.
    assert "\n\n" not in message.strip() and "Usage" not in message and "╭" not in message
    for word in words:
        assert word in message


def test_every_command_has_at_least_three():
    for command in COMMANDS:
        assert sum(line.split()[0] == command for line, _ in MISTAKES) >= 3


def test_without_a_command_the_help_is_shown():
    result = CliRunner().invoke(app, [])
    assert result.exit_code == 2 and "Commands" in result.output


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(folder):  # pragma: no cover - CI runs as root
    (folder / "options.yaml").chmod(0)
    result = CliRunner().invoke(app, ["config", "options.yaml"])
    assert result.exit_code == 2 and "Permission denied" in result.stderr


def test_permission_denied_is_said_in_a_sentence(folder, monkeypatch):
    def denied(self, *args, **more):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "read_text", denied)
    for command in ("config", "train"):
        result = CliRunner().invoke(app, [command, "no_host.yaml"])
        assert result.exit_code == 2
        assert result.stderr == "error: no_host.yaml cannot be read: Permission denied.\n"


PLUGIN = """
    from sdpo_plugins import Host, hookimpl

    @hookimpl
    def sdpo_hosts():
        return [Host("slow", "pytest", ">=1", "slow_adapter", "pip install slow")]
"""
ADAPTER = """
    import os, sys, time
    from pathlib import Path

    def train(config, overrides):
        print("a line of the host", flush=True)
        os.write(1, b"a line of a library\\n")
        if "wait=yes" in overrides:
            Path("started").touch()
            time.sleep(60)
        if "fail=yes" in overrides:
            raise RuntimeError("the run failed")
        return {"steps": 3, "output_dir": "x"}
"""


@pytest.fixture
def slow(folder):
    """A host of a third party that waits, fails, or returns a summary."""
    package = folder / "slow_adapter"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "recipe.py").write_text(textwrap.dedent(ADAPTER))
    (folder / "slow_plugin.py").write_text(textwrap.dedent(PLUGIN))
    (folder / "slow.yaml").write_text("host: slow\nplugins: [slow_plugin]\n")
    return {**os.environ, "PYTHONPATH": str(folder)}


def test_ctrl_c_is_one_line_and_130(slow, folder):
    process = subprocess.Popen(
        [script(), "train", "slow.yaml", "wait=yes"],
        env=slow,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + 60
        while not (folder / "started").exists():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130
    assert errors.strip() == "Interrupted."


def test_a_run_that_fails_shows_its_trace_and_1(slow):
    done = subprocess.run(
        [script(), "train", "slow.yaml", "fail=yes"], env=slow, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert "RuntimeError: the run failed" in done.stderr


def test_json_stands_alone_on_the_standard_output(slow):
    done = subprocess.run(
        [script(), "train", "slow.yaml", "--json"], env=slow, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"host": "slow", "steps": 3, "output_dir": "x"}
    assert "a line of the host" in done.stderr and "a line of a library" in done.stderr


def test_an_option_may_stand_behind_the_words_of_a_recipe(slow):
    done = subprocess.run(
        [script(), "train", "slow.yaml", "a=1", "--json", "b=2"], env=slow, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


def test_exit_codes_do_not_change_with_typers_own_main(folder):
    """`standalone_mode=False` is how other programs call the application; then errors are theirs."""
    with pytest.raises(Exception, match="trian") as caught:
        typer.main.get_command(app).main(["trian"], standalone_mode=False, prog_name="sdpo")
    assert not isinstance(caught.value, SystemExit)
    assert sys.exc_info() == (None, None, None)
