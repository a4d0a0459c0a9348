"""`sdpo config`: the options that hold, where each comes from, and the file that reads back as the same."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from sdpo_plugins import SDPOConfig
from sdpo_plugins.cli import app
from sdpo_plugins.presets import preset_names

RECIPE = """
    host: trl
    task: sums
    # a comment
    alpha: 0.25
    ema_tau: 0.1
    distillation_topk: none
    learning_rate: 3e-4
    apply_chat_template_kwargs: {enable_thinking: false}
"""


def run(*words: str, width: int = 200):
    return CliRunner().invoke(app, ["config", *words], env={"COLUMNS": str(width)})


def done(*words: str, width: int = 200) -> str:
    result = run(*words, width=width)
    assert result.exit_code == 0, result.output
    return result.stdout


def refused(*words: str) -> str:
    result = run(*words)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output and not result.stdout
    return result.stderr


def told(*words: str):
    return json.loads(done(*words, "--json"))


def file(folder: Path, text: str, name: str = "recipe.yaml") -> str:
    path = folder / name
    path.write_text(textwrap.dedent(text), encoding="utf-8")
    return str(path)


def test_without_a_file_the_defaults_hold():
    assert f"All {len(SDPOConfig().to_mapping())} options have their defaults" in done()
    options = told()["options"]
    assert {name: one["value"] for name, one in options.items()} == SDPOConfig().to_mapping()
    assert {one["from"]["place"] for one in options.values()} == {"default"}


def test_each_value_says_where_it_comes_from(tmp_path):
    found = told(file(tmp_path, RECIPE), "alpha=0.75", "grpo_weight=1e-1")
    options = found["options"]
    place = {name: one["from"] for name, one in options.items() if one["from"]["place"] != "default"}
    assert place == {
        "alpha": {"place": "command line", "name": "", "line": None, "written": ""},
        "grpo_weight": {"place": "command line", "name": "", "line": None, "written": ""},
        "teacher_update_rate": {"place": "file", "name": "recipe.yaml", "line": 6, "written": "ema_tau"},
        "distillation_topk": {"place": "file", "name": "recipe.yaml", "line": 7, "written": ""},
        "apply_chat_template_kwargs": {"place": "file", "name": "recipe.yaml", "line": 9, "written": ""},
    }
    assert (options["alpha"]["value"], options["grpo_weight"]["value"]) == (0.75, 0.1)
    assert options["distillation_topk"] == {**options["distillation_topk"], "value": None, "default": 100}
    assert found["host"]["given"] == {"host": "trl", "task": "sums", "learning_rate": 3e-4}


def test_the_table_shows_what_differs_and_counts_the_rest(tmp_path):
    shown = done(file(tmp_path, RECIPE))
    lines = {line.split()[0]: line.split()[1:] for line in shown.splitlines() if line.strip()}
    assert lines["alpha"] == ["0.25", "recipe.yaml", "line", "5"]
    assert lines["teacher_update_rate"] == ["0.1", "recipe.yaml", "line", "6,", "as", "ema_tau"]
    assert "is_clip" not in lines
    count = len(SDPOConfig().to_mapping()) - 4
    assert f"The other {count} options have their defaults" in shown
    assert "Settings of TRL" in shown and lines["learning_rate"] == ["0.0003", "line", "8"]
    everything = done(file(tmp_path, RECIPE), "--all")
    for name in SDPOConfig().to_mapping():
        assert f"\n{name} " in everything


def test_names_stay_whole_in_eighty_columns(tmp_path):
    shown = done("--preset", "trl", "--all", width=80)
    for name in SDPOConfig().to_mapping():
        assert f"{name} " in shown
    assert max(map(len, shown.splitlines())) <= 80


@pytest.mark.parametrize("preset", preset_names())
def test_presets(preset):
    found = told("--preset", preset, "alpha=1.0", "full_logit_distillation=true")
    wanted = SDPOConfig.preset(preset, alpha=1.0, full_logit_distillation=True)
    assert {name: one["value"] for name, one in found["options"].items()} == wanted.to_mapping()
    assert found["preset"] == preset
    assert found["options"]["success_reward_threshold"]["from"] == {
        "place": "preset",
        "name": preset,
        "line": None,
        "written": "",
    }


def test_a_preset_in_the_file_and_a_better_one_on_the_command_line(tmp_path):
    path = file(tmp_path, "preset: paper\nalpha: 0.25\n")
    assert told(path)["preset"] == "paper"
    assert told(path, "preset=paper_rich_feedback")["options"]["distillation_topk"]["value"] == 20
    assert told(path, "--preset", "trl", "alpha=1")["preset"] == "trl"


def test_a_word_beats_the_file_also_under_another_name(tmp_path):
    path = file(tmp_path, "ema_tau: 0.3\ndistillation_alpha: 0.25\n")
    options = told(path, "teacher_update_rate=0.4", "alpha=0.75")["options"]
    assert (options["teacher_update_rate"]["value"], options["alpha"]["value"]) == (0.4, 0.75)


def test_words_are_read_as_the_option_wants_them():
    options = told(
        "reprompt_template={prompt}{solution}{feedback} once more",
        "distillation_topk=null",
        "is_clip=1e1",
        "plugins=[]",
        "apply_chat_template_kwargs={enable_thinking: false}",
        "success_reward_name=exact",
        "selector=none",
    )["options"]
    values = {name: one["value"] for name, one in options.items()}
    assert values["reprompt_template"] == "{prompt}{solution}{feedback} once more"
    assert (values["distillation_topk"], values["is_clip"], values["selector"]) == (None, 10.0, "none")
    assert values["apply_chat_template_kwargs"] == {"enable_thinking": False}


@pytest.mark.parametrize(
    "words", [(), ("--preset", "trl"), ("alpha=1e-3", "feedback_template=No:\n\n{feedback_raw}\n")]
)
def test_yaml_reads_back_as_the_same(words):
    text = done(*words, "--yaml")
    values = {name: one["value"] for name, one in told(*words)["options"].items()}
    assert SDPOConfig.from_mapping(yaml.safe_load(text)).to_mapping() == values


def test_yaml_of_a_recipe_is_a_recipe(tmp_path):
    text = done(file(tmp_path, RECIPE), "--yaml")
    first = told(file(tmp_path, RECIPE))
    again = told(file(tmp_path, text, "again.yaml"))
    assert {name: one["value"] for name, one in again["options"].items()} == {
        name: one["value"] for name, one in first["options"].items()
    }
    assert again["host"]["given"] == first["host"]["given"]


def test_json_files(tmp_path):
    path = file(tmp_path, '{\n\t"alpha": 1e-1,\n\t"thinking_tag": "<räson>"\n}\n', "options.json")
    options = told(path)["options"]
    assert (options["alpha"]["value"], options["alpha"]["from"]["line"]) == (0.1, 2)
    assert options["thinking_tag"]["value"] == "<räson>"


VERL = """
    defaults:
      - sdpo
      - _self_
    data: {max_response_length: 777}
    actor_rollout_ref:
      actor:
        loss_agg_mode: seq-mean-token-mean
        policy_loss: {loss_mode: vanilla}
        self_distillation:
          preset: paper_rich_feedback
          alpha: unset
          max_reprompt_len: ${data.max_response_length}
          apply_chat_template_kwargs: {enable_thinking: false}
      rollout: {n: 8}
"""


def test_a_configuration_of_verl(tmp_path):
    path = file(tmp_path, VERL)
    found = told(path, "actor_rollout_ref.actor.self_distillation.is_clip=null", "+actor_rollout_ref.rollout.n=4")
    wanted = SDPOConfig.preset(
        "paper_rich_feedback",
        max_reprompt_len=777,
        is_clip=None,
        loss_agg_mode="seq-mean-token-mean",
        apply_chat_template_kwargs={"enable_thinking": False},
    )
    assert {name: one["value"] for name, one in found["options"].items()} == wanted.to_mapping()
    assert found["options"]["max_reprompt_len"]["from"]["line"] == 13
    assert found["host"]["given"]["actor_rollout_ref.rollout.n"] == 4


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("alhpa: 1\nteacher: 3\nmax_reprompt_len: 0\n", ["`alhpa`", "Did you mean 'alpha'?", "`teacher`", "line 3"]),
        ("alpha: 7\n", ["`alpha` must lie in [0, 1], got 7", "recipe.yaml line 1"]),
        ("host: trl\ntask: sums\nalhpa: 1\n", ["Unknown option `alhpa` (line 3).", "Did you mean 'alpha'?"]),
        ("alpha: 1\nalpha: 0\n", ["`alpha` twice", "lines 1 and 2"]),
        ("alpha: [1\nteacher: ema\n", ["line 2", "not a YAML file"]),
        ("- alpha\n", ["mapping", "list"]),
        ("teacher: emma\nselector_options: {a: 1}\n", ["'emma'", "Did you mean 'ema'?", "`selector_options.a`"]),
        ("preset: papr\n", ["'papr'", "Did you mean 'paper'?"]),
        ("dialect: lasgruop\n", ["'lasgruop'", "Did you mean 'lasgroup'?"]),
        ("preset: paper\ndialect: trl\n", ["both bring defaults"]),
        ("learning_rate: fast\nnum_generations: 8\n", ["`learning_rate` (line 1) must be a number, got 'fast'"]),
        ("num_generations: 8\nper_device_train_batch_size: 3\n", ["3 rollouts is no multiple of `num_generations`"]),
        ("actor_rollout_ref: {actor: {self_distillation: 3}}\n", ["must be a mapping, got 3"]),
    ],
)
def test_problems_of_files(tmp_path, text, words):
    message = refused(file(tmp_path, text))
    for word in words:
        assert word in message


def test_all_problems_come_in_one_message(tmp_path):
    message = refused(file(tmp_path, "alhpa: 1\nmax_reprompt_len: 0\nteacher_update_rate: 2\n"))
    assert message.count("error:") == 1 and message.startswith("error: 3 problems")
    for word in ("`alhpa`", "`max_reprompt_len`", "`teacher_update_rate`"):
        assert word in message


def test_an_authors_file_without_from_gets_a_hint(tmp_path):
    text = "actor_rollout_ref: {actor: {self_distillation: {_target_: verl.workers.config.SelfDistillationConfig}}}\n"
    assert "--from lasgroup" in done(file(tmp_path, text))


def test_it_imports_neither_torch_nor_a_host(tmp_path):
    words = ["config", "--preset", "paper", "--to", "verl", "-o", str(tmp_path / "run.sh")]
    code = (
        f"import sys; from sdpo_plugins.cli import app; app({words!r}, standalone_mode=False);"
        "print({'torch', 'trl', 'verl', 'omegaconf', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "set()"
