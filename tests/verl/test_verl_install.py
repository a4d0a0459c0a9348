"""sdpo-plugins as an installed distribution: verl and Hydra find it, and say so where they do not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from sdpo_plugins.builtin import HOSTS
from sdpo_plugins.errors import HostError
from sdpo_verl.installation import check_version, loading_problem

ROOT = Path(__file__).resolve().parents[2]
POLICY, MODULES = "VERL_USE_EXTERNAL_PLUGINS", "VERL_USE_EXTERNAL_MODULES"

# verl of another time: names that ours has are missing. Its files and metadata come first on the path.
OTHER_VERL = {
    "verl/__init__.py": "",
    "verl/trainer/__init__.py": "",
    "verl/trainer/main_ppo.py": (
        "import hydra\n"
        "@hydra.main(config_path='config', config_name='ppo_trainer', version_base=None)\n"
        "def main(config):\n    print('started')\n"
        "main()\n"
    ),
    "verl/trainer/config/ppo_trainer.yaml": "actor_rollout_ref: {actor: {}}\n",
}


def run(*command: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run Python as somebody who has installed the package, and knows nothing of this folder."""
    unset = ("PYTHONPATH", "VERL_PLATFORM", POLICY, MODULES)
    kept = {name: value for name, value in os.environ.items() if name not in unset}
    return subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env={**kept, **variables},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def distribution(folder: Path, name: str, version: str, entry_points: str = "") -> None:
    """Put metadata in front of the true distribution's."""
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "entry_points.txt").write_text(entry_points)


# Found ----------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_verl_finds_our_configuration_without_a_path(tmp_path):
    done = run("-m", "verl.trainer.main_ppo", "--config-name", "sdpo", "--cfg", "job", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "trainer_mode: sdpo" in done.stdout and "_target_: sdpo_verl.config.SDPOActorConfig" in done.stdout


@pytest.mark.slow
def test_verl_loads_the_plugin_and_its_trainer(tmp_path):
    code = (
        "import sys, verl\n"
        "print('sdpo_verl.plugin' in sys.modules, 'sdpo_verl.trainer' in sys.modules)\n"
        "from verl.trainer.ppo.v1 import get_trainer_cls\n"
        "print(get_trainer_cls('sdpo').__name__)\n"
    )
    done = run("-c", code, folder=tmp_path)
    assert done.stdout.split() == ["True", "False", "SDPOTrainer"], done.stderr


@pytest.mark.slow
def test_the_wheel_is_enough(tmp_path):
    build = [sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    site = tmp_path / "site"
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as archive:
        archive.extractall(site)
    code = (
        "import sys; from hydra import compose, initialize_config_module\n"
        "with initialize_config_module('verl.trainer.config', version_base=None):\n"
        "    print(compose('sdpo', overrides=['+sdpo=paper']).trainer.v1.trainer_mode)\n"
        "import sdpo_verl.conf, sdpo_verl.start, hydra_plugins.sdpo_search_path as found\n"
        "print(sdpo_verl.conf.__file__, sdpo_verl.start.__file__, found.__file__)\n"
    )
    # The folder of the editable installation is off the path: only what the wheel brought is left.
    without = f"import sys; sys.path[:] = [p for p in sys.path if not p.startswith({str(ROOT)!r}) or 'venvs' in p]\n"
    done = run("-c", without + code, folder=tmp_path, PYTHONPATH=str(site))
    assert done.returncode == 0, done.stderr
    mode, *files = done.stdout.split()
    assert mode == "sdpo"
    assert all(Path(file).is_relative_to(site) for file in files), files


# Not loaded -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "pieces"),
    [
        ("none", [f"{POLICY}=none turns plug-ins off", f"{POLICY}=sdpo_verl"]),
        (" None ", [f"{POLICY}=none turns plug-ins off"]),
        ("other, more", ["leaves 'sdpo_verl' out", f"{POLICY}=other,more,sdpo_verl"]),
    ],
)
def test_plugins_turned_off(monkeypatch, policy, pieces):
    monkeypatch.setenv(MODULES, "verl_cpu.platform")
    monkeypatch.setenv(POLICY, policy)
    problem = loading_problem()
    assert problem is not None and all(piece in problem for piece in pieces), problem


@pytest.mark.parametrize("policy", ["auto", "AUTO", "sdpo_verl", "other, SDPO_verl"])
def test_plugins_turned_on(monkeypatch, policy):
    monkeypatch.setenv(MODULES, "")
    monkeypatch.setenv(POLICY, policy)
    assert loading_problem() is None


def test_a_module_named_to_verl_needs_no_entry_point(monkeypatch):
    monkeypatch.setenv(POLICY, "none")
    monkeypatch.setenv(MODULES, "mine,sdpo_verl.plugin")
    assert loading_problem() is None


def test_a_missing_entry_point(tmp_path, monkeypatch):
    distribution(tmp_path, "sdpo_plugins", "0.0.1")
    monkeypatch.setenv(MODULES, "")
    monkeypatch.syspath_prepend(str(tmp_path))
    problem = loading_problem()
    assert problem is not None and "no entry point 'sdpo_verl'" in problem
    assert "pip install 'sdpo-plugins[verl]'" in problem and f"{MODULES}=sdpo_verl.plugin" in problem


def test_a_plugin_that_cannot_be_imported(tmp_path, monkeypatch):
    distribution(tmp_path, "sdpo_plugins", "0.0.1", "[verl.plugins]\nsdpo_verl = plugin_without_wrapt\n")
    (tmp_path / "plugin_without_wrapt.py").write_text("import no_such_wrapt\n")
    monkeypatch.setenv(MODULES, "")
    monkeypatch.syspath_prepend(str(tmp_path))
    problem = loading_problem()
    assert problem is not None and "ModuleNotFoundError: No module named 'no_such_wrapt'" in problem


@pytest.mark.slow
def test_the_doctor_says_it(tmp_path):
    command = ("-m", "sdpo_plugins.cli", "doctor", "--json")
    found = {
        policy: next(
            each
            for each in json.loads(run(*command, folder=tmp_path, **{POLICY: policy}).stdout)["findings"]
            if each["subject"] == "host verl"
        )
        for policy in ("auto", "none")
    }
    assert found["auto"]["state"] == "ok" and ">=0.9.0,<0.11" in found["auto"]["found"]
    assert found["none"]["state"] == "warning" and f"{POLICY}=none" in found["none"]["advice"]


# Unsupported versions -------------------------------------------------------------------------------------------------


def test_the_range_stands_in_one_place():
    (host,) = (host for host in HOSTS if host.name == "verl")
    assert host.requirement == ">=0.9.0,<0.11"
    written = [path for path in ROOT.glob("*/**/*.py") if ".venvs" not in path.parts and "tests" not in path.parts]
    assert [path.name for path in written if host.requirement in path.read_text(encoding="utf-8")] == ["builtin.py"]


def test_this_version_is_supported():
    check_version()


@pytest.mark.parametrize("version", ["0.7.1", "0.8.0", "0.11.0"])
def test_other_versions_are_refused_by_name(tmp_path, monkeypatch, version):
    distribution(tmp_path, "verl", version)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(HostError, match=rf"verl {version} is installed, but SDPO needs verl >=0\.9\.0,<0\.11\. Run:"):
        check_version()


@pytest.mark.parametrize("configuration", [("--config-name", "sdpo"), ("+sdpo=paper",)])
def test_another_verl_is_refused_before_it_starts(tmp_path, configuration):
    for name, text in OTHER_VERL.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    distribution(tmp_path, "verl", "0.8.0")
    done = run("-m", "verl.trainer.main_ppo", *configuration, folder=tmp_path, PYTHONPATH=str(tmp_path))
    assert done.returncode == 1
    assert "SDPO: verl 0.8.0 is installed, but SDPO needs verl >=0.9.0,<0.11." in done.stderr
    assert "Traceback" not in done.stderr and "started" not in done.stdout


@pytest.mark.slow
def test_another_verl_keeps_its_own_modes(tmp_path):
    distribution(tmp_path, "verl", "0.11.0")
    code = (
        "from verl.trainer.ppo.v1 import get_trainer_cls\n"
        "print(get_trainer_cls('sync').__name__)\n"
        "get_trainer_cls('sdpo')(config=None)\n"
    )
    done = run("-c", code, folder=tmp_path, PYTHONPATH=str(tmp_path))
    assert done.stdout.split() == ["PPOTrainerSync"]
    assert "HostError: verl 0.11.0 is installed, but SDPO needs verl >=0.9.0,<0.11." in done.stderr
