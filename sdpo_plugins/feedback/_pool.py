"""A pool of worker processes with one scorer each: Pebble's, started safely, kept to one process, ended for certain."""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import multiprocessing.util
import os
import pickle
import threading
from concurrent.futures import Future, InvalidStateError
from concurrent.futures.process import BrokenProcessPool

import pebble

from sdpo_plugins.errors import SDPOError
from sdpo_plugins.feedback._context import WorkerContext
from sdpo_plugins.feedback._worker import Recipe, prepare, score_one

__all__ = ["Pool"]

_START_SECONDS = 60.0
_END_SECONDS = 5.0

# The process that starts no more workers, because it is at its end.
_ending = 0


class Pool:
    """Worker processes that stay warm until `close`, or until this process ends.

    Args:
        recipe: The scorer.
        workers: Number of processes.

    Raises:
        SDPOError: Processes cannot be started here.
    """

    def __init__(self, recipe: Recipe, workers: int) -> None:
        if multiprocessing.current_process().daemon:
            raise SDPOError(
                f"The scorer {recipe.name!r} needs worker processes, which a daemonic process of multiprocessing, such "
                "as a worker of a data loader, cannot start. Score in the main process."
            )
        self.pid = os.getpid()
        if self.pid == _ending:
            if threading.current_thread().daemon:  # nobody waits for it any more, and it is not to complain
                threading.Event().wait()
            raise SDPOError(f"The scorer {recipe.name!r} cannot start workers: this process is ending.")
        self.workers = workers
        self._context = WorkerContext()
        self._pebble = pebble.ProcessPool(
            max_workers=workers,
            initializer=prepare,
            initargs=(pickle.dumps(recipe), self.pid),
            context=self._context,
        )
        # At the end of this process; unlike `atexit`, also of one that multiprocessing started.
        self._at_exit = multiprocessing.util.Finalize(None, self._end, exitpriority=100)
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._pending: set[Future[bytes]] = set()
        started = threading.Event()
        problem: list[BaseException] = []

        def keep() -> None:
            # Workers die with the thread that started them, so that one waits. Those that come later are started by
            # Pebble's own thread, which lives as long.
            try:
                self._pebble.active  # noqa: B018  starts it
            except BaseException as error:
                problem.append(error)
            finally:
                started.set()
            self._closed.wait()

        threading.Thread(target=keep, daemon=True, name="sdpo-scorer-pool").start()
        if not started.wait(_START_SECONDS) or problem:
            self.close()
            raise SDPOError(
                f"The {workers} worker processes of the scorer {recipe.name!r} could not be started: "
                f"{problem[0] if problem else f'not within {_START_SECONDS:g} s'}."
            ) from (problem[0] if problem else None)

    @property
    def usable(self) -> bool:
        """Whether it takes work: it belongs to this process, not to the one that this was forked from, and is whole."""
        return self.pid == os.getpid() and not self._closed.is_set() and self._pebble.active

    def submit(self, packed: bytes, seconds: float) -> tuple[Future[bytes], float]:
        """Schedule one response; a worker that takes longer is ended, and the future then raises `TimeoutError`.

        Args:
            packed: As for `score_one`.
            seconds: From when a worker takes it.

        Returns:
            The future, and how many seconds from now it is over for certain, unless the pool is broken: those who came
            before have their time too.

        Raises:
            BrokenProcessPool: The pool is broken or closed.
        """
        try:
            future: Future[bytes] = self._pebble.schedule(score_one, args=(packed,), timeout=seconds)
        except RuntimeError as error:
            raise BrokenProcessPool(str(error)) from error
        with self._lock:
            self._pending.add(future)
            before = len(self._pending)
        future.add_done_callback(self._forget)
        if self._closed.is_set():
            self._abandon()
        return future, seconds * (1 + math.ceil(before / self.workers)) + _START_SECONDS

    def close(self) -> None:
        """End all workers at once, whatever they do; what is scheduled fails with `BrokenProcessPool`."""
        if self.pid != os.getpid() or self._closed.is_set():
            return
        self._closed.set()
        self._pebble.stop()
        self._context.close()
        # It has nothing to wait for any more; should it wait all the same, the process must not.
        ending = threading.Thread(target=self._pebble.join, daemon=True)
        ending.start()
        ending.join(_END_SECONDS)
        self._abandon()
        self._at_exit.cancel()

    def _end(self) -> None:
        global _ending
        _ending = self.pid
        self.close()

    def _forget(self, future: Future[bytes]) -> None:
        with self._lock:
            self._pending.discard(future)

    def _abandon(self) -> None:
        with self._lock:
            pending = list(self._pending)
        for future in pending:
            with contextlib.suppress(InvalidStateError):
                future.set_exception(BrokenProcessPool("the pool was closed"))
