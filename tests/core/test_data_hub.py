"""Reading from the hub: the real client against a local server, and what is said when there is no hub."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_samples import chemistry, contests, full_programs, short_programs, word_problems
from local_hub import COMMIT, local_hub


def sdpo(folder: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run `sdpo data` in a process of its own: the hub's address is read once."""
    given = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment = {**given, "HF_HOME": str(folder / "home"), "HF_HUB_DISABLE_XET": "1", **variables}
    command = [sys.executable, "-m", "sdpo_plugins.cli", "data", *words]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False
    )


def table(file: Path) -> bytes:
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    content = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), content)
    return content.getvalue()


def readme(configs: Mapping[str, Mapping[str, str]]) -> bytes:
    """Return a README whose head says which files are which split of which configuration."""
    found = [
        {"config_name": name, "data_files": [{"split": split, "path": path} for split, path in files.items()]}
        for name, files in configs.items()
    ]
    return f"---\n{json.dumps({'configs': found})}\n---\n".encode()


def gsm8k(folder: Path) -> dict[str, bytes]:
    source = word_problems(folder / "gsm8k")
    paths = {split: f"main/{split}-00000-of-00001.parquet" for split in ("train", "test")}
    other = {split: f"socratic/{split}.parquet" for split in paths}
    files = {path: table(source / f"{split}.jsonl") for split, path in paths.items()}
    return {"README.md": readme({"main": paths, "socratic": other}), **files}


def mbpp(folder: Path) -> dict[str, bytes]:
    files, configs = {}, {}
    for name, make in (("full", full_programs), ("sanitized", short_programs)):
        source = make(folder / name)
        configs[name] = {split: f"{name}/{split}-00000-of-00001.parquet" for split in ("train", "test", "validation")}
        for split, path in configs[name].items():
            files[path] = table(source / f"{'test' if split == 'validation' else split}.jsonl")
    return {"README.md": readme(configs), **files}


def sciknoweval(folder: Path) -> dict[str, bytes]:
    return {"README.md": b"---\nlicense: mit\n---\n", "data/sciknoweval_test.jsonl": chemistry(folder).read_bytes()}


def livecodebench(folder: Path) -> dict[str, bytes]:
    return {"README.md": readme({"default": {"test": "test*.jsonl"}}), "test.jsonl": contests(folder).read_bytes()}


REPOSITORIES: dict[str, tuple[str, str, Any]] = {
    "gsm8k": ("openai/gsm8k", "main", gsm8k),
    "mbpp": ("google-research-datasets/mbpp", "main", mbpp),
    "sciknoweval": ("hicai-zju/SciKnowEval", "main", sciknoweval),
    "livecodebench": ("livecodebench/code_generation_lite", "refs/pr/6", livecodebench),
}
ROWS = {"gsm8k": (4, 4), "mbpp": (3, 3), "sciknoweval": (18, 2), "livecodebench": (3, 3)}


@pytest.mark.slow
@pytest.mark.parametrize("source", REPOSITORIES)
def test_a_source_is_read_from_the_hub(source: str, tmp_path: Path) -> None:
    repository, branch, make = REPOSITORIES[source]
    with local_hub(repository, {branch: make(tmp_path)}) as (address, asked):
        done = sdpo(tmp_path, source, "--output", "out", "--json", HF_ENDPOINT=address)
        assert done.returncode == 0, done.stderr
        card = json.loads(done.stdout)
        assert card["revision"] == COMMIT, "the card says which commit it was"
        assert tuple(told["rows"] for told in card["splits"].values()) == ROWS[source]
        assert any(branch in path for path in asked) or branch == "main"
        assert not any("socratic" in path for path in asked if path.startswith("GET /datasets"))
        assert done.stderr == "", "no bar where nobody looks"
        # Finished: nothing is asked for.
        count = len(asked)
        again = sdpo(tmp_path, source, "--output", "out", "--json", HF_ENDPOINT=address)
        assert json.loads(again.stdout)["status"] == "unchanged" and len(asked) == count
    # With the cache alone, the same rows.
    cached = sdpo(tmp_path, source, "--output", "cached", "--json", HF_HUB_OFFLINE="1", HF_ENDPOINT=address)
    assert cached.returncode == 0, cached.stderr
    told = {name: each["sha256"] for name, each in json.loads(cached.stdout)["splits"].items()}
    assert told == {name: each["sha256"] for name, each in card["splits"].items()}


@pytest.mark.slow
def test_a_revision_that_is_not_there(tmp_path: Path) -> None:
    with local_hub("openai/gsm8k", {"main": gsm8k(tmp_path)}) as (address, _):
        done = sdpo(tmp_path, "gsm8k", "--revision", "nowhere", HF_ENDPOINT=address)
        assert done.returncode == 2
        assert done.stderr.startswith("error: openai/gsm8k cannot be found on the Hugging Face hub")
        assert "Traceback" not in done.stderr and not (tmp_path / "runs").exists()
        done = sdpo(tmp_path, "gsm8k", "--revision", COMMIT, "--json", HF_ENDPOINT=address)
        assert json.loads(done.stdout)["revision"] == COMMIT


@pytest.mark.slow
def test_a_data_set_that_is_not_there_or_has_other_columns(tmp_path: Path) -> None:
    with local_hub("someone/else", {"main": {}}) as (address, _):
        done = sdpo(tmp_path, "gsm8k", HF_ENDPOINT=address)
        assert done.returncode == 2 and "openai/gsm8k cannot be found" in done.stderr and "--from" in done.stderr
    content = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([{"question": "?"}]), content)
    files = {"README.md": readme({"main": {"train": "train.parquet"}}), "train.parquet": content.getvalue()}
    with local_hub("openai/gsm8k", {"main": files}) as (address, _):
        done = sdpo(tmp_path, "gsm8k", HF_ENDPOINT=address)
        assert done.returncode == 2
        assert "openai/gsm8k (train) lacks the column 'answer'; it has 'question'" in done.stderr


@pytest.mark.parametrize("source", [*REPOSITORIES, "tooluse"])
def test_without_a_network_there_is_one_helpful_error(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from typer.testing import CliRunner

    from sdpo_plugins.cli import app

    assert os.environ["HF_HUB_OFFLINE"] == "1"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    done = CliRunner().invoke(app, ["data", source, "--output", str(tmp_path / "out")])
    assert done.exit_code == 2 and done.stdout == ""
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert "HF_HUB_OFFLINE" in done.stderr and "--from" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_hub_that_does_not_answer(tmp_path: Path) -> None:
    done = sdpo(tmp_path, "gsm8k", HF_ENDPOINT="http://127.0.0.1:9")  # discard: nothing listens there
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "openai/gsm8k cannot be found on the Hugging Face hub: ConnectError" in done.stderr
