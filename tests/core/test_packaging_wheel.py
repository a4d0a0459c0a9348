"""The built distributions hold what they should, and nothing of the repository beside it."""

from __future__ import annotations

import email
import importlib.metadata
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from sdpo_plugins._version import __version__
from sdpo_plugins.plugins import catalogue

ROOT = Path(__file__).resolve().parents[2]
SOURCES = {
    "sdpo_plugins": ROOT / "sdpo_plugins",
    **{name: ROOT / "adapters" / name for name in ("sdpo_trl", "sdpo_verl", "sdpo_openrlhf", "hydra_plugins")},
}

pytestmark = pytest.mark.slow


def build(output: Path, *kinds: str) -> None:
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(output), *kinds, str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel built from the working tree."""
    output = tmp_path_factory.mktemp("wheel")
    build(output, "--wheel")
    return next(output.glob("*.whl"))


@pytest.fixture(scope="module")
def distributions(tmp_path_factory) -> Path:
    """A folder with the source distribution, and the wheel built from that."""
    output = tmp_path_factory.mktemp("distributions")
    build(output)
    return output


def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def source_files() -> set[str]:
    return {
        f"{package}/{path.relative_to(folder).as_posix()}"
        for package, folder in SOURCES.items()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_wheel_has_our_packages_at_the_top_and_nothing_else(wheel):
    top = {name.partition("/")[0] for name in names(wheel)}
    assert top == {*SOURCES, f"sdpo_plugins-{__version__}.dist-info"}


def test_wheel_has_every_source_file(wheel):
    files = {name for name in names(wheel) if ".dist-info/" not in name}
    assert files == source_files()


def test_wheel_has_the_checkpoints_the_license_and_the_typing_marker(wheel):
    found = names(wheel)
    for folder in ("checkpoint", "checkpoint_code"):
        checkpoint = {Path(name).name for name in found if name.startswith(f"sdpo_plugins/embedded/{folder}/")}
        assert {"config.json", "model.safetensors", "tokenizer.json"} <= checkpoint
    assert f"sdpo_plugins-{__version__}.dist-info/licenses/LICENSE" in found
    assert "sdpo_plugins/py.typed" in found


def test_wheel_has_hydras_files_and_leaves_hydras_namespace_to_others(wheel):
    found = names(wheel)
    assert {"sdpo_verl/conf/sdpo.yaml", "sdpo_verl/conf/sdpo/default.yaml", "sdpo_verl/conf/sdpo/paper.yaml"} <= found
    ours = {name for name in found if name.startswith("hydra_plugins/")}
    assert ours == {"hydra_plugins/sdpo_search_path/__init__.py"}


def test_wheel_metadata(wheel):
    with zipfile.ZipFile(wheel) as archive:
        info = f"sdpo_plugins-{__version__}.dist-info"
        metadata = email.message_from_bytes(archive.read(f"{info}/METADATA"))
        entry_points = archive.read(f"{info}/entry_points.txt").decode()
    assert metadata["Version"] == __version__
    assert metadata["License-Expression"] == "Apache-2.0"
    assert {"trl", "verl", "openrlhf", "demo", "dev"} <= set(metadata.get_all("Provides-Extra"))
    assert "[console_scripts]\nsdpo = sdpo_plugins.cli:main\n" in entry_points
    assert "[verl.plugins]\nsdpo_verl = sdpo_verl.plugin\n" in entry_points


def test_the_wheel_of_the_source_distribution_is_the_same(wheel, distributions):
    assert names(next(distributions.glob("*.whl"))) == names(wheel)


def test_the_source_distribution_can_be_tested(distributions):
    with tarfile.open(next(distributions.glob("*.tar.gz"))) as archive:
        found = {name.partition("/")[2] for name in archive.getnames()}
    assert {"Makefile", "LICENSE", "pyproject.toml", "scripts/environment.py", "tests/conftest.py"} <= found


def test_the_installed_wheel_runs(wheel, tmp_path):
    target = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)
    code = "import sdpo_plugins, sdpo_plugins.cli as cli; print(sdpo_plugins.__file__); cli.app(['--version'])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(target)},
    )
    origin, version = done.stdout.splitlines()
    assert Path(origin).is_relative_to(target)
    assert version == f"sdpo-plugins {__version__}"


def test_extras_ask_for_the_versions_that_the_hosts_support():
    extras = [Requirement(text) for text in importlib.metadata.requires("sdpo-plugins")]
    for host in catalogue("host").values():
        if host.adapter in SOURCES:
            (requirement,) = [
                each for each in extras if each.name == host.distribution and each.marker.evaluate({"extra": host.name})
            ]
            assert requirement.specifier == SpecifierSet(host.requirement)
            assert host.install == f"pip install 'sdpo-plugins[{host.name}]'"
