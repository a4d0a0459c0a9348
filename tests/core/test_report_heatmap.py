"""The picture of an answer's tokens: colours are the teacher's verdict, text is complete, loggers get it unchanged."""

from __future__ import annotations

import dataclasses
import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from made_records import make_run
from sdpo_plugins.errors import DataError
from sdpo_plugins.records import RecordedRollout, read_run
from sdpo_plugins.report.drawing import Look, printable
from sdpo_plugins.report.heatmap import disagreements, save_token_picture, token_picture, verdicts
from sdpo_plugins.report.sinks import log_picture, open_sinks
from sdpo_plugins.report.wrapping import cells_of, shortened, wrapped

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    run = read_run(make_run(tmp_path_factory.mktemp("run"), steps=4, tokens=20, token_share=1.0))
    return [one for one in run.rollouts if one.tokens]


def record_of(pieces: list[str], values: list[float | None], **changes: Any) -> RecordedRollout:
    """A rollout of one-off tokens with the given verdicts."""
    tokens = {
        "length": len(pieces),
        "ids": list(range(len(pieces))),
        "pieces": {str(at): piece for at, piece in enumerate(pieces)},
        "mask": [int(value is not None) for value in values],
        "student": [None if value is None else -3.0 for value in values],
        "teacher": [None if value is None else -3.0 + value for value in values],
        **changes,
    }
    line = {"id": 7, "step": 2, "reward": 0.0, "success": False, "prompt": "2+2?", "response": "".join(pieces)}
    return RecordedRollout(line, tokens)


def colours(picture: np.ndarray) -> np.ndarray:
    """Pixels with a hue, [N, 3]: all that is not grey."""
    pixels = picture.reshape(-1, 3).astype(int)
    return pixels[pixels.max(axis=1) - pixels.min(axis=1) > 60]


def share_blue(picture: np.ndarray, without: np.ndarray) -> float:
    """Of the pixels with a hue that the other picture has not, those that are blue."""
    rows = min(len(picture), len(without))
    changed = (picture[:rows] != without[:rows]).any(axis=2)
    found = colours(picture[:rows][changed][None])
    return float((found[:, 2] > found[:, 0]).mean())


def test_a_picture_is_as_wide_as_asked_for_and_as_high_as_its_text(records):
    pictures = [token_picture(records[0], width=width) for width in (500, 1000)]
    assert [picture.shape[1] for picture in pictures] == [500, 1000]
    assert all(picture.dtype == np.uint8 and picture.shape[2] == 3 for picture in pictures)
    long = token_picture(record_of(["word "] * 300, [0.1] * 300), width=500)
    assert len(long) > 2 * len(pictures[0])


@pytest.mark.parametrize("dark", [False, True])
def test_blue_is_approval_and_red_is_doubt(dark):
    plain = token_picture(record_of(["token"] * 40, [None] * 40), dark=dark)
    approved = token_picture(record_of(["token"] * 40, [2.0] * 40), dark=dark)
    doubted = token_picture(record_of(["token"] * 40, [-2.0] * 40), dark=dark)
    assert share_blue(approved, plain) > 0.95
    assert share_blue(doubted, plain) < 0.05


def test_a_stronger_verdict_has_a_stronger_colour():
    def saturation(value: float) -> float:
        picture = token_picture(record_of(["token"] * 40, [value] * 40))[60:110].astype(int)
        return float((picture.max(axis=2) - picture.min(axis=2)).mean())

    strengths = [saturation(value) for value in (0.0, 0.2, 1.0, 2.0)]
    assert strengths == sorted(strengths) and strengths[0] < 1 < 5 < strengths[1]
    assert saturation(5.0) == saturation(2.0)


def test_the_ground_is_light_or_dark(records):
    assert token_picture(records[0])[0, 0].min() == 255
    assert token_picture(records[0], dark=True)[0, 0].max() < 40


def test_every_made_record_can_be_drawn(records):
    """Masked spans, tabs, line breaks, emoji, other scripts, markup, dollar signs."""
    odd = record_of(["$x^2$", "\n\n", "\t", "🙂", "数", "</script>", "", "�", "a\r\n", "é"], [0.5] * 10)
    for record in [*records[:6], odd, record_of([], [])]:
        assert token_picture(record, width=420).shape[1] == 420


def test_a_rollout_without_tokens_is_refused(records):
    with pytest.raises(DataError, match=f"Rollout {records[0].id} was recorded without token values"):
        token_picture(dataclasses.replace(records[0], tokens=None))


def test_a_picture_that_is_too_narrow_is_refused(records):
    with pytest.raises(DataError, match=r"at least 1\.8 inches wide"):
        token_picture(records[0], width=100)


def test_text_of_a_vector_picture_stays_text(records, tmp_path):
    import matplotlib

    with matplotlib.rc_context({"svg.fonttype": "none"}):
        save_token_picture(record_of(["Hello", " $w$", "&<b>"], [1.0, -1.0, None]), tmp_path / "x.svg", Look())
    text = (tmp_path / "x.svg").read_text(encoding="utf-8")
    assert all(piece in text for piece in (">Hello<", " $w$<", "&amp;&lt;b&gt;<", "Rollout 7"))


def test_verdicts_are_the_teachers_minus_the_students(records):
    tokens = records[0].tokens
    for value, mask, ours, theirs in zip(
        verdicts(tokens), tokens["mask"], tokens["student"], tokens["teacher"], strict=True
    ):
        assert value == (theirs - ours if mask else None)


def test_the_largest_differences_are_named_first():
    record = record_of(["a", "b", "c", "d"], [0.5, -2.5, None, 1.0], teacher_top=[None, [[3, -0.1]], None, [[3, 0.0]]])
    found = disagreements(record.tokens, 2)
    assert [(one.token, one.verdict) for one in found] == [(1, -2.5), (3, 1.0)]
    assert found[0].text == "“b”  student 5.0%, teacher 0.4%; rather “d” 90%"
    assert "rather" not in found[1].text
    assert disagreements(record_of(["a"], [0.0]).tokens) == []


def test_what_was_not_recorded_is_counted():
    plain = token_picture(record_of(["a"] * 5, [1.0] * 5))
    more = token_picture(record_of(["a"] * 5, [1.0] * 5, length=900))
    assert len(more) > len(plain)


# Layout


def test_every_letter_stands_once_and_no_row_is_too_long():
    pieces = ["Let", " me", " think", ":\n", "  x = 数字数字数字", "\n", "\n", "averyveryverylongtoken", " end"]
    marks = wrapped(pieces, columns=9)
    ends: dict[int, int] = {}
    for mark in marks:
        assert mark.column == ends.get(mark.row, 0), "marks stand side by side"
        ends[mark.row] = mark.column + mark.cells
        assert mark.cells == cells_of(mark.text)
    assert max(ends.values()) <= 9 and sorted(ends) == list(range(len(ends)))
    for token, piece in enumerate(pieces):
        assert "".join(mark.text for mark in marks if mark.token == token) == printable(piece.replace("\n", "⏎"))


def test_a_line_break_ends_the_row():
    rows = {mark.text: mark.row for mark in wrapped(["a\n", "b", "\n\nc"], columns=20)}
    assert (rows["a⏎"], rows["b"], rows["c"]) == (0, 1, 3)


@pytest.mark.parametrize(
    ("text", "cells", "shown"), [("short", 9, "short"), ("much too long", 6, "much …"), ("", 3, "")]
)
def test_texts_are_shortened_to_their_cells(text, cells, shown):
    assert shortened(text, cells) == shown


def test_letters_without_a_glyph_become_a_sign():
    assert printable("aé→\U0010fffd") == "aé→▯"


# Loggers


def test_only_pictures_are_logged():
    with pytest.raises(DataError, match=r"uint8 \[H, W, 3\], got float64 \[2, 2\]"):
        log_picture("x", np.zeros((2, 2)), 0, [])


def test_no_logger_is_imported_to_look_for_one():
    code = (
        "import sys; from sdpo_plugins.report.sinks import open_sinks; found = open_sinks()\n"
        "print(found, *sorted({'torch', 'tensorboard', 'wandb', 'trackio'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["[]"], done.stderr


@pytest.mark.slow
def test_tensorboard_gets_the_picture(records, tmp_path):
    pytest.importorskip("tensorboard", reason="TensorBoard is not installed")
    from PIL import Image
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    picture = token_picture(records[0])
    with SummaryWriter(str(tmp_path)) as writer:
        log_picture("sdpo/tokens", picture, 12, open_sinks(writer=writer))
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    (event,) = events.Images("sdpo/tokens")
    assert event.step == 12
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(event.encoded_image_string))), picture)


LOG = """
import sys
import numpy as np
from sdpo_plugins.report.sinks import log_picture, open_sinks
picture = np.load(sys.argv[1])
"""
WANDB = """
import wandb
run = wandb.init(mode="offline", dir=sys.argv[2], project="made")
run.log({"loss": 1.0}, step=3)
log_picture("sdpo/tokens", picture, 3, open_sinks())
run.log({"loss": 0.5}, step=4)
print(run.step)
run.finish()
"""
TRACKIO = """
import trackio
run = trackio.init(project="made", name="run", embed=False, auto_log_gpu=False, auto_log_cpu=False)
log_picture("sdpo/tokens", picture, 3, open_sinks(numbered=True))
trackio.finish()
"""


@pytest.mark.slow
@pytest.mark.parametrize(("module", "code"), [("wandb", WANDB), ("trackio", TRACKIO)])
def test_other_loggers_get_the_picture_without_a_network(records, tmp_path, module, code):
    pytest.importorskip(module, reason=f"{module} is not installed")
    from PIL import Image

    picture = token_picture(records[0])
    np.save(tmp_path / "picture.npy", picture)
    environment = {"WANDB_SILENT": "true", "TRACKIO_DIR": str(tmp_path / "out"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", LOG + code, str(tmp_path / "picture.npy"), str(tmp_path / "out")],
        cwd=ROOT,
        env={**os.environ, **environment, "PYTHONPATH": str(ROOT), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    files = {path.resolve() for path in (tmp_path / "out").rglob("*.png")}
    assert len(files) == 1
    assert np.array_equal(np.asarray(Image.open(files.pop()).convert("RGB")), picture)
    if module == "wandb":  # the host's own rows keep their numbers
        assert done.stdout.split()[-1] == "4"
