"""The script that finds the browser of the tests."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def script(monkeypatch, tmp_path):
    """The script, on a machine whose only programs are those in a folder."""
    spec = importlib.util.spec_from_file_location("browser_script", ROOT / "scripts" / "browser.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv(module.VARIABLE, raising=False)
    return module


def program(folder, name):
    path = folder / name
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return str(path)


def test_a_present_browser_is_used_and_the_variable_decides(script, monkeypatch, tmp_path):
    assert script.find() is None
    chrome = program(tmp_path, "google-chrome")
    assert script.find() == chrome
    chromium = program(tmp_path, "chromium")
    assert script.ensure() == chromium
    monkeypatch.setenv(script.VARIABLE, chrome)
    assert script.find() == chrome


def test_without_a_browser_the_message_says_what_to_install(script, monkeypatch, capsys):
    assert not script.may_install()  # there is no apt-get in the folder
    assert script.main() == 1
    assert "apt-get install chromium" in capsys.readouterr().err
    monkeypatch.setenv(script.VARIABLE, "nothing-there")
    assert script.main() == 1
    assert "SDPO_CHROMIUM is 'nothing-there'" in capsys.readouterr().err
