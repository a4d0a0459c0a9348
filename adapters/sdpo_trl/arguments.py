"""`SDPOTrainingArguments`: GRPO's arguments and SDPO's options in one object, for YAML files and command lines."""

from __future__ import annotations

import dataclasses
import inspect
import types
import typing
from collections.abc import Mapping
from typing import Any

from trl import GRPOConfig

from sdpo_plugins.config import SDPOConfig
from sdpo_plugins.dialects import translation
from sdpo_plugins.errors import ConfigError, nearest

__all__ = ["SDPOTrainingArguments", "sdpo_options"]

# Options for which null is a value of its own ("no clip") need another word for "not set".
UNSET = "unset"

_HINTS = typing.get_type_hints(SDPOConfig)
_OPTIONS = {item.name: item for item in dataclasses.fields(SDPOConfig)}
_collisions = {item.name for item in dataclasses.fields(GRPOConfig)} & set(_OPTIONS)
if _collisions:
    raise ConfigError(
        f"This version of TRL has options of its own named {sorted(_collisions)}, which SDPO uses too. Pass a plain "
        "GRPOConfig as `args` and an SDPOConfig as `sdpo_config` instead of SDPOTrainingArguments."
    )


def _parts(name: str) -> tuple[Any, ...]:
    hint = _HINTS[name]
    return typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)


def _argument(name: str) -> tuple[str, Any, Any]:
    parts = _parts(name)
    help = f"{_OPTIONS[name].metadata['help']} Default: that of the preset, or of SDPOConfig."
    default: Any = None
    annotation: Any
    if type(None) in parts:
        # The argument parser takes one type; texts are turned into numbers in `_parsed`.
        annotation, default = parts[0] | str | None, UNSET
    elif typing.get_origin(parts[0]) is tuple:
        annotation = list[str] | None
    elif typing.get_origin(parts[0]) is not None and issubclass(typing.get_origin(parts[0]), Mapping):
        annotation = dict | str | None
    else:
        annotation = parts[0] | None
    return name, annotation, dataclasses.field(default=default, metadata={"help": help})


def _parsed(name: str, value: Any) -> Any:
    """Turn a command line's text into the value it stands for where the option also admits null."""
    parts = _parts(name)
    if type(None) not in parts or not isinstance(value, str):
        return value
    if value.lower() in ("none", "null"):
        return None
    for kind in (int, float):
        if kind in parts:
            try:
                return kind(value)
            except ValueError:
                continue
    return value


def sdpo_options(args: Any) -> dict[str, Any]:
    """Return the SDPO options that were set on a `SDPOTrainingArguments`, the preset included.

    Args:
        args: The arguments object; a plain `GRPOConfig` gives an empty mapping.

    Returns:
        A mapping for `SDPOConfig.from_mapping`.
    """
    if not isinstance(args, _Arguments):
        return {}
    options = {}
    for name in _OPTIONS:
        value = getattr(args, name)
        unset = UNSET if type(None) in _parts(name) else None
        if value != unset:
            options[name] = _parsed(name, value)
    if args.preset is not None:
        options["preset"] = args.preset
    return options


@dataclasses.dataclass
class _Arguments(GRPOConfig):
    """GRPOConfig with the two options that belong to the adapter itself."""

    preset: str | None = dataclasses.field(
        default=None,
        metadata={"help": "Start from a named SDPO setting: paper, paper_rich_feedback, paper_test_time, trl."},
    )
    teacher_accuracy_every: int = dataclasses.field(
        default=0,
        metadata={
            "help": "Every n rollout batches, let the teacher answer each question of the batch from its own context "
            "and log how often the reward functions call it a success. 0: never."
        },
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.teacher_accuracy_every < 0:
            raise ConfigError(f"`teacher_accuracy_every` must be at least 0, got {self.teacher_accuracy_every}.")
        self.to_sdpo_config()

    def to_sdpo_config(self) -> SDPOConfig:
        """Return the validated SDPO configuration that these arguments describe."""
        return SDPOConfig.from_mapping(sdpo_options(self))


_dict_options = [name for name in _OPTIONS if dict in typing.get_args(_argument(name)[1])]

SDPOTrainingArguments = dataclasses.make_dataclass(
    "SDPOTrainingArguments",
    [_argument(name) for name in _OPTIONS],
    bases=(_Arguments,),
    namespace={
        "__doc__": """GRPO's training arguments and every option of `SDPOConfig` in one object.

    An option left out takes the value of `preset`, else SDPOConfig's default. Options that admit null (for example
    `distillation_topk`) take it as null in YAML, None in Python and `none` on a command line.

    Example:
        >>> arguments = SDPOTrainingArguments(output_dir="out", alpha=1.0, distillation_topk=20, bf16=False)
        >>> arguments.to_sdpo_config().alpha
        1.0
    """,
        "_VALID_DICT_FIELDS": [*GRPOConfig._VALID_DICT_FIELDS, *_dict_options],
        "__module__": __name__,
    },
)

_plain_init: Any = vars(SDPOTrainingArguments)["__init__"]
_NAMES = frozenset(inspect.signature(_plain_init).parameters) - {"self"}


def _init_with_hints(self: Any, *positional: Any, **options: Any) -> None:
    problems = [_unknown(name, value) for name, value in options.items() if name not in _NAMES]
    if problems:
        raise ConfigError(problems)
    _plain_init(self, *positional, **options)


def _unknown(name: str, value: Any) -> str:
    ours, problems = translation({name: value})
    if not problems:
        said = ", ".join(f"`{own}={converted!r}`" for own, converted in ours.items())
        return f"Unknown option `{name}`: in SDPOTrainingArguments it is {said or 'not needed'}."
    return f"Unknown option `{name}`.{nearest(name, _NAMES)}"


# A misspelt option gets a hint, as it does in SDPOConfig. The signature that tools see stays the dataclass's own.
_init_with_hints.__wrapped__ = _plain_init  # type: ignore[attr-defined]
SDPOTrainingArguments.__init__ = _init_with_hints  # type: ignore[misc]
