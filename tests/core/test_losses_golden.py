"""Loss and gradient equal those of the authors' code on every recorded case."""

import pytest
import torch

from fused_cases import relative_error
from golden_cases import CASES, GoldenCase
from sdpo_plugins.losses import self_distillation_loss

KNOWN_SETTINGS = {"alpha", "topk", "tail", "full", "is_clip", "agg", "riw", "off", "scale", "gap", "sd"}


def test_there_are_33_cases_and_no_unknown_setting():
    assert len(CASES) == 33
    assert set().union(*CASES.values()) <= KNOWN_SETTINGS


@pytest.mark.parametrize("name", sorted(CASES))
def test_golden_case(name):
    case = GoldenCase(name)
    logits = case["student_logits"].clone().requires_grad_()
    loss, metrics = self_distillation_loss(
        logits, case["teacher_logits"], case["token_ids"], case["response_mask"], case.config, **case.options
    )
    loss.backward()
    assert loss.dtype == torch.float64
    assert relative_error(loss.detach(), case["loss"]) <= 1e-9
    assert relative_error(logits.grad, case["grad_student_logits"]) <= 1e-9
    assert metrics["self_distillation/empty_target_batch"].item() == float(case.is_empty)
