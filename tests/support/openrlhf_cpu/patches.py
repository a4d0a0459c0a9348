"""What is changed in modules of OpenRLHF and DeepSpeed for a CPU. Each is executed inside of its context manager.

Environment variables, all of them optional: `OPENRLHF_CPU_RECORDS` (file for metrics, as JSON lines),
`OPENRLHF_CPU_EVALUATE_FIRST=1` (the host's own evaluation before the first step, too), `OPENRLHF_CPU_PARAM_DTYPE=fp32`
(the models' dtype in DeepSpeed, which OpenRLHF's options cannot name).
"""

from __future__ import annotations

import functools
import json
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

_BUCKET = 5_000_000
_FLASH_ATTENTION = ("flash_attn", "flash_attn.bert_padding", "flash_attn.utils", "flash_attn.utils.distributed")


class Device(str):
    """The device "cpu" where OpenRLHF asks for a GPU's number, which it also writes behind "cuda:"."""

    def __format__(self, specification: str) -> str:
        return "0"


def _current_device() -> Device:
    return Device("cpu")


def _nothing() -> Callable[..., None]:
    """Make a function without effect: a new one each time, for torch's compiler keeps a rule for each function."""

    def nothing(*_: Any, **__: Any) -> None:
        return None

    return nothing


@contextmanager
def cuda(module: ModuleType) -> Iterator[None]:
    """`torch.cuda`: the current device is the CPU, and there is nothing to wait for."""
    import torch

    if not torch.cuda.is_available():
        torch.cuda.current_device = _current_device  # type: ignore[assignment]
        for name in ("current_stream", "empty_cache", "set_device", "synchronize"):
            setattr(torch.cuda, name, _nothing())
    yield


@contextmanager
def flash_attention(module: ModuleType) -> Iterator[None]:
    """Padding without flash-attn. Nobody else can import it, so nobody takes flash attention for usable."""
    from openrlhf_cpu import padding

    stand_ins = {name: ModuleType(name) for name in _FLASH_ATTENTION}
    stand_ins["flash_attn.bert_padding"] = padding
    stand_ins["flash_attn.utils.distributed"].all_gather = _ring_attention  # type: ignore[attr-defined]
    sys.modules.update(stand_ins)
    try:
        yield
    finally:
        for name in stand_ins:
            del sys.modules[name]


def _ring_attention(*_: Any, **__: Any) -> None:
    raise RuntimeError("ring attention needs flash-attn, which does not run on a CPU")


@contextmanager
def attention_of_actor(module: ModuleType) -> Iterator[None]:
    """Flash attention, which OpenRLHF insists on for packed sequences, becomes torch's own."""
    yield
    module.Actor.__init__ = _with_torch_attention(module.Actor.__init__)


@contextmanager
def attention_of_scorers(module: ModuleType) -> Iterator[None]:
    """The same for critics and reward models."""
    yield
    module.get_llm_for_sequence_regression = _with_torch_attention(module.get_llm_for_sequence_regression)


def _with_torch_attention(make: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(make)
    def made(*args: Any, attn_implementation: str = "flash_attention_2", **kwargs: Any) -> Any:
        if "flash" in attn_implementation:
            attn_implementation = "sdpa"
        return make(*args, attn_implementation=attn_implementation, **kwargs)

    return made


@contextmanager
def dtypes(module: ModuleType) -> Iterator[None]:
    """`fp32` beside `bf16` and `fp16`."""
    yield
    convert = module.convert_to_torch_dtype

    @functools.wraps(convert)
    def convert_to_torch_dtype(param_dtype: str) -> Any:
        import torch

        return torch.float32 if param_dtype == "fp32" else convert(param_dtype)

    module.convert_to_torch_dtype = convert_to_torch_dtype


@contextmanager
def strategy(module: ModuleType) -> Iterator[None]:
    """Meshes and moving averages on the CPU, the models' dtype by a variable."""
    yield
    strategy_class = module.DeepspeedStrategy
    init_device_mesh, init, moving_average = (
        module.init_device_mesh,
        strategy_class.__init__,
        strategy_class.moving_average,
    )

    @functools.wraps(init_device_mesh)
    def mesh(device_type: str, *args: Any, **kwargs: Any) -> Any:
        return init_device_mesh("cpu", *args, **kwargs)

    @functools.wraps(init)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        if dtype := os.environ.get("OPENRLHF_CPU_PARAM_DTYPE"):
            self.param_dtype = self.args.ds.param_dtype = dtype

    @functools.wraps(moving_average)
    def average(self: Any, model: Any, model_ema: Any, beta: float = 0.992, device: str = "cpu") -> None:
        moving_average(self, model, model_ema, beta, "cpu")

    module.init_device_mesh = mesh
    strategy_class.__init__, strategy_class.moving_average = __init__, average


@contextmanager
def optimizer(module: ModuleType) -> Iterator[None]:
    """torch's AdamW, as DeepSpeed's own would be compiled on first use; and buffers of a tiny model's size."""
    yield
    get_train_ds_config = module.get_train_ds_config

    @functools.wraps(get_train_ds_config)
    def config(*args: Any, **kwargs: Any) -> dict[str, Any]:
        made = get_train_ds_config(*args, **kwargs)
        if made.get("optimizer", {}).get("type") == "AdamW":
            made["optimizer"]["params"]["torch_adam"] = True
        # DeepSpeed would hold 500 million numbers for each; a test has several ranks, and other tests beside it.
        for name in ("reduce_bucket_size", "stage3_prefetch_bucket_size"):
            made["zero_optimization"][name] = _BUCKET
        return made

    module.get_train_ds_config = config


@contextmanager
def collectives(module: ModuleType) -> Iterator[None]:
    """gloo alone: the shared-memory collectives would be compiled on first use."""
    yield
    module.build_shm_op = _nothing()


@contextmanager
def group_with_vllm(module: ModuleType) -> Iterator[None]:
    """Weights go to vLLM through a store instead of NCCL."""
    yield
    from openrlhf_cpu import weights

    module.stateless_init_process_group = weights.open_group


@contextmanager
def weights_of_vllm(module: ModuleType) -> Iterator[None]:
    """vLLM takes weights for the layout that it has on a CPU."""
    yield
    from openrlhf_cpu import weights

    module.WorkerWrap.update_weight = weights.update_weight


@contextmanager
def processes_of_vllm(module: ModuleType) -> Iterator[None]:
    """vLLM's process is forked, without a CUDA that could not be: to import everything anew would take ten seconds."""
    yield
    module.get_mp_context = functools.partial(multiprocessing.get_context, "fork")


@contextmanager
def records(module: ModuleType) -> Iterator[None]:
    """What goes to TensorBoard goes to a file of JSON lines too, and at once."""
    yield
    logger = module.TensorboardLogger

    def recorded(log: Callable[..., None], prefix: str) -> Callable[..., None]:
        @functools.wraps(log)
        def logged(self: Any, global_step: int, logs_dict: dict[str, Any]) -> None:
            log(self, global_step, logs_dict)
            if path := os.environ.get("OPENRLHF_CPU_RECORDS"):
                row = {prefix + k: float(v) for k, v in logs_dict.items() if v is not None and k != "generated_samples"}
                with open(path, "a", encoding="utf-8") as file:
                    file.write(json.dumps({"step": global_step, "data": row}) + "\n")

        return logged

    logger.log_train, logger.log_eval = recorded(logger.log_train, ""), recorded(logger.log_eval, "eval/")


@contextmanager
def controllers(module: ModuleType) -> Iterator[None]:
    """The evaluation before the first step, and an order of questions by the seed: OpenRLHF has neither."""
    yield
    prepare_datasets = module.prepare_datasets

    @functools.wraps(prepare_datasets)
    def datasets(strategy: Any, *args: Any, **kwargs: Any) -> Any:
        import torch

        # The controller shuffles by the process's random numbers, which nobody seeds.
        torch.manual_seed(strategy.args.train.seed)
        return prepare_datasets(strategy, *args, **kwargs)

    module.prepare_datasets = datasets
    base = module.BasePPOTrainer
    init_checkpoint_states = base.init_checkpoint_states

    @functools.wraps(init_checkpoint_states)
    def states(self: Any) -> dict[str, Any]:
        found = init_checkpoint_states(self)
        if os.environ.get("OPENRLHF_CPU_EVALUATE_FIRST") == "1" and not found["global_step"]:
            given = {
                "temperature": self.args.eval.temperature,
                "n_samples_per_prompt": self.args.eval.n_samples_per_prompt,
            }
            self.evaluate(0, **{**self.generate_kwargs, **given})
        return found

    base.init_checkpoint_states = states
    # Ray made copies of the methods that the class inherits.
    module.PPOTrainer.__ray_metadata__.modified_class.init_checkpoint_states = states
