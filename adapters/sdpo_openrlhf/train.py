"""`python -m sdpo_openrlhf.train`: OpenRLHF's `train_ppo_ray` with SDPO, and every flag of the two.

What is wrong with the command line is said at once and all together, before Ray, vLLM or DeepSpeed is imported.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sdpo_openrlhf.checks import host_notices, host_problems
from sdpo_openrlhf.failures import sentence
from sdpo_openrlhf.host_cli import HostProgram
from sdpo_openrlhf.options import parse, settle
from sdpo_openrlhf.scorer import ScorerFile, take_scorer
from sdpo_plugins.builtin import HOSTS
from sdpo_plugins.config import SDPOConfig
from sdpo_plugins.errors import ConfigError, SDPOError
from sdpo_plugins.plugins import load_adapter, resolve, validate

__all__ = ["RAY_VARIABLES", "Prepared", "main", "prepare"]

HOST = "openrlhf"

RAY_VARIABLES = {"RAY_process_group_cleanup_enabled": "1"}
"""Of the Ray that the launcher starts, unless the user set them: what a killed vLLM engine had started ends with it."""


@dataclass(frozen=True)
class Prepared:
    """A run that can be started.

    Args:
        program: The host's, in which our classes stand.
        args: The host's arguments, nested, with all of SDPO's options in `sdpo`.
        config: SDPO's options.
        notices: What is valid but probably not what was meant.
        reward_file: To be written before the run, for `--sdpo.scorer`.
    """

    program: HostProgram
    args: Any
    config: SDPOConfig
    notices: tuple[str, ...]
    reward_file: ScorerFile | None = None


def prepare(argv: Sequence[str] | None = None) -> Prepared:
    """Read a command line and check everything that can be known before a process starts.

    Args:
        argv: The words after the program's name; None: this process's.

    Returns:
        The run.

    Raises:
        ConfigError: Lists all problems of the flags, of SDPO's options and of the host's settings.
        HostError: The host is missing, unsupported, or laid out in an unknown way.
        PluginError: A plug-in that the run names cannot be used.
    """
    load_adapter(next(host for host in HOSTS if host.name == HOST))
    program = HostProgram.find()
    flat = parse(program.build_parser(), argv)
    scorer = take_scorer(flat)
    checked = program.check(flat)
    args, problems = checked.args, list(checked.problems)
    config: SDPOConfig | None = None
    reward_file: ScorerFile | None = None
    try:
        config = settle(args)
        validate(config, HOST)
        if scorer is not None:
            reward_file = scorer.file(args.actor.model_name_or_path, config.plugins)
    except ConfigError as error:
        problems += error.problems
    problems += host_problems(args, config, written=scorer is not None)
    if checked.crash is not None and not problems:
        problems.append(
            f"OpenRLHF's own check of its flags ended with {type(checked.crash).__name__}: {checked.crash}. A flag "
            "that it needs is probably missing."
        )
    if problems or config is None:
        raise ConfigError(problems) from checked.crash
    resolve(config)
    return Prepared(program, args, config, tuple(host_notices(args, config)), reward_file)


def main(argv: Sequence[str] | None = None) -> int:
    """Train, and return the exit code: 0, 1 if the run failed, 2 if it was never started, 130 if it was interrupted.

    Args:
        argv: The words after the program's name; None: this process's.
    """
    try:
        prepared = prepare(argv)
        for notice in prepared.notices:
            _say(notice)
        train = prepared.program.load_train()
        if prepared.reward_file is not None:
            prepared.reward_file.write()
    except SDPOError as error:
        _say(error)
        return 2
    return run(train, prepared.args)


def run(train: Callable[[Any], None], args: Any) -> int:
    """Run the host's training; whatever ends it, Ray is shut down and the last line says what it was.

    Args:
        train: The host's `train`.
        args: Its arguments.

    Returns:
        The exit code.
    """
    for name, value in RAY_VARIABLES.items():
        os.environ.setdefault(name, value)
    try:
        train(args)
        last, code = "", 0
    except KeyboardInterrupt:
        last, code = "Interrupted; what was saved so far stays.", 130
    except Exception as error:
        traceback.print_exc()
        last, code = sentence(error), 1
    finally:
        ray = sys.modules.get("ray")
        if ray is not None:
            # Before the last words, so that the log of another process does not come behind them.
            ray.shutdown()
    if last:
        sys.stdout.flush()
        _say(last)
    return code


def _say(message: object) -> None:
    print(f"SDPO: {message}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
