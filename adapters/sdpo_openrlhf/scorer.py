"""`--sdpo.scorer`: a scorer of the catalogue as OpenRLHF's reward function, through a file that is written for it.

OpenRLHF opens the reward file in every vLLM engine, wherever that runs, and gives it nothing but prompts, answers and
labels. So the scorer's settings stand in the file; it stays beside the model, as a record of what was rewarded.
"""

from __future__ import annotations

import argparse
import pprint
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sdpo_plugins.errors import ConfigError
from sdpo_plugins.feedback._shared import SETTINGS
from sdpo_plugins.feedback.openrlhf import for_openrlhf

__all__ = ["FLAGS", "ScorerChoice", "ScorerFile", "take_scorer"]

FLAGS = ("scorer", "scorer_options")
NAME = "sdpo_reward.py"


@dataclass(frozen=True)
class ScorerFile:
    """A reward file that is not written yet.

    Args:
        path: Where.
        text: What.
    """

    path: Path
    text: str

    def write(self) -> None:
        """Write it."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(self.text, encoding="utf-8")


@dataclass(frozen=True)
class ScorerChoice:
    """What the command line says of a scorer.

    Args:
        name: Of the catalogue.
        options: The scorer's own, and those of its batches.
        path: Of the reward file.
    """

    name: str
    options: dict[str, Any]
    path: Path

    def file(self, tokenizer: str, plugins: tuple[str, ...]) -> ScorerFile:
        """Return the reward file.

        Args:
            tokenizer: The policy's folder or name on the hub.
            plugins: Those of the run.

        Raises:
            ConfigError: Unknown scorer, invalid options.
        """
        settings = {"tokenizer": tokenizer, "plugins": list(plugins), **self.options}
        for_openrlhf(self.name, **settings)
        text = (
            f'"""The reward file of `--sdpo.scorer {self.name}`, written by the launcher for this run."""\n\n'
            "from sdpo_plugins.feedback import for_openrlhf\n\n"
            f"SETTINGS = {pprint.pformat(settings, sort_dicts=False, width=100)}\n\n"
            f"reward_func = for_openrlhf({self.name!r}, **SETTINGS)\n"
        )
        return ScorerFile(self.path, text)


def take_scorer(flat: argparse.Namespace) -> ScorerChoice | None:
    """Take the scorer's flags out of the arguments and name its reward file in their place.

    Args:
        flat: The host's flat namespace; changed.

    Returns:
        The choice; None if none was made.

    Raises:
        ConfigError: The options are no mapping, or rewards come from somewhere else too.
    """
    given = vars(flat)
    name, options = (given.pop(f"sdpo.{flag}", None) for flag in FLAGS)
    if name is None:
        if options is not None:
            raise ConfigError(f"`--sdpo.scorer_options {options}` is given without `--sdpo.scorer`.")
        return None
    for flag in ("reward.remote_url", "train.agent_func_path"):
        if given.get(flag):
            raise ConfigError(
                f"`--sdpo.scorer {name}` and `--{flag} {given[flag]}` both give rewards. Leave one of them out; an "
                "agent can call a scorer itself."
            )
    path = Path(given["ckpt.output_dir"]).absolute() / NAME
    given["reward.remote_url"] = str(path)
    return ScorerChoice(name, _mapping(options), path)


def _mapping(text: str | None) -> dict[str, Any]:
    try:
        found = {} if text is None else yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(
            f"`--sdpo.scorer_options` must be a mapping in JSON or YAML, such as '{{\"reveal_truth\": true}}', got "
            f"{text!r}: {error}"
        ) from error
    if not isinstance(found, dict):
        raise ConfigError(f"`--sdpo.scorer_options` must be a mapping, got {found!r} ({type(found).__name__}).")
    if "tokenizer" in found or "progress" in found:
        raise ConfigError(
            "`--sdpo.scorer_options` takes the scorer's own options, and of its batches "
            f"{', '.join(name for name in SETTINGS if name != 'progress')}; got {found!r}."
        )
    return found
