"""`sdpo train`, `sdpo demo`, and what is common to all commands."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from typer.testing import CliRunner

from console_script import script
from sdpo_plugins import SDPOError, __version__
from sdpo_plugins.cli import app

PLUGIN = """
    from sdpo_plugins import Host, hookimpl

    @hookimpl
    def sdpo_hosts():
        return [
            Host("parrot", "pytest", ">=1", "parrot_adapter", "pip install parrot"),
            Host("future", "pytest", ">=999", "parrot_adapter", "pip install 'parrot>=999'"),
            Host("absent", "no-such-distribution", ">=1", "parrot_adapter", "pip install absent"),
            Host("bare", "pytest", ">=1", "parrot_plugin", "pip install bare"),
        ]
"""
RECIPE = """
    import json, os
    from pathlib import Path

    def train(config_path, overrides):
        assert isinstance(config_path, Path)
        Path(os.environ["PARROT"]).write_text(json.dumps([str(config_path), overrides]))
        if "fail=loudly" in overrides:
            raise ValueError("a bug in the adapter")
"""


@pytest.fixture
def parrot(tmp_path, monkeypatch):
    """A host whose adapter writes down what it is given; a third party's, so it comes by a plug-in."""
    package = tmp_path / "site" / "parrot_adapter"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "recipe.py").write_text(textwrap.dedent(RECIPE))
    (tmp_path / "site" / "parrot_plugin.py").write_text(textwrap.dedent(PLUGIN))
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setenv("PARROT", str(tmp_path / "heard.json"))
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("parrot_")]:
        del sys.modules[name]


def recipe(folder: Path, text: str) -> str:
    path = folder / "recipe.yaml"
    path.write_text(textwrap.dedent(text))
    return str(path)


def run(*arguments: str):
    return CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200"})


def refused(*arguments: str) -> str:
    result = run(*arguments)
    assert result.exit_code == 2
    assert "Traceback" not in result.output
    return result.stderr


def test_train_hands_recipe_and_overrides_to_the_adapter_of_the_host(parrot):
    path = recipe(parrot, "host: parrot\nplugins: [parrot_plugin]\nlr: 1.0e-3\n")
    result = run("train", path, "lr=3e-4", "sdpo.alpha=1.0")
    assert result.exit_code == 0, result.output
    assert json.loads((parrot / "heard.json").read_text()) == [path, ["lr=3e-4", "sdpo.alpha=1.0"]]


def test_an_override_may_choose_the_host(parrot):
    path = recipe(parrot, "host: absent\nplugins: [parrot_plugin]\n")
    assert run("train", path, "host=parrot").exit_code == 0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("host: future\nplugins: [parrot_plugin]", [">=999", "is installed", "pip install 'parrot>=999'"]),
        ("host: absent\nplugins: [parrot_plugin]", ["not installed", "pip install absent"]),
        ("host: bare\nplugins: [parrot_plugin]", ["'bare'", "parrot_plugin.recipe"]),
        ("host: trlx", ["'trlx'", "'trl'", "Did you mean 'trl'?"]),
        ("host: parrot", ["'parrot'", "plugins"]),
        ("lr: 1", ["host: trl", "None"]),
        ("host: [trl]", ["host: trl", "['trl']"]),
        ("- trl", ["mapping", "list"]),
        ("host: trl\nplugins: parrot_plugin", ["`plugins`", "list", "'parrot_plugin'"]),
        ("host: trl\nplugins: [parot_plugin]", ["'parot_plugin'"]),
        ("host: {", ["not a YAML file"]),
    ],
)
def test_a_recipe_that_cannot_run_is_refused_with_the_way_out(parrot, text, words):
    message = refused("train", recipe(parrot, text))
    assert message.startswith("error: ")
    for word in words:
        assert word in message
    assert not (parrot / "heard.json").exists()


def test_every_malformed_override_is_named(parrot):
    message = refused("train", recipe(parrot, "host: parrot"), "lr", "seed=1", "=3")
    assert "'lr'" in message and "'=3'" in message and "seed" not in message


def test_a_missing_recipe_is_refused(tmp_path):
    assert "nowhere.yaml" in refused("train", str(tmp_path / "nowhere.yaml"))


def test_debug_shows_the_stack_trace(parrot):
    result = run("--debug", "train", recipe(parrot, "host: absent\nplugins: [parrot_plugin]"))
    assert isinstance(result.exception, SDPOError)


def test_a_bug_is_not_hidden(parrot):
    result = run("train", recipe(parrot, "host: parrot\nplugins: [parrot_plugin]"), "fail=loudly")
    assert isinstance(result.exception, ValueError)


def test_demo_names_an_unknown_task_and_the_nearest():
    message = refused("demo", "--task", "summs", "--task", "facts", "--task", "poems")
    assert "Did you mean 'sums'?" in message and "'poems'" in message and "Unknown task 'facts'" not in message


def test_demo_wants_at_least_one_seed():
    assert "--seeds" in refused("demo", "--seeds", "0")


@pytest.mark.parametrize(
    "arguments", [["--help"], ["train", "--help"], ["demo", "--help"], ["list", "-h"], ["doctor", "-h"]]
)
def test_help_has_examples(arguments):
    result = run(*arguments)
    assert result.exit_code == 0
    assert "sdpo demo" in result.stdout or f"sdpo {arguments[0]}" in result.stdout


def test_version():
    assert run("--version").stdout == f"sdpo-plugins {__version__}\n"


@pytest.mark.parametrize(("typed", "names"), [("s", ["sums"]), ("p", ["programs"])])
def test_task_names_complete_on_the_tab_key(typed, names):
    environment = {
        **os.environ,
        "_SDPO_COMPLETE": "complete_bash",
        "COMP_WORDS": f"sdpo demo --task {typed}",
        "COMP_CWORD": "3",
    }
    done = subprocess.run([script()], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == names


def test_the_console_script(tmp_path):
    done = subprocess.run([script(), "list", "--json"], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert json.loads(done.stdout)["version"] == __version__
    done = subprocess.run([script(), "train", "nowhere.yaml"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert "nowhere.yaml" in done.stderr and "Traceback" not in done.stderr
