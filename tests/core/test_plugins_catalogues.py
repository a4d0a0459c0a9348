"""What plug-ins offer is typed and checked; strategies and their options are chosen by name."""

import dataclasses
from dataclasses import dataclass

import pytest

from sdpo_plugins import (
    ConfigError,
    Divergence,
    PluginError,
    SDPOConfig,
    Selector,
    TeacherContexts,
    hookimpl,
    option,
)
from sdpo_plugins.plugins import (
    build_divergence,
    build_scorer,
    build_selector,
    build_teacher,
    catalogue,
    resolve,
    validate,
)
from sdpo_plugins.types import Score, Scorer


def entry(name, kind=Divergence, **more):
    return kind(name, "For a test.", lambda config, options: (config, options), **more)


def offering(*entries):
    @hookimpl
    def sdpo_divergences():
        return list(entries)

    return sdpo_divergences


# Catalogues


@pytest.mark.parametrize(
    ("given", "piece"),
    [
        (None, "must return a list of Divergence, got None"),
        ({"renyi": 1}, "must return a list of Divergence"),
        ("renyi", "must return a list of Divergence"),
        (["renyi"], "entries of type Divergence, got 'renyi'"),
        ([entry("x", Selector)], "entries of type Divergence"),
        ([entry("")], "non-empty text"),
        ([entry(3)], "non-empty text"),
        ([Divergence("x", "", "not callable")], "`build` of 'x' must be callable"),
        ([entry("x", options=dict)], "`options` of 'x' must be a dataclass or None"),
    ],
)
def test_entries_of_the_wrong_type(plugin, given, piece):
    name = plugin(sdpo_divergences=hookimpl(lambda: given))
    with pytest.raises(PluginError) as caught:
        catalogue("divergence", [name])
    assert piece in str(caught.value)
    assert f"Plug-in {name!r}, hook `sdpo_divergences`" in str(caught.value)


def test_two_providers_of_one_name_are_both_named(plugin):
    one, two = plugin(sdpo_divergences=offering(entry("same"))), plugin(sdpo_divergences=offering(entry("same")))
    with pytest.raises(PluginError, match=f"provide the divergence 'same': '{one}' and '{two}'"):
        catalogue("divergence", [one, two])


def test_a_plugin_cannot_replace_ours(plugin):
    name = plugin(sdpo_divergences=offering(entry("js")))
    with pytest.raises(PluginError, match=f"'js': 'builtin' and '{name}'"):
        resolve(SDPOConfig(plugins=[name]))


def test_unknown_catalogue():
    with pytest.raises(ConfigError, match="no catalogue 'divergences'; there are divergence, selector"):
        catalogue("divergences")


def test_entries_know_their_provider(plugin):
    name = plugin(sdpo_divergences=offering(entry("mine")))
    found = catalogue("divergence", [name])
    assert found["mine"].provider == name
    assert found["js"].provider == "builtin"


# Choosing and options


@dataclass(frozen=True)
class Options:
    order: float = option(0.5, "Order.", low=0.0, exclusive=True)
    mode: str = option("a", "Mode.", choices=("a", "b"))
    needed: int = dataclasses.field(kw_only=True)

    def __post_init__(self):
        if self.order == 1.0:
            raise ValueError("order 1 divides by zero")


def with_options(plugin):
    return plugin(sdpo_divergences=offering(entry("opt", options=Options)))


def test_unknown_strategies_in_one_error():
    with pytest.raises(ConfigError) as caught:
        resolve(SDPOConfig(divergence="jsd", selector="fist", reprompter="tmpl", teacher="EMA"))
    assert len(caught.value.problems) == 4
    text = str(caught.value)
    assert "`teacher` must be one of 'ema', 'frozen', 'live', 'trust_region', 'lora_ema', got 'EMA'" in text
    assert "Did you mean 'ema'?" in text
    assert "Did you mean 'first'?" in text


def test_options_reach_build(plugin):
    config = SDPOConfig(
        plugins=[with_options(plugin)], divergence="opt", divergence_options={"order": 2, "needed": 3, "mode": "b"}
    )
    built_with, options = build_divergence(config)
    assert built_with == config
    assert options == Options(order=2.0, mode="b", needed=3)
    assert isinstance(options.order, float)


def test_all_problems_of_options_in_one_error(plugin):
    config = SDPOConfig(
        plugins=[with_options(plugin)],
        divergence="opt",
        divergence_options={"oder": 1, "order": 0, "mode": "c"},
        selector_options={"seed": 1},
    )
    with pytest.raises(ConfigError) as caught:
        validate(config)
    text = str(caught.value)
    assert "`divergence_options.oder` is no option of the divergence 'opt'" in text
    assert "Did you mean 'order'?" in text
    assert "`divergence_options.order` must be greater than 0, got 0" in text
    assert "`divergence_options.mode` must be one of 'a', 'b', got 'c'" in text
    assert "`divergence_options.needed` is missing" in text
    assert "`selector_options.seed` is no option of the selector 'first'; it has none" in text
    assert len(caught.value.problems) == 5


def test_the_options_own_check(plugin):
    config = SDPOConfig(
        plugins=[with_options(plugin)], divergence="opt", divergence_options={"order": 1.0, "needed": 1}
    )
    with pytest.raises(ConfigError, match="`divergence_options` of the divergence 'opt': order 1 divides by zero"):
        resolve(config)


def test_strategies_are_built_once_and_fresh():
    config = SDPOConfig()
    assert build_divergence(config) is build_divergence(SDPOConfig())
    assert build_teacher(config) is not build_teacher(config)
    strategies = resolve(config)
    assert strategies.selector(0, (4, 5), []) == 4 == build_selector(config)(0, (4, 5), [])
    assert strategies.reprompter([]) == TeacherContexts((), strategies.reprompter([]).metrics)
    with pytest.raises(dataclasses.FrozenInstanceError):
        strategies.teacher = None


def test_scorers_by_name(plugin):
    @hookimpl
    def sdpo_scorers():
        return [Scorer("exact", "", lambda config, options: lambda text, row: Score(float(text == row["answer"])))]

    config = SDPOConfig(plugins=[plugin(sdpo_scorers=sdpo_scorers)])
    assert build_scorer(config, "exact")("4", {"answer": "4"}) == Score(1.0)
    with pytest.raises(ConfigError, match=r"`scorer` must be one of .*'exact', got 'exat'\. Did you mean 'exact'"):
        build_scorer(config, "exat")
    with pytest.raises(ConfigError, match=r"`scorer_options\.a` is no option"):
        build_scorer(config, "exact", {"a": 1})


def test_options_of_a_plugin_selector_survive_the_check_of_prompts(plugin):
    from sdpo_plugins.reprompt import check_prompts

    @hookimpl
    def sdpo_selectors():
        return [entry("opt", Selector, options=Options)]

    name = plugin(sdpo_selectors=sdpo_selectors)
    config = SDPOConfig(plugins=[name], selector="opt", selector_options={"needed": 1})
    assert check_prompts(["1+1="], config=config, render=lambda text: list(text)) == []
