"""The fused loss equals the authors' numbers: golden logits as hidden states times random heads."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from sdpo_plugins.config import SDPOConfig
from sdpo_plugins.losses import fused_self_distillation_loss

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = json.loads((GOLDEN / "loss_reference.json").read_text())


@pytest.fixture(scope="module")
def arrays():
    with np.load(GOLDEN / "loss_reference.npz") as loaded:
        return {name: torch.from_numpy(loaded[name]) for name in loaded.files}


def relative_error(ours, theirs):
    scale = theirs.abs().max().item()
    difference = (ours - theirs).abs().max().item()
    return difference / scale if scale else difference


def through_a_head(logits, seed):
    """Hidden states and an orthogonal head whose product is `logits`: h = logits·Q, W = Q."""
    size = logits.shape[-1]
    head, _ = torch.linalg.qr(
        torch.randn(size, size, dtype=logits.dtype, generator=torch.Generator().manual_seed(seed))
    )
    return (logits @ head).requires_grad_(), head.clone().requires_grad_()


@pytest.mark.parametrize("rows_per_chunk", [None, 3])
@pytest.mark.parametrize("case", sorted(CASES))
def test_golden_case_through_random_heads(case, rows_per_chunk, arrays):
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
    hidden, head = through_a_head(array("student_logits"), 0)
    teacher_hidden, teacher_head = through_a_head(array("teacher_logits"), 1)
    loss, metrics = fused_self_distillation_loss(
        hidden,
        head,
        teacher_hidden,
        teacher_head,
        array("token_ids"),
        array("response_mask"),
        config,
        old_log_probs=array("old_log_probs"),
        self_distillation_mask=array("self_distillation_mask"),
        rollout_is_weights=array("rollout_is_weights") if given.get("riw") else None,
        rows_per_chunk=rows_per_chunk,
    )
    loss.backward()
    # ∂L/∂h = G·W and ∂L/∂W = Gᵀ·h, with the authors' G.
    logit_gradient = array("grad_student_logits")
    flat = logit_gradient.reshape(-1, logit_gradient.shape[-1])
    assert relative_error(loss.detach(), array("loss")) <= 1e-9
    assert relative_error(hidden.grad, logit_gradient @ head.detach()) <= 1e-9
    assert relative_error(head.grad, flat.t() @ hidden.detach().reshape(flat.shape)) <= 1e-9
    assert teacher_hidden.grad is None and teacher_head.grad is None
    assert metrics["self_distillation/empty_target_batch"].item() == float(
        (array("response_mask") * array("self_distillation_mask").unsqueeze(-1)).sum() == 0
    )
