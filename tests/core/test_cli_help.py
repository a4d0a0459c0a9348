"""Help, examples and tab completion of every command."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from console_script import script
from sdpo_plugins.cli import app
from sdpo_plugins.dialects import dialect_names
from sdpo_plugins.presets import preset_names

ROOT = Path(__file__).parents[2]
PROGRAM = typer.main.get_command(app)


def commands(group=PROGRAM, path=()):
    """Every command that does something, by the words that lead to it."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield (*path, name), command
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


COMMANDS = dict(commands())
EXAMPLES = [
    (path, example)
    for path, command in COMMANDS.items()
    for example in re.findall(r"`(sdpo [^`]+)`", command.epilog or "")
]


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_command_has_an_example_of_itself(path):
    assert any(path == owner and example.startswith(" ".join(["sdpo", *path])) for owner, example in EXAMPLES)


@pytest.mark.parametrize(("path", "example"), EXAMPLES, ids=[example for _, example in EXAMPLES])
def test_every_example_parses(path, example, monkeypatch):
    monkeypatch.chdir(ROOT)
    words = shlex.split(example.split(" | ")[0].split(" > ")[0])[1:]
    context = PROGRAM.make_context("sdpo", words)
    rest = [*getattr(context, "_protected_args", []), *context.args]
    group = PROGRAM
    while True:
        name, command, rest = group.resolve_command(context, rest)
        context = command.make_context(name, list(rest), parent=context)
        if not hasattr(command, "commands"):
            break
        group, rest = command, [*getattr(context, "_protected_args", []), *context.args]
    assert not context.args


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_help_explains_every_option(path):
    result = CliRunner().invoke(app, [*path, "--help"], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    assert COMMANDS[path].help
    for parameter in COMMANDS[path].params:
        assert getattr(parameter, "help", None), parameter.name
        if parameter.param_type_name == "option":
            assert parameter.opts[0] in result.stdout


def completed(line: str) -> list[str]:
    """What bash gets for a line that ends where the tab key is pressed."""
    words = line.split(" ")
    environment = {"_SDPO_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    return CliRunner().invoke(app, [], prog_name="sdpo", env=environment).stdout.split()


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ("sdpo ", [path[0] for path in COMMANDS if len(path) == 1]),
        ("sdpo co", ["config"]),
        ("sdpo data ", [path[1] for path in COMMANDS if path[0] == "data" and len(path) == 2]),
        ("sdpo config --preset ", list(preset_names())),
        ("sdpo config --preset paper_t", ["paper_test_time"]),
        ("sdpo config --from ", list(dialect_names())),
        ("sdpo config --to ", ["trl", "verl", "openrlhf"]),
        ("sdpo config teacher_up", ["teacher_update_rate=", "teacher_update_unit=", "teacher_update_every="]),
        ("sdpo train recipe.yaml success_reward_n", ["success_reward_name="]),
        ("sdpo demo --task ", ["sums", "facts", "programs"]),
        ("sdpo data jsonl --scorer m", ["math", "multiple_choice"]),
        ("sdpo data gsm8k --host ", ["trl", "verl", "openrlhf"]),
        ("sdpo estimate --host v", ["verl"]),
        ("sdpo estimate --teacher l", ["live", "lora_ema"]),
    ],
)
def test_the_tab_key(line, names):
    assert sorted(completed(line)) == sorted(names)


def test_completion_is_installed(tmp_path):
    environment = {**os.environ, "HOME": str(tmp_path), "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    done = subprocess.run(
        [script(), "--install-completion", "bash"], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    (installed,) = tmp_path.rglob("sdpo.sh")
    assert "_SDPO_COMPLETE=complete_bash" in installed.read_text()
    assert str(installed) in (tmp_path / ".bashrc").read_text()
    asked = f"source {shlex.quote(str(installed))}; complete -p sdpo"
    told = subprocess.run(["bash", "--norc", "-c", asked], capture_output=True, text=True, timeout=20)
    assert "_sdpo_completion" in told.stdout
