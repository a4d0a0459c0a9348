"""`sdpo train recipe.yaml`: one training run from a file, on a task of the project or on a user's own data."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import json
import re
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import yaml
from datasets import Dataset, disable_progress_bars
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging
from trl import ModelConfig, TrlParser, get_peft_config

from sdpo_plugins.data.loading import KINDS, loaded
from sdpo_plugins.dialects import translation
from sdpo_plugins.embedded import checkpoint_path, load_task, task_names
from sdpo_plugins.errors import ConfigError, DataError, nearest
from sdpo_plugins.feedback.trl import TRLReward, for_trl
from sdpo_trl.arguments import SDPOTrainingArguments
from sdpo_trl.embedded import dataset_of, reward_of, sampled_accuracy
from sdpo_trl.trainer import SDPOTrainer

__all__ = ["RecipeArguments", "import_function", "train"]

EMBEDDED = "embedded"
_SAMPLES = 8


@dataclass
class RecipeArguments:
    """What a recipe says beyond training arguments: data and rewards."""

    host: str = field(default="trl", metadata={"help": "The framework that runs the recipe."})
    task: str | None = field(default=None, metadata={"help": "A task of the project: sums, facts or programs."})
    dataset_name: str | None = field(
        default=None,
        metadata={"help": "A dataset with a `prompt` column: a hub name, or a .json, .jsonl or .parquet file."},
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a hub dataset."})
    dataset_split: str = field(default="train", metadata={"help": "Split to train on."})
    reward_functions: list[str] = field(
        default_factory=list,
        metadata={"help": "Reward functions as `module:function` or `path/to/file.py:function`."},
    )
    scorer: str | None = field(
        default=None, metadata={"help": "A scorer of the catalogue (`sdpo list`), which gives rewards and feedback."}
    )
    scorer_options: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "The scorer's options, and `workers` and `timeout` of its batches."}
    )


def train(config: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """Run a recipe.

    Args:
        config: The YAML file: options of `RecipeArguments`, `SDPOTrainingArguments` and TRL's `ModelConfig`, flat.
            `model_name_or_path: embedded` is the project's own checkpoint for the task.
        overrides: `key=value` texts on top.

    Returns:
        What came of it: `model`, `output_dir`, `method`, `seed`, `steps`, `generations`, `seconds`, `metrics` of the
        last step, and with a task the accuracies before and after.

    Raises:
        ConfigError: Unknown options, no data, no reward function.
    """
    # Names that TRL still uses and transformers renamed; nothing that the reader of a recipe can change.
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    recipe, args, model_args = parse(config, overrides)
    if not sys.stderr.isatty():
        logging.disable_progress_bar()
        disable_progress_bars()
    _make_folder(args.output_dir)
    tokenizer_path = model_path = model_args.model_name_or_path
    if model_path in (None, EMBEDDED):
        family = load_task(recipe.task).family if recipe.task else "text"
        tokenizer_path = model_path = str(checkpoint_path(family))
    dataset, rewards = _data(recipe)
    trusted = getattr(args, "trust_remote_code", False)
    try:
        tokenizer = AutoTokenizer.from_pretrained(tokenizer_path, trust_remote_code=trusted)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"`model_name_or_path` must be a model's folder or its name on the hub; {tokenizer_path!r} cannot be "
            f"loaded: {' '.join(str(error).split())[:300]}"
        ) from error
    rewards += _scorers(recipe, args, tokenizer)
    model: Any = model_path
    if recipe.task:
        model = AutoModelForCausalLM.from_pretrained(model_path)
        before = sampled_accuracy(model, tokenizer, load_task(recipe.task), samples=_SAMPLES, seed=args.seed)
        print(f"{recipe.task}: sampled accuracy before training {before:.1%}")
    trainer = SDPOTrainer(
        model,
        reward_funcs=rewards,
        args=args,
        train_dataset=dataset,
        processing_class=tokenizer,
        peft_config=get_peft_config(model_args),
    )
    begin = time.perf_counter()
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    seconds = time.perf_counter() - begin
    method = "sdpo" if trainer.sdpo_config.enabled else "grpo"
    summary: dict[str, Any] = {
        "model": str(model_path),
        "output_dir": str(args.output_dir),
        "method": method,
        "seed": args.seed,
        "steps": trainer.state.global_step,
        "generations": trainer.state.global_step * args.generation_batch_size,
        "seconds": seconds,
        "metrics": _last_metrics(trainer.state.log_history),
    }
    if recipe.task:
        after = sampled_accuracy(model, tokenizer, load_task(recipe.task), samples=_SAMPLES, seed=args.seed)
        print(f"{recipe.task}: sampled accuracy after {trainer.state.global_step} steps {after:.1%} ({seconds:.0f} s)")
        result = {
            "task": recipe.task,
            "method": method,
            "seed": args.seed,
            "accuracy_before": before,
            "accuracy_after": after,
            "generations": summary["generations"],
            "seconds": seconds,
        }
        summary |= result
        target = Path(args.output_dir) / "results.json"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps([result], indent=2) + "\n", encoding="utf-8")
        print(f"Results: {target}")
    trainer.save_model(args.output_dir)
    if trainer.sdpo_config.record:
        print(f"Report: sdpo report {trainer.sdpo_config.record_dir or args.output_dir}")
    print(f"Model: {args.output_dir}")
    return summary


class _RecipeParser(TrlParser):
    """Raises what is wrong, instead of printing five screens of usage and leaving."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(message)


def parse(config: Path, overrides: Sequence[str]) -> tuple[RecipeArguments, Any, ModelConfig]:
    """Read a recipe's file and overrides into argument objects.

    Raises:
        ConfigError: An option that none of them has.
    """
    words = ["--config", str(config)]
    for text in overrides:
        key, _, value = text.partition("=")
        words += [f"--{key.removeprefix('sdpo.')}", value]
    kinds: tuple[Any, ...] = (RecipeArguments, SDPOTrainingArguments, ModelConfig)
    _check_names(config, overrides, {item.name for kind in kinds for item in dataclasses.fields(kind) if item.init})
    parser = _RecipeParser(kinds, allow_abbrev=False)
    if not sys.stderr.isatty():
        parser.set_defaults(disable_tqdm=True)  # nobody looks at a bar
    try:
        recipe, args, model_args = parser.parse_args_and_config(words)
    except ValueError as error:
        if isinstance(error, ConfigError) and not str(error).startswith("argument "):
            raise
        if "support bf16" in str(error):
            raise ConfigError(
                f"The recipe {config} computes in bfloat16, as TRL does where nothing is said, and this machine has no "
                "GPU for it. Set `bf16: false` in the recipe, or write bf16=false behind it."
            ) from error
        said = re.sub(r"^argument --(\w+)[^:]*:", r"`\1`:", " ".join(str(error).split()))
        said = said if said.endswith((".", "?")) else f"{said}."
        raise ConfigError(f"The recipe {config} cannot be used: {said}") from error
    if recipe.task is not None and recipe.task not in task_names(family=None):
        known = task_names(family=None)
        raise ConfigError(
            f"Unknown task {recipe.task!r}; the tasks are: {', '.join(known)}.{nearest(recipe.task, known)}"
        )
    return recipe, args, model_args


def _check_names(config: Path, overrides: Sequence[str], known: set[str]) -> None:
    """Refuse names that nobody knows, all of them at once; `env` is TRL's own, variables of the environment."""
    with config.open(encoding="utf-8") as file:
        given = {**(yaml.safe_load(file) or {}), **dict(text.split("=", 1) for text in overrides)}
    problems = []
    for name in (str(name).removeprefix("sdpo.") for name in given if name != "env"):
        if name in known:
            continue
        ours, unknown = translation({name: given.get(name)})
        said = ", ".join(f"`{own}: {value}`" for own, value in ours.items() if own != name)
        hint = f" In a recipe it is {said}." if said and not unknown else nearest(name, known)
        problems.append(f"Unknown option `{name}` of the recipe {config}.{hint}")
    if problems:
        raise ConfigError(problems)


def _make_folder(folder: str | None) -> None:
    if not folder:
        raise ConfigError(f"`output_dir` must name a folder, for example runs/mine; got {folder!r}.")
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"`output_dir` = {folder} cannot be made: {error.strerror or error}.") from error


def _last_metrics(history: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The numbers of the last step that was logged; the row behind them is the run's."""
    steps = [row for row in history if "train_runtime" not in row]
    return {name: value for name, value in (steps[-1] if steps else {}).items() if isinstance(value, (int, float))}


def _data(recipe: RecipeArguments) -> tuple[Dataset, list[Any]]:
    if recipe.scorer_options and not recipe.scorer:
        raise ConfigError(f"`scorer_options` is given without `scorer`; got {recipe.scorer_options!r}.")
    if recipe.task:
        if recipe.scorer:
            raise ConfigError(
                f"The task {recipe.task!r} brings its own reward function; `scorer` (got {recipe.scorer!r}) is for "
                "data of one's own, with `dataset_name`. Leave one of the two out."
            )
        return dataset_of(load_task(recipe.task)), [reward_of(recipe.task)]
    if not recipe.dataset_name or not (recipe.reward_functions or recipe.scorer):
        raise ConfigError(
            "A recipe needs `task` (sums, facts or programs), or `dataset_name` and `scorer` or `reward_functions`; "
            f"got dataset_name={recipe.dataset_name!r}, scorer={recipe.scorer!r}, "
            f"reward_functions={recipe.reward_functions!r}."
        )
    name, help = recipe.dataset_name, "`dataset_name` is a .jsonl, .json or .parquet file, a folder, or a hub's name."
    if kind := KINDS.get(Path(name).suffix):
        dataset = loaded(name, kind, data_files=name, help=help)
    else:
        dataset = loaded(name, name, recipe.dataset_config, help=help, split=recipe.dataset_split)
    if "prompt" not in dataset.column_names:
        raise DataError(
            f"{name} has no column 'prompt'; it has {', '.join(map(repr, dataset.column_names))}. Rename the column of "
            "questions, or let `sdpo data jsonl --from FILE --prompt-column NAME` write the data anew."
        )
    return dataset, [import_function(name) for name in recipe.reward_functions]


def _scorers(recipe: RecipeArguments, args: Any, tokenizer: Any) -> list[TRLReward]:
    """Return the recipe's scorer as a reward function that knows which answers were cut off."""
    if not recipe.scorer:
        return []
    options = recipe.scorer_options
    if isinstance(options, str):  # of a command line
        try:
            options = yaml.safe_load(options)
        except yaml.YAMLError as error:
            raise ConfigError(
                f"`scorer_options` must be a mapping in JSON or YAML, got {options!r}: {error}"
            ) from error
    if options is not None and not isinstance(options, dict):
        raise ConfigError(f"`scorer_options` must be a mapping, got {options!r} ({type(options).__name__}).")
    ends = tokenizer.eos_token_id
    known = {"max_completion_length": args.max_completion_length} if ends is not None else {}
    plugins = args.to_sdpo_config().plugins
    settings = {"plugins": plugins, "eos_token_id": ends, **known, **(options or {})}
    return [for_trl(recipe.scorer, **settings)]


def import_function(name: str) -> Callable[..., Any]:
    """Import `module:function` or `path/to/file.py:function`.

    Raises:
        ConfigError: Not of that form, or not there.

    Example:
        >>> import_function("math:sqrt")(4.0)
        2.0
    """
    place, _, attribute = name.rpartition(":")
    if not place or not attribute:
        raise ConfigError(f"A reward function is named `module:function` or `file.py:function`, got {name!r}.")
    try:
        if place.endswith(".py"):
            spec = importlib.util.spec_from_file_location(Path(place).stem, place)
            if spec is None or spec.loader is None:
                raise ImportError(f"{place} is no Python file")
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        else:
            module = importlib.import_module(place)
        function: Callable[..., Any] = getattr(module, attribute)
    except (ImportError, AttributeError, OSError) as error:
        raise ConfigError(f"The reward function {name!r} cannot be imported: {error}") from error
    return function
