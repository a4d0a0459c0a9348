"""Values and files that are unusual: what is valid ends neither a training nor a look at it, the rest is named."""

from __future__ import annotations

import datetime
import json
import math

import numpy
import pytest
import torch
from tokenizers import Tokenizer, decoders, models
from typer.testing import CliRunner

from sdpo_plugins import SDPOConfig
from sdpo_plugins.cli import app
from sdpo_plugins.errors import ConfigError
from sdpo_plugins.records import BoundedLines, Pieces, RecordedRollout, RunRecorder, read_lines, read_run, token_line
from sdpo_plugins.records.capture import Watch, logits_at, watch_tokens
from sdpo_plugins.report.heatmap import token_picture
from sdpo_plugins.report.page.tokens import packed_tokens
from sdpo_plugins.solve import RunFolder


def flat(logits):
    """Logits [M, V] as whole logits of one row."""
    return logits_at(logits.unsqueeze(0), torch.zeros(len(logits), dtype=torch.long), torch.arange(len(logits)), 1.0)


def test_an_array_of_one_number_is_a_number(tmp_path):
    recorder = RunRecorder(tmp_path, SDPOConfig())
    recorder.start(host="verl", host_version="1", model="m", step=0, ranks=1)
    one = {"numpy": numpy.array([0.5]), "torch": torch.tensor([[2.0]]), "integer": numpy.int64(3)}
    recorder.metrics(1, {**one, "text": numpy.array(["a"]), "flag": numpy.bool_(True)})
    assert read_run(tmp_path).steps[0].metrics == {"numpy": 0.5, "torch": 2.0, "integer": 3.0}


def test_half_a_character_in_a_text_is_replaced(tmp_path):
    lines = BoundedLines(tmp_path / "rollouts-00000.jsonl", limit_mb=1)
    lines.write({"kind": "rollout", "step": 1, "feedback": "Output: \udcff."})
    assert read_lines(lines.path) == ([{"kind": "rollout", "step": 1, "feedback": "Output: ?."}], [])


def test_thinning_leaves_kept_lines_as_they_were_and_drops_what_is_no_record(tmp_path):
    path = tmp_path / "steps.jsonl"
    kept = '{"kind": "step",  "step": 1, "metrics": {"loss": 1e-05}}\n'
    path.write_text(f'{kept}nonsense\n{{"kind":"step","step":2,"metrics":{{}}}}\n')
    BoundedLines(path, limit_mb=1e-4).write({"kind": "warning", "step": 2, "text": "late"})
    assert path.read_text() == f'{{"kind":"thinned","stride":2}}\n{kept}{{"kind":"warning","step":2,"text":"late"}}\n'


def test_a_copy_among_the_records_is_left_alone(tmp_path):
    (tmp_path / "rollouts-old.jsonl").write_text("{}\n")
    RunRecorder(tmp_path, SDPOConfig()).start(host="trl", host_version="1", model="m", step=0, ranks=1)
    assert (tmp_path / "rollouts-old.jsonl").exists()


def test_impossible_tokens_are_no_alternatives():
    logits = torch.tensor([[0.0, 0.0, -torch.inf, -torch.inf]])
    watch = Watch(torch.tensor([0]), torch.tensor([[1]]), alternatives=3, limit=9)
    rows = flat(logits)
    watch_tokens(watch, torch.tensor([0]), torch.tensor([0]), torch.zeros(1), rows, rows)
    line = token_line(watch.found[0], 1, {token: str(token) for token in range(4)})
    assert [sorted(token for token, _ in line[name][0]) for name in ("student_top", "teacher_top")] == [[0, 1], [0, 1]]
    assert packed_tokens(line)["studentTop"]["counts"] == [2]


def test_a_word_of_sentencepiece_keeps_its_space():
    transformers = pytest.importorskip("transformers")
    vocabulary = {"▁the": 0, "▁cat": 1, "s": 2, "▁": 3, "<unk>": 4}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    parts = [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(parts)
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    assert fast.decode([1]) == "cat"
    pieces = Pieces(fast).of(range(4))
    assert [pieces[token] for token in range(4)] == [" the", " cat", "s", " "]


@pytest.mark.parametrize("reward", [None, math.nan], ids=["read", "as given"])
def test_a_rollout_that_nobody_judged_can_be_drawn(reward):
    pytest.importorskip("matplotlib")
    tokens = {"length": 1, "ids": [0], "pieces": {"0": "a"}, "mask": [1], "student": [-1.0], "teacher": [-2.0]}
    line = {"id": 7, "step": 2, "reward": reward, "success": False, "prompt": "2+2?", "response": "a"}
    assert token_picture(RecordedRollout(line, tokens)).ndim == 3


def test_the_picture_of_a_long_answer_names_tokens_that_stand_in_it():
    pytest.importorskip("matplotlib")
    count = 1300

    def height(place):
        verdicts = [2.0 if at == place else 0.0 for at in range(count)]
        tokens = {
            "length": count,
            "ids": [0] * count,
            "pieces": {"0": "a"},
            "mask": [1] * count,
            "student": [-3.0] * count,
            "teacher": [-3.0 + value for value in verdicts],
        }
        line = {"id": 7, "step": 2, "reward": 1.0, "success": True, "prompt": "2+2?", "response": "a" * count}
        return len(token_picture(RecordedRollout(line, tokens)))

    assert height(place=count - 1) < height(place=0)


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"file/run cannot be written .*--output"):
        RunFolder(tmp_path / "file" / "run").begin({"seed": 0})


def test_records_that_cannot_be_read_are_named(tmp_path):
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / "steps.jsonl").symlink_to("steps.jsonl")
    result = CliRunner().invoke(app, ["plot", str(tmp_path)])
    assert result.exit_code == 2 and "steps.jsonl cannot be read" in result.stderr


def test_options_of_a_file_may_be_what_json_does_not_know(tmp_path):
    (tmp_path / "recipe.yaml").write_text("host: trl\nrun_name: 2026-01-02\n")
    result = CliRunner().invoke(app, ["config", str(tmp_path / "recipe.yaml"), "--json"])
    assert result.exit_code == 0 and json.loads(result.stdout)["host"]["given"]["run_name"] == "2026-01-02"


def test_a_question_may_hold_values_that_json_does_not_know(tmp_path):
    identity = {"question": {"prompt": "When?", "ground_truth": datetime.date(2026, 1, 2)}}
    RunFolder(tmp_path).begin(identity)
    RunFolder(tmp_path).begin(identity)
