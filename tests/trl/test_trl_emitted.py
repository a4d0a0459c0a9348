"""What `sdpo config --to trl` and `--yaml` write, read by the recipe's real parser; and what TRL does by default."""

from __future__ import annotations

import dataclasses
import json
from fractions import Fraction

import pytest
import transformers
import yaml
from trl import GRPOConfig, ModelConfig
from typer.testing import CliRunner

from other_projects import FILES
from sdpo_plugins import ConfigError, SDPOConfig
from sdpo_plugins.cli import app
from sdpo_plugins.conversion.settings import SETTINGS
from sdpo_plugins.conversion.sources import read_source
from sdpo_plugins.conversion.trl import RECIPE_KEYS, TRL_KEYS
from sdpo_plugins.conversion.values import DEFAULTS
from sdpo_plugins.presets import PAPER_HOST_SETTINGS, preset_names
from sdpo_trl.recipe import RecipeArguments, parse

ODD = (
    'feedback_template=It\'s "no":\n\\{feedback_raw}\\',
    "apply_chat_template_kwargs={enable_thinking: false, style: a b}",
    "distillation_topk=null",
    "teacher_update_rate=1e-5",
    "selector=none",
    "plugins=[]",
)
SOURCES = {
    **{preset: ("--preset", preset) for preset in preset_names()},
    **{dialect: ("--from", dialect) for dialect in FILES},
    "odd": ODD,
}
ON_A_CPU = ("bf16=false", "gradient_checkpointing=false")


def run(*words):
    result = CliRunner().invoke(app, ["config", *words])
    assert result.exit_code == 0, result.output
    return result.stdout


def given(name, folder):
    words = SOURCES[name]
    if name in FILES:
        file, text = FILES[name]
        (folder / file).write_text(text, encoding="utf-8")
        words = (*words, str(folder / file))
    return words


def parsed(text, folder):
    path = folder / "emitted.yaml"
    path.write_text(text, encoding="utf-8")
    return parse(path, ON_A_CPU)


@pytest.mark.parametrize("name", list(SOURCES))
def test_a_recipe_reads_the_same_options(tmp_path, name):
    words = given(name, tmp_path)
    told = json.loads(run(*words, "--json"))["options"]
    wanted = SDPOConfig.from_mapping({name: one["value"] for name, one in told.items()})
    # vLLM is not part of this environment.
    text = run(*words, "--to", "trl").replace("use_vllm: true", "use_vllm: false")
    recipe, args, model = parsed(text, tmp_path)
    assert args.to_sdpo_config() == wanted
    assert recipe.host == "trl" and isinstance(model, ModelConfig)


@pytest.mark.parametrize("preset", list(PAPER_HOST_SETTINGS))
def test_the_papers_settings(tmp_path, preset):
    recipe, args, model = parsed(run("--preset", preset, "--to", "trl", "scorer=math", "model=m"), tmp_path)
    paper = PAPER_HOST_SETTINGS[preset]
    assert (args.learning_rate, args.warmup_steps) == (paper.learning_rate, paper.warmup_steps)
    rollouts = args.per_device_train_batch_size * args.gradient_accumulation_steps
    assert Fraction(rollouts, args.num_generations) == paper.mini_batch_size
    assert args.generation_batch_size == paper.questions_per_batch * paper.rollouts_per_question
    assert args.max_completion_length == paper.max_response_length
    assert (recipe.scorer, model.model_name_or_path) == ("math", "m")


def test_resolved_recipes_are_recipes(tmp_path):
    (tmp_path / "recipe.yaml").write_text(
        "host: trl\ntask: sums\noutput_dir: x\nlearning_rate: 3e-4\nema_tau: 0.1\ndistillation_topk: none\n"
        "apply_chat_template_kwargs: {enable_thinking: false}\nsave_strategy: 'no'\n"
    )
    with pytest.raises(ConfigError, match=r"In a recipe it is `teacher_update_rate: 0\.1`"):
        parse(tmp_path / "recipe.yaml", ON_A_CPU)
    recipe, args, _ = parsed(run(str(tmp_path / "recipe.yaml"), "--yaml"), tmp_path)
    wanted = {"teacher_update_rate": 0.1, "distillation_topk": None}
    assert args.to_sdpo_config() == SDPOConfig(**wanted, apply_chat_template_kwargs={"enable_thinking": False})
    assert (recipe.task, args.learning_rate, args.save_strategy) == ("sums", 3e-4, "no")


def test_the_defaults_in_the_table_are_trls(tmp_path):
    args = GRPOConfig(output_dir=str(tmp_path), bf16=False)
    for name, value in DEFAULTS["trl"].items():
        keys = SETTINGS[name].trl.split(",")
        found = tuple(getattr(args, key) for key in keys)
        assert (found if len(keys) > 1 else found[0]) == value, name


def test_names_of_the_recipe_are_those_of_its_parser():
    assert set(RECIPE_KEYS) - {"teacher_accuracy_every"} == {item.name for item in dataclasses.fields(RecipeArguments)}
    known = {item.name for kind in (GRPOConfig, ModelConfig) for item in dataclasses.fields(kind)}
    assert TRL_KEYS - known - set(RECIPE_KEYS) <= {"warmup_ratio"}


def test_no_argument_of_trl_is_taken_for_a_misspelt_option(tmp_path):
    entries = {item.name: None for kind in (GRPOConfig, ModelConfig) for item in dataclasses.fields(kind)}
    (tmp_path / "all.yaml").write_text(yaml.safe_dump({"host": "trl", **entries}))
    for dialect in (None, "trl"):
        source = read_source(tmp_path / "all.yaml", (), dialect)
        assert set(entries) == set(source.host) - {"host"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("alhpa: 1\nlearnin_rate: 1\n", ["2 problems", "Did you mean 'alpha'?", "Did you mean 'learning_rate'?"]),
        ("learning_rate: fast\n", ["`learning_rate`: invalid float value: 'fast'"]),
        ("task: summs\nbf16: false\n", ["'summs'", "Did you mean 'sums'?"]),
        ("distillation_alpha: 0.5\n", ["In a recipe it is `alpha: 0.5`."]),
        ("alpha: 7\nbf16: false\n", ["`alpha` must lie in [0, 1], got 7"]),
    ],
)
def test_mistakes_in_a_recipe(tmp_path, text, words, capsys):
    (tmp_path / "recipe.yaml").write_text(f"host: trl\noutput_dir: x\n{text}")
    with pytest.raises(ConfigError) as caught:
        parse(tmp_path / "recipe.yaml", ())
    for word in words:
        assert word in str(caught.value)
    assert "usage" not in capsys.readouterr().err


def test_bfloat16_on_a_cpu_is_said_in_our_words(tmp_path):
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    (tmp_path / "recipe.yaml").write_text("host: trl\ntask: sums\noutput_dir: x\n")
    with pytest.raises(ConfigError, match="Set `bf16: false` in the recipe, or write bf16=false behind it"):
        parse(tmp_path / "recipe.yaml", ())


@pytest.fixture
def talkative():
    """transformers as it starts: whoever silenced it in this process would have its bars go, too."""
    before = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_warning()
    yield
    transformers.utils.logging.set_verbosity(before)


def test_bars_are_for_a_terminal(tmp_path, monkeypatch, talkative):
    path = tmp_path / "recipe.yaml"
    path.write_text("host: trl\ntask: sums\noutput_dir: x\n")
    shown = {}
    for terminal in (True, False):
        monkeypatch.setattr("sys.stderr.isatty", lambda answer=terminal: answer)
        shown[terminal] = not parse(path, ON_A_CPU)[1].disable_tqdm
    assert shown == {True: True, False: False}
    assert not parse(path, (*ON_A_CPU, "disable_tqdm=false"))[1].disable_tqdm
