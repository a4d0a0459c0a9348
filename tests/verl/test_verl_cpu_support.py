"""The CPU support: what its rollout server samples, how a run ends, and what the demo makes of a run."""

from __future__ import annotations

import asyncio
import json
import math
import threading
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir, initialize_config_module
from omegaconf import OmegaConf
from transformers import AutoModelForCausalLM, AutoTokenizer

import verl_cpu.demo as demo
from sdpo_plugins.embedded import checkpoint_path, load_task
from sdpo_plugins.embedded.settings import run_settings
from sdpo_verl.config import check_config, sdpo_config_of
from verl_cpu.rollout import HFServer, Request, sample
from verl_cpu.run import RunFailed, base_overrides, run

RECIPE = Path(__file__).parents[2] / "recipes" / "verl" / "arithmetic_cpu"
CPU = Path(demo.__file__).parent / "conf" / "cpu.yaml"


@pytest.fixture(scope="module")
def model() -> Any:
    return AutoModelForCausalLM.from_pretrained(checkpoint_path(), dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    """Prompts of several lengths."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoint_path())
    questions = [load_task("sums").train[0], *load_task("facts").train[:3]]
    made = [tokenizer.apply_chat_template(q.messages, add_generation_prompt=True, return_dict=False) for q in questions]
    assert len({len(ids) for ids in made}) > 1
    return made


def distribution(model: Any, ids: list[int], temperature: float) -> torch.Tensor:
    with torch.no_grad():
        return torch.log_softmax(model(torch.tensor([ids])).logits[0, -1].double() / temperature, -1)


# What is sampled -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_answers_follow_the_models_own_distribution(model: Any, prompts: Any, temperature: float) -> None:
    draws = 4000
    # A fact that the model does not know: it has many answers to choose from.
    requests = [Request(prompts[1], 1, temperature, seed=seed) for seed in range(draws)]
    answers = sample(model, requests, frozenset())
    expected = distribution(model, prompts[1], temperature)
    counts = torch.bincount(torch.tensor([tokens[0] for tokens, _ in answers]), minlength=len(expected))
    # Pearson's statistic over the tokens that are expected often enough, the rest as one more.
    mean = expected.exp() * draws
    often = mean >= 5
    assert int(often.sum()) >= 8
    seen = torch.cat([counts[often], counts[~often].sum()[None]]).double()
    wanted = torch.cat([mean[often], mean[~often].sum()[None]])
    statistic, freedom = float(((seen - wanted) ** 2 / wanted).sum()), len(wanted) - 1
    assert statistic < freedom + 4 * math.sqrt(2 * freedom)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_log_probabilities_are_those_of_a_forward_pass_over_the_answer(
    model: Any, prompts: Any, temperature: float
) -> None:
    requests = [Request(prompt, 6, temperature, seed=seed) for seed, prompt in enumerate(prompts)]
    for request, (tokens, log_probs) in zip(requests, sample(model, requests, frozenset()), strict=True):
        assert len(tokens) == 6
        for at, (token, log_prob) in enumerate(zip(tokens, log_probs, strict=True)):
            expected = distribution(model, [*request.prompt, *tokens[:at]], temperature)[token]
            assert log_prob == pytest.approx(float(expected), abs=1e-4)


def test_an_answer_does_not_depend_on_those_beside_it(prompts: Any) -> None:
    one = server()._model
    requests = [Request(prompt, 5, seed=seed) for seed in range(8) for prompt in prompts]

    def answers(given: list[Request]) -> list[Any]:
        # As a trainer gets them, in float32.
        return [(tokens, torch.tensor(log_probs).tolist()) for tokens, log_probs in sample(one, given, frozenset())]

    together = answers(requests)
    assert together == answers(requests[::-1])[::-1]
    assert together == [answers([request])[0] for request in requests]


def test_an_answer_ends_with_its_end_or_its_limit(model: Any, prompts: Any) -> None:
    (free,) = sample(model, [Request(prompts[0], 6, temperature=0)], frozenset())
    end = free[0][1]
    first = free[0].index(end)
    stopped, short = sample(
        model, [Request(prompts[0], 6, temperature=0), Request(prompts[0], 1, temperature=0)], frozenset([end])
    )
    assert stopped[0] == free[0][: first + 1]
    assert short[0] == free[0][:1]


def test_greedy_and_restricted_choices(model: Any, prompts: Any) -> None:
    expected = distribution(model, prompts[1], 1.0)
    order = expected.argsort(descending=True)
    top_p = 0.5
    kept = int((expected[order].exp().cumsum(0) - expected[order].exp() <= top_p).sum())
    settings: dict[str, dict[str, Any]] = {
        "greedy": {"temperature": 0},
        "top_k": {"top_k": 3},
        "top_p": {"top_p": top_p},
    }
    for name, choices in (("greedy", 1), ("top_k", 3), ("top_p", kept)):
        requests = [Request(prompts[1], 1, seed=seed, **settings[name]) for seed in range(300)]
        answers = sample(model, requests, frozenset())
        assert {tokens[0] for tokens, _ in answers} == set(order[:choices].tolist()), name
        token, log_prob = answers[0][0][0], answers[0][1][0]
        assert log_prob == pytest.approx(float(expected[token]), abs=1e-4), "the policy's, before the restriction"


# The server ----------------------------------------------------------------------------------------------------------


def server(seed: int = 0) -> HFServer:
    return HFServer(str(checkpoint_path()), SimpleNamespace(prompt_length=96, response_length=6), seed)


def asked(one: HFServer, prompts: list[list[int]]) -> list[tuple[list[int], int]]:
    async def ask() -> Any:
        return await asyncio.gather(*(one.generate("", prompt, {"temperature": 1.0}) for prompt in prompts))

    return [(list(answer.token_ids), answer.extra_fields["global_steps"]) for answer in asyncio.run(ask())]


def test_the_server_samples_by_seed_weights_prompt_and_count(prompts: Any) -> None:
    first = asked(server(), prompts * 4)
    assert len({tuple(tokens) for tokens, _ in first[:: len(prompts)]}) > 1, "each time another answer"
    assert sorted(first) == sorted(asked(server(), (prompts * 4)[::-1])), "whatever the order"
    assert first != asked(server(seed=1), prompts * 4)

    one = server()
    assert asked(one, prompts * 4) == first
    assert asked(one, prompts * 4) != first
    asyncio.run(one.restart_draws())
    assert asked(one, prompts * 4) == first
    asyncio.run(one.set_global_steps(3))
    asyncio.run(one.restart_draws())
    later = asked(one, prompts * 4)
    assert {steps for _, steps in later} == {3}
    assert [tokens for tokens, _ in later] != [tokens for tokens, _ in first]


def test_the_server_takes_the_trainers_weights_whole(prompts: Any) -> None:
    one = server()
    weights = {name: value.clone() for name, value in one._model.state_dict().items()}
    name = next(name for name in weights if "q_proj" in name)
    weights[name] = torch.zeros_like(weights[name])
    asyncio.run(one.load_weights(weights, 5))
    assert not one._model.state_dict()[name].any()
    assert {steps for _, steps in asked(one, prompts)} == {5}
    part = dict(weights)
    part["unknown"] = part.pop(name)
    with pytest.raises(ValueError, match=rf"not sent \['{name}'\], unknown \['unknown'\]"):
        asyncio.run(one.load_weights(part, 6))


# Runs ----------------------------------------------------------------------------------------------------------------

# In the place of Python: records two steps, starts a process in a group of its own, and does as it is told.
STANDS_IN = """#!/usr/bin/env bash
echo '{"step": 0, "data": {"a": 1}}' >> "$VERL_FILE_LOGGER_PATH"
echo '{"step": 1, "data": {"a": 2}}' >> "$VERL_FILE_LOGGER_PATH"
set -m; sleep 1000 & echo $! > "$NOTE"
echo "last words"
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
    metrics = run([], 60, on_step=lambda *step: told.append(step), **stands_in("sleep 1.2"))
    assert metrics == {0: {"a": 1}, 1: {"a": 2}}
    assert told == [(0, {"a": 1}), (1, {"a": 2})]
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


def leaves(settings: Any, above: str = "") -> dict[str, Any]:
    if not isinstance(settings, dict):
        return {above: settings}
    return {path: leaf for name, value in settings.items() for path, leaf in leaves(value, f"{above}.{name}").items()}


def test_the_overrides_hold_the_whole_cpu_file(tmp_path: Path) -> None:
    with initialize_config_module("verl.trainer.config", version_base=None):
        config = compose("ppo_trainer", overrides=base_overrides("facts", tmp_path, ranks=2))
    found = leaves(OmegaConf.to_container(config, resolve=True))
    expected = leaves(yaml.safe_load(CPU.read_text()))
    ranks = ".trainer.n_gpus_per_node"
    assert found[ranks] == 2
    for path, value in expected.items():
        if path != ranks:
            assert found[path] == (2 if value == "${trainer.n_gpus_per_node}" else value), path


def test_the_recipe_is_accepted_and_trains_as_its_settings_say() -> None:
    with initialize_config_dir(str(RECIPE), version_base=None):
        config = compose("arithmetic_cpu", overrides=[f"actor_rollout_ref.model.path={checkpoint_path()}"])
    check_config(config)
    tuned = run_settings("sums", "sdpo")
    options = sdpo_config_of(config).to_mapping()
    assert {name: options[name] for name in tuned.sdpo} == dict(tuned.sdpo)
    assert config.actor_rollout_ref.actor.optim.lr == tuned.learning_rate
    assert config.trainer.total_training_steps == tuned.steps
    assert config.data.train_batch_size == tuned.questions_per_step
    assert config.actor_rollout_ref.rollout.n == tuned.rollouts_per_question
    assert config.actor_rollout_ref.rollout.name == "hf_cpu"


# The demo ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", demo.METHODS)
def test_the_demo_runs_by_its_settings(tmp_path: Path, method: str) -> None:
    settings = replace(run_settings("facts", method), steps=3)  # type: ignore[arg-type]
    kept = tmp_path / "the demo's" / "records"
    given = demo.overrides(settings, tmp_path, ranks=2, seed=5, records=kept)
    with initialize_config_module("verl.trainer.config", version_base=None):
        config = compose("ppo_trainer", overrides=given)
    rollout, actor = config.actor_rollout_ref.rollout, config.actor_rollout_ref.actor
    assert (config.data.train_batch_size, rollout.n) == (16, 4)
    assert actor.ppo_micro_batch_size_per_gpu == 32
    assert (config.data.seed, rollout.seed) == (5, 5)
    assert actor.optim.lr == settings.learning_rate
    assert (config.trainer.total_training_steps, config.trainer.test_freq) == (3, 3)
    if method == "grpo":
        assert config.trainer.v1.trainer_mode == "sync"
        assert "self_distillation" not in actor
    else:
        check_config(config)
        options = sdpo_config_of(config).to_mapping()
        assert config.trainer.v1.trainer_mode == "sdpo"
        assert {name: options[name] for name in settings.sdpo} == dict(settings.sdpo)
        assert options["record_dir"] == str(kept)
    with pytest.raises(ValueError, match="'linear'"):
        demo.overrides(replace(settings, lr_scheduler_type="linear"), tmp_path, ranks=1, seed=0)


def records() -> dict[int, dict[str, float]]:
    accuracy = "val-core/sdpo_facts/acc/mean@8"
    steps = {step: {"critic/score/mean": step / 4, "timing_s/step": 1.5} for step in (1, 2)}
    return {0: {accuracy: 0.01}, 1: steps[1], 2: {**steps[2], accuracy: 0.5}}


def test_a_result_is_what_verl_recorded() -> None:
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
    (tmp_path / "records").write_text(lines)
    arguments = stands_in(f'cat "{tmp_path / "records"}" >> "$VERL_FILE_LOGGER_PATH"')
    monkeypatch.setattr(demo, "run", partial(run, **arguments))
    assert demo.main(["--steps", "2", "--ranks", "2", "--output", str(tmp_path / "out")]) == 0
    rows = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [(row["method"], row["host"], row["ranks"], row["accuracy_after"]) for row in rows] == [
        ("grpo", "verl", 2, 0.5),
        ("sdpo", "verl", 2, 0.5),
    ]
    assert (tmp_path / "out" / "facts.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr()
    assert "SDPO: accuracy 1% → 50%, 128 generations" in printed.out
    assert "\x1b" not in printed.out + printed.err and "\r" not in printed.out, "no bars where nobody looks"


def test_the_demo_fails_when_a_run_does(stands_in: Any, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setattr(demo, "run", partial(run, **stands_in("exit 3")))
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
