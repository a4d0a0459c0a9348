"""Every block of code in the documents holds: Python compiles or runs, files parse and are valid, commands exist."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import re
import shlex
import subprocess
import tomllib
from pathlib import Path

import pytest
import typer.main
import yaml

import doc_blocks
from doc_blocks import ROOT, Block, Command
from sdpo_plugins import SDPOConfig
from sdpo_plugins.cli import app
from sdpo_plugins.dialects import dialect_names
from sdpo_plugins.hookspecs import ENTRY_POINT_GROUP
from sdpo_plugins.plugins import build_scorer

LANGUAGES = {"bash", "console", "json", "python", "text", "toml", "yaml", "{eval-rst}", "{toctree}"}
# Where pytest runs the blocks in Python: see DOC_EXAMPLES in the Makefile.
RUN_BY_PYTEST = re.compile(r"README\.md|docs/.*")

# Programs that are neither ours nor Python's, and modules that only a host's environment has.
OTHER_PROGRAMS = {
    "hf": "the hub's own program, to fetch a copy",
    "jq": "reads the JSON that a command of ours prints",
}
OTHER_MODULES = {"verl.trainer.main_ppo": "verl's own program; tests/verl composes its command lines"}


@pytest.mark.parametrize("block", doc_blocks.blocks(), ids=str)
def test_the_language_is_one_that_is_checked(block: Block) -> None:
    assert block.language in LANGUAGES, f"{block}: a block must name one of {sorted(LANGUAGES)}"
    assert block.language == "python" or not block.words


# Python ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", doc_blocks.of("python"), ids=str)
def test_python_is_run_or_says_why_not(block: Block) -> None:
    ast.parse(block.text)
    assert set(block.words) <= {"continuation", "notest"}
    if "notest" in block.words:
        assert block.mark and block.mark[0] == "notest", (
            f"{block}: `<!-- notest: REASON -->` must stand above the block"
        )
    else:
        assert RUN_BY_PYTEST.fullmatch(block.page), f"{block}: blocks of this document are not run"


# Files ----------------------------------------------------------------------------------------------------------------


def adapters_options() -> set[str]:
    from sdpo_trl.recipe import RecipeArguments

    return set(RecipeArguments.__dataclass_fields__)


@pytest.mark.parametrize("block", doc_blocks.of("yaml"), ids=str)
def test_yaml_holds_valid_options(block: Block, tmp_path: Path) -> None:
    found = yaml.safe_load(block.text)
    assert isinstance(found, dict)
    options = section_of(found)
    if block.mark and block.mark[0] == "dialect":
        from sdpo_plugins.conversion import read_source

        path = tmp_path / "theirs.yaml"
        path.write_text(block.text, encoding="utf-8")
        assert block.mark[1] in dialect_names()
        read_source(path, [], block.mark[1])
    elif options is not None:
        SDPOConfig.from_mapping(options)
    elif set(found) & adapters_options() or block.mark:
        from sdpo_trl.recipe import parse

        path = tmp_path / "recipe.yaml"
        path.write_text(block.text, encoding="utf-8")
        parse(path, ["bf16=false", "use_cpu=true"])  # as on the machine of the tests
    elif "reward" in found:
        reward = found["reward"]["custom_reward_function"]
        assert reward["path"] == "pkg://sdpo_plugins.feedback.verl"
        build_scorer(SDPOConfig(), reward["name"], reward["reward_kwargs"])
    else:
        SDPOConfig.from_mapping(found)


def section_of(found: dict) -> dict | None:
    """Return SDPO's section of a configuration of verl, if it is one."""
    if "actor_rollout_ref" not in found:
        return None
    return found["actor_rollout_ref"].get("actor", {}).get("self_distillation", {})


def test_the_tutorials_parts_are_the_whole_recipe() -> None:
    parts: dict[str, dict] = {}
    for block in doc_blocks.of("yaml"):
        if block.mark and block.mark[0] == "recipe":
            parts.setdefault(block.mark[1], {}).update(yaml.safe_load(block.text))
    assert set(parts) == {"recipes/trl/facts.yaml"}
    for path, found in parts.items():
        assert found == yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))


def test_json_parses() -> None:
    for block in doc_blocks.of("json"):
        json.loads(block.text)


@pytest.mark.parametrize("block", doc_blocks.of("toml"), ids=str)
def test_toml_names_our_entry_points(block: Block) -> None:
    assert set(tomllib.loads(block.text)["project"]["entry-points"]) == {ENTRY_POINT_GROUP}


# Commands -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", doc_blocks.of("bash", "console"), ids=str)
def test_the_shell_understands(block: Block) -> None:
    script = doc_blocks.script_of(block)
    assert script.strip(), f"{block}: no command; a command in `console` begins with `$ `"
    done = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", doc_blocks.commands(), ids=str)
def test_the_command_exists(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    program, *arguments = command.words
    if program == "sdpo":
        parse_ours(arguments)
    elif program == "make":
        targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
        assert {word for word in arguments if "=" not in word} <= targets
    elif program == "pip":
        check_requirements(arguments)
    elif re.fullmatch(r"(\S*/)?python[\d.]*", program):
        check_python(arguments)
    elif program.startswith("recipes/"):
        assert os.access(ROOT / program, os.X_OK)
    else:
        assert program in OTHER_PROGRAMS, f"{command}: what is {program}?"


@pytest.mark.parametrize("block", [b for b in doc_blocks.blocks() if "sdpo" in b.text], ids=str)
def test_options_given_to_hosts_are_ours(block: Block) -> None:
    """`--sdpo.X` of OpenRLHF, `self_distillation.X` and `+sdpo=X` of verl."""
    known = {*SDPOConfig.__dataclass_fields__, "preset", "dialect", "config", "scorer", "scorer_options"}
    foreign = {"ema_update_rate", "teacher_regularization"}
    named = re.findall(r"--sdpo\.(\w+)|self_distillation\.(\w+)=", block.text)
    assert {one or other for one, other in named} <= known | foreign
    files = ROOT / "adapters" / "sdpo_verl" / "conf" / "sdpo"
    assert set(re.findall(r"\+sdpo=(\w+)", block.text)) <= {path.stem for path in files.glob("*.yaml")}


def examples() -> list[str]:
    text = (ROOT / "docs" / "reference" / "commands.md").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.startswith("Example")]
    return sorted({example for line in lines for example in re.findall(r"`(sdpo [^`]+)`", line)})


@pytest.mark.parametrize("example", examples())
def test_the_examples_of_help_are_understood(example: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    (first, *_) = [c for c in doc_blocks.commands_of(Block("", 0, "bash", example, None)) if c.words[0] == "sdpo"]
    parse_ours(list(first.words[1:]))


def parse_ours(arguments: list[str]) -> None:
    """Let the real program parse a command line, and do nothing."""
    program = typer.main.get_command(app)
    silence(program)
    if arguments[:1] == ["--install-completion"]:  # would change the shell of whoever runs the tests
        assert any(arguments[0] in item.opts for item in program.params)
        return
    code = program.main(args=[*arguments], prog_name="sdpo", standalone_mode=False)
    assert code in (None, 0)


def silence(command: object) -> None:
    children = getattr(command, "commands", {})
    if not children:
        command.callback = lambda **_: None  # type: ignore[attr-defined]
    for child in children.values():
        silence(child)


def check_requirements(arguments: list[str]) -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)["project"]
    assert arguments[0] == "install"
    for word in arguments:
        if match := re.fullmatch(r"(?:\.|sdpo-plugins)\[(.+)\]", word):
            assert set(match[1].split(",")) <= set(project["optional-dependencies"])


def check_python(arguments: list[str]) -> None:
    if arguments[0] == "-m":
        name = arguments[1]
        assert name in OTHER_MODULES or importlib.util.find_spec(name), name
        return
    script = ROOT / arguments[0]
    assert script.is_file()
    sources = script.read_text(encoding="utf-8")
    if script.parent.name == "trl":
        sources += (script.parent / "plumbing.py").read_text(encoding="utf-8")
    for flag in (word for word in arguments[1:] if word.startswith("--")):
        assert f'"{flag}"' in sources, flag


def test_no_exception_is_stale() -> None:
    words = [command.words for command in doc_blocks.commands()]
    assert set(OTHER_PROGRAMS) <= {each[0] for each in words}
    assert set(OTHER_MODULES) <= {each[2] for each in words if each[1:2] == ("-m",)}


# The checks themselves ------------------------------------------------------------------------------------------------


def block(info: str, text: str) -> Block:
    (found,) = doc_blocks.blocks_of(f"Words.\n\n```{info}\n{text}\n```\n", "made.md")
    return found


@pytest.mark.parametrize(
    "line",
    ["sdpo report --no-such runs/x", "sdpo nothing", "sdpo demo --seeds none", "make nothing", "pip install '.[none]'",
     "python -m sdpo_plugins.nothing", "python recipes/trl/nothing.py", "recipes/trl/nothing.sh", "nothing"],
)  # fmt: skip
def test_a_wrong_command_is_found(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (command,) = doc_blocks.commands_of(block("console", f"$ {line}    # words"))
    assert command.line == shlex.join(shlex.split(line))
    with pytest.raises(Exception, match=r".*"):
        test_the_command_exists(command, monkeypatch)


def test_commands_are_taken_apart() -> None:
    text = "A=1 sdpo list --json | jq x > out && make test  # words\nsdpo train \\\n  a.yaml"
    found = list(doc_blocks.commands_of(block("bash", text)))
    assert [each.words for each in found] == [
        ("sdpo", "list", "--json"), ("jq", "x"), ("make", "test"), ("sdpo", "train", "a.yaml"),
    ]  # fmt: skip
    assert found[1].target == "out"


def test_blocks_without_a_language_are_found() -> None:
    found = list(doc_blocks.blocks_of("```\nx\n```\n\nWords.\n\n    indented\n"))
    assert [each.language for each in found] == ["", ""]


def test_an_unknown_option_in_yaml_is_found(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="alpa"):
        test_yaml_holds_valid_options(block("yaml", "alpa: 1.0"), tmp_path)
