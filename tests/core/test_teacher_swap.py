"""Putting other values into the student's module: the very same storage comes back, and autograd notices nothing."""

from __future__ import annotations

import copy
import types

import pytest
import torch
from torch import Tensor, nn

from sdpo_plugins.errors import TeacherError
from sdpo_plugins.teacher import LocalTensors, clean_name, local_tensors, swapped


class Tied(nn.Module):
    """A model with a tied head, a norm with statistics, and a buffer registered at two places."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.norm = nn.BatchNorm1d(4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("scale", torch.tensor(2.0))
        self.norm.register_buffer("scale", self.scale)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.norm(self.embed(ids)) * self.norm.scale + self.scale)


IDS = torch.tensor([0, 3, 5, 6, 2])


def moved(tensors: LocalTensors) -> dict[str, Tensor]:
    return {name: live + 1 if live.is_floating_point() else live.clone() for name, live in tensors.items()}


def snapshot(model: nn.Module) -> dict[str, tuple[int, int, tuple[int, ...], Tensor]]:
    everything = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {
        name: (id(value), value.data_ptr(), value.stride(), value.detach().clone())
        for name, value in everything.items()
    }


def assert_untouched(model: nn.Module, before: dict[str, tuple[int, int, tuple[int, ...], Tensor]]) -> None:
    after = snapshot(model)
    assert after.keys() == before.keys()
    for name, (identity, pointer, stride, value) in before.items():
        assert after[name][:3] == (identity, pointer, stride), name
        assert torch.equal(after[name][3], value), name


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("weight", "weight"),
        ("module.weight", "weight"),
        ("module.module.a.weight", "a.weight"),
        ("_orig_mod.module.a.weight", "a.weight"),
        ("module._orig_mod.a._checkpoint_wrapped_module.b._fsdp_wrapped_module.w", "a.b.w"),
        ("encoder.module.weight", "encoder.module.weight"),
        ("my_orig_mod.weight", "my_orig_mod.weight"),
    ],
)
def test_names_are_those_of_the_bare_model(given: str, expected: str) -> None:
    assert clean_name(given) == expected


def test_entries_are_live_and_share_the_students_storage() -> None:
    model = Tied()
    tensors = local_tensors(model)
    assert set(tensors) == {
        "embed.weight",
        "norm.weight",
        "norm.bias",
        "norm.running_mean",
        "norm.running_var",
        "norm.num_batches_tracked",
        "scale",
    }
    assert tensors.buffers == {"norm.running_mean", "norm.running_var", "norm.num_batches_tracked", "scale"}
    for name, value in {**dict(model.named_parameters()), **dict(model.named_buffers())}.items():
        assert tensors[name].data_ptr() == value.data_ptr()
        assert not tensors[name].requires_grad
    with torch.no_grad():
        model.embed.weight.fill_(3.0)
    assert tensors["embed.weight"].eq(3.0).all()


def test_frozen_parameters_are_shared_not_held() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)).requires_grad_(False)
    model[1].bias.requires_grad_(True)
    assert list(local_tensors(model)) == ["1.bias"]


def test_wrapped_and_bare_models_have_the_same_names() -> None:
    class Wrapper(nn.Module):
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module = module

    model = Tied()
    assert list(local_tensors(Wrapper(Wrapper(model)))) == list(local_tensors(model))
    assert list(local_tensors(torch.compile(model))) == list(local_tensors(model))


def test_two_tensors_of_one_name_are_refused() -> None:
    class Confusing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = nn.Linear(1, 1, bias=False)
            self.weight = nn.Parameter(torch.zeros(1))

    with pytest.raises(TeacherError, match="are called 'weight'"):
        local_tensors(Confusing())


def test_a_model_that_is_not_in_memory_is_refused() -> None:
    with torch.device("meta"):
        model = nn.Linear(2, 2)
    with pytest.raises(TeacherError, match=r"'weight' is not in memory.*meta device"):
        local_tensors(model)


@pytest.mark.parametrize("raises", [False, True])
def test_the_students_storage_is_the_very_same_afterwards(raises: bool) -> None:
    model = Tied()
    model.train()
    before = snapshot(model)
    tensors = local_tensors(model)
    values = moved(tensors)
    try:
        with swapped(tensors, values):
            assert torch.equal(model.head.weight, values["embed.weight"])
            assert model.head.weight is model.embed.weight
            assert model.scale is model.norm.scale
            model(IDS)
            if raises:
                raise ZeroDivisionError
    except ZeroDivisionError:
        assert raises
    assert_untouched(model, before)


def test_a_failed_exchange_undoes_what_it_did() -> None:
    model = Tied()
    before = snapshot(model)
    tensors = local_tensors(model)
    values = moved(tensors) | {"norm.bias": torch.zeros(4, dtype=torch.float64)}
    # a hook that raises at the last moment, after parameters were exchanged
    calls = []

    def hook() -> None:
        calls.append(len(calls))
        if len(calls) == 2:
            raise ZeroDivisionError

    failing = LocalTensors(tensors.slots, hook)
    with pytest.raises(ZeroDivisionError), swapped(failing, values):
        pass
    assert calls == [0, 1]
    assert_untouched(model, before)


def test_the_hook_runs_before_values_go_in_and_before_they_come_out() -> None:
    model = nn.Linear(1, 1, bias=False)
    seen: list[float] = []
    tensors = local_tensors(model, before_swap=lambda: seen.append(model.weight.item()))
    with torch.no_grad():
        model.weight.fill_(1.0)
    seen.clear()
    with swapped(tensors, {"weight": torch.tensor([[5.0]])}):
        assert seen == [1.0]
    assert seen == [1.0, 5.0]


def test_buffers_changed_or_registered_anew_by_the_forward_stay_the_teachers() -> None:
    class Dynamic(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))
            self.register_buffer("frequency", torch.tensor([1.0]), persistent=False)

        def forward(self) -> Tensor:
            self.register_buffer("frequency", self.frequency * 2, persistent=False)
            return self.weight * self.frequency

    model = Dynamic()
    tensors = local_tensors(model)
    model()
    assert tensors["frequency"].item() == 2.0
    live = model.frequency
    with swapped(tensors, {"weight": torch.tensor([3.0]), "frequency": torch.tensor([10.0])}):
        assert model().item() == 60.0
    assert model.frequency is live
    assert model().item() == 4.0


@pytest.mark.parametrize("train", [True, False])
def test_gradients_are_those_of_a_run_without_a_teacher(train: bool) -> None:
    torch.manual_seed(0)
    model = Tied()
    model.train(train)
    twin = copy.deepcopy(model)
    tensors = local_tensors(model)
    loss = model(IDS).square().mean()
    with swapped(tensors, moved(tensors)):
        elsewhere = model(IDS)
        assert not elsewhere.requires_grad
    loss.backward()
    twin(IDS).square().mean().backward()
    for (name, parameter), other in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert torch.equal(parameter.grad, other.grad), name
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, dict(twin.named_buffers())[name]), name


def test_gradients_under_checkpointing_recompute_with_the_students_weights() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))
    twin = copy.deepcopy(model)
    inputs = torch.randn(4, 3)
    tensors = local_tensors(model)
    loss = torch.utils.checkpoint.checkpoint(model, inputs, use_reentrant=False).square().sum()
    with swapped(tensors, moved(tensors)):
        model(inputs)
    loss.backward()
    twin(inputs).square().sum().backward()
    assert torch.equal(model[0].weight.grad, twin[0].weight.grad)


def test_the_optimizer_goes_on_as_if_nothing_had_been() -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    twin = copy.deepcopy(model)
    inputs = torch.randn(4, 3)
    tensors = local_tensors(model)
    for one, teacher in ((model, True), (twin, False)):
        optimizer = torch.optim.AdamW(one.parameters(), lr=0.1)
        for _ in range(3):
            loss = one(inputs).square().sum()
            if teacher:
                with swapped(tensors, moved(tensors)):
                    one(inputs)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    assert torch.equal(model.weight, twin.weight)


def test_autocast_does_not_serve_the_students_casts_to_the_teacher() -> None:
    # One autocast context around both forwards, as a trainer's compute_loss has it: its cache is keyed by parameter.
    torch.manual_seed(0)
    model = nn.Linear(3, 2, bias=False)
    tensors = local_tensors(model)
    inputs = torch.randn(4, 3)
    values = {"weight": torch.randn(2, 3)}
    with torch.autocast("cpu", torch.bfloat16):
        student = model(inputs)
        with swapped(tensors, values):
            teacher = model(inputs)
        again = model(inputs)
        again.sum().backward()
    assert torch.equal(teacher, (inputs.bfloat16() @ values["weight"].bfloat16().T))
    assert torch.equal(student, again)
    assert model.weight.grad is not None


def test_a_forward_patched_by_a_closure_follows_the_values() -> None:
    """A host that closes over the original bound forward defeats a deepcopy of the model, but not an exchange."""
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    original = model.forward

    def fused_forward(self: nn.Module, inputs: Tensor) -> Tensor:
        return original(inputs) * 2.0

    model.forward = types.MethodType(fused_forward, model)
    inputs = torch.randn(4, 3)
    student = model(inputs)

    duplicate = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in duplicate.parameters():
            parameter.zero_()
    assert torch.equal(duplicate(inputs), student)  # the trap: the copy's weights do not matter

    tensors = local_tensors(model)
    with swapped(tensors, {name: torch.zeros_like(live) for name, live in tensors.items()}):
        assert model(inputs).eq(0.0).all()
    assert torch.equal(model(inputs), student)
