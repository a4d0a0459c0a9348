"""`sdpo plot`: files as asked for, seeds as one band, matplotlib left as it was, a helpful line for a mistake."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import matplotlib
import pytest
from matplotlib.image import imread
from typer.testing import CliRunner

from made_records import make_run
from sdpo_plugins.cli import app
from sdpo_plugins.errors import DataError
from sdpo_plugins.records import read_run
from sdpo_plugins.report.curves import smooth, standard_curves
from sdpo_plugins.report.drawing import Look, drawing
from sdpo_plugins.report.naming import run_names, without_seed
from sdpo_plugins.report.plot import draw_panels, panels, plot_curves

ROOT = Path(__file__).resolve().parents[2]
STARTS = {"png": b"\x89PNG", "pdf": b"%PDF", "svg": b"<?xml"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for seed in range(2):
        make_run(folder / f"sdpo-seed{seed}", steps=5, tokens=10, seed=seed, first_step=1 + seed)
    make_run(folder / "grpo-seed0", steps=5, tokens=10, method="grpo")
    return folder


def plot(*words: object) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, ["plot", *map(str, words)])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.stdout, done.stderr


def lines_of(panel, groups, smoothed=False):
    with drawing(Look()):
        axis = draw_panels([panel], groups, Look(), smoothed).axes[0]
    return {line.get_label(): line.get_xydata().tolist() for line in axis.lines}, axis


# Pictures


@pytest.mark.parametrize("ending", STARTS)
def test_a_folder_gets_one_file_a_curve_and_an_overview(runs, tmp_path, ending):
    metrics = ["--metric", "reward", "--metric", "self_distillation/log_prob", "--metric", "gap"]
    metrics[3] = "self_distillation/demonstration_chars_mean"
    code, said, _ = plot(runs / "sdpo-seed0", *metrics, "-o", tmp_path / "new" / "folder", "--format", ending)
    assert code == 0
    files = [Path(line) for line in said.splitlines()]
    wanted = ["reward", "self_distillation-demonstration_chars_mean", "gap", "overview"]
    assert [file.name for file in files] == [f"{name}.{ending}" for name in wanted]
    assert all(file.read_bytes().startswith(STARTS[ending]) for file in files)


def test_a_file_gets_all_in_one_picture_of_the_size_asked_for(runs, tmp_path):
    target = tmp_path / "all.png"
    size = ["--width", 4, "--height", 3, "--dpi", 50]
    code, said, _ = plot(runs / "sdpo-seed0", "--metric", "reward", "--metric", "length", "-o", target, *size)
    assert (code, said.split()) == (0, [str(target)])
    picture = imread(target)
    assert picture.shape[:2] == (150, 200)
    assert picture[0, 0, :3].tolist() == [1.0, 1.0, 1.0]


def test_the_dark_style_has_a_dark_ground(runs, tmp_path):
    code, _, _ = plot(runs / "sdpo-seed0", "--metric", "reward", "-o", tmp_path / "x.png", "--style", "dark")
    assert code == 0 and imread(tmp_path / "x.png")[0, 0, :3].max() < 0.2


@pytest.mark.slow
def test_the_default_is_every_curve_in_the_runs_own_folder(tmp_path):
    run = make_run(tmp_path / "run", steps=3, tokens=10)
    code, said, _ = plot(run)
    keys = [found.key for found in standard_curves(read_run(run))]
    assert code == 0
    assert {Path(line) for line in said.splitlines()} == {run / "plots" / f"{key}.png" for key in [*keys, "overview"]}


@pytest.mark.parametrize("ending", STARTS)
def test_the_same_run_gives_the_same_file(runs, tmp_path, ending):
    chosen = panels([read_run(runs / "sdpo-seed0")], ["reward"])
    files = [plot_curves(chosen, tmp_path / f"{name}.{ending}", Look())[0] for name in "ab"]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_matplotlibs_settings_and_figures_are_left_alone(runs, tmp_path):
    before = dict(matplotlib.rcParams)
    code = (
        "import sys; from pathlib import Path; from sdpo_plugins.records import read_run\n"
        "from sdpo_plugins.report.drawing import Look; from sdpo_plugins.report.plot import panels, plot_curves\n"
        f"plot_curves(panels([read_run({str(runs / 'sdpo-seed0')!r})], ['reward']), Path({str(tmp_path)!r}), Look())\n"
        "print('matplotlib.pyplot' in sys.modules, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["False", "False"], done.stderr
    plot_curves(panels([read_run(runs / "sdpo-seed0")], ["reward"]), tmp_path, Look(style="dark"))
    assert dict(matplotlib.rcParams) == before


# What is drawn


def test_lines_are_the_records_values_with_units_on_the_axes(runs):
    run = read_run(runs / "sdpo-seed0")
    drawn, axis = lines_of(panels([run], ["gap"])[0], ["sdpo"])
    assert drawn["sdpo"] == [list(pair) for pair in zip(*run.series("self_distillation/gap"), strict=True)]
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("step", "Teacher–student gap (nats)")


def test_runs_that_differ_by_their_seed_are_one_line_with_a_band(runs):
    both = [read_run(runs / f"sdpo-seed{seed}") for seed in range(2)]
    grpo = read_run(runs / "grpo-seed0")
    (panel,) = panels([*both, grpo], ["reward"])
    drawn, axis = lines_of(panel, list(panel.lines))
    series = [dict(zip(*run.series("reward"), strict=True)) for run in both]
    common = [2, 3, 4, 5]  # the second run began at step 2, the first ended at 5
    assert [step for step, _ in drawn["sdpo (2 seeds)"]] == common
    means = [sum(one[step] for one in series) / 2 for step in common]
    assert [value for _, value in drawn["sdpo (2 seeds)"]] == pytest.approx(means)
    assert len(drawn["grpo"]) == 5
    (band,) = axis.collections
    edges = band.get_paths()[0].vertices
    for step in common:
        heights = edges[edges[:, 0] == step][:, 1]
        values = [one[step] for one in series]
        assert (heights.min(), heights.max()) == pytest.approx((min(values), max(values)))
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["sdpo (2 seeds)", "grpo"]


def test_smoothing_draws_the_mean_before_the_values(tmp_path):
    run = read_run(make_run(tmp_path / "long", steps=40, rollouts_per_step=4, tokens=8))
    drawn, _ = lines_of(panels([run], ["reward"])[0], ["long"], smoothed=True)
    steps, values = run.series("reward")
    assert [y for _, y in drawn.pop("long")] == pytest.approx(smooth(values, 4.0))
    (behind,) = drawn.values()
    assert behind == [list(pair) for pair in zip(steps, values, strict=True)]


def test_a_curve_that_one_run_lacks_is_drawn_of_the_others(runs):
    both = [read_run(runs / "grpo-seed0"), read_run(runs / "sdpo-seed0")]
    assert list(panels(both, ["divergence"])[0].lines) == ["sdpo"]
    assert {"reward", "divergence"} <= {panel.key for panel in panels(both)}


def test_seeds_without_a_common_step_are_told(tmp_path):
    both = [
        read_run(make_run(tmp_path / f"a-seed{at}", steps=2, tokens=8, first_step=1 + 10 * at), name=f"a-seed{at}")
        for at in range(2)
    ]
    with pytest.raises(DataError, match="no step lies within all"):
        lines_of(panels(both, ["reward"])[0], ["a"])


@pytest.mark.parametrize(
    ("folders", "names"),
    [
        (["r/a/records", "r/b/records"], ["a", "b"]),
        (["r/a/x", "r/b/x"], ["a/x", "b/x"]),
        (["sdpo/seed0", "sdpo/seed1"], ["sdpo/seed0", "sdpo/seed1"]),
        (["one"], ["one"]),
    ],
)
def test_names_are_as_long_as_they_must_be(folders, names):
    assert run_names([Path(folder) for folder in folders]) == names


@pytest.mark.parametrize(
    ("name", "rest"),
    [
        ("sdpo-seed0", "sdpo"),
        ("seed_12-sdpo", "sdpo"),
        ("sdpo_Seed=3_lr1e-5", "sdpo_lr1e-5"),
        ("runs/sdpo/seed1", "runs/sdpo"),
        ("seed1", "seed1"),
        ("linseed3", "linseed3"),
    ],
)
def test_what_a_seed_is(name, rest):
    assert without_seed(name) == rest


# The command


def test_json_says_what_is_drawn(runs, tmp_path):
    code, said, _ = plot(runs / "sdpo-seed1", "--metric", "reward", "-o", tmp_path / "x.svg", "--json")
    found = json.loads(said)
    assert code == 0 and found["files"] == [str(tmp_path / "x.svg")]
    steps, values = read_run(runs / "sdpo-seed1").series("reward")
    (shown,) = found["curves"]
    assert (shown["metric"], shown["steps"], shown["values"]) == ("reward", steps, values)


def test_a_rollout_is_drawn_by_its_number(runs, tmp_path):
    record = next(one for one in read_run(runs / "sdpo-seed0").rollouts if one.tokens)
    code, said, _ = plot(runs / "sdpo-seed0", "--rollout", record.id, "-o", tmp_path, "--format", "svg", "--json")
    found = json.loads(said)
    assert code == 0 and found["files"] == [str(tmp_path / f"rollout-{record.id}.svg")]
    assert len(found["verdicts"]) == record.tokens["length"]
    assert (tmp_path / f"rollout-{record.id}.svg").read_bytes().startswith(STARTS["svg"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "There is no folder nowhere"),
        (["{runs}/grpo-seed0", "--metric", "rewrd"], "has no metric 'rewrd'. Did you mean 'reward'?"),
        (["{runs}/grpo-seed0", "--metric", "gap"], "recorded no values for 'gap'. It has: reward"),
        (["{runs}/sdpo-seed0", "--rollout", "99"], "There is no rollout 99 among the recorded ones. Rollouts with"),
        (["{runs}/grpo-seed0", "--rollout", "1"], "Rollout 1 was recorded without token values. No rollout of these"),
        (["{runs}", "--rollout", "0"], "Rollout 0 is in 3 runs (grpo-seed0, sdpo-seed0, sdpo-seed1)"),
        (["{runs}/sdpo-seed0", "--rollout", "0", "--metric", "gap"], "leave one of them out"),
        (["{runs}/sdpo-seed0", "--format", "pgn"], "got 'pgn'. Did you mean 'png'?"),
        (["{runs}/sdpo-seed0", "-o", "{runs}/x.gif"], "ends in '.gif'. A picture ends in png, pdf, svg"),
        (["{runs}/sdpo-seed0", "-o", "{runs}/x.pdf", "--format", "png"], "is a pdf file, but `--format` is png"),
        (["{runs}/sdpo-seed0", "--metric", "gap", "-o", "/proc/no/x.png"], "/proc/no/x.png cannot be written"),
        (
            ["{runs}/sdpo-seed0", "--metric", "gap", "-o", "{runs}/grpo-seed0/records/steps.jsonl/x"],
            "cannot be written",
        ),
        (["{runs}/sdpo-seed0", "--style", "blue"], "style is light or dark, got 'blue'"),
        (["{runs}/sdpo-seed0", "--width", "0"], "width must lie between 0.5 and 200 inches, got 0"),
        (["{runs}/sdpo-seed0", "--dpi", "1"], "between 20 and 2400 dots per inch, got 1"),
    ],
)
def test_a_mistake_gives_one_helpful_line(runs, words, message):
    code, _, said = plot(*(word.format(runs=runs) for word in words))
    assert code == 2 and message in said
    assert said.startswith("error: ") and len(said.strip().splitlines()) == 1


def test_a_run_without_a_step_is_told(tmp_path):
    run = make_run(tmp_path / "new", steps=1, tokens=8)
    header = (run / "records" / "steps.jsonl").read_text(encoding="utf-8").splitlines()[0]
    (run / "records" / "steps.jsonl").write_text(header + "\n", encoding="utf-8")
    (run / "records" / "rollouts-00000.jsonl").unlink()
    code, _, said = plot(run, "-o", tmp_path / "x.png")
    assert code == 2 and "nothing to draw yet: new recorded no values" in said


def test_without_matplotlib_the_extra_is_named(runs, tmp_path):
    code = (
        "import sys; sys.modules['matplotlib'] = None\n"
        f"sys.argv = ['sdpo', 'plot', {str(runs / 'sdpo-seed0')!r}, '-o', {str(tmp_path / 'x.png')!r}]\n"
        "from sdpo_plugins.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr.strip() == (
        "error: Pictures need matplotlib, which is not installed: pip install 'sdpo-plugins[report]'"
    )
