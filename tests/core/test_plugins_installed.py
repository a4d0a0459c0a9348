"""The example plug-in, built and installed as a user's would be, and used from a plain configuration."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "tests" / "example_plugin"


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Install a copy of the example into a folder of its own, without network."""
    folder = tmp_path_factory.mktemp("installed")
    source = shutil.copytree(EXAMPLE, folder / "source", ignore=shutil.ignore_patterns("__pycache__"))
    target = folder / "site"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run([*command, "--target", str(target), str(source)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return target


def run(code, *paths):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, [*paths, ROOT]))}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=300, cwd=ROOT.parent
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


USE = """
import json
from sdpo_plugins import Rollout, SDPOConfig, resolve, validate
from sdpo_plugins.plugins import extra_metrics
import torch
config = SDPOConfig.from_mapping({
    "plugins": ["renyi"], "divergence": "renyi", "divergence_options": {"order": 2}, "selector": "longest"
})
validate(config, host="trl")
again = SDPOConfig.from_mapping(json.loads(json.dumps(config.to_mapping())))  # what a worker gets
strategies = resolve(again)
student, teacher = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.25, 0.75]).log()
rollouts = [Rollout(0, "q", a, r) for a, r in (("x", 0.0), ("short", 1.0), ("a longer answer", 1.0))]
contexts = strategies.reprompter(rollouts)
print(json.dumps({
    "divergence": float(strategies.divergence(student, teacher)),
    "chosen": [context.demonstration_index for context in contexts.contexts],
    "metrics": extra_metrics(again, rollouts, contexts),
}))
"""

INSPECT = """
import json, sys
from sdpo_plugins import SDPOConfig, installed_plugins, validate
from sdpo_plugins.plugins import catalogue
validate(SDPOConfig())
found = {each.name: [each.distribution, each.version, each.active] for each in installed_plugins()}
problem = ""
try:
    validate(SDPOConfig(divergence="renyi"))
except ValueError as error:
    problem = str(error)
print(json.dumps({
    "plugins": found, "divergences": sorted(catalogue("divergence")), "selectors": sorted(catalogue("selector")),
    "imported": "sdpo_renyi" in sys.modules, "problem": problem, "torch": "torch" in sys.modules,
}))
"""


def test_used_from_a_configuration(installed):
    result = run(USE, installed)
    # D_2(T‖S) = log Σ T²/S = log(0.0625/0.5 + 0.5625/0.5) = log 1.25
    assert result["divergence"] == pytest.approx(0.22314355, abs=1e-6)
    assert result["chosen"] == [2, 2, 1]
    assert result["metrics"] == {"renyi/distinct_demonstrations": 2.0}


def test_installing_without_naming_changes_nothing(installed):
    without, beside = run(INSPECT), run(INSPECT, installed)
    assert beside["plugins"].pop("renyi") == ["sdpo-renyi", "0.1.0", False]
    assert without["plugins"] == beside["plugins"]
    assert without["divergences"] == beside["divergences"]
    assert without["selectors"] == beside["selectors"]
    assert not beside["imported"]
    assert "If a plug-in provides it, name the plug-in in `plugins`." in beside["problem"]


def test_a_misspelt_name_suggests_the_installed(installed):
    code = """
import json
from sdpo_plugins import ConfigError, create_plugin_manager
try:
    create_plugin_manager(["reny"])
except ConfigError as error:
    print(json.dumps(str(error)))
"""
    assert "Installed are: 'renyi'. Did you mean 'renyi'?" in run(code, installed)


def test_two_distributions_with_one_name(installed, tmp_path):
    other = tmp_path / "sdpo_other-1.0.dist-info"
    other.mkdir()
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: sdpo-other\nVersion: 1.0\n")
    (other / "entry_points.txt").write_text("[sdpo_plugins]\nrenyi = sdpo_other\n")
    code = """
import json
from sdpo_plugins import PluginError, create_plugin_manager
try:
    create_plugin_manager(["renyi"])
except PluginError as error:
    print(json.dumps(str(error)))
"""
    assert run(code, installed, tmp_path) == (
        "Two distributions provide a plug-in 'renyi': sdpo-other and sdpo-renyi. Uninstall one of them."
    )


def test_importing_the_core_and_choosing_needs_no_torch(installed):
    assert not run(INSPECT, installed)["torch"]
