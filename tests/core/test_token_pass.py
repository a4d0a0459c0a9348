"""The passes over chosen tokens, on a bare model: the same loss and gradient as from whole logits."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from sdpo_plugins import SDPOConfig
from sdpo_plugins.causal_lm import split_model
from sdpo_plugins.embedded import checkpoint_path
from sdpo_plugins.host_term import HostTerm
from sdpo_plugins.inside import loss_inside
from sdpo_plugins.losses import gather_log_probs, self_distillation_loss
from sdpo_plugins.plugins import resolve
from sdpo_plugins.teacher import local_tensors
from sdpo_plugins.token_pass import ChosenTokens, TeacherStates, student_loss, teacher_states

TEMPERATURE, SHARE = 1.25, 0.3


@pytest.mark.parametrize("teacher", ["frozen", "live", "trust_region"])
@pytest.mark.parametrize("hybrid", [False, True])
def test_loss_and_gradient_are_those_of_whole_logits(teacher: str, hybrid: bool) -> None:
    config = SDPOConfig(teacher=teacher, distillation_topk=7, teacher_update_rate=0.25)
    strategies = resolve(config)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(checkpoint_path(), dtype=torch.float64)
    tensors, split, kept = local_tensors(model), split_model(model), strategies.teacher
    kept.start(tensors)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.1 * weight.std() * torch.randn_like(weight)
    read, told = torch.randint(5, 1000, (1, 9)), torch.randint(5, 1000, (1, 12))
    told[:, -4:] = read[:, -4:]
    ids, old = read[:, -4:], -torch.rand(1, 4, dtype=torch.float64)

    model.train()
    scored = teacher_states(
        model,
        model,
        split,
        kept,
        tensors,
        lambda: split.body(told, use_cache=False).last_hidden_state[0],
        torch.arange(7, 11),
    )
    assert model.training and len(scored.hidden) == len(kept.passes)
    weight = (1 - SHARE if hybrid else 1.0) / 4
    row, position = torch.zeros(4, dtype=torch.long), torch.arange(4)
    chosen = ChosenTokens(ids[0], row, position, ids.shape, torch.full((4,), weight), old[0])
    host = HostTerm(SHARE, lambda log_probs, _: -log_probs.mean()) if hybrid else None

    def student() -> tuple[torch.Tensor, object]:
        states = split.body(read, use_cache=False).last_hidden_state[0, 4:8]
        return student_loss(
            split, states, chosen, kept, scored, config, strategies.divergence, host=host, temperature=TEMPERATURE
        )

    loss, _ = loss_inside(model, model, student)
    loss.backward()
    found = {name: value.grad.clone() for name, value in model.named_parameters()}
    model.zero_grad()

    logits = model(read).logits[:, 4:8]
    wanted, _ = self_distillation_loss(
        logits,
        kept.score(lambda: model(told).logits[:, 7:11], tensors),
        ids,
        torch.ones(1, 4),
        config,
        old_log_probs=old,
        temperature=TEMPERATURE,
    )
    if hybrid:
        log_probs = gather_log_probs(logits, ids[..., None], TEMPERATURE)
        wanted = (1 - SHARE) * wanted - SHARE * log_probs.mean()
    wanted.backward()
    # A teacher of several passes mixes its logits in float32.
    tolerance = 1e-5 if len(kept.passes) > 1 else 1e-9
    assert loss.item() == pytest.approx(wanted.item(), rel=tolerance)
    for name, value in model.named_parameters():
        torch.testing.assert_close(found[name], value.grad, rtol=100 * tolerance, atol=tolerance)


def test_nothing_to_distil_is_a_loss_of_zero_with_a_gradient() -> None:
    config = SDPOConfig()
    strategies, model = resolve(config), AutoModelForCausalLM.from_pretrained(checkpoint_path())
    split, nothing = split_model(model), torch.zeros(0, dtype=torch.long)
    chosen = ChosenTokens(nothing, nothing, nothing, torch.Size([1, 4]), torch.zeros(0))

    def student() -> tuple[torch.Tensor, object]:
        states = split.body(torch.tensor([[5, 6]]), use_cache=False).last_hidden_state[0, :0]
        return student_loss(
            split, states, chosen, strategies.teacher, TeacherStates([], []), config, strategies.divergence
        )

    loss, _ = loss_inside(model, model, student)
    assert loss.item() == 0.0 and loss.requires_grad
    loss.backward()
