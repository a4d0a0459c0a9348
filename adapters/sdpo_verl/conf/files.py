"""Writes the YAML files of this directory: `python -m sdpo_verl.conf.files`."""

from __future__ import annotations

import dataclasses
import json
import textwrap
from pathlib import Path
from typing import Any

from sdpo_plugins._options import to_plain
from sdpo_plugins.config import SDPOConfig
from sdpo_plugins.presets import PRESETS

__all__ = ["files", "main"]

_WRITTEN = "# Written by `python -m sdpo_verl.conf.files`; change `SDPOConfig` or the presets, not this file.\n"

# Names of the authors that differ from ours; listed so that their command lines need no `+` either.
_AUTHORS = {
    "teacher_regularization": "The authors' name of `teacher`: ema or trust-region.",
    "ema_update_rate": "The authors' name of `teacher_update_rate`.",
}

_LEADING = {
    "preset": f"Named setting whose values stand for all options left unset: {', '.join(PRESETS)}.",
    "dialect": "Project whose option names and defaults hold (lasgroup: the authors'); unset: ours, and every other "
    "project's unambiguous names.",
}


def files() -> dict[str, str]:
    """Return the text of every file, by its path in this directory."""
    found = {"sdpo.yaml": _primary(), "sdpo/default.yaml": _group("Turns SDPO on and leaves its options alone.", "{}")}
    found["sdpo/lasgroup.yaml"] = _group(
        "Turns SDPO on for a file of the authors' fork: their option names and their defaults.", "{dialect: lasgroup}"
    )
    for preset in PRESETS.values():
        found[f"sdpo/{preset.name}.yaml"] = _group(
            f"Turns SDPO on with the preset `{preset.name}`: {preset.source}.", f"{{preset: {preset.name}}}"
        )
    return found


def main() -> None:
    """Write the files."""
    for name, text in files().items():
        path = Path(__file__).parent / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")


def _primary() -> str:
    section = [
        *(_line(name, help) for name, help in _LEADING.items()),
        *(
            _line(item.name, f"{item.metadata['help']} Default: {_shown(item)}.")
            for item in dataclasses.fields(SDPOConfig)
        ),
        *(_line(name, help) for name, help in _AUTHORS.items()),
    ]
    head = _comment(
        "verl's own configuration with SDPO turned on: `python -m verl.trainer.main_ppo --config-name sdpo …`. "
        "`unset` is an option nobody gave: the preset's value holds, or the default.",
        "",
    )
    return (
        f"{_WRITTEN}{head}\ndefaults:\n  - ppo_trainer\n  - _self_\n\n"
        + _turned_on("\n" + "\n".join(section))
        + "\n  # A_GRPO of the hybrid objective is r − mean(r).\n  norm_adv_by_std_in_grpo: false\n"
        + _trainer()
    )


def _group(summary: str, section: str) -> str:
    head = _comment(f"{summary} Stands behind the file it is added to; a command line still overrides each line.", "")
    return f"# @package _global_\n{_WRITTEN}{head}\n" + _turned_on(f" {section}") + _trainer()


def _turned_on(section: str) -> str:
    return (
        "actor_rollout_ref:\n  actor:\n    _target_: sdpo_verl.config.SDPOActorConfig\n"
        "    # The only engine in which the teacher's weights can be exchanged by name.\n    strategy: fsdp2\n"
        f"    self_distillation:{section}\n\n"
        "algorithm:\n  # Any estimator without a critic.\n  adv_estimator: grpo\n"
    )


def _trainer() -> str:
    return (
        "\ntrainer:\n  v1:\n    trainer_mode: sdpo\n\n"
        "hydra:\n  callbacks:\n    # Refuses a wrong configuration before Ray starts.\n"
        "    sdpo:\n      _target_: sdpo_verl.start.CheckBeforeStart\n"
    )


def _line(name: str, help: str) -> str:
    return f"{_comment(help, '      ')}\n      {name}: unset"


def _comment(text: str, indent: str) -> str:
    return "\n".join(
        textwrap.wrap(
            text,
            118,
            initial_indent=f"{indent}# ",
            subsequent_indent=f"{indent}# ",
            break_long_words=False,
            break_on_hyphens=False,
        )
    )


def _shown(item: dataclasses.Field[Any]) -> str:
    default = {} if item.default is dataclasses.MISSING else item.default  # mappings alone have a factory
    return json.dumps(to_plain(default), ensure_ascii=False)


if __name__ == "__main__":
    main()
