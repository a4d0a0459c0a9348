"""A loss computed inside of a module's forward: under FSDP2 and DDP, values and gradients stay the plain ones."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sdpo_plugins.inside import loss_inside, run_inside

INPUTS = torch.randn(4, 6, generator=torch.Generator().manual_seed(3))


class Net(nn.Module):
    """A body and a head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Linear(6, 5)
        self.head = nn.Linear(5, 7)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(torch.tanh(self.body(inputs)))


@pytest.fixture(scope="module", autouse=True)
def one_rank() -> Iterator[None]:
    """A process group of this process alone, without a port."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def plain(model: Net) -> Net:
    return model


def in_shards(model: Net) -> nn.Module:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    # What a forward returns is rounded, as it is where a model is trained in bfloat16.
    options: dict[str, Any] = {
        "mesh": init_device_mesh("cpu", (1,)),
        "mp_policy": MixedPrecisionPolicy(output_dtype=torch.bfloat16),
        "reshard_after_forward": True,
    }
    fully_shard(model.head, **options)
    return fully_shard(model, **options)


def in_ddp(model: Net) -> nn.Module:
    # Whatever is not behind what the forward returned is taken to be unused.
    return nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)


def loss_of(logits: Tensor) -> Tensor:
    return torch.log_softmax(logits, -1)[:, 2].square().mean()


def expected() -> tuple[float, dict[str, Tensor]]:
    model = Net()
    loss = loss_of(model(INPUTS))
    loss.backward()
    return float(loss.detach()), {name: p.grad for name, p in model.named_parameters()}


def check(model: Net, loss: Tensor) -> None:
    loss.backward()
    value, gradients = expected()
    assert loss.dtype == torch.float32
    assert float(loss.detach()) == pytest.approx(value, rel=1e-6)
    for name, parameter in model.named_parameters():
        grad = parameter.grad.full_tensor() if hasattr(parameter.grad, "full_tensor") else parameter.grad
        # Sums of numbers around 1, in an order that differs between processors: float32 rounds them by 6e-8.
        torch.testing.assert_close(grad, gradients[name], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("wrap", [plain, in_shards, in_ddp])
def test_the_loss_of_a_whole_model_and_of_the_head_within(wrap: Any) -> None:
    model = Net()
    wrapper = wrap(model)

    def inside_of_head(states: Tensor) -> tuple[Tensor, str]:
        # The weights are whole here, and plain tensors.
        return loss_of(nn.functional.linear(states, model.head.weight, model.head.bias)), "of the head"

    def inside() -> tuple[Tensor, str]:
        hidden = torch.tanh(model.body.weight @ INPUTS.T + model.body.bias[:, None]).T
        loss, rest = loss_inside(model.head, model.head, inside_of_head, hidden)
        return loss, f"{rest} in the model"

    loss, rest = loss_inside(wrapper, model, inside)
    assert rest == "of the head in the model"
    check(model, loss)


def test_without_gradient_there_is_none() -> None:
    model = Net()
    with torch.no_grad():
        loss, _ = loss_inside(model, model, lambda inputs: (loss_of(model.head(model.body(inputs))), None), INPUTS)
    assert not loss.requires_grad


def test_the_forward_comes_back_after_an_error() -> None:
    model = Net()
    with pytest.raises(ZeroDivisionError):
        run_inside(model, model, lambda inputs: 1 // 0, INPUTS)
    assert model(INPUTS).shape == (4, 7)
