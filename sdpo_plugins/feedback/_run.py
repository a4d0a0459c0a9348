"""One batch of responses on its way through the workers."""

from __future__ import annotations

import logging
import pickle
import queue
import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import CancelledError, Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any, Protocol

from pebble import ProcessExpired

from sdpo_plugins.errors import DataError, PluginError, RewardError, SDPOError
from sdpo_plugins.feedback._pool import Pool
from sdpo_plugins.feedback._progress import Progress
from sdpo_plugins.feedback._worker import NOTHING, Failed
from sdpo_plugins.types import Score

__all__ = ["CRASHED", "TIMED_OUT", "Lost", "Run"]

TIMED_OUT = "scoring_timed_out"
"""The detail that is 1 where scoring a response took longer than `timeout`."""
CRASHED = "scoring_crashed"
"""The detail that is 1 where a response ended its worker, or made the scorer raise something."""

_NEW_POOLS = 5
_log = logging.getLogger("sdpo_plugins.feedback")


@dataclass(frozen=True)
class Lost:
    """What became of a response that has no score.

    Args:
        key: `TIMED_OUT` or `CRASHED`.
        why: For a warning.
    """

    key: str
    why: str


class Owner(Protocol):
    """What a run needs of the scorer that it runs for."""

    name: str
    timeout: float

    def usable_pool(self, broken: Pool | None = None) -> Pool: ...

    def count(self, found: Score | Lost) -> None: ...


class Run:
    """Scores a batch, and starts workers again where they broke.

    Args:
        responses: What the model wrote.
        samples: The dataset's rows.
        owner: Has the workers.
        report: Told how many are done.
    """

    def __init__(
        self, responses: Sequence[str], samples: Sequence[Mapping[str, Any]], owner: Owner, report: Progress
    ) -> None:
        self._responses, self._samples, self._owner, self._report = responses, samples, owner, report
        self._found: dict[int, Score | Lost] = {}
        self._ready: queue.SimpleQueue[tuple[int, Future[bytes]]] = queue.SimpleQueue()
        # With each future, the time by which it is over whatever happened to its worker.
        self._running: dict[int, tuple[Future[bytes], float]] = {}

    def results(self) -> list[Score | Lost]:
        """Score, and return what was found for each response, in order."""
        total = len(self._responses)
        waiting = deque(range(total))
        self._report(0, total)
        if not total:
            return []
        pool = self._owner.usable_pool()
        # Enough to keep workers busy, few enough to take back when an error ends the batch.
        width, breaks, seen = 2 * pool.workers, 0, 0
        try:
            while waiting or self._running:
                try:
                    while waiting and len(self._running) < width:
                        self._submit(pool, waiting[0])
                        waiting.popleft()
                    self._take_one()
                except BrokenProcessPool as error:
                    unfinished = sorted(self._running)
                    self._running.clear()
                    if width == 1 and unfinished:
                        self._keep(unfinished.pop(), Lost(CRASHED, f"its worker ended ({error})"))
                    waiting.extendleft(reversed(unfinished))
                    # One after another from here on: should it break again, it is clear for which response.
                    width = 1
                    breaks = breaks + 1 if len(self._found) == seen else 0
                    seen = len(self._found)
                    if breaks >= _NEW_POOLS:
                        raise SDPOError(
                            f"The worker processes of the scorer {self._owner.name!r} end as soon as they start "
                            f"({error}). Their own messages are on standard error."
                        ) from error
                    pool = self._owner.usable_pool(broken=pool)
        finally:
            for future, _ in self._running.values():
                future.cancel()
        return [self._found[at] for at in range(total)]

    def try_out(self) -> None:
        """Start the workers and raise what keeps the scorer from being built; scores nothing."""
        future, seconds = self._owner.usable_pool().submit(NOTHING, self._owner.timeout)
        try:
            result = pickle.loads(future.result(seconds))
        except (TimeoutError, ProcessExpired, BrokenProcessPool) as error:
            raise SDPOError(
                f"A worker of the scorer {self._owner.name!r} ended before it had built the scorer, or did not come to "
                f"an end ({type(error).__name__}: {error}). Its own messages are on standard error."
            ) from error
        self._outcome(result)

    def _submit(self, pool: Pool, at: int) -> None:
        packed = _packed(self._responses[at], self._samples[at], at)
        future, seconds = pool.submit(packed, self._owner.timeout)
        self._running[at] = (future, time.monotonic() + seconds)
        future.add_done_callback(lambda done: self._ready.put((at, done)))

    def _take_one(self) -> None:
        first = min(limit for _, limit in self._running.values())
        try:
            at, future = self._ready.get(timeout=max(0.0, first - time.monotonic()))
        except queue.Empty:
            raise BrokenProcessPool("the workers do not answer") from None
        if at not in self._running or self._running[at][0] is not future:
            return  # of a pool that broke, and asked again since
        try:
            found = self._outcome(pickle.loads(future.result()))
        except TimeoutError:
            found = Lost(TIMED_OUT, f"scoring took longer than timeout={self._owner.timeout:g} s")
        except ProcessExpired as error:
            found = Lost(CRASHED, f"its worker ended with code {error.exitcode}")
        except CancelledError:
            raise BrokenProcessPool("the work was cancelled") from None
        self._keep(at, found)

    def _keep(self, at: int, found: Score | Lost) -> None:
        self._running.pop(at, None)
        self._found[at] = found
        self._owner.count(found)
        self._report(len(self._found), len(self._responses))

    def _outcome(self, result: Any) -> Score | Lost:
        if isinstance(result, Score):
            return result
        assert isinstance(result, Failed)
        error = result.error
        if not result.built:
            if isinstance(error, SDPOError):  # a library or a sandbox that is missing: it says what to do
                raise error
            error = PluginError(f"The scorer {self._owner.name!r} cannot be built: {type(error).__name__}: {error}")
        if isinstance(error, SDPOError):
            error.add_note(f"In a worker of the scorer {self._owner.name!r}:\n{result.trace}")
            raise error
        _log.debug("Scorer %r raised:\n%s", self._owner.name, result.trace)
        return Lost(CRASHED, f"the scorer raised {type(error).__name__}: {error}")


def _packed(response: Any, sample: Any, at: int) -> bytes:
    if not isinstance(response, str):
        raise RewardError(f"Response {at} must be a text, got {response!r} ({type(response).__name__}).")
    if not isinstance(sample, Mapping):
        raise DataError(f"Sample {at} must be a mapping, the dataset's row, got {sample!r} ({type(sample).__name__}).")
    try:
        return pickle.dumps((response, dict(sample)))
    except Exception as error:
        raise DataError(
            f"Sample {at} cannot be given to a worker process ({type(error).__name__}: {error}). Its fields are "
            f"{', '.join(map(str, sample))}: leave out what is no plain data."
        ) from error
