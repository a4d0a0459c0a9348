"""The script that makes the environments behind `make`."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def script(tmp_path, monkeypatch):
    """The script as a module, working on a copy of the project file instead of this repository."""
    spec = importlib.util.spec_from_file_location("environment_script", ROOT / "scripts" / "environment.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    monkeypatch.setattr(module, "ROOT", tmp_path)
    return module


def rewrite(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_a_changed_requirement_asks_for_a_new_environment(script, tmp_path):
    before = script.fingerprint(script.ENVIRONMENTS["trl"])
    rewrite(tmp_path / "pyproject.toml", '"pluggy>=', '"pluggy>=0.')
    assert script.fingerprint(script.ENVIRONMENTS["trl"]) != before


def test_a_changed_linter_setting_does_not(script, tmp_path):
    before = script.fingerprint(script.ENVIRONMENTS["trl"])
    rewrite(tmp_path / "pyproject.toml", "line-length = 120", "line-length = 100")
    assert script.fingerprint(script.ENVIRONMENTS["trl"]) == before


def test_a_finished_environment_is_reused(script, tmp_path, monkeypatch):
    built = []

    def build(environment, folder):
        folder.mkdir(parents=True)
        built.append(folder)

    monkeypatch.setattr(script, "build", build)
    assert script.main(["trl"]) == 0
    assert script.main(["trl"]) == 0
    assert built == [tmp_path / ".venvs" / "trl"]


def test_a_half_made_environment_is_not(script, tmp_path):
    folder = tmp_path / ".venvs" / "trl"
    folder.mkdir(parents=True)
    assert script.read_stamp(folder) is None
    (folder / script.STAMP).write_text(json.dumps({"fingerprint": "x"})[:-3])
    assert script.read_stamp(folder) is None


def test_a_failing_command_shows_its_words_and_leaves_no_stamp(script, tmp_path, monkeypatch, capfd):
    def build(environment, folder):
        folder.mkdir(parents=True)
        script.step("a step", [sys.executable, "-c", "print('no such package'); raise SystemExit(3)"])

    monkeypatch.setattr(script, "build", build)
    assert script.main(["trl"]) == 1
    assert "no such package" in capfd.readouterr().err
    assert script.read_stamp(tmp_path / ".venvs" / "trl") is None


def test_cuda_packages_without_a_gpu_are_refused(script, tmp_path, monkeypatch):
    metadata = tmp_path / "site" / "nvidia_cublas-13.0.dist-info" / "METADATA"
    metadata.parent.mkdir(parents=True)
    metadata.write_text("Metadata-Version: 2.1\nName: nvidia-cublas\nVersion: 13.0\n")
    monkeypatch.setenv("PYTHONPATH", str(metadata.parents[1]))
    with pytest.raises(script.EnvironmentProblem, match="nvidia-cublas"):
        script.refuse_cuda(sys.executable)


def make_wheel(folder: Path, name: str, requires: str = "") -> None:
    """The smallest wheel that pip takes: metadata and nothing else."""
    stem = f"{name.replace('-', '_')}-1.0"
    with zipfile.ZipFile(folder / f"{stem}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{stem}.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n{requires}")
        wheel.writestr(f"{stem}.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{stem}.dist-info/RECORD", "")


def test_the_cpu_index_is_searched_only_where_pip_would_bring_cuda(script, tmp_path, monkeypatch):
    make_wheel(tmp_path, "plain-torch")
    make_wheel(tmp_path, "nvidia-cublas")
    make_wheel(tmp_path, "cuda-torch", "Requires-Dist: nvidia-cublas\n")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]

    def arguments(name: str, gpu: bool) -> list[str]:
        return script.torch_arguments(pip, script.Environment(extras=(), torch=name), gpu)

    assert arguments("plain-torch", gpu=False) == ["plain-torch"]
    assert script.CPU_INDEX in arguments("cuda-torch", gpu=False)
    assert arguments("cuda-torch", gpu=True) == ["cuda-torch"]
    with pytest.raises(script.EnvironmentProblem, match="absent-torch"):
        arguments("absent-torch", gpu=False)


def test_make_says_what_to_do_without_python(tmp_path):
    done = subprocess.run(
        ["make", "env-trl", "PYTHON="], cwd=ROOT, capture_output=True, text=True, env={**os.environ, "LC_ALL": "C"}
    )
    assert done.returncode != 0
    assert "Python 3.11 or newer is needed" in done.stderr


def test_make_help_lists_every_target():
    done = subprocess.run(
        ["make", "--no-print-directory", "help"], cwd=ROOT, check=True, capture_output=True, text=True
    )
    listed = {line.split()[1] for line in done.stdout.splitlines()}
    assert {"demo", "test", "test-fast", "lint", "clean", "help"} <= listed
