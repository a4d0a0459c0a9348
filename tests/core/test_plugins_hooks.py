"""Every hook is documented with an example that runs, and is implemented by ours or the example plug-in."""

import doctest
import inspect
import sys
from pathlib import Path

import pytest

from sdpo_plugins import hookspecs
from sdpo_plugins.plugins import create_plugin_manager
from sdpo_plugins.types import Host, Score, TeacherContext

EXAMPLE = Path(__file__).parents[1] / "example_plugin"
MY_HOST = Host("mine", "mine", ">=1", "mine", "pip install mine")
HOOKS = {name: spec for name, spec in vars(hookspecs).items() if name.startswith("sdpo_")}

# Hooks with no implementation in the package or the example: the tests that exercise them.
EXERCISED_ELSEWHERE = {"sdpo_scorers": "test_plugins_catalogues.py"}


@pytest.fixture
def manager(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLE)
    yield create_plugin_manager(["sdpo_renyi"])
    sys.modules.pop("sdpo_renyi", None)


def test_the_design_names_these_hooks():
    assert set(HOOKS) == {
        "sdpo_divergences",
        "sdpo_selectors",
        "sdpo_reprompters",
        "sdpo_scorers",
        "sdpo_teachers",
        "sdpo_hosts",
        "sdpo_validate",
        "sdpo_metrics",
        "sdpo_attach",
    }


@pytest.mark.parametrize("name", HOOKS)
def test_documented(name):
    documentation = inspect.getdoc(HOOKS[name]) or ""
    assert documentation.splitlines()[0].endswith(".")
    assert "Returns:" in documentation
    assert "Example:" in documentation
    for argument in inspect.signature(HOOKS[name]).parameters:
        assert f"    {argument}: " in documentation, f"{name} does not document {argument}"


@pytest.mark.parametrize("name", HOOKS)
def test_the_example_is_an_implementation_that_registers(name):
    source = inspect.getdoc(HOOKS[name])
    names = {
        **vars(hookspecs),
        "Score": Score,
        "TeacherContext": TeacherContext,
        "MY_HOST": Host("m", "m", "", "m", ""),
    }
    (example,) = doctest.DocTestParser().get_examples(source)
    exec(example.source, names)
    plugin = type("Example", (), {name: staticmethod(names[name])})
    manager = create_plugin_manager()
    manager.register(plugin, "example")
    manager.check_pending()
    assert "example" in {each.plugin_name for each in getattr(manager.hook, name).get_hookimpls()}


@pytest.mark.parametrize("name", HOOKS)
def test_implemented(manager, name):
    if name in EXERCISED_ELSEWHERE:
        text = (Path(__file__).parent / EXERCISED_ELSEWHERE[name]).read_text(encoding="utf-8")
        assert f"def {name}(" in text
    else:
        assert getattr(manager.hook, name).get_hookimpls()
