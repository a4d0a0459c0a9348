"""The estimate against real steps of SDPOTrainer: bytes of tensors alive at once, phase by phase."""

from __future__ import annotations

import pytest

pytest.importorskip("trl")

from benchmarks import estimate_run
from benchmarks.estimate import CASES, compare
from benchmarks.estimate_run import PHASES, Case

# Weights, gradients, states and teachers are known to the byte, but for steps and the buffers of rotary embeddings.
EXACT, TOO_LOW, TOO_HIGH, MOVED = 0.002, 0.10, 0.15, 0.25
TINY = Case(layers=2, width=128, intermediate=256, heads=2, kv_heads=1, vocabulary=1024, prompt=48, completion=8)


def check(found):
    for name, (estimated, measured) in found.parts.items():
        assert estimated == pytest.approx(measured, rel=EXACT), name
    assert tuple(found.phases) == PHASES
    for phase, (estimated, measured) in found.phases.items():
        # A chunk of the loss is counted with its bound, so that errs upwards.
        assert -TOO_LOW < estimated / measured - 1 < TOO_HIGH, phase
    # What passes hold besides, where most is held.
    worst = max(found.phases, key=lambda phase: found.phases[phase][1])
    assert abs(found.moved(worst)) < MOVED, worst


def test_a_step_of_the_trainer_holds_what_is_estimated():
    def here(suite, function, **arguments):
        return getattr(estimate_run, function)(**arguments)

    check(compare(TINY, here))


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_every_case_of_the_benchmark_is_estimated(name):
    if CASES[name].lora is not None:
        pytest.importorskip("peft")
    check(compare(CASES[name]))
