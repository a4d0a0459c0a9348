"""`sdpo train` and `sdpo demo`: find the adapter of the host that is asked for and hand over to it."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

from sdpo_plugins.cli.hosts import adapter_function
from sdpo_plugins.conversion.reading import yaml_problem
from sdpo_plugins.errors import ConfigError, nearest

__all__ = ["demo", "read_recipe", "train"]

_DEMO_HOST = "trl"


def train(config: Path, overrides: Sequence[str], as_json: bool = False) -> None:
    """Run the recipe through its host's adapter.

    Args:
        config: A YAML file with a key `host`, and `plugins` if one of them provides that host; the adapter defines the
            rest.
        overrides: `key=value` texts that change entries of the file.
        as_json: Print what came of it as JSON; everything else goes to the standard error.

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
    run = adapter_function(host, "recipe", "train", plugins)
    with _apart(as_json):
        summary = run(config, list(overrides))
    if as_json:
        # An adapter of others may return nothing.
        print(json.dumps({"host": host, **(summary if isinstance(summary, Mapping) else {})}, indent=2))


def demo(seeds: int, tasks: Sequence[str], output: Path, as_json: bool = False) -> None:
    """Run the demo of the TRL adapter.

    Args:
        seeds: How many seeds of each method, at least 1.
        tasks: Names of tasks; empty for those of the demo's own model.
        output: Folder for results and pictures.
        as_json: Print the results as JSON; everything else goes to the standard error.

    Raises:
        ConfigError: Unknown task, or a folder that cannot be made.
        HostError: TRL is missing or unsupported.
    """
    from sdpo_plugins.embedded import task_names

    known = task_names(family=None)
    unknown = [task for task in tasks if task not in known]
    if unknown:
        raise ConfigError(
            [f"Unknown task {task!r}; the tasks are: {', '.join(known)}.{nearest(task, known)}" for task in unknown]
        )
    run = adapter_function(_DEMO_HOST, "demo", "run")
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--output {output} cannot be made: {error.strerror or error}.") from error
    with _apart(as_json):
        results = run(seeds, list(tasks) or None, output)
    if as_json:
        print(json.dumps(results, indent=2))


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
    except OSError as error:
        raise ConfigError(f"{config} cannot be read: {error.strerror or error}.") from error
    except yaml.MarkedYAMLError as error:
        raise ConfigError(yaml_problem(config, error)) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{config} is not a YAML file: {' '.join(str(error).split())}") from error
    if recipe is None:
        raise ConfigError(f"{config} is empty. A recipe begins with the host that runs it, for example `host: trl`.")
    if not isinstance(recipe, Mapping):
        raise ConfigError(f"{config} must hold a mapping of options, got {type(recipe).__name__}.")
    return recipe


@contextmanager
def _apart(wanted: bool) -> Iterator[None]:
    """Send what is printed meanwhile to the standard error, also by other processes and by code that is not Python."""
    if not wanted:
        yield
        return
    sys.stdout.flush()
    whole = sys.stdout is sys.__stdout__
    kept = os.dup(1) if whole else -1
    try:
        if whole:
            os.dup2(2, 1)
        with redirect_stdout(sys.stderr):
            yield
    finally:
        if whole:
            os.dup2(kept, 1)
            os.close(kept)
