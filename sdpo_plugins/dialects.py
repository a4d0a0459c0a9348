"""Other projects' option names, translated into ours.

Four projects configure SDPO in words of their own. Their tables stand in `_dialect_tables`; `translation` applies them.
Without a dialect our names are valid and every foreign name that means one thing only; with a dialect, that project's
names alone, and its documented defaults.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from sdpo_plugins._dialect_tables import DIALECTS, SHARED_ROWS, Dialect, Row, Untranslatable
from sdpo_plugins.errors import ConfigError, nearest

__all__ = ["dialect_names", "traced_translation", "translate", "translation"]

# Where the authors' YAML keeps its options, and what else of the same file says something about SDPO.
_AUTHORS_ROOT = "actor_rollout_ref"
_AUTHORS_SECTION = ("actor", "self_distillation")
_AUTHORS_BESIDE = {
    ("actor", "policy_loss", "loss_mode"): "loss_mode",
    ("actor", "loss_agg_mode"): "loss_agg_mode",
    ("actor", "loss_scale_factor"): "loss_scale_factor",
}

# Frequent guests from a trainer's own arguments; they get a message that says where they belong.
_HOST_OPTIONS = frozenset(
    {
        "beta",
        "bf16",
        "epsilon",
        "epsilon_high",
        "gradient_accumulation_steps",
        "kl_coef",
        "learning_rate",
        "loss_type",
        "lr",
        "max_completion_length",
        "max_prompt_length",
        "max_steps",
        "model_init_kwargs",
        "num_generations",
        "num_iterations",
        "output_dir",
        "per_device_train_batch_size",
        "report_to",
        "reward_weights",
        "scale_rewards",
        "seed",
        "temperature",
        "use_vllm",
        "weight_decay",
    }
)


def dialect_names() -> tuple[str, ...]:
    """Return the dialects that `SDPOConfig.from_mapping` takes.

    Example:
        >>> dialect_names()
        ('lasgroup', 'sdpo-rl', 'sdpo-trainer', 'trl')
    """
    return tuple(DIALECTS)


def translate(options: Mapping[str, Any], dialect: str | None = None) -> dict[str, Any]:
    """Say options of any known vocabulary in our own.

    Args:
        options: Option names and values; not changed.
        dialect: One of `dialect_names()`, or None for our names and every unambiguous foreign one.

    Returns:
        Our option names; values are not checked yet.

    Raises:
        ConfigError: Lists all names that are unknown, given twice, or have a value that cannot be translated.

    Example:
        >>> translate({"ema_tau": 0.1, "teacher_mode": "fixed"})
        {'teacher_update_rate': 0.1, 'teacher': 'frozen'}
    """
    translated, problems = translation(options, dialect)
    if problems:
        raise ConfigError(problems)
    return translated


def translation(options: Mapping[str, Any], dialect: str | None = None) -> tuple[dict[str, Any], list[str]]:
    """Do what `translate` does, and return the problems instead of raising them.

    Args:
        options: Option names and values; not changed.
        dialect: As for `translate`.

    Returns:
        What could be translated, and one sentence for each problem.

    Raises:
        ConfigError: There is no such dialect.

    Example:
        >>> translation({"alhpa": 0.5})
        ({}, ["Unknown option `alhpa`. Did you mean 'alpha'?"])
    """
    translated, problems, _ = traced_translation(options, dialect)
    return translated, problems


def traced_translation(
    options: Mapping[str, Any], dialect: str | None = None
) -> tuple[dict[str, Any], list[str], dict[str, str]]:
    """Do what `translation` does, and say which name each option came from.

    Args:
        options: Option names and values; not changed.
        dialect: As for `translate`.

    Returns:
        What could be translated, one sentence for each problem, and the given name of each option that was given; the
        others are defaults of the dialect.

    Raises:
        ConfigError: There is no such dialect.

    Example:
        >>> traced_translation({"ema_tau": 0.1})[2]
        {'teacher_update_rate': 'ema_tau'}
    """
    table = _table(dialect)
    given, problems = _open_authors_file(options) if "_target_" in table.rows else (dict(options), [])
    absorbed = {other for name in given if name in table.rows for other in table.rows[name].absorbs}
    translated = dict(table.defaults)
    came_from: dict[str, str] = {}
    for name, value in given.items():
        if name in absorbed:
            continue
        try:
            result = _one(table, name, value, given)
        except Untranslatable as problem:
            problems.append(str(problem))
            continue
        for ours, converted in result.items():
            if ours in came_from:
                problems.append(f"`{came_from[ours]}` and `{name}` both set `{ours}`; give one of them.")
            else:
                came_from[ours] = name
                translated[ours] = converted
    return translated, problems, came_from


def _one(table: Dialect, name: Any, value: Any, given: Mapping[str, Any]) -> Mapping[str, Any]:
    if name in table.rows:
        return table.rows[name].translate(value, given)
    if name in table.own:
        return {name: value}
    raise Untranslatable(_unknown(table, name))


def _unknown(table: Dialect, name: Any) -> str:
    if not isinstance(name, str):
        return f"Option names must be texts, got {name!r} ({type(name).__name__})."
    if name in ("preset", "dialect"):
        return (
            f"`{name}` is no option by itself: use SDPOConfig.preset(…), or give it to SDPOConfig.from_mapping({{…}})."
        )
    if name in _HOST_OPTIONS:
        return f"`{name}` is an option of the trainer, not of SDPO: give it to the host (in TRL: to GRPOConfig)."
    if table.name and name in _option_names():
        return (
            f"`{name}` is an option of ours that the dialect {table.name!r} does not know. Leave `dialect` out: "
            "other projects' names are translated all the same."
        )
    hint = nearest(name, [*table.own, *table.rows])
    where = f" in the dialect {table.name!r}" if table.name else ""
    return f"Unknown option `{name}`{where}.{hint or ' All options stand in docs/configuration.md.'}"


def _table(dialect: str | None) -> Dialect:
    if dialect is None:
        return _merged()
    if not isinstance(dialect, str) or dialect not in DIALECTS:
        choices = ", ".join(map(repr, DIALECTS))
        raise ConfigError(
            f"`dialect` must be one of {choices}, or null, got {dialect!r}.{nearest(str(dialect), DIALECTS)}"
        )
    return DIALECTS[dialect]


@functools.cache
def _merged() -> Dialect:
    """All vocabularies at once; a name of ours keeps our meaning."""
    rows: dict[str, Row] = {}
    for table in DIALECTS.values():
        rows.update({name: row for name, row in table.rows.items() if name not in _option_names()})
    return Dialect("", "", _option_names(), {**rows, **SHARED_ROWS})


@functools.cache
def _option_names() -> frozenset[str]:
    import dataclasses

    from sdpo_plugins.config import SDPOConfig

    return frozenset(item.name for item in dataclasses.fields(SDPOConfig))


def _open_authors_file(options: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Take SDPO's options out of a verl configuration, nested or with dotted names; the rest is the host's."""
    flat: dict[str, Any] = {}
    problems: list[str] = []
    whole_file = _AUTHORS_ROOT in options

    def put(name: str, value: Any) -> None:
        if name in flat:
            problems.append(f"`{name}` is given twice, by itself and under `{_AUTHORS_ROOT}`; give it once.")
        flat[name] = value

    for key, value in options.items():
        if key == _AUTHORS_ROOT or (isinstance(key, str) and key.startswith(_AUTHORS_ROOT + ".")):
            for path, leaf in _leaves(tuple(key.split(".")), value):
                if path[1:3] == _AUTHORS_SECTION and len(path) == 4:
                    put(path[3], leaf)
                elif path[1:] in _AUTHORS_BESIDE:
                    put(_AUTHORS_BESIDE[path[1:]], leaf)
                elif len(path) < 2 or path[1:] in (_AUTHORS_SECTION, _AUTHORS_SECTION[:1]):
                    problems.append(f"`{'.'.join(path)}` must be a mapping, got {leaf!r} ({type(leaf).__name__}).")
        elif whole_file and isinstance(value, Mapping) and key not in _option_names():
            continue  # another section of the host's file: data, trainer, critic …
        else:
            put(key, value)
    return flat, problems


def _leaves(path: tuple[str, ...], value: Any) -> list[tuple[tuple[str, ...], Any]]:
    # Four names deep stands the option itself; a mapping there is its value.
    if isinstance(value, Mapping) and len(path) < 4:
        return [leaf for key, inner in value.items() for leaf in _leaves((*path, str(key)), inner)]
    return [(path, value)]
