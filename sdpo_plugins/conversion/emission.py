"""The texts that hosts read: a recipe for TRL, a command or a file for verl, a launch script for OpenRLHF."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from typing import Any

import yaml

from sdpo_plugins.conversion.hosts import Written
from sdpo_plugins.conversion.verl import SECTION, plain_names

__all__ = ["flat_yaml", "hydra_value", "openrlhf_script", "trl_recipe", "verl_command", "verl_file"]

_BY = "Written by `sdpo config`"
_BARE = re.compile(r"[A-Za-z_][\w./:+-]*")
_NO_TEXT = ("null", "true", "false", "nan", "inf", "none", "yes", "no", "on", "off", "unset")
_DATA = "DATA_DIR"
_OF_DATA = ("dataset_name", "dataset_config", "dataset_split", "reward_functions", "scorer", "scorer_options")
_MISSING = {
    "model": "model_name_or_path: NAME    # on the hub, or a folder",
    "data": "dataset_name: FILE.jsonl    # with a column `prompt`; `sdpo data NAME` writes one",
    "scorer": "scorer: NAME    # of `sdpo list`; or reward_functions: [file.py:function]",
}


class _Dumper(yaml.SafeDumper):
    """Writes texts of several lines in one, with `\\n`: at their ends, blank lines would be lost on the way."""


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style='"' if "\n" in value else None)


_Dumper.add_representer(str, _text)


def flat_yaml(entries: Mapping[str, Any]) -> str:
    """Write a flat mapping so that every YAML reader reads the same values.

    Example:
        >>> print(flat_yaml({"learning_rate": 1e-05, "distillation_topk": None}), end="")
        learning_rate: 1.0e-05
        distillation_topk: null
    """
    if not entries:
        return ""
    text: str = yaml.dump(_plain(entries), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)
    return text


def hydra_value(value: Any) -> str:
    r"""Write a value so that Hydra's overrides read it.

    Example:
        >>> hydra_value(1e-05), hydra_value("ema"), hydra_value("it's"), hydra_value({"a": False}), hydra_value("1")
        ('1e-05', 'ema', "'it\\'s'", '{a: false}', "'1'")
    """
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {hydra_value(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(hydra_value, value)) + "]"
    if value is None or isinstance(value, (bool, int, float)):
        return json.dumps(value)
    text = str(value)
    if _BARE.fullmatch(text) and text.lower() not in _NO_TEXT:
        return text
    # In quotes, a backslash counts only before a quote or at the end.
    escaped = re.sub(r"(\\*)'", r"\1\1\\'", text)
    escaped = re.sub(r"(\\+)$", r"\1\1", escaped)
    return f"'{escaped}'"


def trl_recipe(options: Mapping[str, Any], written: Written, gpus: int) -> str:
    """Write a recipe of `sdpo train`.

    Args:
        options: SDPO's, perhaps with `preset`.
        written: TRL's arguments.
        gpus: Processes that the batch was computed for.

    Returns:
        YAML.
    """
    pairs = {name: value for name, value in written.pairs.items() if name != "host"}
    run = "sdpo train FILE" if gpus == 1 else f"accelerate launch --num_processes {gpus} -m sdpo_plugins.cli train FILE"
    first: dict[str, Any] = {name: pairs.pop(name) for name in ("task", "model_name_or_path") if name in pairs}
    first["output_dir"] = pairs.pop("output_dir", "runs/sdpo")
    first |= {name: pairs.pop(name) for name in _OF_DATA if name in pairs}
    parts = [f"# {_BY}. Run: {run}", "host: trl", flat_yaml(first).rstrip()]
    missing = [] if first.keys() & {"task", "model_name_or_path"} else [_MISSING["model"]]
    missing += [] if first.keys() & {"task", "dataset_name"} else [_MISSING["data"]]
    missing += [] if first.keys() & {"task", "scorer", "reward_functions"} else [_MISSING["scorer"]]
    if missing:
        parts += ["", "# Missing still:", *(f"# {line}" for line in missing)]
    parts += ["", "# SDPO (names: docs/configuration.md)", flat_yaml({"enabled": True, **options}).rstrip()]
    if pairs:
        parts += ["", "# TRL's GRPO arguments", flat_yaml(pairs).rstrip()]
    return "\n".join(parts) + "\n"


def verl_command(options: Mapping[str, Any], written: Written) -> str:
    """Write a launch script with Hydra overrides.

    Args:
        options: SDPO's, perhaps with `preset`.
        written: verl's dotted names and values.

    Returns:
        A script for bash.
    """
    model, folder, pairs = _places(written.pairs, "actor_rollout_ref.model.path", "trainer.default_local_dir")
    known = plain_names()
    pairs = {name: value for name, value in pairs.items() if name not in ("data.train_files", "data.val_files")}
    words = [
        f'"actor_rollout_ref.model.path={model}"',
        f'"data.train_files=${_DATA}/train.parquet"',
        f'"data.val_files=${_DATA}/test.parquet"',
        f'"trainer.default_local_dir={folder}"',
        *(shlex.quote(f"{'' if name in known else '++'}{name}={hydra_value(value)}") for name, value in _sorted(pairs)),
        *(shlex.quote(f"{SECTION}.{name}={hydra_value(value)}") for name, value in options.items()),
    ]
    return _script(
        "verl",
        f"{_DATA} is a folder with train.parquet and test.parquet, as `sdpo data NAME --host verl` writes them",
        '"${PYTHON:-python}" -m verl.trainer.main_ppo --config-name sdpo',
        words,
    )


def verl_file(options: Mapping[str, Any], written: Written) -> str:
    """Write a configuration file for verl.

    Args:
        options: SDPO's, perhaps with `preset`.
        written: verl's dotted names and values.

    Returns:
        YAML. What is missing stands as `???`, which verl refuses by name until it is given.
    """
    pairs = {"data.train_files": "???", "data.val_files": "???", "actor_rollout_ref.model.path": "???"}
    pairs |= written.pairs
    pairs |= {f"{SECTION}.{name}": value for name, value in options.items()}
    tree: dict[str, Any] = {"defaults": ["sdpo", "_self_"]}
    for name, value in _sorted(pairs):
        *path, last = name.split(".")
        inner = tree
        for part in path:
            inner = inner.setdefault(part, {})
        inner[last] = value
    # Where verl's own files lie, once --config-path names the folder of this one.
    tree["hydra"] = {"searchpath": ["pkg://verl.trainer.config"]}
    return (
        f"# {_BY}. Run: python -m verl.trainer.main_ppo --config-path FOLDER --config-name NAME\n"
        "# `???` is still to be given; `sdpo data NAME --host verl` writes data.\n" + flat_yaml(tree)
    )


def openrlhf_script(options: Mapping[str, Any], written: Written) -> str:
    """Write a launch script for OpenRLHF.

    Args:
        options: SDPO's, perhaps with `preset`.
        written: Flags without dashes, and their values.

    Returns:
        A script for bash.
    """
    model, folder, pairs = _places(written.pairs, "actor.model_name_or_path", "ckpt.output_dir")
    words = [
        f'--actor.model_name_or_path "{model}"',
        f'--data.prompt_dataset "${_DATA}/train.jsonl" --data.input_key input --data.label_key label',
        "--data.apply_chat_template",
        f'--ckpt.output_dir "{folder}/model" --ckpt.path "{folder}/checkpoints"',
    ]
    if "sdpo.scorer" not in pairs:
        words.append('--reward.remote_url "${REWARD:?a reward file, or write --sdpo.scorer NAME here}"')
    words += [_flag(name, value) for name, value in _sorted(pairs)]
    words += [_flag(f"sdpo.{name}", value) for name, value in options.items()]
    return _script(
        "openrlhf",
        f"{_DATA} is a folder with train.jsonl, as `sdpo data NAME --host openrlhf` writes it",
        '"${PYTHON:-python3}" -m sdpo_openrlhf.train',
        words,
    )


def _script(host: str, data: str, command: str, words: list[str]) -> str:
    lines = [
        "#!/usr/bin/env bash",
        f"# {_BY} --to {host}. Words behind it are passed on and win.",
        "set -euo pipefail",
        "",
        f': "${{{_DATA}:?{data.replace("`", "")}}}"',
        "",
        " \\\n  ".join([f"exec {command}", *words, '"$@"']),
    ]
    return "\n".join(lines) + "\n"


def _places(pairs: Mapping[str, Any], model: str, folder: str) -> tuple[str, str, dict[str, Any]]:
    """The model and the folder as variables of the shell, and the other settings."""
    rest = {name: value for name, value in pairs.items() if name not in (model, folder)}
    named = pairs.get(model)
    model_word = "${MODEL_PATH:-" + _inside(named) + "}" if named else "${MODEL_PATH:?name or folder of the model}"
    return model_word, "${OUTPUT_DIR:-" + _inside(pairs.get(folder, "runs/sdpo")) + "}", rest


def _inside(text: Any) -> str:
    return re.sub(r'([\\"$`}])', r"\\\1", str(text))


def _flag(name: str, value: Any) -> str:
    if value is True and not name.startswith("sdpo."):
        return f"--{name}"
    if isinstance(value, (list, tuple)):
        return " ".join([f"--{name}", *(shlex.quote(_word(one)) for one in value)])
    word = _word(value)
    # argparse would take a text that begins with a dash for a flag.
    return f"--{name}={shlex.quote(word)}" if word.startswith("-") or not word else f"--{name} {shlex.quote(word)}"


def _word(value: Any) -> str:
    if isinstance(value, Mapping):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, bool):
        return str(value).lower()
    return "none" if value is None else f"{value!r}" if isinstance(value, float) else str(value)


def _sorted(pairs: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """What belongs together stands together, in the order of its first setting."""
    groups = list(dict.fromkeys(name.rpartition(".")[0] for name in pairs))
    return sorted(pairs.items(), key=lambda pair: groups.index(pair[0].rpartition(".")[0]))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return value
