"""Scorers of the catalogue in OpenRLHF: its own executor with a scripted model, and the launcher's `--sdpo.scorer`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from openrlhf.utils.agent import SingleTurnAgentExecutor
from vllm import SamplingParams

from recorded import tokenizer
from sdpo_openrlhf.feedback import checked_response
from sdpo_openrlhf.train import prepare
from sdpo_plugins import ConfigError, DataError, RewardError
from sdpo_plugins.embedded import checkpoint_path
from sdpo_plugins.feedback import for_openrlhf

PROMPT = "<|im_start|>user\nWhich?<|im_end|>\n<|im_start|>assistant\n"
SCORER = ("--sdpo.scorer", "multiple_choice")


class Script:
    """A model that says what it is told."""

    def __init__(self, text: str, ended: bool = True) -> None:
        self.text, self.ended = text, ended

    async def generate(self, ids: list[int], sampling_params: Any, multi_modal_data: Any = None) -> Any:
        end = [tokenizer().eos_token_id] if self.ended else []
        answer = [*tokenizer()(self.text)["input_ids"], *end]
        log_probs = [{token: SimpleNamespace(logprob=-0.5)} for token in answer]
        reason = "stop" if self.ended else "length"
        output = SimpleNamespace(token_ids=answer, text=self.text, finish_reason=reason, logprobs=log_probs)
        return SimpleNamespace(outputs=[output])


def executed(executor: Any, model: Script, label: str) -> tuple[dict[str, Any], str]:
    """Let the host's executor take one answer, and SDPO read its response."""
    sampling = SamplingParams(max_tokens=64, logprobs=1)
    response = asyncio.run(executor.execute(PROMPT, label, sampling, 4096, tokenizer(), model))
    return checked_response(response, judged=True)


@pytest.fixture
def scorer_words(words: Callable[..., list[str]], tmp_path: Path) -> Callable[..., list[str]]:
    def make(*more: str) -> list[str]:
        given = words()
        at = given.index("--reward.remote_url")
        return [*given[:at], *given[at + 2 :], "--ckpt.output_dir", str(tmp_path / "model"), *more]

    return make


def test_the_launchers_file_in_the_hosts_executor(scorer_words: Callable[..., list[str]], tmp_path: Path) -> None:
    options = '{"format_feedback": true, "workers": 1}'
    found = prepare(scorer_words(*SCORER, "--sdpo.scorer_options", options))
    path = tmp_path / "model" / "sdpo_reward.py"
    assert found.args.reward.remote_url == [str(path)] and found.notices == ()
    assert found.reward_file is not None and not path.exists()
    found.reward_file.write()
    executor = SingleTurnAgentExecutor(found.args.reward.remote_url)

    right, text = executed(executor, Script("<answer>B</answer>"), json.dumps({"ground_truth": "B"}))
    assert (right["reward"], right["scores"], text) == (1.0, 1.0, "")
    logs = {name: float(value) for name, value in right["extra_logs"].items()}
    assert logs.pop("acc") == 1.0 and set(logs.values()) == {0.0}
    # A label that is no JSON object is the truth itself.
    wrong, text = executed(executor, Script("<answer>C</answer>"), "B")
    assert (wrong["reward"], text) == (0.0, "")
    cut, text = executed(executor, Script("Let me", ended=False), "B")
    assert cut["reward"] == 0.0 and float(cut["extra_logs"]["truncated"]) == 1.0 and text
    assert float(wrong["extra_logs"]["truncated"]) == 0.0


def test_a_label_that_cannot_be_used_is_no_reward(scorer_words: Callable[..., list[str]]) -> None:
    found = prepare(scorer_words(*SCORER))
    assert found.reward_file is not None
    found.reward_file.write()
    executor = SingleTurnAgentExecutor(found.args.reward.remote_url)
    with pytest.raises(DataError, match="There is no reward"):
        executed(executor, Script("<answer>C</answer>"), json.dumps({"ground_truth": None}))


def test_the_launcher_writes_the_file_only_for_a_run(
    scorer_words: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sdpo_openrlhf import train

    seen: list[str] = []

    def host(args: Any) -> None:
        seen.append(Path(args.reward.remote_url[0]).read_text(encoding="utf-8"))

    monkeypatch.setattr("sdpo_openrlhf.host_cli.HostProgram.load_train", lambda program: host)
    assert train.main(scorer_words(*SCORER, "--sdpo.alpha", "7")) == 2
    assert not (tmp_path / "model").exists()
    assert train.main(scorer_words(*SCORER)) == 0
    assert "reward_func = for_openrlhf('multiple_choice', **SETTINGS)" in seen[0]
    assert repr(str(checkpoint_path())) in seen[0]


def test_the_plugins_of_the_run_are_the_scorers(scorer_words: Callable[..., list[str]]) -> None:
    with pytest.raises(ConfigError, match=r"`scorer` must be one of .* got 'length'"):
        prepare(scorer_words("--sdpo.scorer", "length"))
    found = prepare(scorer_words("--sdpo.scorer", "length", "--sdpo.plugins", "length_scorer"))
    assert found.reward_file is not None and "'plugins': ['length_scorer']" in found.reward_file.text


def test_with_sdpo_off_the_scorer_stays(scorer_words: Callable[..., list[str]]) -> None:
    found = prepare(scorer_words(*SCORER, "--sdpo.enabled", "false", "--algo.advantage.estimator", "group_norm"))
    assert not found.config.enabled and found.reward_file is not None
    assert found.args.reward.remote_url == [str(found.reward_file.path)]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--sdpo.scorer", "multiple_chioce"), "`scorer` must be one of .* Did you mean 'multiple_choice'"),
        ((*SCORER, "--sdpo.scorer_options", '{"reveal": true}'), r"`scorer_options.reveal` is no option"),
        ((*SCORER, "--sdpo.scorer_options", "[1]"), r"must be a mapping, got \[1\] \(list\)"),
        ((*SCORER, "--sdpo.scorer_options", "{"), "must be a mapping in JSON or YAML"),
        ((*SCORER, "--sdpo.scorer_options", '{"tokenizer": "x"}'), "takes the scorer's own options"),
        ((*SCORER, "--sdpo.scorer_options", '{"workers": 0}'), "`workers` must be a whole number of at least 1"),
        (("--sdpo.scorer_options", "{}"), "given without `--sdpo.scorer`"),
        ((*SCORER, "--reward.remote_url", "mine.py"), r"and `--reward.remote_url mine.py` both give rewards"),
        ((*SCORER, "--train.agent_func_path", "mine.py"), "and `--train.agent_func_path mine.py` both give rewards"),
        ((), "Set `--sdpo.scorer` to a scorer"),
    ],
)
def test_mistakes_are_told_before_anything_starts(
    scorer_words: Callable[..., list[str]], more: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        prepare(scorer_words(*more))


# By hand --------------------------------------------------------------------------------------------------------------


def test_a_reward_file_of_two_lines(tmp_path: Path) -> None:
    path = tmp_path / "reward.py"
    path.write_text(
        "from sdpo_plugins.feedback import for_openrlhf\nreward_func = for_openrlhf('multiple_choice', workers=1)\n"
    )
    executor = SingleTurnAgentExecutor([str(path)])
    right, text = executed(executor, Script("<answer>B</answer>"), '{"ground_truth": "B"}')
    assert (right["reward"], float(right["extra_logs"]["incorrect_format"]), text) == (1.0, 0.0, "")


def test_special_tokens_and_the_end_of_an_answer() -> None:
    known = for_openrlhf("length", plugins=["length_scorer"], workers=1, tokenizer=str(checkpoint_path()))
    unknown = for_openrlhf("length", plugins=["length_scorer"], workers=1)
    answers = ("b<|im_end|>", "ab", "<|im_start|>b<|im_end|>\n")
    queries, prompts, labels = [PROMPT + answer for answer in answers], [PROMPT] * 3, ["x"] * 3
    found = known(queries, prompts, labels)
    assert found["rewards"].tolist() == found["scores"].tolist() == [1.0, 0.0, 1.0]
    assert found["extra_logs"]["truncated"].tolist() == [0.0, 1.0, 0.0]
    assert found["extra_logs"]["feedback"] == ["", "Wrong for x: 2 characters.", ""]
    assert "pred" not in found["extra_logs"]
    found = unknown(queries[:2], prompts[:2], labels[:2])
    assert found["rewards"].tolist() == [1.0, 0.0] and found["extra_logs"]["truncated"].tolist() == [0.0, 0.0]


def test_what_the_host_got_wrong_is_named() -> None:
    reward = for_openrlhf("multiple_choice", workers=1)
    with pytest.raises(DataError, match=r"raise `--data.max_len`"):
        reward([PROMPT[5:] + "B"], [PROMPT], ["B"])
    with pytest.raises(RewardError, match=r"name the field that holds it with `--data.label_key`"):
        reward([PROMPT + "B"], [PROMPT], [None])
    with pytest.raises(ConfigError, match=r"`scorer_options.reveal` is no option"):
        for_openrlhf("multiple_choice", reveal=True)


def test_threads_share_the_workers() -> None:
    reward = for_openrlhf("length", plugins=["length_scorer"], workers=1)
    with ThreadPoolExecutor(16) as threads:
        asked = [threads.submit(reward, [PROMPT + text], [PROMPT], ["x"]) for text in ("b", "a") * 20]
        found = [each.result(60) for each in asked]
    assert [float(each["rewards"]) for each in found] == [1.0, 0.0] * 20
    assert len({float(each["extra_logs"]["pid"]) for each in found}) == 1
