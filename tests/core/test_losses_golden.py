"""Loss and gradient equal those of the authors' code on every recorded case."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from sdpo_plugins.config import SDPOConfig
from sdpo_plugins.losses import self_distillation_loss

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = json.loads((GOLDEN / "loss_reference.json").read_text())
KNOWN_SETTINGS = {"alpha", "topk", "tail", "full", "is_clip", "agg", "riw", "off", "scale", "gap", "sd"}


@pytest.fixture(scope="module")
def arrays():
    with np.load(GOLDEN / "loss_reference.npz") as loaded:
        return {name: torch.from_numpy(loaded[name]) for name in loaded.files}


def relative_error(ours, theirs):
    scale = theirs.abs().max().item()
    difference = (ours - theirs).abs().max().item()
    return difference / scale if scale else difference


def test_there_are_33_cases_and_no_unknown_setting():
    assert len(CASES) == 33
    assert set().union(*CASES.values()) <= KNOWN_SETTINGS


@pytest.mark.parametrize("case", sorted(CASES))
def test_golden_case(case, arrays):
    given = CASES[case]

    def array(name):
        return arrays[f"{case}/{name}"]

    config = SDPOConfig(
        alpha=given["alpha"],
        distillation_topk=given.get("topk"),
        distillation_add_tail=given.get("tail", True),
        full_logit_distillation=given.get("full", True),
        is_clip=given.get("is_clip"),
        loss_agg_mode=given.get("agg", "token-mean"),
    )
    logits = array("student_logits").clone().requires_grad_()
    loss, metrics = self_distillation_loss(
        logits,
        array("teacher_logits"),
        array("token_ids"),
        array("response_mask"),
        config,
        old_log_probs=array("old_log_probs"),
        self_distillation_mask=array("self_distillation_mask"),
        rollout_is_weights=array("rollout_is_weights") if given.get("riw") else None,
    )
    loss.backward()
    assert loss.dtype == torch.float64
    assert relative_error(loss.detach(), array("loss")) <= 1e-9
    assert relative_error(logits.grad, array("grad_student_logits")) <= 1e-9
    assert metrics["self_distillation/empty_target_batch"].item() == float(
        (array("response_mask") * array("self_distillation_mask").unsqueeze(-1)).sum() == 0
    )
