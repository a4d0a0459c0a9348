"""Hooks that are asked during a run: problems of a configuration, metrics, whose trainer this is."""

import dataclasses

import pytest

from sdpo_plugins import (
    ConfigError,
    Host,
    HostError,
    PluginError,
    SDPOConfig,
    TeacherContexts,
    hookimpl,
)
from sdpo_plugins.plugins import (
    attach,
    catalogue,
    create_plugin_manager,
    extra_metrics,
    host_status,
    load_adapter,
    validate,
)

# Validation


def test_problems_of_all_plugins_and_the_host_together(plugin):
    seen = []

    @hookimpl
    def sdpo_validate(config, host):
        seen.append(host)
        return [f"alpha is {config.alpha}"]

    names = [plugin(sdpo_validate=sdpo_validate), plugin(sdpo_validate=hookimpl(lambda: ["never good enough"]))]
    with pytest.raises(ConfigError) as caught:
        validate(SDPOConfig(plugins=names, selector="nope"), host="tlr")
    assert [problem.split(".")[0] for problem in caught.value.problems[-2:]] == ["alpha is 0", "never good enough"]
    assert "`selector` must be one of" in str(caught.value)
    assert "`host` must be one of 'trl', 'verl', 'openrlhf', got 'tlr'. Did you mean 'trl'?" in str(caught.value)
    assert seen == ["tlr"]


@pytest.mark.parametrize("given", ["a text", [1], None])
def test_validate_must_give_texts(plugin, given):
    name = plugin(sdpo_validate=hookimpl(lambda: given))
    with pytest.raises(PluginError, match=f"'{name}', hook `sdpo_validate`, must return a list of texts"):
        validate(SDPOConfig(plugins=[name]))


def test_validate_takes_ours():
    validate(SDPOConfig(), host="trl")
    validate(SDPOConfig())


# Metrics


def metrics_of(plugin, *results, contexts=TeacherContexts((), {})):  # noqa: B008  frozen
    names = [plugin(sdpo_metrics=hookimpl(lambda result=result: result)) for result in results]
    return names, SDPOConfig(plugins=names), contexts


def test_metrics_are_merged(plugin):
    _, config, contexts = metrics_of(plugin, {"a/x": 1}, {"b/x": 0.5})
    assert extra_metrics(config, [], contexts) == {"a/x": 1.0, "b/x": 0.5}
    assert extra_metrics(SDPOConfig(), [], contexts) == {}


def test_duplicate_metrics_name_both(plugin):
    names, config, contexts = metrics_of(plugin, {"x": 1}, {"x": 2})
    with pytest.raises(PluginError, match=f"'{names[1]}'.*metric 'x', which '{names[0]}' gives too"):
        extra_metrics(config, [], contexts)


def test_metrics_of_the_core_are_taken(plugin):
    key = "self_distillation/reprompt_sample_fraction"
    _, config, contexts = metrics_of(plugin, {key: 1.0}, contexts=TeacherContexts((), {key: 0.5}))
    with pytest.raises(PluginError, match="which 'sdpo_plugins' gives too"):
        extra_metrics(config, [], contexts)


@pytest.mark.parametrize("result", [{"x": float("nan")}, {"x": "1"}, {"x": True}, [1], None])
def test_metrics_must_be_finite_numbers(plugin, result):
    _, config, contexts = metrics_of(plugin, result)
    with pytest.raises(PluginError, match=r"must be a finite number|must return a dict of numbers"):
        extra_metrics(config, [], contexts)


# Hosts


def test_attach_asks_and_the_first_answer_counts(plugin):
    mine = Host("mine", "pluggy", ">=1", "json", "pip install mine")
    name = plugin(sdpo_attach=hookimpl(lambda target: mine if target == "mine" else None))
    assert attach("mine", [name]).__name__ == "json"
    with pytest.raises(HostError, match=r"No host knows what to do with a builtins\.str; the hosts are trl, verl"):
        attach("other", [name])


def test_attach_must_give_a_host(plugin):
    name = plugin(sdpo_attach=hookimpl(lambda target: "trl"))
    with pytest.raises(PluginError, match="must return a Host or None, got 'trl'"):
        attach(object(), [name])


def test_trl_trainers_are_ours_without_importing_trl():
    class SomeTrainer:
        pass

    SomeTrainer.__module__ = "trl.trainer.grpo_trainer"
    derived = type("Mine", (SomeTrainer,), {"__module__": "my_code"})
    assert create_plugin_manager().hook.sdpo_attach(target=derived()).name == "trl"


def test_host_status_and_missing_hosts():
    hosts = catalogue("host")
    assert host_status(hosts["trl"]).installed
    assert host_status(hosts["openrlhf"]).adapter
    old = dataclasses.replace(hosts["trl"], requirement="<0.1", adapter="json")
    assert not host_status(old).supported
    with pytest.raises(HostError, match=r"trl <0\.1 is needed, but version .* is installed\. Run: pip install"):
        load_adapter(old)
    absent = Host("x", "no-such-distribution", ">=1", "json", "pip install x")
    with pytest.raises(HostError, match=r"but it is not installed\. Run: pip install x"):
        load_adapter(absent)
    with pytest.raises(HostError, match="adapter 'no_such_adapter' for x is not installed here"):
        load_adapter(dataclasses.replace(absent, adapter="no_such_adapter"))
