"""What `sdpo data` makes of each source: which questions, in which order, with which prompt and truth."""

from __future__ import annotations

import base64
import json
import pickle
import zlib
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_samples import (
    CALLS,
    chemistry,
    chemistry_question,
    code_question,
    contests,
    full_programs,
    own_questions,
    short_programs,
    tool_question,
    tools,
    word_problems,
    write_lines,
)
from sdpo_plugins.data import prepare
from sdpo_plugins.data.gsm8k import EQUATIONS
from sdpo_plugins.data.jsonl import chat_of
from sdpo_plugins.errors import ConfigError, DataError


@pytest.fixture(autouse=True)
def cache_of_this_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def rows_of(source: str, folder: Path, place: Path, **options: Any) -> dict[str, list[dict[str, Any]]]:
    """Prepare and return the rows of what is written."""
    host = options.setdefault("host", "verl")
    prepared = prepare(source, place=place, output=folder, **options)
    suffix = "jsonl" if host == "openrlhf" else "parquet"
    splits = list(prepared.card["splits"])
    assert {path.name for path in folder.iterdir()} == {
        "README.md",
        "card.json",
        *(f"{name}.{suffix}" for name in splits),
    }
    if host == "openrlhf":
        return {name: [json.loads(line) for line in (folder / f"{name}.jsonl").open()] for name in splits}
    return {name: pq.read_table(folder / f"{name}.parquet").to_pylist() for name in splits}


# SciKnowEval ----------------------------------------------------------------------------------------------------------


def test_chemistry(tmp_path: Path) -> None:
    place = chemistry(tmp_path)
    found = rows_of("sciknoweval", tmp_path / "out", place)
    assert {name: len(rows) for name, rows in found.items()} == {"train": 18, "test": 2}
    places = [row["extra_info"]["index"] for rows in found.values() for row in rows]
    assert sorted(places) == list(range(20)), "every question of the subset is in one of the files"
    assert rows_of("sciknoweval", tmp_path / "again", place) == found
    assert rows_of("sciknoweval", tmp_path / "other", place, seed=7) != found
    for rows in found.values():
        for row in rows:
            number = row["extra_info"]["index"]
            system, user = row["prompt"]
            assert (system["role"], user["role"]) == ("system", "user")
            assert system["content"].endswith("just output:\n<answer>\nA\n</answer>\n")
            choices = "A: yes\nB: no" if number == 0 else "A: gold\nB: iron\nC: tin\nD: zinc"
            assert user["content"] == f"What weighs {number}?\n\n{choices}\nPlease reason step by step."
            assert row["reward_model"]["ground_truth"] == "ABCD"[number % 4]


def test_the_split_is_the_authors(tmp_path: Path) -> None:
    found = rows_of("sciknoweval", tmp_path / "out", chemistry(tmp_path), test_share=0.3)
    theirs = datasets.Dataset.from_dict({"index": range(20)}).train_test_split(0.3, seed=42)
    for name, rows in found.items():
        assert [row["extra_info"]["index"] for row in rows] == theirs[name]["index"]


def test_the_other_subjects(tmp_path: Path) -> None:
    place = write_lines(tmp_path / "all.jsonl", [chemistry_question(n, domain="Physics") for n in range(4)])
    found = rows_of("sciknoweval", tmp_path / "out", place, domain="Physics")
    assert sum(map(len, found.values())) == 4
    with pytest.raises(DataError, match=r"0 of 4 rows(?s:.)*Domains in this data: Physics"):
        prepare("sciknoweval", place=place, output=tmp_path / "none")
    with pytest.raises(ConfigError, match=r"--domain.*'Biology'.*Did you mean 'Physics'"):
        prepare("sciknoweval", place=place, output=tmp_path / "none", domain="Phisics")
    with pytest.raises(ConfigError, match=r"--test-share.* must lie in \(0, 1\], got 0"):
        prepare("sciknoweval", place=place, output=tmp_path / "none", domain="Physics", test_share=0)
    with pytest.raises(DataError, match=r"4 questions cannot be divided with a test share of 1"):
        prepare("sciknoweval", place=place, output=tmp_path / "none", domain="Physics", test_share=1)
    assert not (tmp_path / "none").exists()


def test_an_answer_that_is_no_choice(tmp_path: Path) -> None:
    place = write_lines(tmp_path / "wrong.jsonl", [chemistry_question(n, answerKey="E") for n in range(3)])
    with pytest.raises(DataError, match="'E' of question"):
        prepare("sciknoweval", place=place, output=tmp_path / "new" / "out")
    assert not (tmp_path / "new").exists()


# Tool use -------------------------------------------------------------------------------------------------------------


def test_tool_use(tmp_path: Path) -> None:
    place = tools(tmp_path / "source")
    said: list[str] = []
    found = rows_of("tooluse", tmp_path / "out", place, note=said.append)
    assert [row["extra_info"]["index"] for row in found["train"]] == [0, 1, 2, 3, 4, 5, 7]
    assert [row["extra_info"]["index"] for row in found["test"]] == [8]
    assert found["train"][0]["prompt"] == [{"role": "user", "content": "Use the tools. Question: 0?"}]
    assert found["train"][-1]["prompt"][0] == {"role": "system", "content": "Be brief."}
    assert json.loads(found["train"][0]["reward_model"]["ground_truth"]) == CALLS
    assert [text.partition(";")[0] for text in said] == ["left out: question 6 (train)", "left out: question 9 (test)"]
    assert "left out: question 6" in (tmp_path / "out" / "README.md").read_text()
    shuffled = rows_of("tooluse", tmp_path / "shuffled", place, seed=1)
    assert shuffled["train"] != found["train"] and len(shuffled["train"]) == 7 and shuffled["test"] == found["test"]


def test_no_tool_question_is_left(tmp_path: Path) -> None:
    place = tools(tmp_path / "source")
    write_lines(place / "test.json", [tool_question(9, "[]")])
    with pytest.raises(DataError, match="No question is left for the split 'test'"):
        prepare("tooluse", place=place, output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


# LiveCodeBench --------------------------------------------------------------------------------------------------------


def truths_in(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [json.loads(row["reward_model"]["ground_truth"]) for row in rows]


def test_contests(tmp_path: Path) -> None:
    place = contests(tmp_path)
    found = rows_of("livecodebench", tmp_path / "out", place)
    for rows in found.values():
        assert [row["extra_info"]["question"] for row in rows] == ["q0", "q1", "q2"]
    train, test = truths_in(found["train"]), truths_in(found["test"])
    assert [len(case["inputs"]) for case in test] == [5, 1, 5]
    assert [len(case["inputs"]) for case in train] == [2, 1, 2]
    for half, whole in zip(train, test, strict=True):
        pairs = list(zip(whole["inputs"], whole["outputs"], strict=True))
        kept = list(zip(half["inputs"], half["outputs"], strict=True))
        assert kept == [pair for pair in pairs if pair in kept], "a part of the tests, in their order"
        assert {**half, "inputs": [], "outputs": []} == {**whole, "inputs": [], "outputs": []}
    assert test[1] == {
        "inputs": ["1\n2"],
        "outputs": ["3"],
        "testtype": "functional",
        "fn_name": "add",
        "time_limit": 6.0,
    }
    (message,) = found["train"][1]["prompt"]
    assert message["content"].startswith("You are a coding expert.") and "self" not in message["content"]
    assert "signature: ```python\ndef add(a: int, b: int) -> int:\n```" in message["content"]
    assert rows_of("livecodebench", tmp_path / "again", place) == found
    assert rows_of("livecodebench", tmp_path / "other", place, seed=3)["train"] != found["train"]


def test_the_tests_to_train_on_are_drawn_as_the_authors_draw(tmp_path: Path) -> None:
    found = rows_of("livecodebench", tmp_path / "out", contests(tmp_path))
    # RandomState(0): 2 of 5, then 1 of 1, then 2 of 5, each sorted.
    assert [case["inputs"] for case in truths_in(found["train"])] == [["0 0", "0 2"], ["1\n2"], ["2 0", "2 2"]]
    # A limit leaves the others' draws as they are.
    few = rows_of("livecodebench", tmp_path / "few", contests(tmp_path), limit=1)
    assert few["train"] == found["train"][:1] and few["test"] == found["test"][:1]


class Runs:
    """Unpickled, it would make a file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return open, (self.path, "w")


def test_tests_that_would_run_code_are_refused(tmp_path: Path) -> None:
    trap = base64.b64encode(zlib.compress(pickle.dumps(Runs(str(tmp_path / "made"))))).decode()
    rows = [code_question(0), code_question(1, private_test_cases=trap)]
    place = write_lines(tmp_path / "all.jsonl", rows)
    with pytest.raises(DataError, match=r"open, not a text"):
        prepare("livecodebench", place=place, output=tmp_path / "out")
    assert not (tmp_path / "made").exists()
    assert not (tmp_path / "out").exists(), "nothing half-made stays"


@pytest.mark.parametrize("tests", ["rubbish!", base64.b64encode(b"rubbish").decode(), "[]", "[1]", '[{"input": "1"}]'])
def test_tests_that_cannot_be_read(tests: str, tmp_path: Path) -> None:
    place = write_lines(tmp_path / "all.jsonl", [code_question(0, private_test_cases=tests)])
    with pytest.raises(DataError, match="'q0'"):
        prepare("livecodebench", place=place, output=tmp_path / "out")


def test_no_contest_of_the_time_asked_for(tmp_path: Path) -> None:
    place = write_lines(tmp_path / "all.jsonl", [code_question(0)])
    with pytest.raises(
        DataError, match=r"none of 1 questions is of a contest from 2026-01-01.*dates here are 2025-03-01"
    ):
        prepare("livecodebench", place=place, output=tmp_path / "out", since="2026-01-01", until="2026-02-01")
    with pytest.raises(ConfigError, match="`until` must be a date such as 2025-02-01, got 'May'"):
        prepare("livecodebench", place=place, output=tmp_path / "out", until="May")


def test_long_truths_have_long_columns(tmp_path: Path) -> None:
    prepare("livecodebench", place=contests(tmp_path), output=tmp_path / "out", host="trl")
    schema = pq.read_schema(tmp_path / "out" / "test.parquet")
    assert schema.field("ground_truth").type == pa.large_string()


# GSM8K ----------------------------------------------------------------------------------------------------------------


def test_word_problems(tmp_path: Path) -> None:
    place = word_problems(tmp_path / "source")
    found = rows_of("gsm8k", tmp_path / "out", place)
    assert [row["reward_model"]["ground_truth"] for row in found["train"]] == ["42", "1250", "-3", "0.5"]
    assert found["test"][0]["prompt"] == [
        {"role": "system", "content": EQUATIONS},
        {"role": "user", "content": "test 0: how many?"},
    ]
    agent = rows_of("gsm8k", tmp_path / "agent", place, host="openrlhf", calculator=True, reveal=True, no_think=True)
    system = agent["test"][0]["input"][0]["content"]
    assert "<calculator>12 * 7</calculator>" in system and system.endswith(" /no_think")
    assert json.loads(agent["test"][0]["label"]) == {"ground_truth": "42", "index": 0, "split": "test", "reveal": True}
    assert agent["test"][0]["datasource"] == "gsm8k"
    with pytest.raises(ConfigError, match="`reveal_truth`"):
        prepare("gsm8k", place=place, output=tmp_path / "no", reveal=True)


def test_shuffling_keeps_places(tmp_path: Path) -> None:
    place = word_problems(tmp_path / "source", [f"#### {number}" for number in range(20)])
    found = rows_of("gsm8k", tmp_path / "out", place, host="trl", seed=3)
    assert [row["index"] for row in found["train"]] != list(range(20))
    assert all(row["ground_truth"] == str(row["index"]) for row in found["train"])
    assert [row["index"] for row in found["test"]] == list(range(20))


def test_an_answer_without_a_number_leaves_nothing(tmp_path: Path) -> None:
    place = word_problems(tmp_path / "source", ["It is a lot."])
    with pytest.raises(DataError, match=r"'train 0: how many\? ' must end with `#### `"):
        prepare("gsm8k", place=place, output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("source", "row"),
    [
        ("gsm8k", {"question": "?", "answer": 4}),
        ("gsm8k", {"question": None, "answer": "#### 4"}),
        ("mbpp", {"task_id": 1, "prompt": "?", "test_list": 3, "test_imports": []}),
        ("sciknoweval", {**chemistry_question(0), "details": "L3"}),
        ("sciknoweval", {**chemistry_question(0), "choices": ["a", "b"]}),
        ("livecodebench", {**code_question(0), "contest_date": None}),
    ],
)
def test_columns_of_other_kinds_than_the_originals(source: str, row: Any, tmp_path: Path) -> None:
    for split in ("train", "test"):
        write_lines(tmp_path / "in" / f"{split}.jsonl", [row, row])
    with pytest.raises(DataError, match=r"in which they hold something else|contest_date.* got None"):
        prepare(source, place=tmp_path / "in", output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


# MBPP -----------------------------------------------------------------------------------------------------------------


def test_short_programs(tmp_path: Path) -> None:
    place = short_programs(tmp_path / "source")
    row = rows_of("mbpp", tmp_path / "out", place, host="trl")["test"][1]
    assert json.loads(row["ground_truth"]) == {
        "inputs": [
            "import math\nassert add(1) == 2",
            "import math\nassert add({'a': 2}['a']) == 3",
            "import math\nassert math.isclose(add(3), 4)",
        ],
        "outputs": ["", "", ""],
        "testtype": "code",
        "hidden": [False, True, True],
    }
    (message,) = row["prompt"]
    assert "Write a function to add 1." in message["content"] and "assert add(1) == 2" in message["content"]
    assert "add({" not in message["content"] and "isclose" not in message["content"]
    assert "this test, among others:" in message["content"]
    row = rows_of("mbpp", tmp_path / "all", place, host="trl", shown=3)["test"][1]
    assert "these tests:" in row["prompt"][0]["content"] and "isclose" in row["prompt"][0]["content"]
    assert not any(json.loads(row["ground_truth"])["hidden"])


def test_the_full_set_has_harder_tests(tmp_path: Path) -> None:
    place = full_programs(tmp_path / "source")
    rows = rows_of("mbpp", tmp_path / "out", place, subset="full")["train"]
    truths = truths_in(rows)
    assert truths[0]["inputs"] == ["assert double(1) == 2", "assert double(2) == 4", "assert double(-1) == -2"]
    assert truths[0]["hidden"] == [False, True, True] and len(truths[1]["inputs"]) == 2
    with pytest.raises(DataError, match=r"lacks the columns 'prompt', 'test_imports'; it has 'task_id', 'text'"):
        prepare("mbpp", place=place, output=tmp_path / "no")


# One's own ------------------------------------------------------------------------------------------------------------

MINE = {"prompt_column": "question", "truth_column": "answer"}


def test_own_questions(tmp_path: Path) -> None:
    place = own_questions(tmp_path)
    found = rows_of("jsonl", tmp_path / "out", place, host="trl", system="Add.", scorer="math", **MINE)
    assert {name: len(rows) for name, rows in found.items()} == {"train": 9, "test": 1}
    for row in [*found["train"], *found["test"]]:
        number = row["index"]
        messages = [{"role": "system", "content": "Add."}, {"role": "user", "content": f"{number} + 1?"}]
        assert (row["prompt"], row["ground_truth"], row["data_source"]) == (messages, str(number + 1), "mine")
        assert (row["level"], row["about"]) == (number % 3, f'{{"topic": "{number}"}}')
    label = json.loads(rows_of("jsonl", tmp_path / "jsonl", place, host="openrlhf", **MINE)["test"][0]["label"])
    assert isinstance(label["about"], dict) and label["split"] == "test"
    verl = rows_of("jsonl", tmp_path / "verl", place, scorer="math", name="sums", drop=["about"], **MINE)["train"][0]
    assert (verl["data_source"], verl["ability"]) == ("sums", "math")
    assert verl["extra_info"].keys() == {"split", "index", "level"}


def test_own_files_of_both_splits(tmp_path: Path) -> None:
    for split in ("train", "test"):
        datasets.Dataset.from_list([{"prompt": f"{split}?", "ground_truth": "1"}]).to_parquet(
            tmp_path / f"{split}.parquet"
        )
    found = rows_of("jsonl", tmp_path / "out", tmp_path, host="trl")
    assert {name: rows[0]["prompt"][0]["content"] for name, rows in found.items()} == {
        "train": "train?",
        "test": "test?",
    }
    with pytest.raises(ConfigError, match="`--test-share` divides a single file"):
        prepare("jsonl", place=tmp_path, output=tmp_path / "no", test_share=0.5)
    (tmp_path / "test.parquet").unlink()
    assert list(rows_of("jsonl", tmp_path / "one", tmp_path, host="trl")) == ["train"]
    write_lines(tmp_path / "train.jsonl", [{}])
    with pytest.raises(DataError, match=r"train.jsonl and train.parquet: leave one"):
        prepare("jsonl", place=tmp_path, output=tmp_path / "no")


def test_rows_keep_what_a_table_would_change(tmp_path: Path) -> None:
    """Made into a table, dates would become times, and all mappings would get the same keys."""
    truths: list[Any] = [
        "2025-03-01",
        [{"Action": "a", "Action_Input": {"x": 1}}],
        [{"Action": "b", "Action_Input": {}}],
    ]
    rows = [{"prompt": "line\u2028break", "ground_truth": truth, "more": [at]} for at, truth in enumerate(truths)]
    place = tmp_path / "mine.jsonl"
    place.write_text("\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    found = rows_of("jsonl", tmp_path / "out", place, host="trl", test_share=0.0)["train"]
    assert found[0]["ground_truth"] == "2025-03-01" and found[0]["prompt"][0]["content"] == "line\u2028break"
    assert [json.loads(row["ground_truth"]) for row in found[1:]] == truths[1:]
    assert [row["more"] for row in found] == [[0], [1], [2]]
    place.write_text(json.dumps(rows))
    place = place.rename(tmp_path / "mine.json")
    assert rows_of("jsonl", tmp_path / "list", place, host="trl", test_share=0.0)["train"] == found


@pytest.mark.parametrize(
    ("row", "options", "problem"),
    [
        ({"prompt": "?"}, {}, r"question 0 of .*\(train\) lacks the column 'ground_truth'; it has 'prompt'"),
        ({"prompt": "?", "ground_truth": None}, {}, "the truth must be .*, got None"),
        ({"prompt": "?", "ground_truth": True}, {}, "the truth must be .*, got True"),
        ({"prompt": " ", "ground_truth": "1"}, {}, "the question is empty"),
        ({"prompt": 3, "ground_truth": "1"}, {}, "the question must be a text or a list of messages"),
        ({"prompt": "?", "ground_truth": "1", "index": 3}, {}, r"column 'index' is used .* `--drop index`"),
        ({"prompt": "\ud800", "ground_truth": "1"}, {}, "cannot be written for trl"),
        (
            {"prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "?"}], "ground_truth": "1"},
            {"system": "S"},
            "a system message of its own",
        ),
        ({"prompt": "?", "ground_truth": "1", "note": ""}, {"drop": ["nte"]}, "no such column. Did you mean 'note'"),
        ({"question": "?"}, {}, "`--prompt-column` and `--truth-column`"),
        ([1], {}, "one JSON object for each question"),
    ],
)
def test_own_questions_that_cannot_be_used(row: Any, options: dict[str, Any], problem: str, tmp_path: Path) -> None:
    place = tmp_path / "mine.jsonl"
    place.write_text(json.dumps(row) + "\n")
    with pytest.raises((ConfigError, DataError), match=problem):
        prepare("jsonl", place=place, output=tmp_path / "out", test_share=0.0, **options)
    assert not (tmp_path / "out").exists()


def test_own_files_that_cannot_be_read(tmp_path: Path) -> None:
    place = tmp_path / "mine.jsonl"
    place.write_text('{"prompt": "?", "ground_truth": "1"}\n{"prompt": \n')
    with pytest.raises(DataError, match=r"mine.jsonl, line 2 is no JSON"):
        prepare("jsonl", place=place, output=tmp_path / "out")
    write_lines(place, [{"prompt": "?", "ground_truth": "1", "level": value} for value in (1, "hard")])
    with pytest.raises(DataError, match=r"column 'level' holds values of several kinds.*`--drop level`"):
        prepare("jsonl", place=place, output=tmp_path / "out", test_share=0.0)
    with pytest.raises(DataError, match=r"the 1 questions of .* cannot be divided.*`--test-share 0`"):
        prepare("jsonl", place=write_lines(place, [{"prompt": "?", "ground_truth": "1"}]), output=tmp_path / "out")
    (tmp_path / "mine.csv").touch()
    with pytest.raises(DataError, match=r"mine.csv must be one of .jsonl, .json, .parquet"):
        prepare("jsonl", place=tmp_path / "mine.csv", output=tmp_path / "out")
    (tmp_path / "mine.parquet").write_text("no table")
    with pytest.raises(DataError, match=r"mine.parquet cannot be read as Parquet"):
        prepare("jsonl", place=tmp_path / "mine.parquet", output=tmp_path / "out")
    with pytest.raises(ConfigError, match=r"`--from` must name a .jsonl"):
        prepare("jsonl", output=tmp_path / "out")


def test_the_scorer_of_own_questions_must_exist(tmp_path: Path) -> None:
    place = own_questions(tmp_path)
    with pytest.raises(ConfigError, match=r"'mathh'.*Did you mean 'math'"):
        prepare("jsonl", place=place, output=tmp_path / "out", scorer="mathh", **MINE)
    with pytest.raises(ConfigError, match=r"`--name` is the name of a folder, no path; got '../x'"):
        prepare("jsonl", place=place, name="../x", **MINE)
    with pytest.raises(ConfigError, match="name the scorer too"):
        prepare("jsonl", place=place, output=tmp_path / "out", plugin=["sdpo_renyi"], **MINE)


def test_messages_are_kept() -> None:
    chat = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}, {"role": "user", "content": "??"}]
    assert chat_of(chat, "Be brief.") == [{"role": "system", "content": "Be brief."}, *chat]


# All ------------------------------------------------------------------------------------------------------------------


def test_a_copy_of_the_hubs_repository_is_read_by_its_readme(tmp_path: Path) -> None:
    place = word_problems(tmp_path / "files")
    copy = tmp_path / "copy"
    (copy / "main").mkdir(parents=True)
    for split in ("train", "test"):
        file = copy / "main" / f"{split}-00000-of-00001.parquet"
        datasets.load_dataset("json", data_files=str(place / f"{split}.jsonl"), split="train").to_parquet(file)
    paths = "".join(f"  - split: {split}\n    path: main/{split}-*\n" for split in ("train", "test"))
    (copy / "README.md").write_text(f"---\nconfigs:\n- config_name: main\n  data_files:\n{paths}---\n")
    assert rows_of("gsm8k", tmp_path / "out", copy) == rows_of("gsm8k", tmp_path / "other", place)


def test_unknown_names(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no source 'gsm8'; there are .*Did you mean 'gsm8k'"):
        prepare("gsm8")
    with pytest.raises(ConfigError, match=r"`gsm8k` has no option 'limt'. Did you mean 'limit'"):
        prepare("gsm8k", limt=3)
    with pytest.raises(ConfigError, match=r"`--from` must name a file or folder, and there is none at nowhere"):
        prepare("gsm8k", place=Path("nowhere"))
    with pytest.raises(ConfigError, match=r"`--revision` is of the source's home"):
        prepare("gsm8k", place=tmp_path, revision="main")
    with pytest.raises(DataError, match=r"has no file train.jsonl, train.json or train.parquet, and is no copy"):
        prepare("gsm8k", place=tmp_path, output=tmp_path / "out")
