"""A third party's scorer in workers: the example plug-in, as any user of it would have it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sdpo_plugins import ConfigError, DataError
from sdpo_plugins.feedback import for_openrlhf, for_trl, for_verl
from sdpo_plugins.testing import check_scorer

EXAMPLE = Path(__file__).parents[1] / "example_plugin"


@pytest.fixture(autouse=True)
def example(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(EXAMPLE)
    yield
    sys.modules.pop("sdpo_renyi", None)


def test_its_scorer_in_trl_with_workers() -> None:
    reward = for_trl("estimate", plugins=["sdpo_renyi"], workers=2, progress=False, tolerance=0.05)
    answers = ["about 100", "96", "90", "110 or so", "no idea"]
    logged: dict[str, list[str]] = {}
    found = reward(["?"] * 5, answers, ground_truth=["100"] * 5, log_extra=logged.__setitem__)
    assert found == [1.0, 1.0, 0.0, 0.0, 0.0]
    assert logged["feedback"] == ["", "", "90 is too low.", "110 is too high.", "There is no number in the answer."]
    with pytest.raises(DataError, match="needs a number as `ground_truth`"):
        reward(["?"], ["100"], ground_truth=["many"])
    reward.close()


def test_its_scorer_in_the_other_hosts() -> None:
    found = for_verl("estimate", plugins=["sdpo_renyi"], workers=1)("d", "90", 100)
    assert (found["score"], found["feedback"]) == (1.0, "")
    found = for_openrlhf("estimate", plugins=["sdpo_renyi"], workers=1)(["? 80<|im_end|>"], ["? "], ["100"])
    assert found["rewards"].tolist() == [0.0] and found["extra_logs"]["feedback"] == ["80 is too low."]


def test_its_options_are_checked_like_our_own() -> None:
    with pytest.raises(ConfigError, match=r"`scorer_options.tolerance` must be at least 0, got -1"):
        for_trl("estimate", plugins=["sdpo_renyi"], tolerance=-1)
    with pytest.raises(ConfigError, match="`scorer` must be one of"):
        for_trl("estimate")


def test_it_keeps_the_contract() -> None:
    import sdpo_renyi

    (entry,) = sdpo_renyi.sdpo_scorers()
    check_scorer(entry, [{"ground_truth": "100"}], correct=["100"])
