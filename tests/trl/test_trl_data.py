"""What `sdpo data --host trl` writes, as a recipe of `sdpo train` reads it, and scored by the recipe's scorer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pytest
import yaml

from data_samples import SAMPLES
from sdpo_plugins.data import prepare
from sdpo_plugins.feedback import for_trl
from sdpo_trl.recipe import _data, parse


@pytest.fixture(autouse=True)
def cache_of_this_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def made(source: str, folder: Path) -> Any:
    """Prepare a source's sample; return its card."""
    words = SAMPLES[source].options
    options = dict(zip((word[2:].replace("-", "_") for word in words[::2]), words[1::2], strict=True))
    place = SAMPLES[source].place(folder / "source")
    return prepare(source, place=place, output=folder / "out", **options).card


def read(recipe: dict[str, Any], folder: Path) -> datasets.Dataset:
    """Return the data of a recipe, read as `sdpo train` does."""
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({"output_dir": str(folder / "trained"), "use_cpu": True, "bf16": False, **recipe}))
    return _data(parse(path, [])[0])[0]


@pytest.mark.parametrize("source", SAMPLES)
def test_a_recipe_reads_and_scores_it(source: str, tmp_path: Path) -> None:
    card, sample = made(source, tmp_path), SAMPLES[source]
    recipe = yaml.safe_load((tmp_path / "out" / "README.md").read_text().split("```yaml\n")[1].split("```")[0])
    assert recipe == {"dataset_name": str(tmp_path / "out"), "dataset_split": "train", "scorer": card["scorer"]}
    train, test = read(recipe, tmp_path), read({**recipe, "dataset_split": "test"}, tmp_path)
    assert (len(train), len(test)) == sample.counts
    # A file alone can be named, too.
    one = read({**recipe, "dataset_name": str(tmp_path / "out" / "train.parquet")}, tmp_path)
    assert one.to_list() == train.to_list()
    row = test[0]
    assert row["split"] == "test" and row["prompt"][-1]["role"] == "user"
    answers = [sample.right(row["prompt"][-1]["content"], row["ground_truth"]), "I do not know."]
    reward = for_trl(recipe["scorer"], workers=1, progress=False)
    try:
        columns = {name: [value] * 2 for name, value in row.items() if name != "prompt"}
        completions = [[{"role": "assistant", "content": answer}] for answer in answers]
        assert reward(prompts=[row["prompt"]] * 2, completions=completions, **columns) == [1.0, 0.0]
    finally:
        reward.close()


@pytest.mark.parametrize("source", ["livecodebench", "jsonl"])
def test_the_trainer_takes_its_rows(source: str, tmp_path: Path, make_trainer: Any) -> None:
    """Whatever the columns are, they reach the reward function and nothing of them reaches the model."""
    made(source, tmp_path)
    rows = read({"dataset_name": str(tmp_path / "out"), "scorer": "math"}, tmp_path)
    seen: list[dict[str, Any]] = []

    def reward(completions: list[Any], **columns: Any) -> list[float]:
        seen.append(columns)
        return [float(at % 2) for at in range(len(completions))]

    short = {"max_steps": 1, "max_completion_length": 4}
    make_trainer(args=short, reward_funcs=reward, train_dataset=rows).train()
    assert seen and {"ground_truth", "data_source", "index", "split"} <= seen[0].keys()
    assert all(truth in rows["ground_truth"] for truth in seen[0]["ground_truth"])
