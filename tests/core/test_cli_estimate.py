"""`sdpo estimate`."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from published_models import QWEN_HALF
from sdpo_plugins.cli import app
from sdpo_plugins.config import SDPOConfig
from sdpo_plugins.estimate import RunFacts, estimate, facts_of_config

WIDE = {"COLUMNS": "160"}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("half")
    QWEN_HALF.save_pretrained(folder)
    return str(folder)


def called(*arguments):
    return CliRunner().invoke(app, ["estimate", *arguments], env=WIDE)


def test_the_table_names_parts_phases_peak_and_gpus(model):
    result = called("--model", model)
    assert result.exit_code == 0, result.output
    for text in (
        "494 million parameters",
        "optimizer states",
        "generation",
        "backward",
        "GiB",
        "Peak:",
        "16 GB (T4)",
        "141 GB (H200)",
    ):
        assert text in result.stdout


def test_json_gives_the_numbers_of_the_package(model):
    result = called("--model", model, "--teacher", "frozen", "--batch-size", "2", "--dtype", "bfloat16", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    expected = estimate(
        facts_of_config(QWEN_HALF),
        RunFacts(sdpo=SDPOConfig(teacher="frozen"), batch_size=2, dtype="bfloat16"),
    )
    assert {phase["name"]: phase["parts"] for phase in found["phases"]} == {
        phase.name: dict(phase.parts) for phase in expected.phases
    }
    assert found["peak"] == {"phase": expected.peak.name, "total": expected.peak.total}
    assert found["model"]["parameters"] == 494_032_768


def test_defaults_are_those_of_the_options(model):
    run = json.loads(called("--model", model, "--json").stdout)["run"]
    assert run["batch_size"] == RunFacts().batch_size
    assert run["sdpo"]["distillation_topk"] == SDPOConfig().distillation_topk
    assert run["sdpo"]["teacher"] == SDPOConfig().teacher


def test_options_of_sdpo_and_of_the_run_arrive(model):
    result = called(
        *("--model", model, "--teacher", "lora_ema", "--lora-rank", "8", "--lora-targets", "q_proj,v_proj"),
        *("--load-in-4bit", "--no-gradient-checkpointing", "--distillation-topk", "null", "--chunk-memory-mb", "64"),
        "--json",
    )
    assert result.exit_code == 0, result.output
    run = json.loads(result.stdout)["run"]
    assert run["lora_targets"] == ["q_proj", "v_proj"]
    assert (run["lora_rank"], run["load_in_4bit"], run["gradient_checkpointing"]) == (8, True, False)
    assert run["sdpo"]["distillation_topk"] is None
    assert run["sdpo"]["chunk_memory_mb"] == 64.0


def test_the_sampled_token_mode_needs_no_further_option(model):
    assert called("--model", model, "--no-full-logit-distillation").exit_code == 0


def test_a_comparison_has_a_row_for_each_teacher(model):
    result = called("--model", model, "--compare", "--batch-size", "1")
    assert result.exit_code == 0, result.output
    for text in ("ema", "frozen", "live", "trust_region", "lora_ema", "all weights", "4-bit LoRA", "GPU from"):
        assert text in result.stdout
    rows = json.loads(called("--model", model, "--compare", "--json").stdout)
    assert len(rows) == 14


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--teacher", "lora_ema"], "lora_rank"),
        (["--load-in-4bit"], "needs LoRA"),
        (["--host", "ver1"], "Did you mean 'verl'"),
        (["--distillation-topk", "many"], "a whole number, or null"),
        (["--teacher", "emma"], "Did you mean 'ema'"),
        (["--chunk-memory-mb", "0.001"], "too small"),
    ],
)
def test_what_cannot_be_estimated_is_one_message(model, arguments, said):
    result = called("--model", model, *arguments)
    assert result.exit_code == 2
    assert said in result.output
    assert "Traceback" not in result.output


def test_a_model_that_is_nowhere_is_one_message(tmp_path):
    result = called("--model", str(tmp_path))
    assert result.exit_code == 2
    assert "config.json" in result.output
    # A path that is not there is not asked for on the hub, which would be an address and retries.
    result = called("--model", str(tmp_path / "config.json"))
    assert result.exit_code == 2
    assert "no file or folder" in " ".join(result.output.split())


def test_help_of_other_commands_needs_no_torch():
    code = (
        "import sys; from typer.testing import CliRunner; from sdpo_plugins.cli import app;"
        "assert CliRunner().invoke(app, ['--help']).exit_code == 0;"
        "assert CliRunner().invoke(app, ['estimate', '--help']).exit_code == 0;"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
