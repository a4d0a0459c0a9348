"""`sdpo train` and `sdpo demo`: find the adapter of the host that is asked for and hand over to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sdpo_plugins.cli.hosts import adapter_function
from sdpo_plugins.errors import ConfigError, nearest

__all__ = ["demo", "read_recipe", "train"]

_DEMO_HOST = "trl"


def train(config: Path, overrides: Sequence[str]) -> None:
    """Run the recipe through its host's adapter.

    Args:
        config: A YAML file with a key `host`, and `plugins` if one of them provides that host; the adapter defines the
            rest.
        overrides: `key=value` texts that change entries of the file.

    Raises:
        ConfigError: The file is no mapping, names no host, or an override has no `=`.
        HostError: The host is missing or unsupported.
    """
    malformed = [text for text in overrides if "=" not in text or text.startswith("=")]
    if malformed:
        raise ConfigError([f"An override must look like key=value, got {text!r}." for text in malformed])
    recipe = read_recipe(config)
    host = dict(text.split("=", 1) for text in overrides).get("host", recipe.get("host"))
    if not isinstance(host, str):
        raise ConfigError(
            f"{config} must name the host that runs it, for example `host: trl`; got host: {host!r}. "
            "`sdpo list` shows the hosts."
        )
    plugins = recipe.get("plugins") or []
    if not isinstance(plugins, list) or not all(isinstance(name, str) for name in plugins):
        raise ConfigError(f"`plugins` in {config} must be a list of names, got {plugins!r}.")
    adapter_function(host, "recipe", "train", plugins)(config, list(overrides))


def demo(seeds: int, tasks: Sequence[str], output: Path) -> None:
    """Run the demo of the TRL adapter.

    Args:
        seeds: How many seeds of each method, at least 1.
        tasks: Names of tasks; empty for those of the demo's own model.
        output: Folder for results and pictures.

    Raises:
        ConfigError: Unknown task.
        HostError: TRL is missing or unsupported.
    """
    from sdpo_plugins.embedded import task_names

    known = task_names(family=None)
    unknown = [task for task in tasks if task not in known]
    if unknown:
        raise ConfigError(
            [f"Unknown task {task!r}; the tasks are: {', '.join(known)}.{nearest(task, known)}" for task in unknown]
        )
    adapter_function(_DEMO_HOST, "demo", "run")(seeds, list(tasks) or None, output)


def read_recipe(config: Path) -> Mapping[str, Any]:
    """Read a recipe's YAML file.

    Args:
        config: The file.

    Returns:
        Its top-level mapping.

    Raises:
        ConfigError: It is not YAML, or not a mapping.
    """
    import yaml

    try:
        recipe = yaml.safe_load(config.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{config} is not a YAML file: {error}") from error
    if not isinstance(recipe, Mapping):
        raise ConfigError(f"{config} must hold a mapping of options, got {type(recipe).__name__}.")
    return recipe
