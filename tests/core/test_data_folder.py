"""The folder that `sdpo data` writes: whole or not there, continued after a kill, never mixed with something else."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
import yaml

from data_samples import own_questions, word_problems, write_lines
from sdpo_plugins.data import Example, Facts, Source, Split, prepare, prepare_source
from sdpo_plugins.data.writing import WORK
from sdpo_plugins.errors import ConfigError, DataError


@pytest.fixture(autouse=True)
def cache_of_this_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A user's files of both splits."""
    for split, count in (("train", 5), ("test", 3)):
        rows = [{"prompt": f"{split} {number}?", "ground_truth": str(number)} for number in range(count)]
        write_lines(tmp_path / "source" / f"{split}.jsonl", rows)
    return tmp_path / "source"


def contents(folder: Path) -> dict[str, bytes]:
    """Return all that a folder holds, the time of the making aside."""
    found = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != WORK}
    if "card.json" in found:
        card = json.loads(found["card.json"])
        del card["made_at"], card["command"]
        found["card.json"] = json.dumps(card).encode()
        found["README.md"] = found["README.md"].partition(b"Made by:")[0].replace(folder.name.encode(), b"")
    return found


# Card -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["trl", "verl", "openrlhf"])
def test_the_card_says_what_was_made(host: str, tmp_path: Path) -> None:
    source = word_problems(tmp_path / "source")
    prepared = prepare("gsm8k", host=host, place=source, output=tmp_path / "out", limit=3, seed=1)
    card = json.loads((tmp_path / "out" / "card.json").read_text())
    assert prepared.written and prepared.card == card
    assert (card["scorer"], card["license"], card["revision"]) == ("math", "mit", None)
    assert card["asked"]["options"] == {"calculator": False, "no_think": False, "reveal": False, "seed": 1}
    assert {name: told["rows"] for name, told in card["splits"].items()} == {"train": 3, "test": 3}
    assert card["command"] == (
        f"sdpo data gsm8k --host {host} --output {tmp_path / 'out'} --from {source} --limit 3 --seed 1"
    )
    text = (tmp_path / "out" / "README.md").read_text()
    head = yaml.safe_load(text.split("---\n")[1])
    files = {told["split"]: told["path"] for told in head["configs"][0]["data_files"]}
    assert files == {name: told["file"] for name, told in card["splits"].items()} and head["license"] == "mit"
    assert f"for_{host}('math')" in text and card["command"] in text and "3 rows a split" in text
    # So the folder is a data set for everyone.
    loaded = datasets.load_dataset(str(tmp_path / "out"))
    assert {name: len(rows) for name, rows in loaded.items()} == {"train": 3, "test": 3}


# Again ----------------------------------------------------------------------------------------------------------------


def test_the_same_again_does_nothing(place: Path, tmp_path: Path) -> None:
    first = prepare("jsonl", place=place, output=tmp_path / "out", name="mine")
    times = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    # A copy is the same data, wherever it lies.
    place = place.rename(tmp_path / "elsewhere")
    second = prepare("jsonl", place=place, output=tmp_path / "out", name="mine")
    assert not second.written and second.card == first.card
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == times


def test_another_option_or_file_is_refused_until_it_may_overwrite(place: Path, tmp_path: Path) -> None:
    prepare("jsonl", place=place, output=tmp_path / "out")
    before = contents(tmp_path / "out")
    with pytest.raises(
        ConfigError, match=r"host: 'trl' there, 'openrlhf' now; options.system: None there, 'S' now; limit"
    ):
        prepare("jsonl", place=place, output=tmp_path / "out", system="S", limit=2, host="openrlhf")
    write_lines(place / "test.jsonl", [{"prompt": "new?", "ground_truth": "1"}])
    with pytest.raises(ConfigError, match=r"from.sha256: .* now\): choose another --output, or --overwrite"):
        prepare("jsonl", place=place, output=tmp_path / "out")
    with pytest.raises(ConfigError, match=r"was made of 'jsonl', not of 'gsm8k': choose another --output"):
        prepare("gsm8k", place=place, output=tmp_path / "out")
    assert contents(tmp_path / "out") == before
    (tmp_path / "out" / "notes.txt").write_text("mine")
    assert prepare("jsonl", place=place, output=tmp_path / "out", host="openrlhf", overwrite=True).written
    # What the old card names is gone, what is not of this command stays.
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"README.md", "card.json", "train.jsonl", "test.jsonl", "notes.txt"}
    assert not prepare("jsonl", place=place, output=tmp_path / "out", host="openrlhf").written


def test_a_failed_overwriting_leaves_what_was_there(place: Path, tmp_path: Path) -> None:
    prepare("jsonl", place=place, output=tmp_path / "out")
    before = contents(tmp_path / "out")
    write_lines(place / "test.jsonl", [{"prompt": "new?"}])
    with pytest.raises(DataError, match="lacks the column 'ground_truth'"):
        prepare("jsonl", place=place, output=tmp_path / "out", overwrite=True)
    assert contents(tmp_path / "out") == before


@pytest.mark.parametrize("damage", ["gone", "changed"])
def test_a_damaged_folder_is_not_called_finished(damage: str, place: Path, tmp_path: Path) -> None:
    prepare("jsonl", place=place, output=tmp_path / "out")
    before = contents(tmp_path / "out")
    file = tmp_path / "out" / "train.parquet"
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[::-1])
    with pytest.raises(ConfigError, match=r"train.parquet is missing or changed. --overwrite"):
        prepare("jsonl", place=place, output=tmp_path / "out")
    prepare("jsonl", place=place, output=tmp_path / "out", overwrite=True)
    assert contents(tmp_path / "out") == before


def test_what_others_wrote_is_not_touched(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "README.md").write_text("my notes")
    (out / "train.parquet").write_text("my data")
    with pytest.raises(ConfigError, match=r"holds README.md, train.parquet, which `sdpo data` did not write"):
        prepare("jsonl", place=place, output=out)
    assert contents(out) == {"README.md": b"my notes", "train.parquet": b"my data"}
    prepare("jsonl", place=place, output=out, overwrite=True)
    assert not prepare("jsonl", place=place, output=out).written


def test_a_folder_that_cannot_be_made(place: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"The folder .*file/out cannot be made"):
        prepare("jsonl", place=place, output=tmp_path / "file" / "out")


# Stopped --------------------------------------------------------------------------------------------------------------


class Slow:
    """A source whose questions to test never come to an end, until they may."""

    def __init__(self) -> None:
        self.read = 0
        self.stop: type[BaseException] | None = None

    def source(self) -> Source:
        from sdpo_plugins.data.gsm8k import GSM8KOptions

        facts = Facts("slow", "slow", "math", "nowhere", "", "", "text", "none")
        return Source("slow", "Slow.", GSM8KOptions, lambda options, place: facts, self.splits)

    def splits(self, options: Any, loader: Any) -> dict[str, Split]:
        return {name: Split(3, self.examples(name)) for name in ("train", "test")}

    def examples(self, split: str) -> Iterator[Example]:
        self.read += split == "train"
        for number in range(3):
            if split == "test" and number == 2 and self.stop:
                raise self.stop
            yield Example([{"role": "user", "content": f"{number}?"}], str(number), number)


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_a_split_that_was_whole_is_kept(error: type[BaseException], tmp_path: Path) -> None:
    slow, out, said = Slow(), tmp_path / "out", []
    slow.stop = error
    with pytest.raises(error):
        prepare_source(slow.source(), {"output": out})
    assert [path.name for path in out.iterdir()] == [WORK]
    assert {path.name for path in (out / WORK).iterdir()} == {"train.parquet", "state.json", "lock"}
    slow.stop = None
    prepared = prepare_source(slow.source(), {"output": out}, note=said.append)
    assert slow.read == 1 and said == ["train was written by an interrupted run and is kept"]
    assert prepared.card["splits"]["test"]["rows"] == 3 and not (out / WORK).exists()
    prepare_source(slow.source(), {"output": tmp_path / "other"})
    assert (out / "train.parquet").read_bytes() == (tmp_path / "other" / "train.parquet").read_bytes()


def test_a_whole_split_of_other_options_is_dropped(tmp_path: Path) -> None:
    slow, out, said = Slow(), tmp_path / "out", []
    slow.stop = KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        prepare_source(slow.source(), {"output": out})
    slow.stop = None
    prepared = prepare_source(slow.source(), {"output": out, "limit": 2}, note=said.append)
    assert said == [f"a run with other options was interrupted in {out}: its files are dropped"]
    assert {told["rows"] for told in prepared.card["splits"].values()} == {2}


def test_two_at_a_time_are_refused(tmp_path: Path) -> None:
    slow, out = Slow(), tmp_path / "out"

    def nested(split: str, done: int, total: int) -> None:
        # The files of the one that works stay as they are.
        with pytest.raises(DataError, match="Another `sdpo data` is writing"):
            prepare_source(Slow().source(), {"output": out, "limit": 1})

    assert prepare_source(slow.source(), {"output": out}, progress=nested).written


def test_progress_comes_to_its_end(tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    prepare_source(Slow().source(), {"output": tmp_path / "out", "limit": 2}, progress=lambda *told: seen.append(told))
    assert seen == [(split, count, 2) for split in ("train", "test") for count in range(3)]


# Killed ---------------------------------------------------------------------------------------------------------------

# Ends itself as by SIGKILL before the move of a file whose number is given, as if the machine had gone down there.
KILLED = """
    import os, signal, sys
    from pathlib import Path
    from sdpo_plugins.data import prepare

    left, place, output, overwrite = int(sys.argv[1]), *map(Path, sys.argv[2:4]), sys.argv[4] == "True"
    real = Path.replace

    def replace(self, target):
        global left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(self, target)

    Path.replace = replace
    prepare("jsonl", place=place, output=output, host="openrlhf", name="mine", overwrite=overwrite)
"""


def killed(*arguments: object) -> int:
    command = [sys.executable, "-c", textwrap.dedent(KILLED), *map(str, arguments)]
    return subprocess.run(command, timeout=60, check=False, capture_output=True).returncode


@pytest.mark.slow
@pytest.mark.parametrize("overwrite", [False, True])
def test_killed_at_any_move_nothing_looks_finished_and_the_next_run_ends_well(
    overwrite: bool, place: Path, tmp_path: Path
) -> None:
    prepare("jsonl", place=place, output=tmp_path / "whole", host="openrlhf", name="mine")
    expected, out = contents(tmp_path / "whole"), tmp_path / "out"
    moves = 0
    while True:
        if overwrite:
            prepare("jsonl", place=place, output=out, host="openrlhf", limit=1, overwrite=True)
        old = contents(out) if overwrite else {}
        code = killed(moves, place, out, overwrite)
        if code == 0:
            break
        assert code == -signal.SIGKILL
        left = {path.name: path.read_bytes() for path in out.iterdir() if path.name != WORK}
        if overwrite and "card.json" in left:
            assert contents(out).items() >= old.items(), "the old ones, whole"
        else:
            assert "card.json" not in left
            assert {name: expected[name] for name in left if name.endswith(".jsonl")}.items() <= left.items()
        prepare("jsonl", place=place, output=out, host="openrlhf", name="mine", overwrite=overwrite)
        assert contents(out) == expected
        for path in out.iterdir() if not overwrite else ():
            path.unlink()
        moves += 1
    assert moves == 10, "two files, the state twice, two texts, and four moves to their places"
    assert contents(out) == expected


@pytest.mark.slow
def test_killed_while_it_writes(tmp_path: Path) -> None:
    rows = [{"prompt": f"{number}?", "ground_truth": "x" * 1000} for number in range(20_000)]
    for split in ("train", "test"):
        write_lines(tmp_path / "source" / f"{split}.jsonl", rows)
    out = tmp_path / "out"
    words = ["data", "jsonl", "--from", str(tmp_path / "source"), "--output", str(out)]
    command = [sys.executable, "-m", "sdpo_plugins.cli", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        end = time.monotonic() + 120
        while not (out / WORK / "test.parquet.writing").exists():
            assert process.poll() is None and time.monotonic() < end, process.communicate()
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait(timeout=60) == -signal.SIGKILL
    assert [path.name for path in out.iterdir()] == [WORK]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "train was written by an interrupted run and is kept" in done.stderr
    assert {name: len(split) for name, split in datasets.load_dataset(str(out)).items()} == {
        "train": 20_000,
        "test": 20_000,
    }


def test_default_folders_differ_by_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    source = own_questions(tmp_path)
    options = {"prompt_column": "question", "truth_column": "answer"}
    folders = [prepare("jsonl", place=source, host=host, **options).folder for host in ("trl", "verl")]
    assert folders == [Path("runs/data/trl/mine"), Path("runs/data/verl/mine")]
