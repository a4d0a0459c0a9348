"""`python -m benchmarks.verl`: what SDPO costs inside of verl, beside verl's own GRPO in the same setting.

Two parts. `runs`: whole runs of `main_ppo` on Ray with the embedded model, modes `sync` and `sdpo` in turn. `engine`:
one micro-batch of a model with a large vocabulary through verl's FSDP2 engine, without Ray: GRPO as verl computes it,
SDPO, and SDPO on the logits of both models. Both use this project's CPU support for verl, which lies with the tests.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from benchmarks.console import chosen_parts, keep, machine, show, tell
from benchmarks.process import in_fresh_process, measured, medians, with_cost

__all__ = ["METHODS", "TIMINGS", "EngineShape", "app", "engine_cost", "run_engine", "run_trainers"]

PARTS = ("runs", "engine")
METHODS = {
    "grpo": "verl's GRPO",
    "grpo_fused": "verl's GRPO, verl's fused kernels (torch)",
    "sdpo": "SDPO",
    "sdpo_logits": "SDPO on logits of both models",
    "log_probs": "verl's pass for old log-probabilities, in every step of both",
    "log_probs_fused": "the same, verl's fused kernels (torch)",
}
MODES = {"sync": "GRPO", "sdpo": "SDPO"}
TIMINGS = ("step", "gen", "old_log_prob", "adv", "update_actor", "update_weights")
"""verl's `timing_s/…` that are reported; `adv` holds SDPO's teacher contexts, `update_actor` its teacher passes."""

_SUPPORT = Path(__file__).resolve().parents[1] / "tests" / "support"

app = typer.Typer(add_completion=False)


@dataclass(frozen=True)
class EngineShape:
    """Sizes of a micro-batch and of the model.

    Args:
        rows: Sequences.
        prompt: Tokens of each prompt.
        context: Tokens that the teacher reads in addition.
        response: Tokens of each response.
        vocabulary: V.
        width: H.
        top_k: K.
        packed: verl's `use_remove_padding`.
    """

    rows: int = 8
    prompt: int = 128
    context: int = 64
    response: int = 128
    vocabulary: int = 151_936
    width: int = 256
    top_k: int = 100
    packed: bool = True


QUICK = EngineShape(rows=4, prompt=32, context=16, response=32, vocabulary=32_768, width=64)


@app.command()
def measure(
    only: Annotated[list[str] | None, typer.Option(help=f"A part ({', '.join(PARTS)}); may be repeated.")] = None,
    quick: Annotated[bool, typer.Option(help="Small sizes, once: does it run, and roughly how does it look?")] = False,
    steps: Annotated[int, typer.Option(min=1, help="Steps of each run that count.")] = 10,
    repeats: Annotated[int, typer.Option(min=1, help="Runs of each mode, and processes for each micro-batch.")] = 2,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads for a micro-batch; default: PyTorch's.")] = None,
    output: Annotated[Path, typer.Option(help="Folder of results.json.")] = Path("runs/bench-verl"),
) -> None:
    """Measure SDPO beside GRPO in verl and print tables with ratios."""
    from benchmarks import report

    parts = chosen_parts(only, PARTS)
    turns = 1 if quick else repeats
    results: dict[str, Any] = {"machine": machine(threads), "load": [os.getloadavg()], "quick": quick}
    print(f"# verl\n\n{results['machine']}\n", flush=True)
    if "runs" in parts:
        found = run_trainers(3 if quick else steps, turns, tell=tell)
        results["runs"] = found
        show("Steps of whole runs", report.verl_runs_report(found))
    if "engine" in parts:
        costs = run_engine(QUICK if quick else EngineShape(), turns, threads=threads, tell=tell)
        results["engine"] = costs
        show("One micro-batch", report.verl_engine_report(costs))
    results["load"].append(os.getloadavg())
    print("Load of the machine (1, 5, 15 minutes) before and after: " + _loads(results["load"]), flush=True)
    keep(results, output)


def run_trainers(
    steps: int, repeats: int, warm_up: int = 2, tell: Callable[[str], None] = print
) -> dict[str, dict[str, list[float]]]:
    """Train by GRPO and by SDPO in turn and return the seconds of every step that counts.

    Args:
        steps: Steps of each run that count.
        repeats: Runs of each mode; the modes take turns, so that both meet the same neighbours on a busy machine.
        warm_up: Steps before them.
        tell: Gets a line after each run.

    Returns:
        By mode and by name of `TIMINGS`: seconds of each step of all runs.

    Raises:
        AssertionError: A step of SDPO had nothing to learn from, or one of GRPO was SDPO's: no comparison.
    """
    _find_support()
    from verl_cpu.run import base_overrides, run  # type: ignore[import-not-found, unused-ignore]

    found: dict[str, dict[str, list[float]]] = {mode: {name: [] for name in TIMINGS} for mode in MODES}
    for turn in range(repeats):
        for mode in MODES:
            with tempfile.TemporaryDirectory() as folder:
                overrides = [
                    *(["+sdpo=default"] if mode == "sdpo" else []),
                    *base_overrides("facts", Path(folder)),
                    f"trainer.v1.trainer_mode={mode}",
                    f"trainer.total_training_steps={warm_up + steps}",
                    "trainer.val_before_train=False",
                ]
                metrics = run(overrides, 600.0 + 30.0 * steps)
            counted = [metrics[step] for step in sorted(metrics) if warm_up < step <= warm_up + steps]
            learnt = [values.get("self_distillation/active_tokens", 0.0) > 0.0 for values in counted]
            assert learnt == [mode == "sdpo"] * steps, f"steps of mode {mode} in which SDPO learnt: {learnt}"
            for name, seconds in found[mode].items():
                seconds += [values[f"timing_s/{name}"] for values in counted]
            tell(f"runs {turn + 1}/{repeats} {mode}: {statistics.median(found[mode]['step']):.2f} s a step")
    return found


def run_engine(
    shape: EngineShape,
    repeats: int,
    threads: int | None = None,
    tell: Callable[[str], None] = print,
    call: Callable[..., dict[str, Any]] = in_fresh_process,
) -> dict[str, dict[str, Any]]:
    """Measure a micro-batch by every method in turn; `call` runs `engine_cost`, in a fresh process if not replaced.

    Raises:
        AssertionError: SDPO and SDPO on logits, or GRPO with and without verl's fused kernels, found something else.
    """
    found: dict[str, list[dict[str, Any]]] = {method: [] for method in METHODS}
    for turn in range(repeats):
        for method in METHODS:
            values = call("verl", "engine_cost", method=method, shape=asdict(shape), threads=threads)
            found[method].append(values)
            tell(f"engine {turn + 1}/{repeats} {method}: {values['cpu_seconds']:.1f} s CPU, {values['peak_mb']} MiB")
    costs = {method: medians(values) for method, values in found.items()}
    for one, other in (("sdpo", "sdpo_logits"), ("grpo", "grpo_fused")):
        for name in ("loss", "gradient_norm"):
            a, b = costs[one][name], costs[other][name]
            assert abs(a - b) <= 1e-3 * abs(a) + 1e-6, f"{one} found {name} {a}, {other} {b}"
    return costs


def engine_cost(method: str, shape: Mapping[str, Any], threads: int | None = None) -> dict[str, Any]:
    """Run forward and backward of one micro-batch in verl's engine and return what they took.

    The peak is above the model and the teacher's copy of it; gradients are part of it, the optimizer is not.

    Args:
        method: One of `METHODS`.
        shape: Of an `EngineShape`.
        threads: PyTorch's.

    Returns:
        The loss, the gradient norm, and the cost.
    """
    _find_support()
    from verl_cpu.direct import direct_worker  # type: ignore[import-not-found, unused-ignore]

    _open_group()
    sizes = EngineShape(**shape)
    with tempfile.TemporaryDirectory() as folder:
        _write_model(sizes, folder)
        worker, actor = direct_worker(folder, removes_padding=sizes.packed, fused_kernels=method.endswith("_fused"))
    torch.set_num_threads(threads or torch.get_num_threads())
    engine = worker.engine
    if method.startswith("sdpo"):
        worker.start_sdpo({"alpha": 0.5, "distillation_topk": sizes.top_k, "is_clip": None}, actor)
        # An attribute of this engine, as the worker itself sets it for the time of a step.
        engine.forward_step = worker.sdpo if method == "sdpo" else _on_logits(worker.sdpo, sizes)

    sampled = method.startswith("log_probs")

    def step(rows: int, prompt: int, response: int) -> float:
        data = _micro_batch(sizes, rows, prompt, response, fused=method.endswith("_fused"), entropies=sampled)
        loss_function = None if sampled else worker.loss_fn
        return sum(engine.forward_backward_batch(data, loss_function, forward_only=sampled)["loss"])

    with ExitStack() as stack:
        stack.enter_context(engine.eval_mode() if sampled else engine.train_mode())
        step(1, 4, 4)
        engine.optimizer.zero_grad(set_to_none=True)
        loss, cost = measured(lambda: step(sizes.rows, sizes.prompt, sizes.response))
        gradients = [weight.grad.to_local() for weight in engine.module.parameters() if weight.grad is not None]
    squares = sum(float(value.double().square().sum()) for value in gradients)
    return with_cost({"loss": loss, "gradient_norm": squares**0.5}, cost)


def _on_logits(step: Any, sizes: EngineShape) -> Callable[..., tuple[torch.Tensor, dict[str, Any]]]:
    """SDPO as one would write it on what verl's engine gives: whole logits of teacher and student."""
    from sdpo_plugins.losses import self_distillation_loss
    from sdpo_verl.jagged import sequences_of

    engine = step.engine

    def logits(data: Any, ids: str, positions: str) -> torch.Tensor:
        lengths = data["responses"].offsets().diff()
        rows = torch.arange(len(lengths)).repeat_interleave(lengths)
        places = torch.cat([torch.arange(int(n)) for n in lengths])
        inputs, stream = sequences_of(data, list(data[ids].unbind()), list(data[positions].unbind()), lengths)
        prepared, _ = engine.prepare_model_inputs(micro_batch=inputs)
        found = engine.module(**prepared, use_cache=False).logits.flatten(0, 1)
        # Responses have one length here.
        chosen: torch.Tensor = found[stream.places(rows, places)].view(len(lengths), -1, sizes.vocabulary)
        return chosen

    def forward_step(data: Any, loss_function: Any, forward_only: bool) -> tuple[torch.Tensor, dict[str, Any]]:
        with torch.no_grad(), step.teacher.in_effect(step.teacher.passes[0], step.tensors):
            teacher = logits(data, "teacher_input_ids", "teacher_position_ids")
        student = logits(data, "input_ids", "position_ids")
        ids, mask = (data[name].to_padded_tensor(0) for name in ("responses", "response_mask"))
        loss, _ = self_distillation_loss(student, teacher, ids, mask, step.config)
        return loss, {"model_output": {}, "loss": loss.detach().item(), "metrics": {}}

    return forward_step


def _micro_batch(sizes: EngineShape, rows: int, prompt: int, response: int, fused: bool, entropies: bool) -> Any:
    from tensordict import TensorDict
    from verl.utils import tensordict_utils as tu

    from sdpo_verl.jagged import nested

    draw = torch.Generator().manual_seed(0)

    def tokens(length: int) -> list[torch.Tensor]:
        return [torch.randint(3, sizes.vocabulary, (length,), generator=draw) for _ in range(rows)]

    prompts, contexts, responses = tokens(prompt), tokens(prompt + sizes.context), tokens(response)
    ids, told = ([torch.cat(pair) for pair in zip(before, responses, strict=True)] for before in (prompts, contexts))
    ones = [torch.ones(response, dtype=torch.int64) for _ in range(rows)]
    guess = -torch.log(torch.tensor(float(sizes.vocabulary)))
    data = TensorDict(
        {
            "prompts": nested(prompts),
            "responses": nested(responses),
            "input_ids": nested(ids),
            "position_ids": nested([torch.arange(len(row)) for row in ids]),
            "teacher_input_ids": nested(told),
            "teacher_position_ids": nested([torch.arange(len(row)) for row in told]),
            "response_mask": nested(ones),
            "loss_mask": nested(ones),
            "old_log_probs": nested([guess.expand(response).clone() for _ in range(rows)]),
            "advantages": nested([torch.full((response,), 1.0 - 2.0 * (row % 2)) for row in range(rows)]),
            "sdpo_active": torch.ones(rows),
            "sdpo_success": torch.zeros(rows),
        },
        batch_size=rows,
    )
    tu.assign_non_tensor(
        data,
        temperature=1.0,
        use_dynamic_bsz=False,
        micro_batch_size_per_gpu=rows,
        use_remove_padding=sizes.packed,
        use_fused_kernels=fused,
        calculate_entropy=entropies,
        global_batch_size=rows,
        sdpo_denominator=float(rows * response),
    )
    return data


def _write_model(sizes: EngineShape, folder: str) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    from sdpo_plugins.embedded import checkpoint_path

    settings = AutoConfig.from_pretrained(checkpoint_path())
    settings.vocab_size, settings.hidden_size, settings.intermediate_size = (
        sizes.vocabulary,
        sizes.width,
        3 * sizes.width,
    )
    # Logits of a spread of about 1.5, whatever the width.
    settings.initializer_range = 1.5 / sizes.width**0.5
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(settings).save_pretrained(folder)
    AutoTokenizer.from_pretrained(checkpoint_path()).save_pretrained(folder)


def _find_support() -> None:
    """Let verl run on a CPU; has to come before the first import of verl."""
    os.environ.update(VERL_PLATFORM="cpu", VERL_USE_EXTERNAL_MODULES="verl_cpu.cpu_platform")
    if str(_SUPPORT) not in sys.path:
        sys.path.insert(0, str(_SUPPORT))


def _open_group() -> None:
    if not torch.distributed.is_initialized():
        os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0")
        torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)


def _loads(loads: Sequence[Sequence[float]]) -> str:
    return "; ".join(", ".join(f"{value:.1f}" for value in one) for one in loads)


if __name__ == "__main__":
    app()
