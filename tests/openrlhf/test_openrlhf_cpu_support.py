"""The CPU support: the host computes what it computes elsewhere, how a run ends, and what the demo makes of a run."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from openrlhf.models import Actor
from openrlhf.models.ring_attn_utils import gather_and_pad_tensor, unpad_and_slice_tensor
from openrlhf.trainer.ppo_utils.replay_buffer import NaiveReplayBuffer
from openrlhf.utils.agent import SingleTurnAgentExecutor
from openrlhf.utils.deepspeed.deepspeed_utils import get_train_ds_config
from openrlhf.utils.distributed_util import stateless_init_process_group
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import is_flash_attn_2_available

import openrlhf_cpu.demo as demo
import openrlhf_cpu.run as run_module
from openrlhf_cpu import hooks, patches
from openrlhf_cpu.data import write_jsonl
from openrlhf_cpu.run import HOST, RunFailed, base_arguments, environment, run
from sdpo_openrlhf.train import prepare
from sdpo_plugins.embedded import checkpoint_path, load_task
from sdpo_plugins.embedded.settings import run_settings

HERE = Path(__file__).parent
SUPPORT = HERE.parent / "support"


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(checkpoint_path())


def prompt_ids(tokenizer: Any, *questions: Any) -> list[list[int]]:
    return [tokenizer.apply_chat_template(q.messages, add_generation_prompt=True, return_dict=False) for q in questions]


# Patches -------------------------------------------------------------------------------------------------------------


def test_every_patched_module_exists_and_keeps_pythons_own_loader() -> None:
    for name, patch in hooks.PATCHED.items():
        assert callable(getattr(patches, patch)), patch
        assert importlib.util.find_spec(name) is not None, name
    imported = [sys.modules[name] for name in hooks.PATCHED if name in sys.modules]
    assert len(imported) > 5
    for module in imported:
        assert type(module.__spec__.loader) is importlib.machinery.SourceFileLoader, module
        assert module.__loader__ is module.__spec__.loader


def test_patches_that_would_come_too_late_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    before = list(sys.meta_path)
    hooks.install()
    assert sys.meta_path == before, "once is enough"
    monkeypatch.setattr(sys, "meta_path", [])
    with pytest.raises(RuntimeError, match=r"before deepspeed\.comm\.torch, openrlhf, .* is imported"):
        hooks.install()


def test_the_current_device_is_the_cpu() -> None:
    device = torch.cuda.current_device()
    assert torch.ones(2, device=device).to(device).device.type == "cpu"
    assert NaiveReplayBuffer(2).target_device.index == 0, "where the host puts the number behind a name"
    torch.cuda.synchronize()


def test_adam_is_torchs_own() -> None:
    config = get_train_ds_config(offload=False, optim_config={"type": "AdamW", "params": {"lr": 1e-3}})
    assert config["optimizer"]["params"] == {"lr": 1e-3, "torch_adam": True}


def test_padding_is_taken_out_and_put_back() -> None:
    sequences = torch.tensor([[11, 12, 13, 0], [21, 22, 0, 0], [31, 0, 0, 0]])
    mask = (sequences > 0).long()
    packed, positions, rolled, pad, indices = unpad_and_slice_tensor(sequences, mask, None)
    assert packed.tolist() == [[11, 12, 13, 21, 22, 31]]
    assert positions.tolist() == [[0, 1, 2, 0, 1, 0]]
    assert rolled.tolist() == [[12, 13, 0, 22, 0, 0]]
    assert gather_and_pad_tensor(packed, None, pad, indices, 3, 4).tolist() == sequences.tolist()
    values = packed.float().requires_grad_()
    gather_and_pad_tensor(values, None, pad, indices, 3, 4)[0].sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == [[1, 1, 1, 0, 0, 0]]


def test_nobody_takes_flash_attention_for_usable() -> None:
    assert not [name for name in sys.modules if name.startswith("flash_attn")]
    assert importlib.util.find_spec("flash_attn") is None
    assert not is_flash_attn_2_available()


def test_packed_sequences_do_not_see_each_other(tokenizer: Any) -> None:
    prompts = prompt_ids(tokenizer, load_task("sums").train[0], *load_task("facts").train[:2])
    longest = max(map(len, prompts))
    sequences = torch.tensor([ids + [0] * (longest - len(ids)) for ids in prompts])
    mask = torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids in prompts])
    assert len({len(ids) for ids in prompts}) > 1
    found = {}
    for packs in (False, True):
        # What OpenRLHF insists on once sequences are packed; it must not matter here.
        actor = Actor(
            str(checkpoint_path()), attn_implementation="flash_attention_2", param_dtype="fp32", packing_samples=packs
        )
        assert actor.model.dtype == torch.float32
        assert actor.model.config._attn_implementation == "sdpa"
        with torch.no_grad():
            found[packs] = actor(sequences, action_mask=mask[:, 1:], attention_mask=mask)
    assert found[False].abs().max() > 1
    assert torch.allclose(found[True], found[False], atol=2e-5)


# Weights on their way to vLLM ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    """The embedded model and two others, far from it: one in all its weights, one in the tied embedding alone."""
    folder = tmp_path_factory.mktemp("checkpoints")
    for number in range(3):
        shutil.copytree(checkpoint_path(), folder / str(number))
        path = folder / str(number) / "model.safetensors"
        weights = load_file(path)
        generator = torch.Generator().manual_seed(number)
        for name in weights:
            if (number == 1 and weights[name].dim() == 2) or (number == 2 and "embed_tokens" in name):
                noise = torch.randn(weights[name].shape, generator=generator)
                weights[name] = weights[name] + 0.5 * weights[name].std() * noise
        save_file(weights, path, {"format": "pt"})
    questions = [load_task("sums").train[0], *load_task("facts").train[:3]]
    (folder / "prompts.json").write_text(json.dumps(prompt_ids(tokenizer, *questions)))
    return folder


def log_probabilities(checkpoint: Path, prompt: list[int], answer: list[int]) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.bfloat16)
    with torch.no_grad():
        logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1].float()
    return torch.log_softmax(logits, -1)


@pytest.mark.slow
def test_vllm_computes_with_the_weights_that_it_was_sent(checkpoints: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    done = subprocess.run(
        [sys.executable, str(HERE / "vllm_weights.py"), str(checkpoints), str(port)],
        env={
            **os.environ,
            **environment(),
            "PYTHONPATH": str(SUPPORT),
            "VLLM_ALLOW_INSECURE_SERIALIZATION": "1",
            "VLLM_LOGGING_LEVEL": "ERROR",
        },
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    prompts = json.loads((checkpoints / "prompts.json").read_text())
    said = json.loads(done.stdout.splitlines()[-1])
    assert len(said) == 3
    for number, answers in enumerate(said):
        others = []
        for prompt, answer in zip(prompts, answers, strict=True):
            tokens = [token for token, _ in answer]
            given = torch.tensor([log_prob for _, log_prob in answer])
            found = log_probabilities(checkpoints / str(number), prompt, tokens)
            chosen = found[range(len(tokens)), tokens]
            assert (chosen - given).abs().max() < 0.1, number
            assert (found.max(-1).values - chosen).max() < 0.1, "greedy, but for bf16"
            before = log_probabilities(checkpoints / str(number - 1 if number else 1), prompt, tokens)
            others.append(float((before[range(len(tokens)), tokens] - given).abs().max()))
        assert max(others) > 0.5, "the weights before or after would not have passed"


def test_what_was_sent_does_not_pile_up() -> None:
    """A real store on the loopback; vLLM keeps everything for an hour, and pickle a view's whole storage."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    groups: dict[int, Any] = {}

    def join(rank: int) -> None:
        groups[rank] = stateless_init_process_group("127.0.0.1", port, rank, 2, None)

    other = threading.Thread(target=join, args=(1,))
    other.start()
    join(0)
    other.join(60)
    flat = torch.arange(100_000.0)
    store = groups[0]._group.store
    before = store.num_keys()
    for start in range(0, 1000, 10):
        part = flat[start : start + 10].view(2, 5)
        groups[0].broadcast(part, src=0)
        key = groups[0]._group.entries[-1][0]
        assert len(store.get(key)) < 2000
        received = torch.empty(2, 5)
        groups[1].broadcast(received, src=0)
        assert torch.equal(received, part)
    assert store.num_keys() <= before + 1


# Data and grades -----------------------------------------------------------------------------------------------------


def test_a_tasks_files(tmp_path: Path) -> None:
    facts = load_task("facts")
    train, evaluation = ([json.loads(line) for line in path.open()] for path in write_jsonl(facts, tmp_path))
    assert [row["input"] for row in train] == [question.messages for question in facts.train]
    assert [json.loads(row["label"])["truth"] for row in evaluation] == [one.truth for one in facts.evaluation]
    assert {row["datasource"] for row in train + evaluation} == {"sdpo_facts"}

    def questions(seed: int) -> list[str]:
        path, _ = write_jsonl(facts, tmp_path, rows=100, seed=seed)
        return [json.loads(line)["input"][0]["content"] for line in path.open()]

    assert len(questions(0)) == 100
    assert questions(0) == questions(0) != questions(1)
    assert sorted(questions(0)[40:80]) == sorted(question.text for question in facts.train), "each once in a round"


def test_the_reward_file_grades_what_was_sampled(tmp_path: Path, tokenizer: Any) -> None:
    files = base_arguments("facts", tmp_path), base_arguments("facts", tmp_path, feedback=False)
    paths = [words[words.index("--reward.remote_url") + 1] for words in files]
    iron = next(question for question in load_task("facts").train if question.truth == "26")
    label = json.dumps({"task": "facts", "question": iron.text, "truth": iron.truth, "subject": iron.subject})
    prompt = tokenizer.apply_chat_template(iron.messages, tokenize=False, add_generation_prompt=True)
    queries = [prompt + "26<|im_end|>", prompt + "25<|im_end|>", prompt + "26 and"]
    for path, has_texts in zip(paths, (True, False), strict=True):
        graded = SingleTurnAgentExecutor(path).reward_func(queries, [prompt] * 3, [label] * 3)
        assert graded["rewards"].tolist() == graded["scores"].tolist() == [1, 0, 0]
        assert graded["extra_logs"]["acc"].tolist() == [1, 0, 0]
        assert ("feedback" in graded["extra_logs"]) == has_texts
        if has_texts:
            subject = "The atomic number of iron"
            assert graded["extra_logs"]["feedback"] == [
                "",
                f"Wrong. {subject} is 26, not 25.",
                f"Wrong. {subject} is 26.",
            ]


# Runs ----------------------------------------------------------------------------------------------------------------

# In the place of Python: records two steps, starts a process in a group of its own, and does as it is told.
STANDS_IN = """#!/usr/bin/env bash
echo '{"step": 0, "data": {"a": 1}}' >> "$OPENRLHF_CPU_RECORDS"
echo '{"step": 1, "data": {"a": 2}}' >> "$OPENRLHF_CPU_RECORDS"
echo -n '{"step": 2, "data": ' >> "$OPENRLHF_CPU_RECORDS"
set -m; sleep 1000 & echo $! > "$NOTE"
echo "last words, after $*"
"""


@pytest.fixture
def stands_in(tmp_path: Path) -> Any:
    def make(ending: str) -> dict[str, Any]:
        python = tmp_path / "python"
        python.write_text(STANDS_IN + ending + "\n")
        python.chmod(0o755)
        return {"python": str(python), "environment": {"NOTE": str(tmp_path / "pid")}}

    return make


def child_is_gone(folder: Path) -> bool:
    """Whether the process that was started is gone, or waits as a zombie for whoever adopted it."""
    status = Path(f"/proc/{(folder / 'pid').read_text().strip()}/stat")
    return not status.exists() or status.read_text().rpartition(")")[2].split()[0] in "ZX"


def test_a_run_tells_its_steps_and_leaves_no_process(stands_in: Any, tmp_path: Path) -> None:
    told: list[Any] = []
    ending = 'sleep 1.2; echo \'{"b": 3}}\' >> "$OPENRLHF_CPU_RECORDS"'
    metrics = run(
        ["--a.b", "c"], 60, log=tmp_path / "log", on_step=lambda *step: told.append(step), **stands_in(ending)
    )
    assert metrics == {0: {"a": 1}, 1: {"a": 2}, 2: {"b": 3}}
    assert told == [(0, {"a": 1}), (1, {"a": 2}), (2, {"b": 3})]
    printed = (tmp_path / "log").read_text()
    assert "openrlhf_cpu.driver sdpo_openrlhf.train" in printed
    assert printed.rstrip().endswith("--a.b c"), "the caller's flags are the last"
    assert child_is_gone(tmp_path)


@pytest.mark.parametrize(
    ("ending", "limit", "stops", "why"),
    [
        ("exit 3", 60.0, False, "ended with code 3"),
        ("sleep 1000", 1.0, False, "did not end within 1 s"),
        ("sleep 1000", 60.0, True, "was stopped"),
    ],
    ids=["error", "time", "stop"],
)
def test_a_run_that_fails_says_why_and_leaves_no_process(
    stands_in: Any, tmp_path: Path, ending: str, limit: float, stops: bool, why: str
) -> None:
    stop = threading.Event()
    on_step = (lambda *_: stop.set()) if stops else None
    begin = time.monotonic()
    with pytest.raises(RunFailed, match=f"{why}, after step 1") as failure:
        run([], limit, stop=stop, on_step=on_step, **stands_in(ending))
    assert time.monotonic() - begin < 30
    assert "last words" in failure.value.log
    assert failure.value.metrics[1] == {"a": 2}
    assert failure.value.timed_out == (ending != "exit 3" and not stops)
    assert child_is_gone(tmp_path)


def test_the_command_shows_rewards_and_accuracies(
    stands_in: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    line = '{"rollout/reward_mean": 0.25, "kl": 1}}'
    more = '{"step": 2, "data": {"eval/eval_sdpo_sums_pass1": 0.5, "eval/eval_num_samples": 24}}'
    arguments = stands_in(f"echo '{line}' >> \"$OPENRLHF_CPU_RECORDS\"; echo '{more}' >> \"$OPENRLHF_CPU_RECORDS\"")
    monkeypatch.setattr(run_module, "run", partial(run, **arguments))
    assert run_module.main(["--a.b", "c", "--module", HOST]) == 0
    shown = "step 2: rollout/reward_mean 0.250\nstep 2: eval/eval_sdpo_sums_pass1 0.500\n"
    assert capsys.readouterr().out == shown
    monkeypatch.setattr(run_module, "run", partial(run, **stands_in("exit 3")))
    assert run_module.main(["--module", HOST]) == 1
    printed = capsys.readouterr().err
    assert "ended with code 3" in printed
    assert f"last words, after -m openrlhf_cpu.driver {HOST}" in printed


@pytest.mark.slow
def test_the_unmodified_host_trains_in_float32_on_two_ranks_and_evaluates_before_and_after(tmp_path: Path) -> None:
    steps = 3
    words = base_arguments("sums", tmp_path, steps=steps, questions=4, ranks=2, feedback=False)
    words += ["--eval.steps", str(steps), "--eval.n_samples_per_prompt", "2", "--data.max_samples", "12"]
    variables = {"OPENRLHF_CPU_EVALUATE_FIRST": "1", "OPENRLHF_CPU_PARAM_DTYPE": "fp32"}
    told: list[int] = []
    metrics = run(words, 400, module=HOST, environment=variables, on_step=lambda step, _: told.append(step))
    assert told == [0, 1, 2, 3, 3]
    assert set(metrics) == {0, 1, 2, 3}
    for step in (0, steps):
        assert metrics[step]["eval/eval_num_samples"] == 24
        assert 0 <= metrics[step]["eval/eval_sdpo_sums_pass1"] <= 1
    for step in range(1, steps + 1):
        assert metrics[step]["rollout/num_samples"] == 16
        assert metrics[step]["acc"] == metrics[step]["rollout/reward_mean"]
    assert any(metrics[step]["actor_grad_norm"] > 0 for step in range(1, steps + 1))
    trained, given = (load_file(folder / "model.safetensors") for folder in (tmp_path / "model", checkpoint_path()))
    assert {weight.dtype for weight in trained.values()} == {torch.float32}
    assert any(not torch.equal(trained[name], given[name]) for name in given)


# The demo ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", demo.METHODS)
def test_the_demo_runs_by_its_settings(tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_OVERRIDE_RESOURCES", '{"CPU": 16, "GPU": 8}')
    settings = replace(run_settings("facts", method), steps=3)  # type: ignore[arg-type]
    prepared = prepare(demo.arguments(settings, tmp_path, ranks=2, seed=5))
    args, options = prepared.args, prepared.config.to_mapping()
    assert (args.rollout.batch_size, args.rollout.n_samples_per_prompt) == (16, 4)
    assert (args.train.batch_size, args.train.micro_batch_size, args.actor.num_gpus_per_node) == (64, 32, 2)
    assert args.train.seed == 5
    assert (args.actor.adam.lr, args.actor.lr_scheduler) == (settings.learning_rate, "constant")
    assert (args.eval.steps, args.eval.n_samples_per_prompt, args.eval.temperature) == (3, 8, 1.0)
    assert len((tmp_path / "facts_train.jsonl").read_text().splitlines()) == 3 * 16
    assert options["enabled"] == (method == "sdpo")
    assert {name: options[name] for name in settings.sdpo} == dict(settings.sdpo)


def records() -> dict[int, dict[str, float]]:
    accuracy = "eval/eval_sdpo_facts_pass1"
    steps = {step: {"rollout/reward_mean": step / 4, "timing/step_total": 1.5} for step in (1, 2)}
    return {0: {accuracy: 0.01}, 1: steps[1], 2: {**steps[2], accuracy: 0.5}}


def test_a_result_is_what_openrlhf_recorded() -> None:
    settings = replace(run_settings("facts", "sdpo"), steps=2)
    found = demo.result(settings, records(), seed=3)
    assert (found.accuracy_before, found.accuracy_after) == (0.01, 0.5)
    assert (found.generations, found.seconds, found.curve, found.seed) == (128, 3.0, [0.25, 0.5], 3)
    short = records()
    del short[1]
    with pytest.raises(RunFailed, match=r"at steps \[1\]"):
        demo.result(settings, short, seed=3)


def test_the_demo_writes_its_results(stands_in: Any, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    lines = "".join(json.dumps({"step": step, "data": row}) + "\n" for step, row in records().items())
    (tmp_path / "records").write_text("{}}\n" + lines)
    arguments = stands_in(f'cat "{tmp_path / "records"}" >> "$OPENRLHF_CPU_RECORDS"')
    monkeypatch.setattr(demo, "run", with_arguments(arguments))
    assert demo.main(["--steps", "2", "--ranks", "2", "--output", str(tmp_path / "out")]) == 0
    rows = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [(row["method"], row["host"], row["ranks"], row["accuracy_after"]) for row in rows] == [
        ("grpo", "openrlhf", 2, 0.5),
        ("sdpo", "openrlhf", 2, 0.5),
    ]
    assert (tmp_path / "out" / "facts.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr()
    assert "SDPO: accuracy 1% → 50%, 128 generations" in printed.out
    assert "\x1b" not in printed.out + printed.err and "\r" not in printed.out, "no bars where nobody looks"


def with_arguments(arguments: dict[str, Any]) -> Any:
    """`run` with another Python and more variables."""

    def started(words: Any, limit: float, *, environment: dict[str, str], **given: Any) -> Any:
        assert environment["OPENRLHF_CPU_EVALUATE_FIRST"] == "1"
        return run(
            words,
            limit,
            **given,
            python=arguments["python"],
            environment={**environment, **arguments["environment"]},
        )

    return started


def test_the_demo_fails_when_a_run_does(stands_in: Any, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setattr(demo, "run", with_arguments(stands_in("exit 3")))
    assert demo.main(["--steps", "2", "--output", str(tmp_path / "out")]) == 1
    message = capsys.readouterr().err
    assert "ended with code 3" in message and "last words" in message
    assert "Traceback" not in message
    assert any(str(tmp_path / "out" / f"{method}.log") in message for method in demo.METHODS)
    assert child_is_gone(tmp_path)
    assert not (tmp_path / "out" / "results.json").exists()


def test_ranks_that_do_not_divide_a_step(capsys: Any) -> None:
    assert demo.main(["--ranks", "7"]) == 1
    assert "--ranks must divide the 64 answers of a step, got 7" in capsys.readouterr().err
