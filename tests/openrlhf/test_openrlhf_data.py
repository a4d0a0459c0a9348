"""What `sdpo data --host openrlhf` writes, as OpenRLHF's own data sets read it, scored in its own executor."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pytest
from openrlhf.trainer.ppo_trainer import prepare_datasets
from openrlhf.utils import get_strategy
from openrlhf.utils.agent import SingleTurnAgentExecutor
from openrlhf.utils.utils import get_tokenizer
from vllm import SamplingParams

from data_samples import SAMPLES
from recorded import tokenizer
from sdpo_openrlhf.feedback import checked_response
from sdpo_openrlhf.prompts import prompt_style
from sdpo_openrlhf.train import prepare as prepare_run
from sdpo_plugins.data import prepare
from sdpo_plugins.embedded import checkpoint_path


@pytest.fixture(autouse=True)
def one_gpu_and_a_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_OVERRIDE_RESOURCES", '{"CPU": 16, "GPU": 8}')
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


class Script:
    """A model that says what it is told."""

    def __init__(self, text: str) -> None:
        self.text = text

    async def generate(self, ids: list[int], sampling_params: Any, multi_modal_data: Any = None) -> Any:
        answer = [*tokenizer()(self.text)["input_ids"], tokenizer().eos_token_id]
        log_probs = [{token: SimpleNamespace(logprob=-0.5)} for token in answer]
        output = SimpleNamespace(token_ids=answer, text=self.text, finish_reason="stop", logprobs=log_probs)
        return SimpleNamespace(outputs=[output])


def rewarded(file: Path, prompt: str, label: str, answer: str) -> float:
    """Let the host's executor take one answer and have it scored."""
    executor = SingleTurnAgentExecutor([str(file)])
    sampling = SamplingParams(max_tokens=256, logprobs=1)
    response = asyncio.run(executor.execute(prompt, label, sampling, 8192, tokenizer(), Script(answer)))
    return float(checked_response(response, judged=True)[0]["reward"])


@pytest.mark.parametrize("source", SAMPLES)
def test_openrlhf_reads_and_scores_it(source: str, tmp_path: Path) -> None:
    sample = SAMPLES[source]
    options = dict(zip((word[2:].replace("-", "_") for word in sample.options[::2]), sample.options[1::2], strict=True))
    place = sample.place(tmp_path / "source")
    card = prepare(source, host="openrlhf", place=place, output=tmp_path / "out", **options).card
    # The flags that the card names, for a run of one question.
    text = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    flags = text.split("Flags of OpenRLHF")[1].split("```")[1].split()
    assert flags[-2:] == ["--sdpo.scorer", card["scorer"]]
    run = prepare_run(
        [
            *("--actor.model_name_or_path", str(checkpoint_path()), "--data.max_len", "2048"),
            *("--rollout.batch_size", "1", "--rollout.n_samples_per_prompt", "2", "--train.batch_size", "2"),
            *("--actor.num_gpus_per_node", "1", "--vllm.num_engines", "1", "--eval.steps", "1", "--ds.zero_stage", "2"),
            *("--ckpt.output_dir", str(tmp_path / "model")),
            *flags,
        ]
    )
    strategy = get_strategy(run.args)
    own = get_tokenizer(str(checkpoint_path()), None, "left", strategy)
    loader, evaluation, _ = prepare_datasets(strategy, own)
    assert (len(loader.dataset), len(evaluation.dataset)) == sample.counts
    files = {split: (tmp_path / "out" / f"{split}.jsonl").read_text().splitlines() for split in ("train", "test")}
    rows = [json.loads(line) for line in files["test"]]
    source_name, prompt, label, images = evaluation.dataset[0]
    assert (source_name, images) == (card["data_source"], None)
    assert label == rows[0]["label"]
    asked = [loader.dataset[place][1] for place in range(len(loader.dataset))]
    found = [prompt_style(strategy, own).question(each) for each in asked]
    assert found == [json.loads(line)["input"] for line in files["train"]], "SDPO finds the questions again"
    truth = json.loads(label)["ground_truth"]
    right = sample.right(rows[0]["input"][-1]["content"], truth)
    run.reward_file.write()
    (file,) = map(Path, run.args.reward.remote_url)
    assert rewarded(file, prompt, label, right) == 1.0
    assert rewarded(file, prompt, label, "I do not know.") == 0.0
