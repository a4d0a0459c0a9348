"""The range of TRL versions is declared once for each reader, and all of them agree."""

from __future__ import annotations

import importlib.util
import re
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from sdpo_plugins.builtin import HOSTS

ROOT = Path(__file__).resolve().parents[2]
SUPPORTED = SpecifierSet(next(host.requirement for host in HOSTS if host.name == "trl"))


@pytest.fixture
def environments(monkeypatch: pytest.MonkeyPatch) -> Any:
    spec = importlib.util.spec_from_file_location("environment_of_versions", ROOT / "scripts" / "environment.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module.ENVIRONMENTS


def pinned(environment: Any) -> str:
    pins = [Requirement(pin) for pin in environment.pins]
    (pin,) = [str(pin.specifier) for pin in pins if pin.name == "trl"]
    return pin.removeprefix("==")


def test_the_extra_asks_for_what_the_adapter_supports() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    requirements = [Requirement(line) for line in project["optional-dependencies"]["trl"]]
    assert [item.specifier for item in requirements if item.name == "trl"] == [SUPPORTED]


def test_both_ends_are_tested(environments: Any) -> None:
    oldest, newest = pinned(environments["trl-oldest"]), pinned(environments["trl"])
    lower = next(item.version for item in SUPPORTED if item.operator == ">=")
    assert oldest.startswith(f"{lower}.")
    upper = next(item.version for item in SUPPORTED if item.operator == "<")
    assert newest.split(".")[:2] == ["1", str(int(upper.split(".")[1]) - 1)]
    assert version("trl") in SUPPORTED


def test_the_guide_names_the_same_versions(environments: Any) -> None:
    guide = (ROOT / "docs" / "trl.md").read_text(encoding="utf-8")
    found = re.search(r"^TRL (\d+\.\d+) to (\d+\.\d+)\.", guide, re.MULTILINE)
    assert found is not None
    ends = [pinned(environments[name]).rpartition(".")[0] for name in ("trl-oldest", "trl")]
    assert list(found.groups()) == ends
