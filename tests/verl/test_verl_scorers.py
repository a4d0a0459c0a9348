"""Scorers of the catalogue in verl: found by its own loader, called by its reward managers, threads and processes."""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_module
from omegaconf import DictConfig
from transformers import AutoTokenizer
from verl import DataProto
from verl.trainer.ppo.reward import get_custom_reward_fn, load_reward_manager

from sdpo_plugins import ConfigError, DataError
from sdpo_plugins.embedded import checkpoint_path
from sdpo_plugins.feedback import for_verl
from sdpo_plugins.feedback.verl import VerlReward
from sdpo_plugins.plugins import catalogue

PATH = "reward.custom_reward_function.path=pkg://sdpo_plugins.feedback.verl"
LENGTH = "+reward.custom_reward_function.reward_kwargs={scorer:length,plugins:[length_scorer],workers:1}"


def composed(name: str, *overrides: str) -> DictConfig:
    with initialize_config_module("verl.trainer.config", version_base=None):
        return compose("ppo_trainer", overrides=[PATH, f"reward.custom_reward_function.name={name}", *overrides])


def row(answer: str, truth: str = "x", ended: bool = True, **extra: Any) -> DataProto:
    """One answer as the reward loop gets it: the prompt to the left, the response padded to the right."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoint_path())
    ids = [*tokenizer(answer)["input_ids"], *([tokenizer.eos_token_id] if ended else [])]
    responses = torch.tensor([ids + [tokenizer.pad_token_id] * 3])
    mask = torch.tensor([[1] * 4 + [1] * len(ids) + [0] * 3])
    return DataProto.from_dict(
        tensors={"prompts": torch.ones(1, 4, dtype=torch.long), "responses": responses, "attention_mask": mask},
        non_tensors={
            "data_source": np.array(["lengths"], dtype=object),
            "reward_model": np.array([{"style": "rule", "ground_truth": truth}], dtype=object),
            "extra_info": np.array([{"split": "train", "index": 7, **extra}], dtype=object),
        },
    )


def managed(config: DictConfig, *rows: DataProto) -> list[dict[str, Any]]:
    """Let the reward manager of a configuration score rows at the same time, as an agent loop does."""

    async def score() -> list[dict[str, Any]]:
        manager = load_reward_manager(config, AutoTokenizer.from_pretrained(checkpoint_path()))
        manager.loop = asyncio.get_running_loop()
        return list(await asyncio.gather(*(manager.run_single(each) for each in rows)))

    return asyncio.run(score())


def test_a_scorer_by_its_name_in_the_hosts_reward_manager() -> None:
    config = composed("compute_score", LENGTH)
    answers = ["b", "a"] * 20
    found = managed(config, *(row(answer) for answer in answers))
    assert [each["reward_score"] for each in found] == [1.0, 0.0] * 20
    extra = [each["reward_extra_info"] for each in found]
    assert extra[0]["feedback"] == "" and extra[1]["feedback"] == "Wrong for x: 1 characters."
    assert {each["pred"] for each in extra} == {"a", "b"}
    # verl wants the same keys of all rows, and makes arrays of them.
    assert len({tuple(each) for each in extra}) == 1
    assert {"score", "acc", "feedback", "scoring_timed_out", "scoring_crashed"} <= set(extra[0])
    assert len({each["pid"] for each in extra}) == 1, "the workers were started more than once"


def test_reward_kwargs_are_the_scorers_options() -> None:
    truth = json.dumps([{"Action": "search", "Action_Input": {"query": "axolotl"}}])
    wrong = 'Action: search\nAction Input: {"query": "newt"}'
    given = {"data_source": "t", "solution_str": wrong, "ground_truth": truth, "extra_info": None}
    silent = get_custom_reward_fn(composed("tool_use", "+reward.custom_reward_function.reward_kwargs.workers=1"))
    assert "axolotl" not in silent(**given)["feedback"]
    told = get_custom_reward_fn(
        composed("tool_use", "+reward.custom_reward_function.reward_kwargs={workers:1,reveal_truth:true}")
    )
    assert "axolotl" in told(**given)["feedback"]
    wrong_name = get_custom_reward_fn(composed("tool_use", "+reward.custom_reward_function.reward_kwargs.reveal=true"))
    with pytest.raises(ConfigError, match=r"`scorer_options.reveal` is no option of the scorer 'tool_use'"):
        wrong_name(**given)
    with pytest.raises(AttributeError, match="tool_usage"):
        get_custom_reward_fn(composed("tool_usage"))
    named = get_custom_reward_fn(
        composed("compute_score", "+reward.custom_reward_function.reward_kwargs.scorer=tool_usage")
    )
    with pytest.raises(ConfigError, match=r"`scorer` must be one of .* got 'tool_usage'.* Did you mean 'tool_use'"):
        named(**given)


def test_our_reward_manager_says_what_was_cut_off() -> None:
    tokenizer = AutoTokenizer.from_pretrained(checkpoint_path())
    longest = len(tokenizer("abc")["input_ids"])
    manager = "{source:importlib,name:CutOffRewardManager,module:{path:'pkg://sdpo_verl.rewards'}}"
    config = composed(
        "compute_score", LENGTH, f"reward.reward_manager={manager}", f"data.max_response_length={longest}"
    )
    rows = [row("abc", ended=False), row("abc"), row("a", ended=False), row("a"), row("abc", ended=False, split="test")]
    rows[4].non_tensor_batch.pop("extra_info")
    found = managed(config, *rows)
    assert [each["reward_extra_info"]["truncated"] for each in found] == [1.0, 0.0, 0.0, 0.0, 1.0]
    plain = managed(composed("compute_score", LENGTH), rows[0])
    assert plain[0]["reward_score"] == found[0]["reward_score"]


def test_a_row_that_cannot_be_used_ends_the_run() -> None:
    config = composed("multiple_choice", "+reward.custom_reward_function.reward_kwargs.workers=1")
    with pytest.raises(DataError, match="truth of a row"):
        managed(config, row("<answer>B</answer>", truth="both"))


def test_ones_own_file_of_two_lines(tmp_path: Path) -> None:
    path = tmp_path / "reward.py"
    path.write_text(
        "from sdpo_plugins.feedback import for_verl\ncompute_score = for_verl('multiple_choice', workers=1)\n"
    )
    config = composed("compute_score", f"reward.custom_reward_function.path={path}")
    (found,) = managed(config, row("<answer>B</answer>", truth="B"))
    assert (found["reward_score"], found["reward_extra_info"]["acc"]) == (1.0, 1.0)


def test_a_response_that_crashes_has_the_same_keys_as_any() -> None:
    compute_score = for_verl("odd", plugins=["odd_scorer"], workers=1)
    lost = compute_score("d", "exit 1", "x")
    fine = compute_score("d", "x", "x")
    assert lost.keys() == fine.keys() and (lost["score"], lost["scoring_crashed"], lost["feedback"]) == (0.0, 1.0, "")


def test_what_verl_adds_for_reward_models_is_no_option() -> None:
    compute_score = for_verl("length", plugins=["length_scorer"], workers=1)
    assert compute_score("d", "b", "x", reward_router_address="a:1", reward_model_tokenizer=None)["score"] == 1.0
    assert compute_score("d", "b", "x", {"truncated": True})["truncated"] == 1.0
    with pytest.raises(ConfigError, match="is no option"):
        for_verl("length", plugins=["length_scorer"], bonus=1)


def call(score: Any, answer: str) -> tuple[float, float]:
    found = score("d", answer, "x", {})
    return found["score"], found["pid"]


def test_threads_and_processes_of_the_hosts_managers() -> None:
    score = partial(for_verl("length", plugins=["length_scorer"], workers=1))
    with ThreadPoolExecutor(16) as threads:
        found = list(threads.map(partial(call, score), ["b", "a"] * 30))
    assert [reward for reward, _ in found] == [1.0, 0.0] * 30 and len({pid for _, pid in found}) == 1
    # verl's `prime` manager copies the function to a process of a pool for every answer.
    with ProcessPoolExecutor(2) as processes:
        others = list(processes.map(partial(call, score), ["b", "a"] * 30))
    assert [reward for reward, _ in others] == [1.0, 0.0] * 30
    pids = {pid for _, pid in others}
    assert len(pids) <= 2 and not pids & {pid for _, pid in found}


def test_only_scorers_are_names_of_the_module() -> None:
    import sdpo_plugins.feedback.verl as place

    for name in catalogue("scorer"):
        assert isinstance(getattr(place, name), VerlReward)
    assert not hasattr(place, "pytest_plugins") and not hasattr(place, "length")
