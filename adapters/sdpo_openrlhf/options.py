"""SDPO's options on OpenRLHF's command line: `--sdpo.<option>`, a preset, a file, and changed defaults of the host."""

from __future__ import annotations

import argparse
import dataclasses
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from sdpo_openrlhf.flags import unknown_flags
from sdpo_openrlhf.host_defaults import HOST_DEFAULTS, description, host_defaults
from sdpo_openrlhf.scorer import FLAGS as SCORER_FLAGS
from sdpo_plugins._dialect_tables import DIALECTS, SHARED_ROWS
from sdpo_plugins._options import describe_type
from sdpo_plugins.config import SDPOConfig
from sdpo_plugins.dialects import translation
from sdpo_plugins.errors import ConfigError
from sdpo_plugins.presets import preset_names, preset_options

__all__ = ["HOST_DEFAULTS", "add_arguments", "config_of", "parse", "settle"]

PREFIX = "sdpo."
PROGRAM = "python -m sdpo_openrlhf.train"

_FIELDS = {item.name: item for item in dataclasses.fields(SDPOConfig)}
_TYPES = typing.get_type_hints(SDPOConfig)
_NULL = ("none", "null")
_BOOLEANS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


class _FlagParser(argparse.ArgumentParser):
    """Raises what is wrong, instead of printing two screens of usage and leaving."""

    def error(self, message: str) -> typing.NoReturn:
        raise ConfigError(f"{message[:1].upper()}{message[1:]}. `--help` lists all flags.")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add SDPO's flags to the host's parser.

    Each option of `SDPOConfig` is `--sdpo.<option>`; other projects' names for them work too, without being listed.
    Values stay texts until `settle` reads them, so that one check reports on all of them.

    Args:
        parser: The host's.

    Example:
        >>> parser = argparse.ArgumentParser()
        >>> add_arguments(parser)
        >>> vars(parser.parse_args(["--sdpo.alpha", "1.0"]))
        {'sdpo.alpha': '1.0'}
    """
    group = parser.add_argument_group("SDPO", description())
    common: dict[str, Any] = {"default": argparse.SUPPRESS}
    group.add_argument(
        f"--{PREFIX}preset",
        metavar="NAME",
        help=f"Named settings to start from: {', '.join(preset_names())}.",
        **common,
    )
    group.add_argument(
        f"--{PREFIX}config",
        metavar="FILE",
        help="YAML file with a mapping of SDPO options, ours or another project's; it may hold `preset` or `dialect`. "
        "Flags beat the file, the file beats the preset.",
        **common,
    )
    group.add_argument(
        f"--{PREFIX}scorer",
        metavar="NAME",
        help="Scorer that gives rewards and feedback (`sdpo list`), in the place of `--reward.remote_url`.",
        **common,
    )
    group.add_argument(
        f"--{PREFIX}scorer_options",
        metavar="MAPPING",
        help="The scorer's options, with `workers` and `timeout` of its batches.",
        **common,
    )
    for name, item in _FIELDS.items():
        words = f"{item.metadata['help']} (default: {_shown(item)})".replace("%", "%%")
        group.add_argument(f"--{PREFIX}{name}", help=words, **_shape(name), **common)
    # If the release can only turn the correction on, SDPO's default could not be undone.
    if "algo.advantage.is_correction_enable" in _dests(parser):
        group.add_argument(
            "--algo.advantage.no_is_correction_enable",
            dest="algo.advantage.is_correction_enable",
            action="store_false",
            help="Leave token losses as they are, whatever vLLM's probabilities are.",
            **common,
        )
    for name in _foreign_names():
        group.add_argument(f"--{PREFIX}{name}", nargs="?", const="true", help=argparse.SUPPRESS, **common)


def parse(host: argparse.ArgumentParser, argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse a command line with the host's flags and ours, and put SDPO's defaults where the user set nothing.

    Args:
        host: The host's parser, fresh; it is used up.
        argv: The words after the program's name; None: this process's.

    Returns:
        The host's flat namespace, with the given `sdpo.*` in it as texts.

    Raises:
        ConfigError: Words that are no flags, each with what it was probably meant to be, or a value that the host's
            parser refuses.
        SystemExit: `--help` was asked for.
    """
    add_arguments(host)
    # Abbreviations would give `--sdpo.alp` or `--actor.adam` a meaning that no one checked.
    parser = _FlagParser(prog=PROGRAM, parents=[host], add_help=False, allow_abbrev=False)
    flags = frozenset(_flags(parser))
    unset = object()
    first, rest = parser.parse_known_args(argv, argparse.Namespace(**dict.fromkeys(_dests(host), unset)))
    if rest:
        raise ConfigError(unknown_flags(rest, flags))
    given = {name for name, value in vars(first).items() if value is not unset}
    plain, _ = parser.parse_known_args(argv)
    if _enabled(plain):
        changed = host_defaults(vars(plain), given)
        parser.set_defaults(**{name: list(value) if isinstance(value, tuple) else value for name, value in changed})
        plain, _ = parser.parse_known_args(argv)
    return plain


def settle(args: Any) -> SDPOConfig:
    """Read SDPO's options out of the host's arguments, and put them there in full as a plain mapping.

    The arguments travel to every process: so none of them meets a preset or another project's name, and the values that
    were in effect are in every record.

    Args:
        args: The host's nested arguments; `args.sdpo` is replaced.

    Returns:
        The options.

    Raises:
        ConfigError: Lists every unknown name and every invalid value.

    Example:
        >>> from types import SimpleNamespace
        >>> args = SimpleNamespace(sdpo=SimpleNamespace(alpha="1.0", distillation_topk="none"))
        >>> settle(args).distillation_topk is None, args.sdpo["alpha"]
        (True, 1.0)
    """
    section = getattr(args, "sdpo", None)
    config = config_of({} if section is None else vars(section))
    args.sdpo = config.to_mapping()
    return config


def config_of(texts: Mapping[str, Any]) -> SDPOConfig:
    """Make the options from what stands on the command line: the preset, then the file, then the flags.

    Args:
        texts: Option names, with `preset` and `config` among them, and the words behind each flag. The scorer's are
            passed over: they are no options of SDPO.

    Returns:
        The validated options.

    Raises:
        ConfigError: Lists every problem of file and flags.

    Example:
        >>> config_of({"preset": "paper", "ema_tau": "0.1", "plugins": []}).teacher_update_rate
        0.1
    """
    given = {name: words for name, words in texts.items() if name not in SCORER_FLAGS}
    preset, path = given.pop("preset", None), given.pop("config", None)
    in_file = {} if path is None else _read(Path(path))
    named, dialect = in_file.pop("preset", None), in_file.pop("dialect", None)
    preset = named if preset is None else preset
    if preset is not None and dialect is not None:
        raise ConfigError(
            f"The preset {preset!r} and the dialect {dialect!r} of {path} both bring defaults of their own; give one "
            "of them. Without a dialect, other projects' option names are translated all the same."
        )
    base = {} if preset is None else preset_options(preset)
    from_file, problems = translation(in_file, dialect)
    from_flags, more = translation({name: _value(name, words) for name, words in given.items()}, None)
    problems += more
    merged = {**base, **from_file, **from_flags}
    try:
        config = SDPOConfig.from_mapping(merged)
    except ConfigError as error:
        problems += error.problems
    if problems:
        raise ConfigError(problems)
    return config


def _enabled(flat: argparse.Namespace) -> bool:
    texts = {name.removeprefix(PREFIX): value for name, value in vars(flat).items() if name.startswith(PREFIX)}
    try:
        return config_of(texts).enabled
    except ConfigError:
        return True  # reported by `settle`, together with the host's problems


def _read(path: Path) -> dict[str, Any]:
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"`--sdpo.config {path}` cannot be read: {error.strerror or error}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"`--sdpo.config {path}` is no valid YAML: {error}") from error
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise ConfigError(
            f"`--sdpo.config {path}` must hold a mapping of SDPO options, got {found!r} ({type(found).__name__})."
        )
    return found


def _value(name: str, words: Any) -> Any:
    """Read the words behind a flag as the option's type; what does not fit is left for the check to report."""
    if not isinstance(words, str):
        return words
    parts = typing.get_args(_TYPES[name]) or (_TYPES[name],) if name in _TYPES else (bool, int, float, type(None), dict)
    if type(None) in parts and words.lower() in _NULL:
        return None
    if bool in parts and words.lower() in _BOOLEANS:
        return _BOOLEANS[words.lower()]
    if int in parts or float in parts:
        for number in (int, float):
            try:
                return number(words)
            except ValueError:
                continue
    if _is_mapping(name) or (dict in parts and words.startswith(("{", "["))):
        try:
            return yaml.safe_load(words)
        except yaml.YAMLError as error:
            raise ConfigError(
                f"`--{PREFIX}{name}` must be a mapping in JSON or YAML, such as '{{\"order\": 0.5}}', got {words!r}: "
                f"{error}"
            ) from error
    return words


def _is_mapping(name: str) -> bool:
    origin = typing.get_origin(_TYPES.get(name))
    return isinstance(origin, type) and issubclass(origin, Mapping)


def _is_list(name: str) -> bool:
    return typing.get_origin(_TYPES[name]) is tuple


def _shape(name: str) -> dict[str, Any]:
    """Say how many words a flag takes, and what `--help` shows for them."""
    choices = _FIELDS[name].metadata["choices"]
    if _is_list(name):
        return {"nargs": "*", "metavar": "NAME"}
    if _TYPES[name] is bool:
        return {"nargs": "?", "const": "true", "metavar": "BOOL"}
    if choices:
        return {"metavar": "{" + ",".join(choices) + "}"}
    if _is_mapping(name):
        return {"metavar": "MAPPING"}
    numbers = describe_type(_TYPES[name]).startswith(("a number", "a whole number"))
    return {"metavar": "NUMBER" if numbers else "TEXT"}


def _shown(item: dataclasses.Field[Any]) -> str:
    value = item.default if item.default_factory is dataclasses.MISSING else item.default_factory()
    if isinstance(value, str):
        return value.replace("\n", "\\n")
    return "none" if value in (None, ()) else str(value).lower() if isinstance(value, bool) else str(value)


def _dests(parser: argparse.ArgumentParser) -> tuple[str, ...]:
    return tuple(vars(parser.parse_known_args([])[0]))


def _flags(parser: argparse.ArgumentParser) -> list[str]:
    return [flag for action in parser._actions if action.help != argparse.SUPPRESS for flag in action.option_strings]


def _foreign_names() -> tuple[str, ...]:
    rows = {name: None for table in DIALECTS.values() for name in table.rows} | dict.fromkeys(SHARED_ROWS)
    return tuple(name for name in rows if name not in _FIELDS and name not in _UNFIT)


# Of a whole verl configuration; nobody writes it on a command line.
_UNFIT: Mapping[str, None] = MappingProxyType({"_target_": None})
