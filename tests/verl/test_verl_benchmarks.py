"""The benchmark inside of verl runs at toy size, what it compares computes the same thing, and its tables are right."""

from __future__ import annotations

import math
from typing import Any

import pytest

from benchmarks import report, verl

TOY = verl.EngineShape(rows=2, prompt=6, context=3, response=5, vocabulary=1200, width=32, top_k=8)


def here(suite: str, function: str, **arguments: Any) -> dict[str, Any]:
    """Run in this process what a measurement runs in a fresh one, but for fused kernels: they change a class."""
    arguments["method"] = arguments["method"].removesuffix("_fused")
    return getattr(verl, function)(**arguments)


@pytest.fixture(scope="module")
def costs(one_rank: None) -> dict[str, dict[str, Any]]:
    return verl.run_engine(TOY, 1, threads=1, tell=lambda line: None, call=here)


def test_every_method_runs_and_those_that_must_agree(costs: dict[str, dict[str, Any]]) -> None:
    assert list(costs) == list(verl.METHODS)
    for name, values in costs.items():
        assert values["cpu_seconds"] > 0 and math.isfinite(values["loss"])
        assert (values["gradient_norm"] > 0) is not name.startswith("log_probs"), name
    assert costs["sdpo"]["loss"] > 0
    assert costs["sdpo"]["loss"] == pytest.approx(costs["sdpo_logits"]["loss"], rel=1e-5)
    assert costs["sdpo"]["gradient_norm"] == pytest.approx(costs["sdpo_logits"]["gradient_norm"], rel=1e-5)


def test_a_method_that_computes_something_else_is_refused() -> None:
    def call(suite: str, function: str, method: str, **_: Any) -> dict[str, Any]:
        return {"loss": 1.0, "gradient_norm": 2.01 if method == "sdpo" else 2.0, "cpu_seconds": 1.0, "peak_mb": 1.0}

    with pytest.raises(AssertionError, match=r"sdpo found gradient_norm 2.01, sdpo_logits 2.0"):
        verl.run_engine(TOY, 1, tell=lambda line: None, call=call)


def test_tables_have_medians_ranges_and_ratios(costs: dict[str, dict[str, Any]]) -> None:
    runs = {
        "sync": {name: [1.0, 3.0, 2.0] for name in verl.TIMINGS},
        "sdpo": {name: [5.0, 2.0, 3.0] for name in verl.TIMINGS},
    }
    text = report.verl_runs_report(runs)
    assert "| `update_actor` | 2.000 | 1.000–3.000 | 3.000 | 2.000–5.000 | 1.50 × |" in text
    assert "3 and 3 steps." in text
    same = {"cpu_seconds": 2.0, "wall_seconds": 2.5, "peak_mb": 100.0}
    known = {name: {**values, **same} for name, values in costs.items()}
    known["sdpo"] |= {"cpu_seconds": 3.0, "peak_mb": 25.0}
    assert "| SDPO | 3.0 | 1.50 × | 2.5 | 25 | 0.25 × |" in report.verl_engine_report(known)
