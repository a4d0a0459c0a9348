"""`sdpo list`."""

from __future__ import annotations

import json
import sys
import textwrap

import pytest
from typer.testing import CliRunner

from sdpo_plugins import SDPOConfig, __version__
from sdpo_plugins.cli import app
from sdpo_plugins.plugins import catalogue


def run(*arguments: str):
    return CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200"})


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Install a distribution with one plug-in, as an installer lays it out: a module and its metadata."""

    def add(name: str, source: str) -> None:
        (tmp_path / f"plugin_{name}.py").write_text(textwrap.dedent(source))
        info = tmp_path / f"sdpo_{name}-1.2.3.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: sdpo-{name}\nVersion: 1.2.3\n")
        (info / "entry_points.txt").write_text(f"[sdpo_plugins]\n{name} = plugin_{name}\n")

    monkeypatch.syspath_prepend(str(tmp_path))
    yield add
    for module in [module for module in sys.modules if module.startswith("plugin_")]:
        del sys.modules[module]


SELECTOR = """
    from sdpo_plugins import Host, Selector, hookimpl

    @hookimpl
    def sdpo_selectors():
        return [Selector({name!r}, "The last [success] of the group.", lambda config, options: None)]

    @hookimpl
    def sdpo_hosts():
        return [Host("pytest_host", "pytest", ">=1", "pytest", "pip install pytest", "For a test.")]
"""


def test_json_has_every_strategy_of_the_catalogues():
    shown = json.loads(run("list", "--json").stdout)
    assert shown["version"] == __version__
    for kind in ("divergence", "selector", "reprompter", "scorer", "teacher"):
        found = {entry["name"]: entry["summary"] for entry in shown["strategies"][f"{kind}s"]}
        assert found == {name: entry.summary for name, entry in catalogue(kind).items()}
        assert all(found.values())


def test_defaults_of_the_configuration_are_listed():
    strategies = json.loads(run("list", "--json").stdout)["strategies"]
    config = SDPOConfig()
    for kind in ("divergence", "selector", "reprompter", "teacher"):
        assert getattr(config, kind) in [entry["name"] for entry in strategies[f"{kind}s"]]


def test_json_has_the_hosts_with_versions():
    hosts = {host["name"]: host for host in json.loads(run("list", "--json").stdout)["hosts"]}
    assert list(hosts) == ["trl", "verl", "openrlhf"]
    assert hosts["trl"]["supported"] == ">=1.0,<1.17"
    assert hosts["trl"]["state"] == "ready"


def test_the_table_has_every_name():
    result = run("list")
    assert result.exit_code == 0
    shown = json.loads(run("list", "--json").stdout)
    names = [entry["name"] for entries in shown["strategies"].values() for entry in entries]
    for name in [*names, "builtin", "trl", "verl", "openrlhf"]:
        assert f"  {name} " in result.stdout


def test_an_installed_plugin_is_listed_with_what_it_offers(install):
    install("last", SELECTOR.format(name="last"))
    shown = json.loads(run("list", "--json").stdout)
    plugin = {"name": "last", "distribution": "sdpo-last", "version": "1.2.3", "problem": ""}
    assert plugin in shown["plugins"]
    entry = {"name": "last", "summary": "The last [success] of the group.", "plugin": "last"}
    assert entry in shown["strategies"]["selectors"]
    assert ("pytest_host", "ready") in [(host["name"], host["state"]) for host in shown["hosts"]]
    assert "The last [success] of the group." in run("list").stdout


def test_a_broken_plugin_is_named_and_hides_nothing(install):
    install("broken", "raise RuntimeError('no licence server')")
    install("last", SELECTOR.format(name="last"))
    install("thief", SELECTOR.format(name="first"))
    shown = json.loads(run("list", "--json").stdout)
    problems = {plugin["name"]: plugin["problem"] for plugin in shown["plugins"]}
    assert "no licence server" in problems["broken"]
    assert "'first'" in problems["thief"] and "builtin" in problems["thief"]
    assert problems["last"] == problems["builtin"] == ""
    assert [entry["plugin"] for entry in shown["strategies"]["selectors"] if entry["name"] == "first"] == ["builtin"]
    assert "no licence server" in run("list").stdout


def test_doctor_fails_on_a_broken_plugin_and_says_which(install):
    install("broken", "raise RuntimeError('no licence server')")
    result = run("doctor", "--json")
    assert result.exit_code == 1
    shown = json.loads(result.stdout)
    assert not shown["healthy"]
    (broken,) = [finding for finding in shown["findings"] if finding["state"] == "broken"]
    assert broken["subject"] == "plug-in broken"
    assert "no licence server" in broken["found"] and "sdpo-broken" in broken["advice"]
    assert run("doctor").exit_code == 1
