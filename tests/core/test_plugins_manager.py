"""Finding, loading and registering plug-ins: what is wrong is named, with what to do."""

import pytest

from sdpo_plugins import (
    ConfigError,
    Divergence,
    PluginError,
    Selector,
    hookimpl,
)
from sdpo_plugins.plugins import (
    catalogue,
    create_plugin_manager,
    installed_plugins,
    register,
)


def entry(name, kind=Divergence, **more):
    return kind(name, "For a test.", lambda config, options: (config, options), **more)


def offering(*entries):
    @hookimpl
    def sdpo_divergences():
        return list(entries)

    return sdpo_divergences


# Names


def test_unknown_plugin_lists_what_is_installed():
    with pytest.raises(ConfigError, match=r"`plugins` names 'no_such_thing', which is not installed\. Installed are:"):
        create_plugin_manager(["no_such_thing"])


def test_all_unknown_plugins_in_one_error():
    with pytest.raises(ConfigError) as caught:
        create_plugin_manager(["no_such_thing", "nor.this", "not a name"])
    assert len(caught.value.problems) == 3


def test_the_builtin_name_is_taken():
    with pytest.raises(ConfigError, match="'builtin'"):
        create_plugin_manager(["builtin"])


def test_a_plugin_that_fails_to_import(tmp_path, monkeypatch):
    (tmp_path / "sdpo_broken_plugin.py").write_text("import a_missing_dependency\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(PluginError, match=r"'sdpo_broken_plugin' could not be loaded: ModuleNotFoundError: No module"):
        create_plugin_manager(["sdpo_broken_plugin"])


def test_an_attribute_that_is_not_there(plugin):
    name = plugin(sdpo_divergences=offering())
    with pytest.raises(PluginError, match="could not be loaded: AttributeError"):
        create_plugin_manager([f"{name}:missing"])


def test_an_attribute_path(plugin):
    class Inside:
        @hookimpl
        def sdpo_selectors(self):
            return [entry("inside", Selector)]

    name = plugin(inside=Inside())
    assert catalogue("selector", [f"{name}:inside"])["inside"].provider == f"{name}:inside"


def test_a_name_given_twice_is_one_plugin(plugin):
    name = plugin(sdpo_divergences=offering(entry("twice")))
    assert "twice" in create_plugin_manager([name, name]).divergences()


def test_one_plugin_under_two_names(plugin):
    name = plugin(sdpo_divergences=offering(entry("x")))
    with pytest.raises(PluginError, match=f"'{name}:' is the same as the plug-in '{name}'"):
        create_plugin_manager([name, f"{name}:"])


# Hooks


def test_misspelt_hook_names_plugin_hook_and_nearest(plugin):
    name = plugin(sdpo_divergence=hookimpl(lambda: iter(())))
    with pytest.raises(PluginError) as caught:
        create_plugin_manager([name])
    text = str(caught.value)
    assert f"'{name}' implements the hook `sdpo_divergence`, which does not exist" in text
    assert "Did you mean 'sdpo_divergences'?" in text
    assert "sdpo_attach" in text


def test_a_hook_without_the_mark(plugin):
    name = plugin(sdpo_divergences=lambda: iter(()))
    with pytest.raises(PluginError, match="`sdpo_divergences` without the `@hookimpl` mark"):
        create_plugin_manager([name])


def test_a_plugin_without_hooks(plugin):
    name = plugin(helper=lambda: None)
    with pytest.raises(PluginError, match=f"'{name}' implements no hook"):
        create_plugin_manager([name])


def test_an_argument_that_the_hook_does_not_have(plugin):
    @hookimpl
    def sdpo_validate(config, hostname):
        return []

    name = plugin(sdpo_validate=sdpo_validate)
    with pytest.raises(PluginError, match=r"(?s)'sdpo_test.*sdpo_validate.*hostname"):
        create_plugin_manager([name])


def test_a_hook_that_raises_is_named_and_chained(plugin):
    @hookimpl
    def sdpo_divergences():
        raise RuntimeError("no disk")

    name = plugin(sdpo_divergences=sdpo_divergences)
    with pytest.raises(PluginError, match=f"'{name}', hook `sdpo_divergences`, raised RuntimeError: no disk") as caught:
        catalogue("divergence", [name])
    assert isinstance(caught.value.__cause__, RuntimeError)


# The registry


def test_installed_plugins_marks_the_active(plugin):
    name = plugin(sdpo_divergences=offering())
    found = {each.name: each for each in installed_plugins([name])}
    assert found["builtin"].active and found["builtin"].distribution == "sdpo-plugins"
    assert found[name].active
    assert name not in {each.name for each in installed_plugins()}


def test_register_on_a_manager_of_ones_own():
    class Mine:
        @hookimpl
        def sdpo_selectors(self):
            return [entry("mine", Selector)]

    manager = create_plugin_manager()
    register(manager, Mine(), "mine")
    assert manager.selectors()["mine"].provider == "mine"
    assert "mine" not in create_plugin_manager().selectors()
    with pytest.raises(PluginError, match="'mine' is the same as the plug-in 'mine'"):
        register(manager, Mine(), "mine")
