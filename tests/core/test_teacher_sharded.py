"""The teachers on real FSDP2 and tensor-parallel models, in two processes over gloo.

This file is also the program that the processes run: `python test_teacher_sharded.py <rank> <folder>`.
"""

from __future__ import annotations

import copy
import enum
import functools
import subprocess
import sys
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

WORLD = 2
TIME_LIMIT_S = 180
INPUTS = torch.randn(4, 6, generator=torch.Generator().manual_seed(3))


class Net(nn.Module):
    """Shapes that two ranks cannot share evenly, one that leaves a rank with nothing, and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(6, 5)
        self.second = nn.Linear(5, 1)
        self.last = nn.Linear(1, 3, bias=False)
        self.register_buffer("scale", torch.tensor(1.5))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.last(self.second(torch.tanh(self.first(inputs)))) * self.scale


def sharded(model: nn.Module, reshard_after_forward: bool = True) -> nn.Module:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (WORLD,))
    for child in (model.first, model.second):
        fully_shard(child, mesh=mesh, reshard_after_forward=reshard_after_forward)
    return fully_shard(model, mesh=mesh, reshard_after_forward=reshard_after_forward)


def move(model: nn.Module, whole: nn.Module) -> None:
    """The same step on the sharded and on the whole model, by a real optimizer."""
    for one in (model, whole):
        optimizer = torch.optim.SGD(one.parameters(), lr=0.5)
        one(INPUTS).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def full(tensors, values: dict[str, Tensor], name: str) -> Tensor:
    """Gather a teacher's shards of one tensor."""
    from torch.distributed.tensor import DTensor

    owner = tensors.slots[name].owner
    if not isinstance(owner, DTensor):
        return values[name]
    return DTensor.from_local(
        values[name], owner.device_mesh, owner.placements, shape=owner.shape, stride=owner.stride()
    ).full_tensor()


def case_update_on_shards_equals_the_update_of_the_whole(rank: int, folder: Path) -> None:
    from sdpo_plugins.teacher import Ema, TrustRegion, local_tensors

    whole = Net()
    model = sharded(copy.deepcopy(whole))
    for kind in (Ema, TrustRegion):
        tensors, wholes = local_tensors(model), local_tensors(whole)
        assert tensors.keys() == wholes.keys()
        teacher, oracle = (kind(0.25, "rollout_batch", 1) for _ in range(2))
        teacher.check_model(model)
        teacher.start(tensors)
        oracle.start(wholes)
        for _ in range(2):
            move(model, whole)
            metrics = teacher.update(tensors, reduce=all_reduce)
            expected = oracle.update(wholes)
            for name, value in expected.items():
                assert abs(metrics[name] - value) <= 1e-5 * max(1.0, abs(value)), (name, metrics[name], value)
        held, expected_values = teacher.state_dict()["tensors"], oracle.state_dict()["tensors"]
        for name, value in expected_values.items():
            torch.testing.assert_close(full(tensors, held, name), value)
        local = sum(value.numel() for value in held.values())
        assert local < sum(value.numel() for value in expected_values.values())
        torch.testing.assert_close(
            teacher.score(lambda: model(INPUTS), tensors), oracle.score(lambda: whole(INPUTS), wholes)
        )


def all_reduce(sums: list[float]) -> list[float]:
    values = torch.tensor(sums, dtype=torch.float64)
    torch.distributed.all_reduce(values)
    return values.tolist()


def case_in_effect_between_forward_and_backward(rank: int, folder: Path) -> None:
    from sdpo_plugins.teacher import Ema, local_tensors

    for reshard_after_forward in (True, False):
        whole = Net()
        model = sharded(copy.deepcopy(whole), reshard_after_forward)
        tensors = local_tensors(model)
        teacher, oracle = Ema(0.25, "rollout_batch", 1), Ema(0.25, "rollout_batch", 1)
        teacher.start(tensors)
        oracle.start(local_tensors(whole))
        move(model, whole)
        before = {name: (live.data_ptr(), live.clone()) for name, live in tensors.items()}
        for _ in range(2):  # forward, teacher, backward, and again without a step between
            for one, one_teacher, its in ((whole, oracle, local_tensors(whole)), (model, teacher, tensors)):
                one.zero_grad()
                student = one(INPUTS)
                scored = one_teacher.score(lambda one=one: one(INPUTS), its)
                again = one(INPUTS)
                assert torch.equal(again, student)
                assert not torch.allclose(scored, student, rtol=1e-3)
                if one is whole:
                    expected = scored
                (student - scored).square().sum().backward()
            torch.testing.assert_close(scored, expected)
            for name, parameter in model.named_parameters():
                torch.testing.assert_close(parameter.grad.full_tensor(), whole.get_parameter(name).grad)
            for name, (pointer, value) in before.items():
                assert tensors[name].data_ptr() == pointer and torch.equal(tensors[name], value), name
        try:
            with teacher.applied(tensors):
                model(INPUTS)
                raise ZeroDivisionError
        except ZeroDivisionError:
            pass
        torch.testing.assert_close(model(INPUTS), whole(INPUTS))
        for name, (pointer, value) in before.items():
            assert tensors[name].data_ptr() == pointer and torch.equal(tensors[name], value), name


def case_the_hook_is_what_keeps_gathered_weights_from_being_stale(rank: int, folder: Path) -> None:
    from torch.distributed.tensor import DTensor

    from sdpo_plugins.teacher import Frozen, local_tensors, release_gathered

    model = sharded(Net(), reshard_after_forward=False)
    student = model(INPUTS).detach()
    assert not isinstance(model.last.weight, DTensor)  # gathered, and kept so by FSDP2
    # names and shapes are those of the shards even so
    tensors = local_tensors(model)
    assert isinstance(model.last.weight, DTensor)
    teacher = Frozen(0.0, "rollout_batch", 1)
    teacher.start(tensors)
    with torch.no_grad():
        for name in set(tensors) - tensors.buffers:
            tensors[name].zero_()
    assert torch.equal(teacher.score(lambda: model(INPUTS), tensors), student)
    assert torch.equal(model(INPUTS), torch.zeros(4, 3))
    # The same without the hook: the teacher's forward runs on what the student's left gathered.
    release_gathered(model)
    careless = local_tensors(model, before_swap=lambda: None)
    model(INPUTS)
    assert torch.equal(teacher.score(lambda: model(INPUTS), careless), torch.zeros(4, 3))
    release_gathered(model)


def case_checkpoints_of_shards(rank: int, folder: Path) -> None:
    from sdpo_plugins.errors import TeacherError
    from sdpo_plugins.teacher import Ema, load_teacher, local_tensors, save_teacher

    whole = Net()
    model = sharded(copy.deepcopy(whole))
    tensors = local_tensors(model)
    teacher, resumed = Ema(0.25, "rollout_batch", 1), Ema(0.25, "rollout_batch", 1)
    teacher.start(tensors)
    move(model, whole)
    teacher.update(tensors)
    save_teacher(teacher, folder / "teacher", rank=rank, world_size=WORLD)
    load_teacher(resumed, folder / "teacher", tensors, rank=rank, world_size=WORLD)
    for name, value in teacher.state_dict()["tensors"].items():
        assert torch.equal(value, resumed.state_dict()["tensors"][name])
    torch.distributed.barrier()
    scored = [one.score(lambda: model(INPUTS), tensors) for one in (teacher, resumed)]
    assert torch.equal(*scored)
    try:
        load_teacher(resumed, folder / "teacher", local_tensors(whole))
        raise AssertionError("shards of two ranks were loaded by one")
    except TeacherError as error:
        assert "was saved by 2 rank(s), this run has 1" in str(error), error


def case_tensor_parallel(rank: int, folder: Path) -> None:
    """Under tensor parallelism the graph saves the local shards themselves, not gathered copies."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    from sdpo_plugins.teacher import Ema, local_tensors

    torch.manual_seed(0)
    whole = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3))
    model = parallelize_module(
        copy.deepcopy(whole),
        init_device_mesh("cpu", (WORLD,)),
        {"0": ColwiseParallel(), "2": RowwiseParallel()},
    )
    tensors = local_tensors(model)
    teacher, oracle = Ema(0.25, "rollout_batch", 1), Ema(0.25, "rollout_batch", 1)
    teacher.start(tensors)
    oracle.start(local_tensors(whole))
    move(model, whole)
    teacher.update(tensors)
    oracle.update(local_tensors(whole))
    student = model(INPUTS)
    scored = teacher.score(lambda: model(INPUTS), tensors)
    torch.testing.assert_close(scored, oracle.score(lambda: whole(INPUTS), local_tensors(whole)))
    student.square().sum().backward()
    whole(INPUTS).square().sum().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad.full_tensor(), whole.get_parameter(name).grad)


def case_a_forward_that_takes_the_local_shard_itself(rank: int, folder: Path) -> None:
    """Its graph saves the very tensor into which the teacher's values are copied for a while."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    from sdpo_plugins.teacher import Frozen, local_tensors

    whole = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 2, bias=False))
    weight = torch.randn(2, 4, generator=torch.Generator().manual_seed(1))
    mesh = init_device_mesh("cpu", (WORLD,))
    whole[1].weight = nn.Parameter(distribute_tensor(weight, mesh, [Shard(0)]))
    tensors = local_tensors(whole)
    teacher = Frozen(0.0, "rollout_batch", 1)
    teacher.start(tensors)
    with torch.no_grad():
        tensors["1.weight"].mul_(2.0)

    def forward() -> Tensor:
        return nn.functional.linear(whole[0](INPUTS), whole[1].weight.to_local())

    student = forward()
    assert torch.equal(teacher.score(forward, tensors), student / 2.0)
    student.sum().backward()
    expected = (2.0 * weight[rank])[:, None] * INPUTS.sum(0)
    torch.testing.assert_close(whole[0].weight.grad, expected)


class Status(enum.Enum):
    AVAILABLE = 1
    NOT_AVAILABLE = 2


def partitioned(model: nn.Module, rank: int) -> nn.Module:
    """Cut the parameters as DeepSpeed's ZeRO-3 does, with its attributes; what a forward gathers stays gathered.

    It stands for the attributes only: the engine itself needs DeepSpeed, which the core's tests do not install.
    """

    def gather(module: nn.Module, _: object) -> None:
        for parameter in module.parameters(recurse=False):
            if parameter.ds_status is Status.NOT_AVAILABLE:
                parts = [torch.empty_like(parameter.ds_tensor) for _ in range(WORLD)]
                torch.distributed.all_gather(parts, parameter.ds_tensor.data)
                parameter.data = torch.cat(parts)[: parameter.ds_numel].view(parameter.ds_shape)
                parameter.ds_status = Status.AVAILABLE

    def partition(parameter: nn.Parameter) -> None:
        parameter.data = torch.empty(0)
        parameter.ds_status = Status.NOT_AVAILABLE

    for module in model.modules():
        module.register_forward_pre_hook(gather)
    for parameter in model.parameters():
        part = -(-parameter.numel() // WORLD)
        padded = torch.full((WORLD * part,), torch.nan)
        padded[: parameter.numel()] = parameter.data.flatten()
        parameter.ds_tensor = padded[rank * part : (rank + 1) * part].clone()
        parameter.ds_numel, parameter.ds_shape = parameter.numel(), parameter.shape
        parameter.ds_process_group = torch.distributed.group.WORLD
        parameter.partition = functools.partial(partition, parameter)
        parameter.partition()
    return model


def case_zero3_shards(rank: int, folder: Path) -> None:
    from sdpo_plugins.teacher import Ema, local_tensors

    whole = Net()
    model = partitioned(copy.deepcopy(whole), rank)
    tensors, wholes = local_tensors(model), local_tensors(whole)
    assert tensors["first.weight"].numel() == 15 and tensors["second.bias"].numel() == 1 - rank
    teacher, oracle = Ema(0.25, "rollout_batch", 1), Ema(0.25, "rollout_batch", 1)
    teacher.start(tensors)
    oracle.start(wholes)
    for one in (tensors, wholes):
        with torch.no_grad():
            for name in set(one) - one.buffers:
                one[name].mul_(1.5)
    metrics = teacher.update(tensors, reduce=all_reduce)
    for name, value in oracle.update(wholes).items():
        assert abs(metrics[name] - value) <= 1e-5 * max(1.0, value), (name, metrics[name], value)
    before = {name: (live.data_ptr(), live.clone()) for name, live in tensors.items()}
    student = model(INPUTS)
    torch.testing.assert_close(student, whole(INPUTS))
    scored = teacher.score(lambda: model(INPUTS), tensors)
    torch.testing.assert_close(scored, oracle.score(lambda: whole(INPUTS), wholes))
    assert torch.equal(model(INPUTS), student)
    for name, (pointer, value) in before.items():
        assert tensors[name].data_ptr() == pointer and torch.equal(tensors[name], value), name


def case_zero3_on_nvme_is_refused(rank: int, folder: Path) -> None:
    from sdpo_plugins.errors import TeacherError
    from sdpo_plugins.teacher import local_tensors

    model = partitioned(Net(), rank)
    model.first.weight.ds_tensor.status = Status.NOT_AVAILABLE
    try:
        local_tensors(model)
        raise AssertionError("weights on NVMe were accepted")
    except TeacherError as error:
        assert "'first.weight' is not in memory" in str(error) and "NVMe" in str(error), error


def case_fsdp1_is_refused(rank: int, folder: Path) -> None:
    from torch.distributed.fsdp import FullyShardedDataParallel

    from sdpo_plugins.errors import TeacherError
    from sdpo_plugins.teacher import local_tensors

    model = FullyShardedDataParallel(nn.Linear(2, 2), device_id=torch.device("cpu"))
    try:
        local_tensors(model)
        raise AssertionError("FSDP1 was accepted")
    except TeacherError as error:
        assert "FSDP1" in str(error) and "fully_shard" in str(error), error


def case_distributed_data_parallel(rank: int, folder: Path) -> None:
    from torch.nn.parallel import DistributedDataParallel

    from sdpo_plugins.teacher import Ema, local_tensors

    whole = Net()
    model = DistributedDataParallel(copy.deepcopy(whole))
    tensors = local_tensors(model)
    assert tensors.keys() == local_tensors(whole).keys()
    teacher = Ema(0.25, "rollout_batch", 1)
    teacher.start(tensors)
    move(model, whole)
    teacher.update(tensors)
    student = model(INPUTS)
    scored = teacher.score(lambda: model(INPUTS), tensors)
    assert not torch.allclose(scored, student, rtol=1e-3)
    student.square().sum().backward()
    whole(INPUTS).square().sum().backward()
    torch.testing.assert_close(model.module.first.weight.grad, whole.first.weight.grad)


CASES: dict[str, Callable[[int, Path], None]] = {
    name.removeprefix("case_"): value for name, value in list(globals().items()) if name.startswith("case_")
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run all cases, one after the other, in one pair of processes: most of the time is their start."""
    folder = tmp_path_factory.mktemp("sharded")
    processes = [subprocess.Popen([sys.executable, __file__, str(rank), str(folder)]) for rank in range(WORLD)]
    try:
        for process in processes:
            process.wait(timeout=TIME_LIMIT_S)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("case", sorted(CASES))
def test_in_two_processes(case: str, finished: Path) -> None:
    for rank in range(WORLD):
        report = finished / f"{case}-{rank}.txt"
        assert report.is_file(), f"rank {rank} did not get to this case: see the others"
        assert report.read_text() == "passed", f"rank {rank}:\n{report.read_text()}"


def main(rank: int, folder: Path) -> None:
    sys.path.insert(0, str(Path(__file__).parents[2]))
    torch.set_num_threads(1)
    store = torch.distributed.FileStore(str(folder / "store"), WORLD)
    torch.distributed.init_process_group(
        "gloo", store=store, rank=rank, world_size=WORLD, timeout=timedelta(seconds=TIME_LIMIT_S // 3)
    )
    for name, case in CASES.items():
        try:
            case(rank, folder / name)
            torch.distributed.barrier()
        except BaseException:
            # After a failure the ranks are out of step: the cases that follow could not be trusted.
            (folder / f"{name}-{rank}.txt").write_text(traceback.format_exc())
            raise
        (folder / f"{name}-{rank}.txt").write_text("passed")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
