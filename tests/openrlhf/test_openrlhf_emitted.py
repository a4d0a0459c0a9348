"""What `sdpo config --to openrlhf` writes, read by OpenRLHF's real parser and the launcher's checks."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from other_projects import FILES, arguments_of
from sdpo_openrlhf.train import prepare
from sdpo_plugins import SDPOConfig
from sdpo_plugins.cli import app
from sdpo_plugins.embedded import checkpoint_path
from sdpo_plugins.presets import PAPER_HOST_SETTINGS, preset_names

ODD = (
    'feedback_template=It\'s "no":\n\\{feedback_raw}\\',
    "solution_template=-- {successful_previous_attempt} $HOME",
    "apply_chat_template_kwargs={enable_thinking: false, style: a b}",
    "distillation_topk=null",
    "teacher_update_rate=1e-5",
)
SOURCES = {
    **{preset: ("--preset", preset) for preset in preset_names()},
    **{dialect: ("--from", dialect) for dialect in FILES},
    "odd": ODD,
}


def run(*words):
    result = CliRunner().invoke(app, ["config", *words])
    assert result.exit_code == 0, result.output
    return result.stdout


def prepared(words, folder, *more):
    """The run that the script would start, after all checks; the files it names are there."""
    (folder / "data").mkdir(exist_ok=True)
    (folder / "data" / "train.jsonl").write_text('{"input": "What is 1 + 1?", "label": "2"}\n')
    places = {"MODEL_PATH": str(checkpoint_path()), "DATA_DIR": str(folder / "data"), "OUTPUT_DIR": str(folder)}
    script = run(*words, "--to", "openrlhf")
    arguments = arguments_of(script, folder, REWARD=str(folder / "reward.py"), **places)
    assert arguments[:2] == ["-m", "sdpo_openrlhf.train"]
    return prepare([*arguments[2:], *more])


@pytest.mark.parametrize("name", list(SOURCES))
def test_openrlhf_reads_the_same_options(tmp_path, words, name):
    words()  # the places of a machine with eight GPUs, and a reward file
    given = SOURCES[name]
    if name in FILES:
        file, text = FILES[name]
        (tmp_path / file).write_text(text, encoding="utf-8")
        given = (*given, str(tmp_path / file), "--gpus", "1")
    if name == "odd":
        given = (*given, "questions_per_batch=16", "rollouts_per_question=8")
    # Options that this host refuses are not the converter's to change.
    found = prepared(given, tmp_path)
    told = json.loads(run(*given, "--json"))["options"]
    assert found.config == SDPOConfig.from_mapping({name: one["value"] for name, one in told.items()})


@pytest.mark.parametrize("preset", list(PAPER_HOST_SETTINGS))
def test_the_papers_settings(tmp_path, words, preset):
    words()
    args = prepared(("--preset", preset, "gpus=4", "scorer=math"), tmp_path).args
    paper = PAPER_HOST_SETTINGS[preset]
    assert (args.rollout.batch_size, args.rollout.n_samples_per_prompt) == (
        paper.questions_per_batch,
        paper.rollouts_per_question,
    )
    assert args.train.batch_size == paper.mini_batch_size * paper.rollouts_per_question
    assert args.actor.adam.lr == paper.learning_rate and args.actor.max_norm == paper.max_grad_norm
    assert args.data.max_len == 2048 + 8192 and args.rollout.max_new_tokens == 8192
    assert args.algo.advantage.is_correction_level == "token" and args.algo.advantage.is_correction_mode == "clip"
    assert list(args.algo.advantage.is_correction_threshold) == [0.0, 2.0]
    assert (args.actor.num_gpus_per_node, args.vllm.num_engines) == (4, 4)
