"""The fused loss equals the authors' numbers: golden logits as hidden states times random heads."""

import pytest
import torch

from fused_cases import relative_error
from golden_cases import CASES, GoldenCase
from sdpo_plugins.losses import fused_self_distillation_loss


def through_a_head(logits, seed):
    """Hidden states and an orthogonal head whose product is `logits`: h = logits·Q, W = Q."""
    size = logits.shape[-1]
    head, _ = torch.linalg.qr(
        torch.randn(size, size, dtype=logits.dtype, generator=torch.Generator().manual_seed(seed))
    )
    return (logits @ head).requires_grad_(), head.clone().requires_grad_()


@pytest.mark.parametrize("rows_per_chunk", [None, 3])
@pytest.mark.parametrize("name", sorted(CASES))
def test_golden_case_through_random_heads(name, rows_per_chunk):
    case = GoldenCase(name)
    hidden, head = through_a_head(case["student_logits"], 0)
    teacher_hidden, teacher_head = through_a_head(case["teacher_logits"], 1)
    loss, metrics = fused_self_distillation_loss(
        hidden,
        head,
        teacher_hidden,
        teacher_head,
        case["token_ids"],
        case["response_mask"],
        case.config,
        rows_per_chunk=rows_per_chunk,
        **case.options,
    )
    loss.backward()
    # ∂L/∂h = G·W and ∂L/∂W = Gᵀ·h, with the authors' G.
    logit_gradient = case["grad_student_logits"]
    flat = logit_gradient.reshape(-1, logit_gradient.shape[-1])
    assert relative_error(loss.detach(), case["loss"]) <= 1e-9
    assert relative_error(hidden.grad, logit_gradient @ head.detach()) <= 1e-9
    assert relative_error(head.grad, flat.t() @ hidden.detach().reshape(flat.shape)) <= 1e-9
    assert teacher_hidden.grad is None and teacher_head.grad is None
    assert metrics["self_distillation/empty_target_batch"].item() == float(case.is_empty)
