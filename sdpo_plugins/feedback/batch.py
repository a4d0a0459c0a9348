"""Scoring many responses at once in worker processes; a response that hangs or kills its worker fails alone."""

from __future__ import annotations

import logging
import math
import os
import threading
import weakref
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from sdpo_plugins._catalogues import SCORERS, collect, find, parse_options
from sdpo_plugins._registry import shared_manager
from sdpo_plugins.errors import ConfigError, PluginError, RewardError
from sdpo_plugins.feedback._pool import Pool
from sdpo_plugins.feedback._progress import Progress, reporting
from sdpo_plugins.feedback._run import CRASHED, TIMED_OUT, Lost, Run
from sdpo_plugins.feedback._worker import Recipe
from sdpo_plugins.types import Score

__all__ = ["CRASHED", "TIMED_OUT", "BatchScorer", "default_workers"]

TIMEOUT = 300.0
_MOST_WORKERS = 32
_HOPELESS = 32
_log = logging.getLogger("sdpo_plugins.feedback")


def default_workers() -> int:
    """Return how many worker processes a scorer has by default.

    The processors that this process may use, divided by the ranks on this machine (`LOCAL_WORLD_SIZE`), each of which
    has a scorer; at least 1, at most 32.
    """
    try:
        processors = len(os.sched_getaffinity(0))
    except AttributeError:  # only Linux says which ones
        processors = os.cpu_count() or 1
    ranks = max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    return max(1, min(processors // ranks, _MOST_WORKERS))


class BatchScorer:
    """Scores batches with a scorer of the catalogue, in worker processes that stay warm between batches.

    A response whose scoring takes longer than `timeout`, ends its worker, or makes the scorer raise something gets
    reward 0, no feedback, and `scoring_timed_out` or `scoring_crashed` in its details; the others are scored all the
    same, and one warning says how many there were. An error that concerns every response is raised: a bad dataset, a
    broken sandbox.

    Workers do not import the main program, so a script needs no `if __name__ == "__main__"`; they die with this
    process. They are started by the first batch. Any thread may score. After a fork, the child starts workers of its
    own.

    Args:
        name: A name of `catalogue("scorer")`.
        options: The scorer's own options.
        plugins: Plug-ins in use beside our own; workers import them again.
        workers: Number of processes; None: `default_workers()`.
        timeout: Seconds that one response may take. It is the last resort: scorers have limits of their own.
        progress: progress(done, total), called after each response; True: a bar on stderr if that is a terminal and
            the batch takes longer than a second; False: nothing.

    Raises:
        ConfigError: Unknown scorer, invalid options.
        PluginError: A plug-in cannot be used.

    Example:
        >>> with BatchScorer("multiple_choice", workers=1) as scorer:
        ...     scores = scorer(["<answer>B</answer>", "It is C."], [{"ground_truth": "B"}] * 2)
        >>> [score.reward for score in scores]
        [1.0, 0.0]
    """

    def __init__(
        self,
        name: str,
        options: Mapping[str, Any] | None = None,
        *,
        plugins: Sequence[str] = (),
        workers: int | None = None,
        timeout: float = TIMEOUT,
        progress: Progress | bool = True,
    ) -> None:
        _check(name, options or {}, plugins, workers, timeout, progress)
        self.name = name
        self.workers = default_workers() if workers is None else workers
        self.timeout = float(timeout)
        self.progress = progress
        self._recipe = Recipe(name, dict(options or {}), tuple(plugins))
        self._lock = threading.Lock()
        self._pool: Pool | None = None
        self._finalizer: Any = None
        self._neutral: dict[str, Any] | None = None
        self._crashes = 0

    def __call__(self, responses: Sequence[str], samples: Sequence[Mapping[str, Any]]) -> list[Score]:
        """Score responses.

        Args:
            responses: What the model wrote.
            samples: The dataset's row of each.

        Returns:
            One score each, in order. All have the same details.

        Raises:
            DataError: A sample cannot be used; also what the scorer raises.
            PluginError: The scorer does not keep its contract, or raised for 32 responses in a row.
            SDPOError: What the scorer needs is broken, e.g. its sandbox.
        """
        if len(responses) != len(samples):
            raise RewardError(f"There are {len(responses)} responses and {len(samples)} samples: give one for each.")
        with reporting(self.progress, f"Scoring ({self.name})", len(responses)) as report:
            found = Run(responses, samples, self, report).results()
        self._warn([each for each in found if isinstance(each, Lost)])
        done = [each for each in found if isinstance(each, Score)]
        if done:
            self._neutral = {key: _neutral(value) for score in done for key, value in score.details.items()}
        elif found and self._neutral is None:
            self._neutral = self._details_of_nothing(samples[0])
        return [self._finished(each) for each in found]

    def check(self) -> None:
        """Start the workers, and raise now what the first batch would raise: before a model is loaded for it.

        Raises:
            SDPOError: What the scorer needs is missing or broken: a library, a sandbox, a plug-in.
        """
        Run([], [], self, lambda done, total: None).try_out()

    def close(self) -> None:
        """End the workers; the next batch starts new ones."""
        with self._lock:
            if self._finalizer is not None:
                self._finalizer()
            self._pool = self._finalizer = None

    def __enter__(self) -> BatchScorer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> Any:
        # To another process goes what it was made from: processes and threads do not travel.
        recipe = self._recipe
        again = (recipe.name, recipe.options, recipe.plugins, self.workers, self.timeout, self.progress)
        return _remade, again

    def usable_pool(self, broken: Pool | None = None) -> Pool:
        """Return the pool of workers, a new one if there is none, or it broke; for `Run`.

        Args:
            broken: The pool that the caller found broken, if it is still the one in use.
        """
        with self._lock:
            if self._pool is broken or self._pool is None or not self._pool.usable:
                if self._finalizer is not None:
                    self._finalizer()
                self._pool = Pool(self._recipe, self.workers)
                self._finalizer = weakref.finalize(self, self._pool.close)
            return self._pool

    def _details_of_nothing(self, sample: Mapping[str, Any]) -> dict[str, Any]:
        """Learn which details there are, if no response could be scored yet: hosts want the same for all."""
        (found,) = Run([""], [sample], self, lambda done, total: None).results()
        return {key: _neutral(value) for key, value in found.details.items()} if isinstance(found, Score) else {}

    def _finished(self, found: Score | Lost) -> Score:
        flags = {TIMED_OUT: 0.0, CRASHED: 0.0}
        if isinstance(found, Score):
            return replace(found, details={**found.details, **flags})
        flags[found.key] = 1.0
        return Score(0.0, None, {**(self._neutral or {}), **flags})

    def _warn(self, lost: Sequence[Lost]) -> None:
        if lost:
            reasons = Counter(each.why for each in lost)
            listing = "; ".join(f"{count} × {why}" if count > 1 else why for why, count in reasons.most_common(3))
            _log.warning(
                "Scorer %r: %d response(s) count as failed without feedback: %s.", self.name, len(lost), listing
            )

    def count(self, found: Score | Lost) -> None:
        """Give up when nothing but crashes comes; for `Run`.

        Raises:
            PluginError: This was one too many in a row.
        """
        crashed = isinstance(found, Lost) and found.key == CRASHED
        self._crashes = self._crashes + 1 if crashed else 0
        if isinstance(found, Lost) and self._crashes >= _HOPELESS:
            raise PluginError(
                f"The scorer {self.name!r} failed for {_HOPELESS} responses in a row, the last: {found.why}"
            )


def _remade(
    name: str,
    options: Mapping[str, Any],
    plugins: Sequence[str],
    workers: int,
    timeout: float,
    progress: Progress | bool,
) -> BatchScorer:
    return BatchScorer(name, options, plugins=plugins, workers=workers, timeout=timeout, progress=progress)


def _check(
    name: str,
    options: Mapping[str, Any],
    plugins: Sequence[str],
    workers: Any,
    timeout: Any,
    progress: Any,
) -> None:
    problems: list[str] = []
    if isinstance(plugins, str) or not all(isinstance(each, str) for each in plugins):
        raise ConfigError(f"`plugins` must be a list of names, got {plugins!r}.")
    try:
        parse_options(find(collect(shared_manager(tuple(plugins)), SCORERS), SCORERS, name), SCORERS, options)
    except ConfigError as error:
        problems += error.problems
    if workers is not None and (isinstance(workers, bool) or not isinstance(workers, int) or workers < 1):
        problems.append(f"`workers` must be a whole number of at least 1, or null, got {workers!r}.")
    numeric = isinstance(timeout, (int, float)) and not isinstance(timeout, bool)
    if not numeric or not 0 < timeout < math.inf:
        problems.append(f"`timeout` must be a finite number of seconds above 0, got {timeout!r}.")
    if not callable(progress) and not isinstance(progress, bool):
        problems.append(f"`progress` must be a function, true or false, got {progress!r}.")
    if problems:
        raise ConfigError(problems)


def _neutral(value: Any) -> Any:
    if isinstance(value, str):
        return ""
    return 0.0 if isinstance(value, (bool, int, float)) else None
